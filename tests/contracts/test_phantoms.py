"""What the phantom of every dataset does, in each layout that it has."""

import hashlib

import pytest
from omegaconf import OmegaConf

from attnseg.config.build import build
from attnseg.config.nodes import Component
from attnseg.errors import AttnsegError, DataError
from tests.contracts.groups import FOLDER, compose, names

MADE = [
    name
    for name in names("dataset")
    if OmegaConf.load(FOLDER / "dataset" / f"{name}.yaml").get("phantom")
]
KINDS = [(name, {}) for name in MADE] + [("synapse", {"layout": "package"})]


@pytest.fixture(params=KINDS, ids=lambda kind: "-".join([kind[0], *kind[1].values()]))
def make(request):
    """Make the dataset's phantom at a root."""
    name, fixed = request.param
    node = compose(f"dataset={name}", "phantom_size=tiny")["dataset"]["phantom"]

    def run(root, **options):
        build("dataset.phantom", Component.model_validate(node | fixed | options), root=root)
        return root

    return run


def digest(root):
    total = hashlib.sha256()
    for path in sorted(root.rglob("*")):
        total.update(str(path.relative_to(root)).encode())
        total.update(path.read_bytes() if path.is_file() else b"")
    return total.hexdigest()


def test_the_same_specification_gives_the_same_bytes(make, tmp_path):
    first = digest(make(tmp_path / "first"))
    assert digest(make(tmp_path / "again")) == first
    assert digest(make(tmp_path / "other", seed=1)) != first


def test_it_is_made_once_and_never_over_something_else(make, tmp_path):
    def state():
        return {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}

    root = make(tmp_path / "phantom")
    before = state()
    make(root)
    assert state() == before
    with pytest.raises(DataError, match="something else"):
        make(root, seed=3)
    (tmp_path / "mine").mkdir()
    with pytest.raises(DataError, match="something else"):
        make(tmp_path / "mine")


def test_unknown_preset(make, tmp_path):
    with pytest.raises(AttnsegError, match="tiny, demo"):
        make(tmp_path / "new", preset="big")
    assert list(tmp_path.iterdir()) == []
