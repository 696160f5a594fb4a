"""Opens, prepares, splits and checks the dataset of a configuration, ready for training."""

import contextlib
import hashlib
import json
import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from attnseg.config.build import build
from attnseg.config.errors import nearest
from attnseg.config.training import Config
from attnseg.data import duplicates, guard, splits
from attnseg.data.closed_test import OPENINGS, ClosedTest, digest_cases
from attnseg.data.reader import CaseRef, Reader
from attnseg.data.slicing import SliceView
from attnseg.data.store import STORE_VERSION, StoredCase, intensity_window, prepare_cases
from attnseg.errors import ConfigError, DataError, join_names
from attnseg.files import write_text
from attnseg.plugins import find_plugin

log = logging.getLogger(__name__)

MANY_SLICES = 5000  # from which on the search for shared pictures takes more than seconds
WATERMARK = (
    "TEST SET WATCHED: no validation split, the test cases were scored every epoch and chose the "
    "weights, as published; not comparable with results on a test set that nobody saw"
)


@dataclass(frozen=True)
class PreparedData:
    """A dataset that is ready for training."""

    reader: Reader
    train: list[StoredCase]
    val: list[StoredCase]  # the test cases if `split.watch_test` is set
    test: ClosedTest
    split: str  # text of the split file
    digest: str  # of all cases
    watermark: str | None  # a warning that must accompany every result, if any

    @property
    def split_digest(self) -> str:
        """SHA-256 of the roles of all cases."""
        return hashlib.sha256(self.split.encode()).hexdigest()


def dataset_root(config: Config) -> Path:
    """Return the dataset's root: `dataset.root`, or by default the folder of its phantom."""
    dataset = config.dataset
    if dataset.root is not None:
        return Path(dataset.root)
    assert dataset.phantom is not None  # The schema refuses a dataset with neither.
    options = [str(value) for value in dataset.phantom.options.values()]
    maker = dataset.phantom.target.rpartition(".")[2].removeprefix("make_")
    return Path(config.paths.data, "phantoms", "-".join([maker, *options]))


def make_phantom(config: Config) -> Path:
    """Make the dataset's phantom at its root, unless it exists there; return the root.

    Raises:
        ConfigError: the dataset has no phantom.
        DataError: the root holds other files.
    """
    if config.dataset.phantom is None:
        raise ConfigError(f"dataset: {config.choices['dataset']} has no phantom; choose another")
    root = dataset_root(config)
    build("dataset.phantom", config.dataset.phantom, root=root)
    return root


def open_reader(config: Config) -> Reader:
    """Return the dataset's reader, and make the phantom first if the reader needs its files.

    Raises:
        ConfigError: an option is invalid, or neighbouring slices are asked of single pictures.
    """
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
    """Return the view that turns slices into the network's input."""
    dataset = config.dataset
    return SliceView(dataset.image_size, dataset.slices, dataset.stride)


def load_dataset(config: Config, reader: Reader) -> PreparedData:
    """Prepare the cases that are not in the store yet, split them, and check the split for leaks.

    Raises:
        DataError: cases are broken, or a patient or picture has two roles.
    """
    watched = config.dataset.split.watch_test
    cases, given = prepare_selected_cases(config, reader)
    cases, roles = split_cases(config, cases, given, find_shared_pictures(cases))
    by_role = {role: [c for c in cases if roles[c.case] == role] for role in splits.ROLES}
    if watched:
        by_role["val"] = by_role["test"]
        log.warning("%s", WATERMARK)
    for index, name in enumerate(reader.classes):
        for role, members in by_role.items():
            if members and not any(case.voxels[index] for case in members):
                log.warning("No %s in the %s split: its metrics are undefined", name, role)
    if not any(sum(case.voxels) for case in by_role["val"]):
        raise DataError("dataset: no class at all in the val split; use another dataset.split.seed")
    if not by_role["test"]:
        log.warning("No test cases: the results are those of the cases that choose the weights")
    digest = digest_cases(case.digest for case in cases)
    openings = Path(config.paths.outputs, config.dataset_name, OPENINGS)
    closed = ClosedTest(by_role["test"], openings, Path(config.paths.data))
    closed.register_masks()
    return PreparedData(
        reader,
        by_role["train"],
        by_role["val"],
        closed,
        splits.format_split(cases, roles),
        digest,
        WATERMARK if watched else None,
    )


def prepare_selected_cases(
    config: Config, reader: Reader
) -> tuple[list[StoredCase], dict[str, str | None]]:
    """Prepare the cases that the configuration selects, unless they are in the store already.

    Returns:
        The prepared cases, and the role by case from the split file or the dataset, if any.

    Raises:
        ConfigError: there is no such split file.
        DataError: cases are broken, missing, or other than those of the split file.
    """
    table, refs = select_case_refs(config, reader)
    cases = prepare_cases(reader, refs, store_folder(config))
    if table is not None:
        splits.check_digests(config.dataset.split.file or "", table, cases)
    return cases, given_roles(refs, table)


def describe_input(data: PreparedData) -> dict[str, Any]:
    """Return the properties of the network's input that the data decided, for `run.json`.

    They let prediction prepare images without the dataset.

    Returns:
        Classes and layout of the images; `values` of the classes in label files, unless these are
        1, 2, ...; `window`, the intensities that are scaled to 0 and 1, or `None` for percentiles
        of each case; `spacing`, the smallest and the largest voxel size of the training cases
        along slices, rows and columns, mm.
    """
    reader, cases = data.reader, data.train
    by_percentiles = all(
        (case.low, case.high) == intensity_window(None, np.array(case.percentiles))
        for case in cases
    )
    usual = tuple(range(1, len(reader.classes) + 1))
    values = None if reader.values in (None, usual) else list(reader.values or ())
    sizes = list(zip(*(c.spacing for c in cases if c.spacing is not None), strict=True))
    return {
        "classes": list(reader.classes),
        "multilabel": reader.labels.overlapping,
        **({} if values is None else {"values": values}),
        "channels": reader.channels,
        "volumetric": reader.volumetric,
        "plane": reader.plane,
        "window": None if by_percentiles else [cases[0].low[0], cases[0].high[0]],
        "spacing": [list(map(extreme, sizes)) for extreme in (min, max)] if sizes else None,
    }


def select_case_refs(config: Config, reader: Reader) -> tuple[pd.DataFrame | None, list[CaseRef]]:
    """List the cases that the configuration selects, and read its split file.

    Returns:
        The table of the split file (`None` without one), and the cases.

    Raises:
        ConfigError: there is no such split file.
        DataError: the dataset has another layout, or no case is left.
    """
    dataset = config.dataset
    if dataset.root is None:
        make_phantom(config)
    refs = reader.cases()
    check_patient_names(config, refs)
    excluded = sorted({ref.case for ref in refs} & set(dataset.exclude))
    if excluded:
        log.info("Excluded, as listed in dataset.exclude: %s", ", ".join(excluded))
    absent = sorted(set(dataset.exclude).difference(excluded))
    if absent and dataset.root is not None:  # The default list is that of the real dataset.
        log.warning("dataset.exclude: no case %s; check the names", ", ".join(absent))
    refs = [ref for ref in refs if ref.case not in excluded]
    table = None
    if dataset.split.file is not None:
        path = splits.find_split_file(dataset.split.file)
        if path is None:
            advice = nearest(dataset.split.file, splits.list_published_splits())
            raise ConfigError(f"dataset.split.file: no file {dataset.split.file!r}; {advice}")
        table = splits.read_split(path, dataset.split.fold)
        if splits.is_of_nnunet(path):  # It leaves the test cases to the dataset.
            for ref in refs:
                if ref.role == "test" and ref.case not in table.index:
                    table.loc[ref.case] = (ref.patient, "test", "")
        listed = [ref for ref in refs if ref.case in table.index]
        log.info("Split of %s: %d of its %d cases are here", path.name, len(listed), len(table))
        if left_out := [ref.case for ref in refs if ref.case not in table.index]:
            names = join_names(left_out)
            log.warning("%d cases are not in %s and left out: %s", len(left_out), path.name, names)
        refs = listed
    if not refs:
        raise DataError("dataset: no cases left; see dataset.exclude and dataset.split.file")
    return table, splits.limit_cases(
        refs, given_roles(refs, table), dataset.limit_cases, dataset.split.seed
    )


def check_patient_names(config: Config, refs: Sequence[CaseRef]) -> None:
    """Refuse cases that look like visits of the same patients until `dataset.patient` is set.

    Raises:
        DataError: each case would be a patient of its own, though names share a patient's number.
    """
    options = config.dataset.options
    if "patient" not in options or options["patient"] is not None or config.dataset.root is None:
        return
    if (suggested := guard.suggest_patient_pattern(ref.case for ref in refs)) is None:
        return
    pattern, names = suggested
    raise DataError(
        f"dataset.patient: {', '.join(names[:3])} look like visits of one patient, and visits must "
        f"not be split; add 'dataset.patient=\"{pattern}\"', or 'dataset.patient=\"(.+)\"' if each "
        "case is a patient of its own"
    )


def given_roles(refs: Sequence[CaseRef], table: pd.DataFrame | None) -> dict[str, str | None]:
    """Return the role of each case from the split file, if there is one, or from the dataset."""
    if table is None:
        return {ref.case: ref.role for ref in refs}
    return {ref.case: str(table.loc[ref.case, "role"]) for ref in refs}


def split_cases(
    config: Config,
    cases: list[StoredCase],
    given: dict[str, str | None],
    pairs: list[duplicates.DuplicatePair],
) -> tuple[list[StoredCase], dict[str, str]]:
    """Give every case a role, and check the split for leaks.

    A case keeps the role that is given for it; `pairs` come from `find_shared_pictures`.

    Returns:
        The cases that are kept, and the role by case.

    Raises:
        DataError: a patient or picture has two roles, or there are too few patients.
    """
    split = config.dataset.split
    if splits.is_of_nnunet(split.file):
        roles = {case: role for case, role in given.items() if role is not None}
    else:
        roles = draw_missing_roles(config, cases, given, pairs)
    left_out: set[str] = set()
    if split.duplicates == "drop" and (left_out := guard.choose_left_out(cases, roles, pairs)):
        names = ", ".join(sorted(left_out))
        log.warning(
            "%d cases left out, since another role has the same picture: %s", len(left_out), names
        )
    kept = [p for p in pairs if not {cases[p.first].case, cases[p.second].case} & left_out]
    guard.check_split(cases, roles, kept)
    return [case for case in cases if case.case not in left_out], roles


def draw_missing_roles(
    config: Config,
    cases: list[StoredCase],
    given: dict[str, str | None],
    pairs: list[duplicates.DuplicatePair],
) -> dict[str, str]:
    """Return the role by case, drawn by patient or picture where none is given."""
    split = config.dataset.split
    return splits.assign_roles(
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


def find_shared_pictures(cases: Sequence[StoredCase]) -> list[duplicates.DuplicatePair]:
    """Return the pairs of cases of different patients that share a picture.

    Those of many slices are kept in the store, since finding them takes minutes.
    """
    if sum(case.shape[0] for case in cases) < MANY_SLICES:
        return _find_shared_pictures(cases)
    described = [STORE_VERSION, [(case.case, case.patient, case.digest) for case in cases]]
    digest = hashlib.sha256(json.dumps(described).encode()).hexdigest()[:16]
    kept = cases[0].folder.parent / f"shared-pictures-{digest}.json"
    try:
        return [
            duplicates.DuplicatePair(**{**pair, "slices": tuple(pair["slices"])})
            for pair in json.loads(kept.read_text())
        ]
    except (OSError, ValueError, TypeError, LookupError):
        pairs = _find_shared_pictures(cases)
        with contextlib.suppress(OSError):  # The store may be read-only.
            write_text(kept, json.dumps([asdict(pair) for pair in pairs]))
        return pairs


def _find_shared_pictures(cases: Sequence[StoredCase]) -> list[duplicates.DuplicatePair]:
    return duplicates.find_duplicates(
        [case.signatures for case in cases],
        [case.patient for case in cases],
        [case.pixels for case in cases],
    )


def store_folder(config: Config) -> Path:
    """Return the folder of prepared cases, a different one for each root and set of options."""
    dataset = config.dataset
    source = str(dataset_root(config).resolve())
    described = [STORE_VERSION, dataset.target, source, dataset.options]
    if plugin := find_plugin(dataset.target):  # Another version may read other cases.
        described.append(plugin.digest)
    text = json.dumps(described, sort_keys=True)
    digest = hashlib.sha256(text.encode()).hexdigest()[:8]
    reader = dataset.target.rpartition(".")[2].lower()
    return Path(config.paths.data, "prepared", f"{reader}-{digest}")
