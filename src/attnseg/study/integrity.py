"""Signs that the files of a run were changed after it wrote them; a comparison refuses such runs.

A run notes the digests of its results, and a seal of all its facts. Runs of version 0.1.0 have
neither: their scores are held against `split.csv`, against each other, and against the range of
each metric.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence

import numpy as np
import pandas as pd

from attnseg.data.closed_test import digest_cases, digest_test_set
from attnseg.files import file_digest
from attnseg.metrics.bounds import VOLUMES
from attnseg.runs.facts import keeps_seal
from attnseg.runs.run_folder import RunFolder
from attnseg.runs.variants import Variant
from attnseg.study.metric import find_bounds, state_by_name
from attnseg.study.patient_scores import WEIGHTED

ROW = ["patient", "case", "class", "metric"]  # columns that tell the rows of a split apart
ROUNDING = 1e-6  # by which a value may exceed its bounds
REMEDY = "restore it or train again with trainer.repeat=true"


def find_changed_runs(runs: Sequence[RunFolder], split: str) -> Iterator[str]:
    """Yield a problem for each sign that the files of a run were changed."""
    for run in runs:
        yield from _find_changed_files(run)
        yield from _find_contradictions(run, split)
        yield from _find_impossible_values(run, split)
        yield from _find_repeated_rows(run, split)
        yield from _compare_with_split(run, split)


def find_unlike_runs(variants: Sequence[Variant], split: str) -> Iterator[str]:
    """Yield a problem for each run that lacks rows or has more, and for each copy of a run.

    The runs are known to be on the same data and splits.
    """
    yield from _compare_rows([run for variant in variants for run in variant.runs], split)
    yield from _find_copies(variants, split)


def select_rows(run: RunFolder, split: str) -> pd.DataFrame:
    """Return the rows of `cases.csv` for a split."""
    cases = run.cases
    # Older runs have a row of a weighted metric, without a value, where both masks are empty.
    return cases[(cases["split"] == split) & ~cases["metric"].isin(WEIGHTED)]


def _find_changed_files(run: RunFolder) -> Iterator[str]:
    if not keeps_seal(run.facts_file.read_text()):
        yield f"{run.facts_file}: changed since the run wrote it; {REMEDY}"
    for name, digest in run.facts.results.items():
        path = run.path / name
        if not path.is_file():
            yield f"{path}: missing; {REMEDY}"
        elif file_digest(path) != digest:
            yield f"{path}: changed since the run wrote it; {REMEDY}"


def _find_contradictions(run: RunFolder, split: str) -> Iterator[str]:
    """Yield a problem for each fact that two files of a run state differently."""
    noted, config = run.facts.profile, run.raw_config
    if "digest" in noted and noted["digest"] != run.profile["digest"]:
        yield f"{run.metrics_file}: another metric profile than in run.json; {REMEDY}"
    names = set(run.cases.loc[run.cases["split"] == split, "profile"])
    if names - {run.profile["name"]}:
        yield f"{run.cases_file}: another metric profile than in metrics.json; {REMEDY}"
    if config.get("seed", run.seed) != run.seed:
        yield f"{run.config_file}: seed {config['seed']}, but {run.seed} in run.json; {REMEDY}"


def _find_impossible_values(run: RunFolder, split: str) -> Iterator[str]:
    rows = select_rows(run, split)
    for metric, own in rows.groupby("metric", sort=False):
        low, high = _find_bounds(run, split, str(metric))
        value = own["value"]
        wrong = own[(value < low - ROUNDING) | (value > high + ROUNDING) | np.isinf(value)]
        if len(wrong):
            first = wrong.iloc[0]
            limits = f"from {low:g} to {high:g}" if math.isfinite(high) else "finite"
            if math.isfinite(low) and not math.isfinite(high):
                limits = f"a finite number from {low:g} on"
            yield (
                f"{run.cases_file}: {metric} of case {first['case']}, class {first['class']} is "
                f"{first['value']:g}, not {limits}{_count_more(len(wrong))}; {REMEDY}"
            )


def _find_bounds(run: RunFolder, split: str, metric: str) -> tuple[float, float]:
    """Return the bounds of a column of `cases.csv`, which may be one that a metric is made of."""
    if metric in VOLUMES:
        return 0.0, math.inf
    facts = run.profile.get("metrics", {}).get(metric)
    if facts is None and metric in run.metrics.get(split, {}).get("mean", {}):
        facts = state_by_name(metric, run.profile)
    return (-math.inf, math.inf) if facts is None else find_bounds(facts)


def _find_repeated_rows(run: RunFolder, split: str) -> Iterator[str]:
    rows = select_rows(run, split)
    repeated = rows[rows.duplicated(ROW)]
    if len(repeated):
        yield f"{run.cases_file}: two rows of {_name_row(repeated)}; {REMEDY}"
    patients = rows.groupby("case")["patient"].nunique()
    for case in patients.index[patients > 1]:
        yield f"{run.cases_file}: case {case} of two patients; {REMEDY}"


def _compare_with_split(run: RunFolder, split: str) -> Iterator[str]:
    """Hold the split against its digests in `run.json`, and the scored cases against the split."""
    if not run.split_file.is_file():
        return
    table, facts = run.split, run.facts
    tested = digest_test_set(table.loc[table["role"] == "test", "digest"])
    everything = digest_cases(table["digest"])
    if (
        file_digest(run.split_file) != facts.split_digest
        or tested != facts.test_set["digest"]
        or everything != facts.data_digest
    ):
        yield f"{run.split_file}: not the split that run.json describes; {REMEDY}"
        return
    expected = _list_cases(table[table["role"] == split])
    scored = _list_cases(select_rows(run, split))
    for verb, cases, relation in (
        ("lacks", expected - scored, "of"),
        ("has", scored - expected, "that is not in the"),
    ):
        if cases:
            patient, case = min(cases)
            yield (
                f"{run.cases_file}: {verb} {split} case {case} of patient {patient} {relation} "
                f"split.csv{_count_more(len(cases))}; {REMEDY}"
            )


def _list_cases(table: pd.DataFrame) -> set[tuple[str, str]]:
    return set(zip(table["patient"], table["case"], strict=True))


def _compare_rows(runs: Sequence[RunFolder], split: str) -> Iterator[str]:
    """Hold the rows of all runs on one split against those that most of them have."""
    for fold in dict.fromkeys(run.fold for run in runs):
        own = [run for run in runs if run.fold == fold]
        rows = [pd.MultiIndex.from_frame(select_rows(run, split)[ROW]) for run in own]
        sizes = [len(each) for each in rows]
        usual = sizes.index(Counter(sizes).most_common(1)[0][0])
        first, expected = own[usual], rows[usual]
        for run, found in zip(own, rows, strict=True):
            for verb, surplus, relation in (
                ("lacks", expected.difference(found), "of the first"),
                ("has", found.difference(expected), "that the first has not"),
            ):
                if len(surplus):
                    yield (
                        f"{first.path} and {run.path}: cases.csv of the second {verb} "
                        f"{_name_row(surplus.to_frame())} {relation}{_count_more(len(surplus))}; "
                        f"{REMEDY}"
                    )


def _name_row(rows: pd.DataFrame) -> str:
    first = rows.iloc[0]
    return f"{first['metric']} of case {first['case']}, class {first['class']}"


def _count_more(count: int) -> str:
    return f" ({count - 1} more)" if count > 1 else ""


def _find_copies(variants: Sequence[Variant], split: str) -> Iterator[str]:
    """Yield a problem for each two runs with one identity, one checkpoint or one set of scores."""
    advice = "one is a copy of the other; leave it out"
    known: dict[tuple[str, str], RunFolder] = {}
    for run in (run for variant in variants for run in variant.runs):
        for what, digest in (
            ("the same weights", run.facts.checkpoints.get("best.ckpt")),
            ("the same run id", run.facts.id),
        ):
            other = known.setdefault((what, digest), run) if digest else run
            repeated = what == "the same run id" and other.seed == run.seed
            if other is not run and not repeated:  # Seeds that occur twice are refused elsewhere.
                yield f"{other.path} and {run.path}: {what}; {advice}"
                break
    for variant in variants:
        scores: defaultdict[int, list[RunFolder]] = defaultdict(list)
        for run in variant.runs:
            if has_telling_values(select_rows(run, split)):
                scores[digest_scores(run, split)].append(run)
        for same in scores.values():
            for other in same[1:]:
                if other.seed != same[0].seed:
                    yield f"{same[0].path} and {other.path}: the same scores throughout; {advice}"


def digest_scores(run: RunFolder, split: str) -> int:
    """Return a digest of all scores of a split, in any order."""
    rows = select_rows(run, split)[[*ROW, "value"]]
    return int(pd.util.hash_pandas_object(rows, index=False).sum())


def has_telling_values(rows: pd.DataFrame) -> bool:
    """Return whether any score is other than 0, 1 or undefined, which two runs may well share."""
    scores = rows.loc[~rows["metric"].isin(VOLUMES), "value"]
    return bool((scores.notna() & ~scores.isin((0.0, 1.0))).any())
