"""From the configuration to a dataset ready to train on: phantom, reader, store, split, guard."""

import hashlib
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from attnseg.config.build import build
from attnseg.config.schema import Config, nearest
from attnseg.data import duplicates, guard, splits
from attnseg.data.reader import CaseRef, Reader
from attnseg.data.sealed import SealedTest
from attnseg.data.slicing import SliceView
from attnseg.data.store import STORE_VERSION, StoredCase, intensity_window, prepare_cases
from attnseg.errors import ConfigError, DataError

log = logging.getLogger(__name__)

OPENINGS = "test_openings.jsonl"
WATERMARK = (
    "TEST SET WATCHED: no validation split, the test cases were scored every epoch and chose the "
    "weights, as published; not comparable with results on a test set that nobody saw"
)


@dataclass(frozen=True)
class PreparedData:
    """A dataset ready to train on.

    Attributes:
        reader: of the dataset.
        train: training cases.
        val: validation cases; the test cases where a published protocol watches them.
        test: test cases, sealed.
        split: the split file's text.
        digest: of all cases.
        watermark: what must stand beside every number; `None` if nothing.
    """

    reader: Reader
    train: list[StoredCase]
    val: list[StoredCase]
    test: SealedTest
    split: str
    digest: str
    watermark: str | None


def dataset_root(config: Config) -> Path:
    """Return the dataset's root: the one given, or where its phantom belongs."""
    dataset = config.dataset
    if dataset.root is not None:
        return Path(dataset.root)
    assert dataset.phantom is not None  # the schema has checked
    options = [str(value) for value in dataset.phantom.options.values()]
    maker = dataset.phantom.target.rpartition(".")[2].removeprefix("make_")
    return Path(config.paths.data, "phantoms", "-".join([maker, *options]))


def make_phantom(config: Config) -> Path:
    """Make the dataset's phantom at its root, unless it is there; return the root.

    Raises:
        ConfigError: the dataset has no phantom.
        DataError: the root holds something else.
    """
    if config.dataset.phantom is None:
        raise ConfigError(f"dataset: {config.choices['dataset']} has no phantom; choose another")
    build("dataset.phantom", config.dataset.phantom, root=dataset_root(config))
    return dataset_root(config)


def open_reader(config: Config) -> Reader:
    """Return the dataset's reader; nothing is read yet, unless it describes itself in files."""
    reader: Reader = build("dataset", config.dataset, root=str(dataset_root(config)))
    if reader.self_describing and config.dataset.root is None:
        make_phantom(config)
    if config.dataset.slices > 1 and not reader.volumetric:
        raise ConfigError(
            f"dataset.slices: {config.dataset.slices} slices at once, but these are single "
            "pictures; use 1"
        )
    return reader


def slice_view(config: Config) -> SliceView:
    """Return how slices become the network's input."""
    dataset = config.dataset
    return SliceView(dataset.image_size, dataset.slices, dataset.stride)


def load_dataset(config: Config, reader: Reader) -> PreparedData:
    """Prepare what is not prepared yet, and split so that nobody is on two sides.

    Raises:
        DataError: cases are broken, or a patient or picture is in two roles.
    """
    split = config.dataset.split
    table, refs = select_cases(config, reader)
    cases = prepare_cases(reader, refs, store_folder(config))
    if table is not None:
        splits.check_digests(split.file or "", table, cases)
    pairs = find_shared_pictures(cases)
    cases, roles = split_cases(config, cases, given_roles(refs, table), pairs)
    by_role = {role: [c for c in cases if roles[c.case] == role] for role in splits.ROLES}
    if split.watch_test:
        by_role["val"] = by_role["test"]
        log.warning("%s", WATERMARK)
    for at, name in enumerate(reader.classes):
        for role, found in by_role.items():
            if not any(case.voxels[at] for case in found):
                log.warning("No %s in the %s split: its metrics are undefined", name, role)
    if not any(sum(case.voxels) for case in by_role["val"]):
        raise DataError("dataset: no class at all in the val split; use another dataset.split.seed")
    digest = hashlib.sha256("".join(case.digest for case in cases).encode()).hexdigest()
    return PreparedData(
        reader,
        by_role["train"],
        by_role["val"],
        SealedTest(by_role["test"], Path(config.paths.outputs, config.dataset_name, OPENINGS)),
        splits.format_split(cases, roles),
        digest,
        WATERMARK if split.watch_test else None,
    )


def describe_input(data: PreparedData) -> dict[str, Any]:
    """Return what the data decided about the network and its input, for `run.json`.

    Prediction goes by this and needs no dataset.
    """
    reader, cases = data.reader, data.train
    ends = {(case.low, case.high) for case in cases}
    own = all((c.low, c.high) == intensity_window(None, _outer(c)) for c in cases)
    along = list(zip(*(c.spacing for c in cases if c.spacing is not None), strict=True))
    return {
        "classes": list(reader.classes),
        "multilabel": reader.labels.overlapping,
        "channels": reader.channels,
        "volumetric": reader.volumetric,
        "plane": reader.plane,
        "window": None if own else [end[0] for end in next(iter(ends))],
        "spacing": [list(map(end, along)) for end in (min, max)] if along else None,
    }


def _outer(case: StoredCase) -> NDArray[np.float64]:
    return np.array(case.percentiles)[:, [0, -1]]


def select_cases(config: Config, reader: Reader) -> tuple[pd.DataFrame | None, list[CaseRef]]:
    """List the cases that the configuration asks for, and read its split file.

    Raises:
        ConfigError: no such split file.
        DataError: the layout is not the dataset's, or no case is left.
    """
    dataset = config.dataset
    if dataset.root is None:
        make_phantom(config)
    refs = reader.cases()
    excluded = sorted({ref.case for ref in refs} & set(dataset.exclude))
    if excluded:
        log.info("Excluded, as listed in dataset.exclude: %s", ", ".join(excluded))
    absent = sorted(set(dataset.exclude).difference(excluded))
    if absent and dataset.root is not None:  # nobody lists the cases of a phantom
        log.warning("dataset.exclude: no case %s; check the names", ", ".join(absent))
    refs = [ref for ref in refs if ref.case not in excluded]
    table = None
    if dataset.split.file is not None:
        path = splits.find_split_file(dataset.split.file)
        if path is None:
            advice = nearest(dataset.split.file, splits.list_published_splits())
            raise ConfigError(f"dataset.split.file: no file {dataset.split.file!r}; {advice}")
        table = splits.read_split(path)
        listed = [ref for ref in refs if ref.case in table.index]
        log.info("Split of %s: %d of its %d cases are here", path.name, len(listed), len(table))
        if left_out := len(refs) - len(listed):
            log.warning("%d cases are not in %s and left out", left_out, path.name)
        refs = listed
    if not refs:
        raise DataError("dataset: no cases left; see dataset.exclude and dataset.split.file")
    return table, splits.limit_cases(
        refs, given_roles(refs, table), dataset.limit_cases, dataset.split.seed
    )


def given_roles(refs: Sequence[CaseRef], table: pd.DataFrame | None) -> dict[str, str | None]:
    """Return each case's role as the split file, or else the dataset, gives it."""
    if table is None:
        return {ref.case: ref.role for ref in refs}
    return {ref.case: str(table.loc[ref.case, "role"]) for ref in refs}


def split_cases(
    config: Config,
    cases: list[StoredCase],
    given: dict[str, str | None],
    pairs: list[duplicates.DuplicatePair],
) -> tuple[list[StoredCase], dict[str, str]]:
    """Give every case a role, and let the guard look at it.

    Args:
        config: of the run.
        cases: prepared.
        given: role by case, from `given_roles`.
        pairs: cases that share a picture, from `same_pictures`.

    Returns:
        The cases kept, and role by case.

    Raises:
        DataError: a patient or picture is in two roles, or there are too few patients.
    """
    split = config.dataset.split
    roles = splits.assign_roles(
        guard.group_patients(cases, pairs if split.duplicates == "group" else []),
        given,
        {case.case: [count > 0 for count in case.voxels] for case in cases},
        val=split.val,
        test=split.test,
        fold=None if split.folds is None else split.fold,
        count=split.folds or 0,
        seed=split.seed,
        validate=not split.watch_test,
    )
    left_out: set[str] = set()
    if split.duplicates == "drop" and (left_out := guard.choose_left_out(cases, roles, pairs)):
        log.warning(
            "%d cases left out, since another role has the same picture: %s",
            len(left_out),
            ", ".join(sorted(left_out)),
        )
    kept = [p for p in pairs if not {cases[p.first].case, cases[p.second].case} & left_out]
    guard.check_split(cases, roles, kept)
    return [case for case in cases if case.case not in left_out], roles


def find_shared_pictures(cases: Sequence[StoredCase]) -> list[duplicates.DuplicatePair]:
    """Return the pairs of cases of different patients that share a picture."""
    return duplicates.find_duplicates(
        [case.signatures for case in cases],
        [case.patient for case in cases],
        [case.pixels for case in cases],
    )


def store_folder(config: Config) -> Path:
    """Return where prepared cases are: another root or option, another folder."""
    dataset = config.dataset
    place = str(dataset_root(config).resolve())
    text = json.dumps([STORE_VERSION, dataset.target, place, dataset.options], sort_keys=True)
    digest = hashlib.sha256(text.encode()).hexdigest()[:8]
    reader = dataset.target.rpartition(".")[2].lower()
    return Path(config.paths.data, "prepared", f"{reader}-{digest}")
