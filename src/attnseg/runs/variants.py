"""The variants of a comparison: finished runs, grouped by what they are compared for."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from glob import glob
from pathlib import Path

from attnseg.errors import ConfigError, DataError, Problems
from attnseg.runs.run_folder import RunFolder


@dataclass(frozen=True)
class Variant:
    """Runs that differ in seed and fold only."""

    name: str  # made of the values that distinguish it from the other variants
    key: tuple[str, ...]  # values of all keys that variants are grouped by
    runs: tuple[RunFolder, ...]  # in the order given

    @property
    def seeds(self) -> set[int]:
        """Seeds it was trained with."""
        return {run.seed for run in self.runs}

    @property
    def folds(self) -> set[str]:
        """Splits it was trained on."""
        return {run.fold for run in self.runs}


def find_runs(patterns: Sequence[str]) -> list[RunFolder]:
    """Return the run folders that paths and globs name, each once.

    Raises:
        ConfigError: no pattern is given.
        DataError: a pattern names no run folder.
    """
    if not patterns:
        raise ConfigError("runs: none given; give run folders as runs=[outputs/phantom/setr/*/*]")
    problems = Problems()
    runs: dict[Path, RunFolder] = {}
    for pattern in patterns:
        matches = [pattern] if Path(pattern).is_dir() else sorted(glob(pattern))
        named = [run for run in map(RunFolder, matches) if run.exists]
        if not named:
            problems.found.append(f"{pattern}: no run folder; give folders that hold run.json")
        for run in named:
            runs.setdefault(run.path.resolve(), run)
    problems.stop()
    return list(runs.values())


def open_finished_runs(folders: Sequence[str | os.PathLike[str]]) -> list[RunFolder]:
    """Return the runs in folders, with their files read.

    Raises:
        DataError: runs are not finished or their files cannot be read; names every one.
    """
    problems = Problems()
    runs = [RunFolder(folder) for folder in folders]
    for run in runs:
        with problems.gathered():
            facts = run.facts
            if facts.status != "done":
                reason = f" ({facts.reason})" if facts.reason else ""
                raise DataError(
                    f"{run}: not finished, its status is {facts.status}{reason}; leave it out"
                )
            _ = run.raw_config, run.metrics, run.cases
    problems.stop()
    return runs


def group_by_variant(runs: Sequence[RunFolder], by: Sequence[str]) -> list[Variant]:
    """Group runs into variants.

    Args:
        runs: at least one.
        by: groups of the configuration (`model`, `attn`) or dotted keys (`model.size`).

    Returns:
        Variants in order of appearance, named by the keys in which they differ.

    Raises:
        ConfigError: a run does not have a key.
    """
    members: dict[tuple[str, ...], list[RunFolder]] = {}
    for run in runs:
        members.setdefault(tuple(str(run.option(key)) for key in by), []).append(run)
    varying = [i for i in range(len(by)) if len({key[i] for key in members}) > 1]
    return [
        Variant("/".join(key[i] for i in varying or [len(by) - 1]), key, tuple(own))
        for key, own in members.items()
    ]


def match_baselines(variants: Sequence[Variant], name: str) -> dict[str, str]:
    """Return the baseline of each variant by name, leaving out the baselines themselves.

    Args:
        variants: at least one.
        name: of one variant, its full key, or a value of its key. If several variants have the
            value, each other variant is compared with the one that equals it in all other keys.

    Raises:
        ConfigError: no variant has the name, or a variant has no matching baseline.
    """
    names = ", ".join(v.name for v in variants)
    exact = [v for v in variants if name in (v.name, "/".join(v.key))]
    bases = exact or [v for v in variants if name in v.key]
    if not bases:
        raise ConfigError(f"baseline: no variant is {name}; choose one of {names}")
    others = [v for v in variants if v not in bases]
    if len(bases) == 1:
        return {v.name: bases[0].name for v in others}
    at = bases[0].key.index(name)
    like = {(*v.key[:at], *v.key[at + 1 :]): v.name for v in bases}
    pairs = {v.name: like.get((*v.key[:at], *v.key[at + 1 :])) for v in others}
    if alone := [variant for variant, base in pairs.items() if base is None]:
        raise ConfigError(
            f"baseline: several variants are {name}, none of them like {alone[0]}; "
            f"choose one of {names}"
        )
    return {variant: base for variant, base in pairs.items() if base is not None}
