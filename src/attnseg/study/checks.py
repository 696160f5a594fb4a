"""Checks that runs are comparable, and warnings about what else differs between them."""

from collections.abc import Iterator, Sequence
from itertools import combinations

from attnseg.config.identity import affects_comparison
from attnseg.config.nodes import flatten_options
from attnseg.errors import DataError
from attnseg.runs.run_folder import RunFolder
from attnseg.runs.variants import Variant
from attnseg.study.integrity import find_changed_runs, find_unlike_runs


def check_comparable(variants: Sequence[Variant], split: str) -> None:
    """Refuse runs whose numbers must not be compared.

    Raises:
        DataError: lists every problem, each with the folders of both runs.
    """
    runs = [run for variant in variants for run in variant.runs]
    problems = [*_unscored(runs, split), *_other_data_or_profile(runs), *_mixed_watermarks(runs)]
    problems += [*_other_cases(runs, split), *_duplicates(variants), *_missing_folds(variants)]
    problems += find_changed_runs(runs, split)
    if not problems:  # Other cases have other rows.
        problems += find_unlike_runs(variants, split)
    if problems:
        raise DataError(*problems)


def _unscored(runs: Sequence[RunFolder], split: str) -> Iterator[str]:
    for run in runs:
        if split not in run.metrics or not (run.cases["split"] == split).any():
            yield f"{run.path}: has no {split} scores; leave it out or choose another split"


def _other_data_or_profile(runs: Sequence[RunFolder]) -> Iterator[str]:
    first = runs[0]
    for run in runs[1:]:
        both = f"{first.path} and {run.path}"
        if run.facts.data_digest != first.facts.data_digest:
            yield f"{both}: trained on different data; compare runs of one dataset"
        if profile_title(run) != profile_title(first):
            yield (
                f"{both}: metric profiles {profile_title(first)} and {profile_title(run)}; score "
                "them under one profile"
            )


def profile_title(run: RunFolder) -> str:
    """Return name and digest of a run's metric profile."""
    return f"{run.profile['name']} ({run.profile['digest']})"


def _mixed_watermarks(runs: Sequence[RunFolder]) -> Iterator[str]:
    unmarked = next((run for run in runs if run.watermark is None), None)
    for run in runs:
        if unmarked is not None and run.watermark is not None:
            yield (
                f"{unmarked.path} and {run.path}: the second is marked {run.watermark!r}; "
                "do not compare it with runs that are not"
            )


def _other_cases(runs: Sequence[RunFolder], split: str) -> Iterator[str]:
    first = runs[0]
    for run in runs[1:]:
        if _cases_digest(run, split) != _cases_digest(first, split) and not _same_folds(first, run):
            yield (
                f"{first.path} and {run.path}: scored on different {split} cases that are not "
                "folds of one division; use one split"
            )


def _cases_digest(run: RunFolder, split: str) -> str:
    return str(run.facts.test_set["digest"]) if split == "test" else run.fold


def _same_folds(first: RunFolder, second: RunFolder) -> bool:
    """Return if two runs are folds of the same cross-validation."""
    one, other = ({**run.raw_config["dataset"]["split"], "fold": None} for run in (first, second))
    return one.get("folds") is not None and one == other


def _duplicates(variants: Sequence[Variant]) -> Iterator[str]:
    for variant in variants:
        for one, other in combinations(variant.runs, 2):
            if (one.seed, one.fold) == (other.seed, other.fold):
                yield (
                    f"{one.path} and {other.path}: both {variant.name} with seed {one.seed} on "
                    "one split; leave one out, or say by=[...] what tells them apart"
                )


def _missing_folds(variants: Sequence[Variant]) -> Iterator[str]:
    all_folds = {run.fold: run for variant in variants for run in variant.runs}
    for variant in variants:
        for fold, run in all_folds.items():
            if fold not in variant.folds:
                yield (
                    f"{variant.runs[0].path} and {run.path}: {variant.name} was not trained on "
                    "the split of the second; train it on the same splits"
                )


def warn_of_differences(variants: Sequence[Variant], by: Sequence[str]) -> list[str]:
    """Return warnings about differences between comparable runs: options, seeds, machines."""
    runs = [run for variant in variants for run in variant.runs]
    warnings = [
        f"runs differ in {key}, too: {values}" for key, values in find_other_differences(runs, by)
    ]
    single = [variant.name for variant in variants if len(variant.seeds) == 1]
    if single:
        warnings.append(
            f"one seed of {', '.join(single)}: a difference is between trained networks, "
            "and another seed may reverse it"
        )
    if len({frozenset(variant.seeds) for variant in variants}) > 1:
        seeds = ", ".join(f"{v.name} {sorted(v.seeds)}" for v in variants)
        warnings.append(f"variants were trained with different seeds: {seeds}")
    for name in sorted({name for run in runs for name in run.facts.plugins}):
        used = {run.facts.plugins[name].get("digest") for run in runs if name in run.facts.plugins}
        if len(used) > 1:
            warnings.append(f"runs are of different versions of the code of plugin {name}")
    machines = {(m["device"], m["threads"]) for m in (run.facts.machine for run in runs)}
    if len(machines) > 1:
        warnings.append("runs are from different machines: seconds and memory do not compare")
    return warnings


def find_other_differences(runs: Sequence[RunFolder], by: Sequence[str]) -> list[tuple[str, str]]:
    """Return keys and values of options in which runs differ besides those in `by`.

    Options below a key of `by` are compared only among runs with the same value of that key.
    """
    options = {run.path: dict(flatten_options(run.raw_config)) for run in runs}
    differences = []
    for key in dict.fromkeys(key for flat in options.values() for key in flat):
        if not affects_comparison(key):
            continue
        group = next((name for name in by if f"{key}.".startswith(f"{name}.")), None)
        values: dict[str, set[str]] = {}
        for run in runs:
            choice = "" if group is None else str(run.option(group))
            values.setdefault(choice, set()).add(str(options[run.path].get(key, "-")))
        differences += [(key, ", ".join(sorted(v))) for v in values.values() if len(v) > 1]
    return differences


def list_differing_options(variants: Sequence[Variant]) -> dict[str, list[str]]:
    """Return each option in which any two runs differ, with its values for each variant."""
    by_seed = [sorted(variant.runs, key=lambda run: run.seed) for variant in variants]
    options = [[dict(flatten_options(run.raw_config)) for run in runs] for runs in by_seed]
    differing = {}
    for key in dict.fromkeys(key for runs in options for flat in runs for key in flat):
        values = [list(dict.fromkeys(str(flat.get(key, "-")) for flat in runs)) for runs in options]
        if len({value for own in values for value in own}) > 1:
            differing[key] = [", ".join(own) for own in values]
    return differing
