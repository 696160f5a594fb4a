"""Finished runs found, read and grouped into the variants that are to be compared."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from glob import glob
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from attnseg.errors import ConfigError, DataError, Problems

TEXT = {name: str for name in ("split", "patient", "case", "class", "metric", "profile")}


@dataclass(frozen=True)
class Run:
    """What a run folder says.

    Attributes:
        folder: where it is.
        facts: `run.json`.
        config: `config.yaml`.
        metrics: `metrics.json`.
        scores: `cases.csv`, a row per case, class and metric.
    """

    folder: Path
    facts: Mapping[str, Any]
    config: Mapping[str, Any]
    metrics: Mapping[str, Any]
    scores: pd.DataFrame

    @property
    def seed(self) -> int:
        """Of the training."""
        return int(self.facts["seed"])

    @property
    def fold(self) -> str:
        """Digest of who trained, validated and tested."""
        return str(self.facts["split_digest"])

    @property
    def profile(self) -> Mapping[str, Any]:
        """The metric convention, with its name and digest."""
        profile: Mapping[str, Any] = self.metrics["profile"]
        return profile

    @property
    def watermark(self) -> str | None:
        """What must stand beside every number, if anything."""
        return self.facts.get("watermark") or self.metrics.get("watermark")

    def value(self, key: str) -> object:
        """Return what was chosen in a group, or what a dotted key of the configuration holds.

        Raises:
            ConfigError: neither is there.
        """
        choices: Mapping[str, str] = self.facts["choices"]
        if key in choices:
            return choices[key]
        node: Any = self.config
        for name in key.split("."):
            if not isinstance(node, Mapping) or name not in node:
                raise ConfigError(
                    f"by: {self.folder} has no {key!r}; choose among {', '.join(choices)} "
                    "or give a key of its config.yaml"
                )
            node = node[name]
        return node


@dataclass(frozen=True)
class Variant:
    """Runs that differ in seed and fold only.

    Attributes:
        name: what tells it from the other variants.
        key: its values of all keys that variants are grouped by.
        runs: in the order given.
    """

    name: str
    key: tuple[str, ...]
    runs: tuple[Run, ...]

    @property
    def seeds(self) -> set[int]:
        """Seeds it was trained with."""
        return {run.seed for run in self.runs}

    @property
    def folds(self) -> set[str]:
        """Splits it was trained on."""
        return {run.fold for run in self.runs}


def find(patterns: Sequence[str]) -> list[Path]:
    """Return the run folders that paths and globs name, each once.

    Raises:
        ConfigError: no pattern is given.
        DataError: a pattern names no run folder.
    """
    if not patterns:
        raise ConfigError("runs: none given; give run folders as runs=[outputs/phantom/setr/*/*]")
    problems = Problems()
    found: dict[Path, Path] = {}
    for pattern in patterns:
        matches = [pattern] if Path(pattern).is_dir() else sorted(glob(pattern))
        folders = [Path(match) for match in matches if Path(match, "run.json").is_file()]
        if not folders:
            problems.found.append(f"{pattern}: no run folder; give folders that hold run.json")
        for folder in folders:
            found.setdefault(folder.resolve(), folder)
    problems.stop()
    return list(found.values())


def load(folders: Sequence[Path]) -> list[Run]:
    """Read run folders.

    Raises:
        DataError: runs are unfinished or their files cannot be read; names every one.
    """
    problems, runs = Problems(), []
    for folder in folders:
        with problems.gathered():
            runs.append(read(folder))
    problems.stop()
    return runs


def read(folder: Path) -> Run:
    """Read one run folder.

    Raises:
        DataError: the run is not finished, or a file cannot be read.
    """
    facts = _mapping(folder / "run.json", json.loads)
    if facts.get("status") != "done":
        reason = f" ({facts['reason']})" if "reason" in facts else ""
        raise DataError(
            f"{folder}: not finished, its status is {facts.get('status')}{reason}; leave it out"
        )
    return Run(
        folder,
        facts,
        _mapping(folder / "config.yaml", yaml.safe_load),
        _mapping(folder / "metrics.json", json.loads),
        _scores(folder / "cases.csv"),
    )


def _mapping(path: Path, parse: Any) -> Mapping[str, Any]:  # noqa: ANN401
    try:
        node = parse(path.read_text())
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise _unreadable(path, error) from error
    if not isinstance(node, Mapping):
        raise DataError(f"{path}: cannot be read (no keys in it); train again")
    return node


def _scores(path: Path) -> pd.DataFrame:
    # A patient may be called 007 or NA: only an empty value is undefined.
    try:
        table = pd.read_csv(path, dtype=TEXT, keep_default_na=False, na_values={"value": [""]})
    except (OSError, ValueError) as error:
        raise _unreadable(path, error) from error
    missing = [name for name in (*TEXT, "value") if name not in table]
    if missing:
        raise DataError(f"{path}: no column {', '.join(missing)}; train again")
    return table


def _unreadable(path: Path, error: Exception) -> DataError:
    return DataError(f"{path}: cannot be read ({str(error).splitlines()[0]}); train again")


def group(runs: Sequence[Run], by: Sequence[str]) -> list[Variant]:
    """Group runs into variants.

    Args:
        runs: at least one.
        by: groups of the configuration (`model`, `attn`) or dotted keys (`model.size`).

    Returns:
        Variants in order of appearance, named by the keys in which they differ.

    Raises:
        ConfigError: a run does not have a key.
    """
    members: dict[tuple[str, ...], list[Run]] = {}
    for run in runs:
        members.setdefault(tuple(str(run.value(key)) for key in by), []).append(run)
    varying = [i for i in range(len(by)) if len({key[i] for key in members}) > 1]
    return [
        Variant("/".join(key[i] for i in varying or [len(by) - 1]), key, tuple(own))
        for key, own in members.items()
    ]


def baselines(variants: Sequence[Variant], name: str) -> dict[str, str]:
    """Return what each variant is held against, by its name; baselines themselves are left out.

    Args:
        variants: at least one.
        name: of one variant, its full key, or a value of its key. If several have the value, each
            of the others is held against the one that is like it in all else.

    Raises:
        ConfigError: no variant is meant, or one has no baseline like it.
    """
    names = ", ".join(v.name for v in variants)
    exact = [v for v in variants if name in (v.name, "/".join(v.key))]
    found = exact or [v for v in variants if name in v.key]
    if not found:
        raise ConfigError(f"baseline: no variant is {name}; choose one of {names}")
    others = [v for v in variants if v not in found]
    if len(found) == 1:
        return {v.name: found[0].name for v in others}
    at = found[0].key.index(name)
    like = {(*v.key[:at], *v.key[at + 1 :]): v.name for v in found}
    pairs = {v.name: like.get((*v.key[:at], *v.key[at + 1 :])) for v in others}
    if alone := [variant for variant, base in pairs.items() if base is None]:
        raise ConfigError(
            f"baseline: several variants are {name}, none of them like {alone[0]}; "
            f"choose one of {names}"
        )
    return {variant: base for variant, base in pairs.items() if base is not None}
