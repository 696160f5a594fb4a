"""Reasons to doubt a comparison that lie in its runs: their data, code and test set."""

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from attnseg.config.identity import VERSION, short_digest
from attnseg.data.closed_test import OPENINGS, read_openings
from attnseg.metrics.bounds import VOLUMES
from attnseg.runs.run_folder import RunFolder
from attnseg.runs.variants import Variant
from attnseg.study.integrity import ROW, digest_scores, has_telling_values, select_rows
from attnseg.study.wording import count_text

INVENTED = ("phantom", "situs")  # datasets that are always generated
PHANTOM_FILE = "phantom.json"  # at the root of a generated dataset
FEW_SHARED = 10  # Fewer equal scores of two runs may be chance.


def collect_doubts(variants: Sequence[Variant], split: str) -> list[str]:
    """Return the reasons for doubt as sentences, the gravest first."""
    runs = [run for variant in variants for run in variant.runs]
    return [
        *_doubt_data(runs),
        *_doubt_split(runs, split),
        *_doubt_origin(runs),
        *_doubt_declarations(runs),
        *_doubt_scores(variants, split),
        *_doubt_code(runs),
    ]


def _doubt_data(runs: Sequence[RunFolder]) -> Iterator[str]:
    """Doubt generated data, which show that a method runs, not that it works."""
    names = {run.facts.choices.get("dataset", "") for run in runs if _is_generated(run)}
    if names:
        yield (
            f"the data of {', '.join(sorted(names))} are generated (a phantom): nothing here "
            "holds for real images"
        )


def _is_generated(run: RunFolder) -> bool:
    dataset = run.raw_config.get("dataset", {})
    if "root" not in dataset:
        return run.facts.choices.get("dataset") in INVENTED
    return dataset["root"] is None or Path(dataset["root"], PHANTOM_FILE).is_file()


def _doubt_split(runs: Sequence[RunFolder], split: str) -> Iterator[str]:
    if split == "val":
        yield (
            "these are validation cases, which chose the best epoch of each run: the scores are "
            "too high, and not by the same amount for each variant"
        )
        return
    for digest, own in _group_by_test_set(runs).items():
        count, later, problem = count_openings(digest, own)
        if problem:
            yield problem
        if count > len(own):
            after = f", {later} of them after the last of these runs" if later else ""
            yield (
                f"the test set was opened {count} times, for {count_text(len(own), 'run')} in this "
                f"comparison{after}: whoever chose among results on it has fitted it"
            )


def _group_by_test_set(runs: Sequence[RunFolder]) -> dict[str, list[RunFolder]]:
    groups: dict[str, list[RunFolder]] = {}
    for run in runs:
        groups.setdefault(run.facts.test_set["digest"], []).append(run)
    return groups


def total_openings(runs: Sequence[RunFolder]) -> list[int]:
    """Return how often each test set of the runs has been opened up to now."""
    return [count_openings(digest, own)[0] for digest, own in _group_by_test_set(runs).items()]


def count_openings(digest: str, runs: Sequence[RunFolder]) -> tuple[int, int, str]:
    """Count the openings of a test set, now, from the ledgers of the runs on it.

    Returns:
        The number of openings; of those, the number after the last of the runs; and a doubt if the
        ledgers have lost openings that the runs noted, or else an empty text.
    """
    noted = max(run.facts.test_set["openings"] for run in runs)
    beside_data = {Path(file) for run in runs if (file := run.facts.test_set.get("ledger"))}
    datasets = {folder for run in runs for folder in run.path.resolve().parents[2:3]}
    beside_runs = {folder / OPENINGS for folder in datasets}
    openings = read_openings(digest, sorted(beside_data | beside_runs))
    problem = ""
    if missing := sorted(str(path) for path in beside_data if not path.is_file()):
        problem = f"{missing[0]}: this ledger of openings of the test set is missing"
    elif len(openings) < noted and (beside_data or openings):
        problem = (
            f"the ledgers have {len(openings)} openings of the test set, but a run noted {noted}: "
            "lines were removed"
        )
    later = len(openings) - _last_own_opening(openings, runs) - 1
    return max(len(openings), noted), min(later, len(openings)), problem


def _last_own_opening(openings: Sequence[dict[str, Any]], runs: Sequence[RunFolder]) -> int:
    """Return the index of the last opening by one of the runs when it was scored; -1 if none."""
    names = {run.name for run in runs}
    own = [
        at
        for at, opening in enumerate(openings)
        if Path(str(opening.get("run"))).name in names
        and opening.get("purpose") == "scored after training"
    ]
    return max(own, default=len(openings) - 1)


def _doubt_origin(runs: Sequence[RunFolder]) -> Iterator[str]:
    """Doubt runs without digests: changes to their files would not be noticed."""
    unsealed = [run for run in runs if not run.facts.results or run.facts.seal is None]
    if unsealed:
        yield (
            f"{len(unsealed)} of {len(runs)} runs have no digests of their results, as those of "
            "version 0.1.0: changes by hand would not be noticed"
        )


def _doubt_declarations(runs: Sequence[RunFolder]) -> Iterator[str]:
    """Doubt a declared comparison, with its margin, that does not have the digest beside it."""
    for run in runs:
        study = {key: value for key, value in run.facts.declared.items() if key != "digest"}
        digests = {short_digest(study, version) for version in range(1, VERSION + 1)}
        if study and run.facts.declared.get("digest") not in digests:
            yield (
                f"{run.facts_file}: the comparison that it declares does not match the digest that "
                "was recorded with it"
            )


def _doubt_scores(variants: Sequence[Variant], split: str) -> Iterator[str]:
    """Doubt runs of different seeds or variants that share scores to the last digit."""
    first_of: dict[int, tuple[str, RunFolder]] = {}
    for variant in variants:
        tables = []
        for run in variant.runs:
            rows = select_rows(run, split)
            if not has_telling_values(rows):
                continue
            name, first = first_of.setdefault(digest_scores(run, split), (variant.name, run))
            if name != variant.name:
                yield f"{first.path} and {run.path}: two variants have the same scores throughout"
            tables.append((run, rows[~rows["metric"].isin(VOLUMES)].set_index(ROW)["value"]))
        for at, (run, scores) in enumerate(tables):
            for other, others in tables[:at]:
                shared = _count_shared(others, scores)
                if other.fold == run.fold and shared > FEW_SHARED and 2 * shared > len(scores):
                    yield (
                        f"{other.path} and {run.path}: {shared} of {len(scores)} scores are equal "
                        "to the last digit, which two trainings hardly give"
                    )


def _count_shared(first: pd.Series, second: pd.Series) -> int:
    """Return the number of equal scores that are neither 0 nor 1."""
    both = first.reindex(second.index)
    return int(((both == second) & ~second.isin((0.0, 1.0))).sum())


def _doubt_code(runs: Sequence[RunFolder]) -> Iterator[str]:
    """Doubt runs of different code or of code that nobody can look up."""
    states = [run.facts.git for run in runs if run.facts.git is not None]
    commits = Counter(str(state["commit"])[:10] for state in states)
    if len(commits) > 1:
        listed = ", ".join(f"{commit} ({count} runs)" for commit, count in commits.items())
        yield f"runs are of different commits of the code: {listed}"
    if modified := sum(bool(state["modified"]) for state in states):
        yield (
            f"the code of {modified} of {len(runs)} runs had changes that no commit holds: it "
            "cannot be looked up"
        )
    for package in dict.fromkeys(name for run in runs for name in run.facts.versions):
        versions = {str(run.facts.versions.get(package, "-")) for run in runs}
        if len(versions) > 1:
            yield f"runs used different versions of {package}: {', '.join(sorted(versions))}"
