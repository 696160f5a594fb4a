"""From the configuration to a dataset ready to train on: phantom, reader, store, split."""

import hashlib
import json
import logging
from dataclasses import dataclass
from pathlib import Path

from attnseg.data import splits
from attnseg.data.reader import Reader
from attnseg.data.store import VERSION, StoredCase, prepare
from attnseg.engine.build import build
from attnseg.engine.schema import Config
from attnseg.errors import ConfigError, DataError

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Data:
    """A dataset ready to train on."""

    reader: Reader
    cases: dict[str, list[StoredCase]]  # by role
    split: str  # the split file's text
    digest: str  # of all cases


def root(config: Config) -> Path:
    """Return the dataset's root: the one given, or where its phantom belongs."""
    dataset = config.dataset
    if dataset.root is not None:
        return Path(dataset.root)
    assert dataset.phantom is not None  # the schema has checked
    options = [str(value) for value in dataset.phantom.options.values()]
    return Path(config.paths.data, "phantoms", "-".join([config.choices["dataset"], *options]))


def make_phantom(config: Config) -> Path:
    """Make the dataset's phantom at its root, unless it is there; return the root.

    Raises:
        ConfigError: the dataset has no phantom.
        DataError: the root holds something else.
    """
    if config.dataset.phantom is None:
        name = config.choices["dataset"]
        raise ConfigError(f"dataset: {name} has no phantom; use dataset=phantom")
    build("dataset.phantom", config.dataset.phantom, root=root(config))
    return root(config)


def open_reader(config: Config) -> Reader:
    """Return the dataset's reader; nothing is read yet."""
    reader: Reader = build("dataset", config.dataset, root=str(root(config)))
    return reader


def load(config: Config, reader: Reader) -> Data:
    """Prepare what is not prepared yet, and split by patient."""
    dataset = config.dataset
    if dataset.root is None:
        make_phantom(config)
    refs = reader.cases()
    excluded = sorted({ref.case for ref in refs} & set(dataset.exclude))
    if excluded:
        log.info("Excluded, as listed in dataset.exclude: %s", ", ".join(excluded))
    refs = [ref for ref in refs if ref.case not in excluded]
    refs = splits.limit(refs, dataset.limit_cases, dataset.split.seed)
    roles = splits.draw(
        [ref.patient for ref in refs], dataset.split.val, dataset.split.test, dataset.split.seed
    )
    cases = prepare(reader, refs, store_folder(config))
    for at, name in enumerate(reader.classes):
        for role in splits.ROLES:
            if not any(case.voxels[at] for case in cases if roles[case.patient] == role):
                log.warning("No %s in the %s split: its metrics are undefined", name, role)
    if not any(sum(case.voxels) for case in cases if roles[case.patient] == "val"):
        raise DataError("dataset: no class at all in the val split; use another dataset.split.seed")
    by_role = {r: [c for c in cases if roles[c.patient] == r] for r in splits.ROLES}
    digest = hashlib.sha256("".join(case.digest for case in cases).encode()).hexdigest()
    return Data(reader, by_role, splits.table(cases, roles), digest)


def store_folder(config: Config) -> Path:
    """Return where prepared cases are: another root or option, another folder."""
    dataset = config.dataset
    place = str(root(config).resolve())
    text = json.dumps([VERSION, dataset.target, place, dataset.options], sort_keys=True)
    digest = hashlib.sha256(text.encode()).hexdigest()[:8]
    return Path(config.paths.data, "prepared", f"{config.choices['dataset']}-{digest}")
