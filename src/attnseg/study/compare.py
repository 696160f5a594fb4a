"""Comparison of variants from their run folders: quality with its uncertainty, beside cost."""

import logging
import math
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Any

import pandas as pd

from attnseg.config.training import Study
from attnseg.errors import DataError, listed
from attnseg.progress import track
from attnseg.runs.run_folder import RunFolder
from attnseg.runs.variants import (
    Variant,
    find_runs,
    group_by_variant,
    match_baselines,
    open_finished_runs,
)
from attnseg.study import caveats, doubts, figures, page, patient_scores, statistics, tables
from attnseg.study.checks import check_comparable, profile_title
from attnseg.study.comparison import Comparison
from attnseg.study.contrasts import Contrast, Decision, PairedValues, contrast_family, pair_values
from attnseg.study.costs import COSTS, average_costs, find_pareto_front
from attnseg.study.detection import count_errors, doubt_errors
from attnseg.study.margins import Margin, settle_margin
from attnseg.study.metric import ComparedMetric, choose_metric
from attnseg.study.null_control import doubt_attentions, find_null_controls
from attnseg.study.score_sheet import ScoreSheet
from attnseg.study.trainings import average_seeds, deviate_seeds
from attnseg.study.verdict import write_headline, write_verdict
from attnseg.study.wording import count_text

log = logging.getLogger(__name__)
SEED_SD = ("seed_sd", "seed_sd_low", "seed_sd_high")  # columns: of the seeds' means, and interval


def compare_runs(
    runs: Sequence[str],
    *,
    baseline: str = "qkv",
    by: Sequence[str] = ("model", "attn"),
    split: str = "test",
    metric: str | None = None,
    margin: float | Mapping[str, Any] | None = None,
    level: float = 0.95,
    cases: int = 40,
    outputs: str | Path = "outputs/comparison",
    seed: int = 0,
    notes: Sequence[str] = (),
) -> Comparison:
    """Compare the variants among finished runs; print tables, write files, figures and the page.

    Args:
        runs: run folders, or globs of them.
        baseline: variant that the others are compared with.
        by: what defines a variant: groups of the configuration, or dotted keys.
        split: `val` or `test`.
        metric: name in `cases.csv`; `None` for the first of the profile.
        margin: of equivalence, in the metric's unit; `None` for that which the study declared, or
            0.01 of a share; of a length there is no default. Of a study, all its settings.
        level: of the intervals.
        cases: maximum number of single cases on the page.
        outputs: folder for the files.
        seed: of the resampling.
        notes: sentences for the reader, such as on how the variants were tuned.

    Raises:
        ConfigError: a key or the baseline does not exist, or the metric cannot be compared.
        DataError: runs cannot be compared, or there is only one variant; lists every problem.
    """
    variants, bases = _open_variants(runs, by, split, baseline)
    chosen = choose_metric(variants[0].runs[0], split, metric)
    every = [run for variant in variants for run in variant.runs]
    settled = settle_margin(margin, every, chosen)
    settings = ComparisonSettings(bases, by, split, chosen, settled, level, seed)
    made = build_comparison(variants, settings)
    comparison = replace(made, notes=[*made.notes, *notes])
    folder = Path(outputs)
    folder.mkdir(parents=True, exist_ok=True)
    tables.print_comparison(comparison)
    tables.write_tables(comparison, folder)
    figures.write_figures(comparison, folder)
    options = {"baseline": baseline, "split": split, "metric": chosen.name, "margin": settled.size}
    options |= {"level": level, "cases": cases, "seed": seed}
    path = folder / page.PAGE_NAME
    command = _command_line(runs, by, options)
    path.write_text(page.render_page(comparison, variants, split, cases, command))
    log.info("Written: %s", path)
    return comparison


def compare_study(
    runs: Sequence[str], study: Study, outputs: Path, notes: Sequence[str] = ()
) -> None:
    """Compare the runs of a study as it is configured, once for each metric."""
    metrics: list[str | None] = [*study.metrics] or [None]
    for metric in metrics:
        compare_runs(
            runs,
            baseline=study.baseline,
            by=study.by,
            metric=metric,
            margin=study.model_dump(),
            outputs=outputs / (metric or ""),
            notes=notes,
        )


def _open_variants(
    runs: Sequence[str], by: Sequence[str], split: str, baseline: str
) -> tuple[list[Variant], dict[str, str]]:
    """Return comparable variants, each baseline before its own, and the baselines by name."""
    try:
        variants = group_by_variant(open_finished_runs(find_runs(runs)), by)
        check_comparable(variants, split)
    except DataError as error:
        raise listed(error, "runs", "leave out the runs that do not belong") from error
    bases = match_baselines(variants, baseline)
    if not bases:
        raise DataError(f"runs: only {variants[0].name} is there; add runs of another variant")
    position = {variant.name: at for at, variant in enumerate(variants)}
    variants.sort(key=lambda v: (position[bases.get(v.name, v.name)], v.name in bases))
    return variants, bases


def _command_line(runs: Sequence[str], by: Sequence[str], options: Mapping[str, object]) -> str:
    """Return the command line that repeats the comparison."""
    options = {"runs": f"[{','.join(runs)}]", "by": f"[{','.join(by)}]", **options}
    return shlex.join(
        [
            "attnseg",
            "compare",
            *(f"{key}={'null' if value is None else value}" for key, value in options.items()),
        ]
    )


@dataclass(frozen=True)
class ComparisonSettings:
    """Settings of a comparison; see `compare_runs`."""

    bases: Mapping[str, str]  # baseline of each other variant, by name
    by: Sequence[str]
    split: str
    metric: ComparedMetric
    margin: Margin
    level: float
    seed: int


def build_comparison(variants: Sequence[Variant], settings: ComparisonSettings) -> Comparison:
    """Compare comparable variants, each baseline of which precedes those compared with it.

    Raises:
        DataError: two variants have no patient in common.
    """
    bases, split, metric = settings.bases, settings.split, settings.metric
    margin, level, seed = settings.margin.size, settings.level, settings.seed
    patients = patient_scores.tabulate_variants(variants, split, metric.name)
    sheet = ScoreSheet.of(variants, split, metric)
    pairs = _pair_variants(sheet)
    against = [pair_values(sheet, one, base) for one, base in bases.items()]
    by_class = {
        name: patient_scores.tabulate_variants(variants, split, metric.name, [name])
        for name in sheet.classes
    }
    rows = _describe_variants(variants, settings, patients)
    families = track([against, pairs, _pair_classes(sheet, bases)], "Comparing", "tables")
    decision = Decision(margin, metric.up, metric.worst, level, seed)
    contrasts, of_pairs, of_classes = (contrast_family(f, decision) for f in families)
    rows["pareto_front"] = _place_on_front(rows, of_pairs, metric)
    errors, controls = count_errors(sheet, bases), find_null_controls(variants)
    splits = len(variants[0].folds)
    return Comparison(
        title=_write_title(variants[0].runs[0], settings, len(by_class), len(patients)),
        metric=metric,
        baseline=_shared_name(bases, variants),
        bases=bases,
        margin=margin,
        level=level,
        variants=rows,
        against=contrasts,
        pairs=of_pairs,
        classes=of_classes,
        class_means=pd.DataFrame({name: table.mean() for name, table in by_class.items()}).T,
        class_undefined=_count_undefined(variants, settings, sheet.classes),
        values=against,
        seed_means=_average_seeds(variants, settings),
        splits=splits,
        patients=patients,
        errors=errors,
        controls=controls,
        headline=write_headline(
            contrasts, _shared_name(bases, variants), metric, margin, controls, splits
        ),
        verdicts=[write_verdict(c, metric) for c in contrasts],
        notes=caveats.write_notes(variants, split, metric, patients, settings.margin, seed),
        warnings=[
            *doubts.collect_doubts(variants, split),
            *doubt_attentions(variants, contrasts, controls, metric, margin),
            *doubt_errors(errors, bases, 1 - level),
            *([settings.margin.doubt] if settings.margin.doubt else []),
            *caveats.collect_warnings(variants, settings.by, patients, rows),
        ],
        watermark=_join_watermarks(variants),
    )


def _count_undefined(
    variants: Sequence[Variant], settings: ComparisonSettings, classes: Sequence[str]
) -> pd.DataFrame:
    """Count the undefined values by class (rows) and variant (columns)."""
    counts = {
        variant.name: [
            patient_scores.count_undefined(variant, settings.split, settings.metric.name, [name])
            for name in classes
        ]
        for variant in variants
    }
    return pd.DataFrame(counts, index=list(classes))


def _pair_variants(sheet: ScoreSheet) -> list[PairedValues]:
    """Return the values of all pairs of variants, each of which shares some patients."""
    pairs = [pair_values(sheet, b, a) for a, b in combinations(sheet.runs, 2)]
    for pair in pairs:
        if pair.own.empty:
            raise DataError(
                f"runs: no patient has a value under both {pair.baseline} and {pair.variant}; "
                "choose another metric"
            )
    return pairs


def _pair_classes(sheet: ScoreSheet, bases: Mapping[str, str]) -> list[PairedValues]:
    """Return the pairs with the baselines class by class, where any patient has both."""
    pairs = [
        pair_values(sheet, variant, base, name)
        for name in sheet.classes
        for variant, base in bases.items()
    ]
    return [pair for pair in pairs if not pair.own.empty]


def _shared_name(bases: Mapping[str, str], variants: Sequence[Variant]) -> str:
    """Return the baseline's name; for several baselines, the part of the name they share."""
    names = set(bases.values())
    if len(names) == 1:
        return names.pop()
    keys = [variant.key for variant in variants if variant.name in names]
    shared = [values[0] for values in zip(*keys, strict=True) if len(set(values)) == 1]
    return f"the matching {'/'.join(shared)}"


def _write_title(run: RunFolder, settings: ComparisonSettings, classes: int, patients: int) -> str:
    return (
        f"{run.facts.choices['dataset']}, {settings.split}: {settings.metric.label}, mean of "
        f"{classes} class{'' if classes == 1 else 'es'}, {count_text(patients, 'patient')}, "
        f"profile {profile_title(run)}"
    )


def _join_watermarks(variants: Sequence[Variant]) -> str | None:
    marks = {run.watermark for v in variants for run in v.runs if run.watermark is not None}
    return "; ".join(sorted(marks)) or None


def _place_on_front(
    rows: pd.DataFrame, pairs: Sequence[Contrast], metric: ComparedMetric
) -> list[str]:
    """Return the place of each variant with regard to the Pareto front of quality and MACs."""
    quality, macs = ({str(k): float(v) for k, v in rows[key].items()} for key in ("mean", "macs"))
    return list(find_pareto_front(quality, macs, pairs, metric.up).values())


def _average_seeds(variants: Sequence[Variant], settings: ComparisonSettings) -> pd.DataFrame:
    """Return the mean over patients of each training, by variant (rows) and seed (columns)."""
    metric = settings.metric.name
    tables = {v.name: patient_scores.tabulate_seeds(v, settings.split, metric) for v in variants}
    means = {
        name: pd.Series(average_seeds(table), index=table.columns) for name, table in tables.items()
    }
    return pd.DataFrame(means).T


def _describe_variants(
    variants: Sequence[Variant], settings: ComparisonSettings, patients: pd.DataFrame
) -> pd.DataFrame:
    """Return one row per variant: quality with its interval, seeds, counts and costs."""
    split, metric = settings.split, settings.metric
    rows = []
    for variant in variants:
        own = patients[variant.name].dropna().to_numpy(float)
        seeds = patient_scores.tabulate_seeds(variant, split, metric.name)
        low, high = statistics.bca_interval(own, settings.level, settings.seed)
        variance = statistics.seed_variance(seeds.to_numpy(float))
        rows.append(
            {
                "variant": variant.name,
                "mean": float(own.mean()) if len(own) else math.nan,
                "low": low,
                "high": high,
                "patients": len(own),
                "runs": len(variant.runs),
                "seeds": len(variant.seeds),
                "patient_sd": math.sqrt(variance.patients),
                **dict(zip(SEED_SD, deviate_seeds(average_seeds(seeds)), strict=True)),
                "rest_sd": math.sqrt(variance.rest),
                "undefined": patient_scores.count_undefined(variant, split, metric.name),
                "values": patient_scores.count_values(variant, split, metric.name),
                **average_costs(variant.runs),
            }
        )
    table = pd.DataFrame(rows).set_index("variant")
    base = table.loc[[settings.bases.get(str(name), str(name)) for name in table.index]]
    for name in COSTS:
        table[f"{name}_change_percent"] = 100 * (table[name] / base[name].to_numpy() - 1)
    return table
