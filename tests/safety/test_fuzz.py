"""Random input: an answer or one of our errors, never a bug of ours, and soon.

The quick tests are hypothesis's, the same examples every time; those marked slow draw many more
from a seeded generator.
"""

import gzip
import random
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from attnseg.cli.failures import translate_hydra_error
from attnseg.config.composition import compose as compose_config
from attnseg.config.composition import initialized, to_raw
from attnseg.config.training import parse_config
from attnseg.data import splits
from attnseg.data.readers import rle
from attnseg.data.readers.nifti import read_nifti
from attnseg.data.readers.pictures import GREY16, read_picture
from attnseg.data.readers.uw_madison import UWMadison
from attnseg.errors import AttnsegError, ConfigError, DataError

SHAPE = (7, 5)
QUICK = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
WORDS = ["", "nan", "1", "3", "35", "36", "-1", "0", "1e3", "1.5", "\0", "=1+1", "٣", "9" * 30, ","]
KEYS = [
    "seed", "model", "attn", "dataset", "loss", "optimizer.lr", "trainer.devices", "model.size",
    "dataset.image_size", "dataset.split.val", "attn.mixing", "paths.data", "profile", "augment",
    "experiment", "trainer", "hydra.run.dir", "modle", "x.y", "dataset.exclude", "logger", "",
]  # fmt: skip
VALUES = [
    "0", "-1", "1e400", "nan", "kv", "setr", "null", "true", "[1,2]", "[", "{a:1}", "'", '"',
    "${oc.env:HOME}", "${seed}", "???", "a,b", "choice(1,2)", "range(1,3)", "../..", "\\", "", "é",
    "!!python/name:os.system", "0x10", "1_000", "a=b", "{", "glob(*)", "@", "/", " ", "0 1", "${x}",
]  # fmt: skip
SIGNS = ["", "+", "++", "~"]


def decode(text: str) -> None:
    try:
        mask = rle.decode(text, SHAPE)
    except ValueError as error:
        assert "\n" not in str(error)
        return
    assert mask.shape == SHAPE
    again = rle.encode(mask)
    assert (rle.decode(again, SHAPE) == mask).all()


def read_table(folder: Path, content: bytes) -> None:
    (folder / "train.csv").write_bytes(content)
    (folder / "split.csv").write_bytes(content)
    for read in (
        lambda: UWMadison(folder)._codes,
        lambda: splits.read_split(folder / "split.csv"),
    ):
        try:
            read()
        except DataError as error:
            assert all("\n" not in problem for problem in error.problems)


def compose(words: list[str]) -> None:
    """Do with a command line what the command does before it imports torch."""
    try:
        plain = to_raw(compose_config("train", words))
        parse_config(plain)
    except Exception as error:
        if isinstance(error, AttnsegError):
            return
        answer = translate_hydra_error(error, "train", words)
        assert isinstance(answer, ConfigError), (words, repr(error))
        assert "\n" not in str(answer)


def damaged(content: bytes, seed: random.Random) -> bytes:
    """Return a file with bytes changed, cut off or repeated."""
    data = bytearray(content)
    for _ in range(seed.randint(1, 4)):
        at = seed.randrange(len(data))
        kind = seed.randrange(4)
        if kind == 0:
            data[at] = seed.randrange(256)
        elif kind == 1:
            data[at : at + 4] = seed.choice([b"\xff" * 4, b"\0" * 4, b"\x7f\xff\xff\xff"])
        elif kind == 2:
            del data[max(1, at) :]
        else:
            data[at:at] = data[at : at + 20]
    return bytes(data)


def picture_bytes(folder: Path) -> bytes:
    Image.fromarray(np.arange(80, dtype=np.uint16).reshape(8, 10)).save(folder / "a.png")
    return (folder / "a.png").read_bytes()


def volume_bytes(folder: Path) -> bytes:
    voxels = np.arange(60, dtype=np.int16).reshape(3, 4, 5)
    nib.save(nib.Nifti1Image(voxels, np.diag([-1.0, -1.0, 2.0, 1.0])), folder / "a.nii")
    return (folder / "a.nii").read_bytes()


def open_picture(folder: Path, content: bytes) -> None:
    (folder / "b.png").write_bytes(content)
    try:
        read_picture(folder / "b.png", GREY16)
    except DataError:
        return


def open_volume(folder: Path, content: bytes) -> None:
    (folder / "b.nii").write_bytes(content)
    (folder / "b.nii.gz").write_bytes(gzip.compress(content)[: len(content)])
    for name in ("b.nii", "b.nii.gz"):
        try:
            read_nifti(folder / name)
        except DataError:
            continue


@pytest.fixture
def composing():
    with initialized():
        yield


tokens = st.one_of(st.sampled_from(WORDS), st.integers(-5, 50).map(str), st.text(max_size=5))


@QUICK
@given(st.lists(tokens, max_size=12).map(" ".join))
def test_run_length_codes(text):
    decode(text)


@QUICK
@given(st.integers(0, 1 << 32))
def test_tables(tmp_path, seed):
    read_table(tmp_path, table(random.Random(seed), 5))


@settings(QUICK, max_examples=30)
@given(st.integers(0, 1 << 32))
def test_command_lines(composing, seed):
    compose(line(random.Random(seed)))


@QUICK
@given(st.integers(0, 1 << 32))
def test_pictures_and_volumes(tmp_path, seed):
    generator = random.Random(seed)
    open_picture(tmp_path, damaged(picture_bytes(tmp_path), generator))
    open_volume(tmp_path, damaged(volume_bytes(tmp_path), generator))


def table(generator: random.Random, rows: int) -> bytes:
    """Return a table whose header is right more often than not, and whose rows are not."""
    headers = ["id,class,segmentation"] * 3 + ["patient,case,role,digest"] * 3 + ["a;b", "", "\0"]
    lines = [generator.choice(headers)]
    cells = [*WORDS, "case1_day0_slice_0001", "stomach", "train", "test", '"', '"a""b"', "1 2 3"]
    for _ in range(rows):
        lines.append(",".join(generator.choices(cells, k=generator.choice([3, 3, 3, 4, 4, 1, 9]))))
    end = generator.choice([b"\n", b"", b"\xff", b"\0", b'"'])
    return generator.choice(["\n", "\r\n", "\r"]).join(lines).encode() + end


def line(generator: random.Random) -> list[str]:
    """Return up to three overrides."""
    return [
        generator.choice(SIGNS)
        + generator.choice(KEYS)
        + generator.choice(["=", "=", "=", "", "@", ":"])
        + generator.choice(VALUES)
        for _ in range(generator.randint(1, 3))
    ]


@pytest.mark.slow
def test_a_million_run_length_codes():
    generator = random.Random(0)
    for _ in range(1_000_000):
        words = generator.choices([*WORDS, *map(str, range(40))], k=generator.randrange(7))
        decode(" ".join(words))


@pytest.mark.slow
def test_a_hundred_thousand_rows(tmp_path):
    generator = random.Random(0)
    for _ in range(2_000):
        read_table(tmp_path, table(generator, 50))


@pytest.mark.slow
def test_ten_thousand_command_lines(composing):
    generator = random.Random(0)
    for _ in range(10_000):
        compose(line(generator))


@pytest.mark.slow
def test_ten_thousand_pictures_and_volumes(tmp_path):
    generator = random.Random(0)
    picture, volume = picture_bytes(tmp_path), volume_bytes(tmp_path)
    for _ in range(10_000):
        open_picture(tmp_path, damaged(picture, generator))
        open_volume(tmp_path, damaged(volume, generator))
