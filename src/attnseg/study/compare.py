"""Comparison of variants from their run folders: quality, with what it is worth, beside cost."""

import logging
import math
import shlex
from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path

import pandas as pd

from attnseg.errors import DataError, listed
from attnseg.runs.finished import Run, Variant, baselines, find, group, load
from attnseg.study import comparable, notes, page, plots, statistics, tables, values
from attnseg.study.comparison import Comparison
from attnseg.study.contrasts import Contrast, Pair, contrasts, paired
from attnseg.study.costs import COSTS, costs, pareto_front
from attnseg.study.metric import Metric, choose
from attnseg.study.verdict import verdict

log = logging.getLogger(__name__)


def compare(
    runs: Sequence[str],
    *,
    baseline: str = "qkv",
    by: Sequence[str] = ("model", "attn"),
    split: str = "test",
    metric: str | None = None,
    margin: float = 0.01,
    level: float = 0.95,
    cases: int = 40,
    outputs: str | Path = "outputs/comparison",
    seed: int = 0,
) -> Comparison:
    """Compare the variants among finished runs; print tables, write files and plots.

    Args:
        runs: run folders, or globs of them.
        baseline: variant that the others are held against.
        by: what makes a variant: groups of the configuration, or dotted keys.
        split: `val` or `test`.
        metric: as in `cases.csv`; `None` for the first of the profile.
        margin: differences up to here do not matter, in the metric's unit.
        level: of the intervals.
        cases: shown singly on the page, at most.
        outputs: folder for the files.
        seed: of resampling.

    Raises:
        ConfigError: a key or the baseline names nothing, or the metric cannot be compared.
        DataError: runs cannot be compared, or there is only one variant; names every problem.
    """
    try:
        variants = group(load(find(runs)), by)
        comparable.check(variants, split)
    except DataError as error:
        raise listed(error, "runs", "leave out the runs that do not belong") from error
    bases = baselines(variants, baseline)
    if not bases:
        raise DataError(f"runs: only {variants[0].name} is there; add runs of another variant")
    places = {variant.name: place for place, variant in enumerate(variants)}
    ordered = sorted(variants, key=lambda v: (places[bases.get(v.name, v.name)], v.name in bases))
    chosen = choose(ordered[0].runs[0], split, metric)
    found = build(ordered, bases, by, split, chosen, margin, level, seed)
    folder = Path(outputs)
    folder.mkdir(parents=True, exist_ok=True)
    tables.show(found)
    tables.write(found, folder)
    plots.forest(found, folder / "forest.png")
    plots.pareto(found, folder / "pareto.png")
    command = _command(
        runs,
        by,
        baseline=baseline,
        split=split,
        metric=chosen.name,
        margin=margin,
        level=level,
        cases=cases,
        seed=seed,
    )
    page.write(found, ordered, split, cases, command, folder / page.NAME)
    log.info("Written: %s", folder / page.NAME)
    return found


def _command(runs: Sequence[str], by: Sequence[str], **options: object) -> str:
    """Return the command line that compares the same."""
    words = [f"runs=[{','.join(runs)}]", f"by=[{','.join(by)}]"]
    words += [f"{key}={value}" for key, value in options.items()]
    return shlex.join(["attnseg", "compare", *words])


def build(
    variants: Sequence[Variant],
    bases: Mapping[str, str],
    by: Sequence[str],
    split: str,
    metric: Metric,
    margin: float,
    level: float,
    seed: int,
) -> Comparison:
    """Compute a comparison.

    Args:
        variants: checked to be comparable.
        bases: what each is held against, by name, from `baselines`.
        by: what makes a variant.
        split: `val` or `test`.
        metric: to compare.
        margin: of equivalence, in the metric's unit.
        level: of the intervals.
        seed: of resampling.

    Raises:
        DataError: two variants have no patient in common.
    """
    patients = values.by_variant(variants, split, metric.name)
    pairs = [paired(patients, one, base) for one, base in bases.items()]
    every = [paired(patients, one, two) for two, one in combinations(patients.columns, 2)]
    _check_common(every)
    against = contrasts(pairs, margin, level, seed)
    by_class = {
        name: values.by_variant(variants, split, metric.name, [name])
        for name in values.select(variants[0].runs[0], split, metric.name)["class"].unique()
    }
    class_pairs = [
        pair
        for name, table in by_class.items()
        for pair in (paired(table, one, base, name) for one, base in bases.items())
        if len(pair.differences)
    ]
    rows = describe(variants, bases, split, metric, patients, level, seed)
    undefined = {
        name: [values.undefined(v, split, metric.name, [name]) for v in variants]
        for name in by_class
    }
    marks = {run.watermark for v in variants for run in v.runs if run.watermark is not None}
    return Comparison(
        title=_title(variants[0].runs[0], split, metric, len(patients)),
        metric=metric,
        baseline=_label(bases, variants),
        bases=bases,
        margin=margin,
        level=level,
        variants=rows,
        against=against,
        pairs=contrasts(every, margin, level, seed),
        classes=contrasts(class_pairs, margin, level, seed),
        class_means=pd.DataFrame({name: table.mean() for name, table in by_class.items()}).T,
        class_undefined=pd.DataFrame(undefined, index=patients.columns).T,
        patients=patients,
        verdicts=[verdict(c, metric, margin, _seeds_move(rows, c)) for c in against],
        notes=notes.notes(variants, split, metric, patients, margin, seed),
        warnings=notes.warnings(variants, by, patients, rows),
        watermark="; ".join(sorted(marks)) or None,
    )


def _label(bases: Mapping[str, str], variants: Sequence[Variant]) -> str:
    """Return the baseline's name; of several, what they have in common."""
    names = set(bases.values())
    if len(names) == 1:
        return names.pop()
    keys = [variant.key for variant in variants if variant.name in names]
    common = [parts[0] for parts in zip(*keys, strict=True) if len(set(parts)) == 1]
    return f"the matching {'/'.join(common)}"


def describe(
    variants: Sequence[Variant],
    bases: Mapping[str, str],
    split: str,
    metric: Metric,
    patients: pd.DataFrame,
    level: float,
    seed: int,
) -> pd.DataFrame:
    """Return a row per variant: quality with its interval, seeds, counts and costs."""
    rows = []
    for variant in variants:
        own = patients[variant.name].dropna().to_numpy(float)
        seeds = values.by_seed(variant, split, metric.name)
        low, high = statistics.bca_interval(own, level, seed)
        parts = statistics.seed_variance(seeds.to_numpy(float))
        rows.append(
            {
                "variant": variant.name,
                "mean": float(own.mean()) if len(own) else math.nan,
                "low": low,
                "high": high,
                "patients": len(own),
                "runs": len(variant.runs),
                "seeds": len(variant.seeds),
                "patient_sd": math.sqrt(parts.patients),
                "seed_sd": math.sqrt(parts.seeds),
                "rest_sd": math.sqrt(parts.rest),
                "undefined": values.undefined(variant, split, metric.name),
                **costs(variant.runs),
            }
        )
    table = pd.DataFrame(rows).set_index("variant")
    quality = table["mean"] if metric.up else -table["mean"]
    table["pareto_front"] = pareto_front(quality.to_list(), table["macs"].to_list())
    before = table.loc[[bases.get(str(name), str(name)) for name in table.index]]
    for name in COSTS:
        table[f"{name}_change_percent"] = 100 * (table[name] / before[name].to_numpy() - 1)
    return table


def _check_common(pairs: Sequence[Pair]) -> None:
    for pair in pairs:
        if not len(pair.differences):
            raise DataError(
                f"runs: no patient has a value under both {pair.baseline} and {pair.variant}; "
                "choose another metric"
            )


def _title(run: Run, split: str, metric: Metric, patients: int) -> str:
    rows = values.select(run, split, metric.name)
    classes = rows["class"].nunique()
    return (
        f"{run.facts['choices']['dataset']}, {split}: {metric.label}, mean of {classes} "
        f"class{'' if classes == 1 else 'es'}, {patients} patients, profile {comparable.title(run)}"
    )


def _seeds_move(rows: pd.DataFrame, contrast: Contrast) -> float:
    """Return two standard deviations of the difference that are due to seeds; NaN if unknown."""
    pair = rows.loc[[contrast.variant, contrast.baseline]]
    return 2 * math.sqrt(float((pair["seed_sd"] ** 2 / pair["seeds"]).sum(skipna=False)))
