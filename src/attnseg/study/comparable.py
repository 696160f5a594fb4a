"""Which runs may stand in one table, and what must be said of those that may."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations
from typing import Any

from attnseg.errors import DataError
from attnseg.runs.finished import Run, Variant

# Where and on what a run happened, and what seeds and folds are for.
INNOCENT = (
    "seed",
    "paths",
    "dataset.root",
    "dataset.phantom",
    "dataset.split.fold",
    "trainer.accelerator",
    "trainer.devices",
    "trainer.strategy",
    "trainer.num_workers",
)


def check(variants: Sequence[Variant], split: str) -> None:
    """Refuse runs whose numbers must not be compared.

    Args:
        variants: all runs, grouped.
        split: `val` or `test`.

    Raises:
        DataError: names every problem, each with the two folders.
    """
    runs = [run for variant in variants for run in variant.runs]
    problems = [*_unscored(runs, split), *_different(runs), *_watermarks(runs)]
    problems += [*_other_cases(runs, split), *_twice(variants), *_missing_folds(variants)]
    if problems:
        raise DataError(*problems)


def _unscored(runs: Sequence[Run], split: str) -> Iterator[str]:
    for run in runs:
        if split not in run.metrics or not (run.scores["split"] == split).any():
            yield f"{run.folder}: has no {split} scores; leave it out or choose another split"


def _different(runs: Sequence[Run]) -> Iterator[str]:
    first = runs[0]
    for run in runs[1:]:
        pair = f"{first.folder} and {run.folder}"
        if run.facts["data_digest"] != first.facts["data_digest"]:
            yield f"{pair}: trained on different data; compare runs of one dataset"
        if title(run) != title(first):
            yield (
                f"{pair}: metric profiles {title(first)} and {title(run)}; score them under one "
                "profile"
            )


def title(run: Run) -> str:
    """Return name and digest of a run's metric profile."""
    return f"{run.profile['name']} ({run.profile['digest']})"


def _watermarks(runs: Sequence[Run]) -> Iterator[str]:
    honest = next((run for run in runs if run.watermark is None), None)
    for run in runs:
        if honest is not None and run.watermark is not None:
            yield (
                f"{honest.folder} and {run.folder}: the second is marked {run.watermark!r}; "
                "never beside an honest run"
            )


def _other_cases(runs: Sequence[Run], split: str) -> Iterator[str]:
    first = runs[0]
    for run in runs[1:]:
        if scored_on(run, split) != scored_on(first, split) and not _folds_of_one(first, run):
            yield (
                f"{first.folder} and {run.folder}: scored on different {split} cases that are not "
                "folds of one division; use one split"
            )


def scored_on(run: Run, split: str) -> str:
    """Return a digest of the cases that a run's scores are of."""
    return str(run.facts["test_set"]["digest"]) if split == "test" else run.fold


def _folds_of_one(first: Run, second: Run) -> bool:
    one, other = ({**_division(run), "fold": None} for run in (first, second))
    return one.get("folds") is not None and one == other


def _division(run: Run) -> Mapping[str, Any]:
    division: Mapping[str, Any] = run.config["dataset"]["split"]
    return division


def _twice(variants: Sequence[Variant]) -> Iterator[str]:
    for variant in variants:
        for one, other in combinations(variant.runs, 2):
            if (one.seed, one.fold) == (other.seed, other.fold):
                yield (
                    f"{one.folder} and {other.folder}: both {variant.name} with seed {one.seed} on "
                    "one split; leave one out, or say by=[...] what tells them apart"
                )


def _missing_folds(variants: Sequence[Variant]) -> Iterator[str]:
    everywhere = {run.fold: run for variant in variants for run in variant.runs}
    for variant in variants:
        for fold, run in everywhere.items():
            if fold not in variant.folds:
                yield (
                    f"{variant.runs[0].folder} and {run.folder}: {variant.name} was not trained on "
                    "the split of the second; train it on the same splits"
                )


def warnings(variants: Sequence[Variant], by: Sequence[str]) -> list[str]:
    """Return what else differs between runs that may be compared."""
    runs = [run for variant in variants for run in variant.runs]
    said = [f"runs differ in {key}, too: {values}" for key, values in differing(runs, by)]
    lone = [variant.name for variant in variants if len(variant.seeds) == 1]
    if lone:
        said.append(
            f"one seed of {', '.join(lone)}: a difference is between trained networks, "
            "and another seed may reverse it"
        )
    if len({frozenset(variant.seeds) for variant in variants}) > 1:
        seeds = ", ".join(f"{v.name} {sorted(v.seeds)}" for v in variants)
        said.append(f"variants were trained with different seeds: {seeds}")
    machines = {(m["device"], m["threads"]) for m in (run.facts["machine"] for run in runs)}
    if len(machines) > 1:
        said.append("runs are from different machines: seconds and memory do not compare")
    return said


def differing(runs: Sequence[Run], by: Sequence[str]) -> list[tuple[str, str]]:
    """Return keys and values in which runs differ beside what they are compared for.

    Below a key of `by`, runs are only held against those of the same choice.
    """
    flat = {run.folder: dict(_leaves(run.config)) for run in runs}
    found = []
    for key in dict.fromkeys(key for leaves in flat.values() for key in leaves):
        if _under(key, INNOCENT):
            continue
        owner = next((name for name in by if _under(key, [name])), None)
        values: dict[str, set[str]] = {}
        for run in runs:
            choice = "" if owner is None else str(run.value(owner))
            values.setdefault(choice, set()).add(str(flat[run.folder].get(key, "-")))
        found += [(key, ", ".join(sorted(v))) for v in values.values() if len(v) > 1]
    return found


def choices(variants: Sequence[Variant]) -> dict[str, list[str]]:
    """Return every key in which any two runs differ, with the values of each variant."""
    by_seed = [sorted(variant.runs, key=lambda run: run.seed) for variant in variants]
    flat = [[dict(_leaves(run.config)) for run in runs] for runs in by_seed]
    found = {}
    for key in dict.fromkeys(key for runs in flat for leaves in runs for key in leaves):
        values = [list(dict.fromkeys(str(run.get(key, "-")) for run in runs)) for runs in flat]
        if len({value for own in values for value in own}) > 1:
            found[key] = [", ".join(own) for own in values]
    return found


def _under(key: str, parents: Sequence[str]) -> bool:
    return any(f"{key}.".startswith(f"{parent}.") for parent in parents)


def _leaves(node: object, key: str = "") -> Iterator[tuple[str, object]]:
    if isinstance(node, Mapping) and node:
        for name, value in node.items():
            yield from _leaves(value, f"{key}.{name}" if key else str(name))
    else:
        yield key, node
