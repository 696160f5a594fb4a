"""Mutated DICOM headers: each is refused, warned of, or read as pydicom reads it; no traceback.

`python -m tests.prediction.test_dicom_fuzz FOLDER COUNT` prints what became of them.
"""

import sys
import warnings
from collections import Counter
from io import BytesIO
from pathlib import Path

import numpy as np
import pydicom
import pytest

from attnseg.errors import DataError, Problems
from attnseg.prediction.dicom import DicomVolume, read_series
from attnseg.prediction.dicom_headers import group_series
from attnseg.prediction.inputs import detect_kind
from tests.prediction.made import organ
from tests.prediction.test_dicom import TURN, header
from tests.prediction.test_dicom_formats import enhance
from tests.prediction.test_dicom_library import decode

VALUES = (
    b"", b"0", b"-1", b"1A", b"1e300", b"nan", b"-inf", b"1\\2", b"\\", b"1\\0\\0\\0\\1\\0",
    b"\0\0", b"\xff\xff", b"\x08\0\x08\0", b"\x01\0", b"9" * 16, b"RGB ", b"MONOCHROME1 ",
    b"PALETTE COLOR ", b"0.5\\-0.5", b"2\\0\\0\\0\\1\\0", b"RTDOSE", b"1.2.3", b"../x",
    b"1.2.840.10008.5.1.4.1.1.481.2",
)  # fmt: skip


def write_seeds(folder: Path) -> list[bytes]:
    """Sound files: a slice, a signed and rescaled one, one with padding, and several frames."""
    voxels = organ((2, 8, 10)) + 20
    seeds = []
    for change in (
        {},
        {"PixelRepresentation": 1, "RescaleSlope": "0.5"},
        {"PixelPaddingValue": 21},
    ):
        made = header(voxels, 0, "fuzz", TURN)
        for name, value in change.items():
            setattr(made, name, value)
        made.save_as(folder / "seed", enforce_file_format=True)
        seeds.append((folder / "seed").read_bytes())
    seeds.append(enhance(folder / "seed", voxels, [1, 2]).read_bytes())
    return seeds


def mutate(content: bytes, rng: np.random.Generator) -> bytes:
    """Change bytes of the header, replace a value, remove an element, or cut the file off."""
    pixels = content.rindex(b"\xe0\x7f\x10\x00")
    kind = rng.integers(4)
    if kind == 0:
        changed = bytearray(content)
        for at in rng.integers(0, pixels, rng.integers(1, 6)):
            changed[at] = rng.integers(256)
        return bytes(changed)
    if kind == 1:
        return content[: rng.integers(pixels)]
    made = pydicom.dcmread(BytesIO(content))
    elements = [made.get_item(tag) for tag in made.keys()]
    named = [element for element in elements if element.length < len(content)]
    element = named[rng.integers(len(named))]
    start, end = element.value_tell, element.value_tell + element.length
    size = 4 if element.VR in ("OB", "OW", "SQ", "UN") else 2
    if kind == 2:
        return content[: start - 8 - 2 * (size - 2)] + content[end:]
    value = VALUES[rng.integers(len(VALUES))]
    value += b" " * (len(value) % 2)
    return content[: start - size] + len(value).to_bytes(size, "little") + value + content[end:]


def judge(path: Path) -> str:
    """Read a file; return what became of it, after a comparison with pydicom's reading."""
    problems = Problems()
    with problems.gathered():
        if detect_kind(path) != "dicom":
            return "no DICOM"
    series, others = group_series([path] if not problems.found else [], problems)
    if others or problems.found:
        return "passed over" if others else "refused"
    ((_, _, files, _),) = series
    try:
        volume = read_series(files)
    except DataError as error:
        assert str(error).startswith(f"{path}: ")
        assert "; " in str(error)
        return "refused"
    compare(path, volume)
    return "warned of" if volume.warnings else "read"


def compare(path: Path, volume: DicomVolume) -> None:
    """Check size, spacing, orientation and values against pydicom's reading."""
    theirs = pydicom.dcmread(path, force=True)
    assert volume.voxels.shape == (
        theirs.Columns,
        theirs.Rows,
        int(theirs.get("NumberOfFrames") or 1),
    )
    own = volume.frames[0].header
    spacing = np.array(own.PixelSpacing, float)
    axes = np.array(own.ImageOrientationPatient, float).reshape(2, 3)
    assert np.allclose(np.linalg.norm(volume.affine[:3, :2], axis=0), spacing[::-1])
    assert np.allclose(
        volume.affine[:3, 0] * [-1, -1, 1], axes[0] * spacing[1], atol=0.02 * spacing[1]
    )
    assert np.allclose(
        volume.affine[:3, 1] * [-1, -1, 1], axes[1] * spacing[0], atol=0.02 * spacing[0]
    )
    assert np.allclose(
        volume.affine[:3, 3] * [-1, -1, 1], np.array(own.ImagePositionPatient, float)
    )
    if not volume.warnings:
        assert np.array_equal(volume.voxels.astype(np.float32), decode(volume))


def run(folder: Path, count: int) -> Counter[str]:
    folder.mkdir(parents=True, exist_ok=True)
    rng, outcome = np.random.default_rng(0), Counter[str]()
    seeds = write_seeds(folder)
    path = folder / "mutant"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for number in range(count):
            content = mutate(seeds[number % len(seeds)], rng)
            path.write_bytes(content)
            try:
                outcome[judge(path)] += 1
            except BaseException:
                (folder / f"failed-{number}").write_bytes(content)
                raise
    return outcome


@pytest.mark.parametrize("count", [300, pytest.param(10_000, marks=pytest.mark.slow)])
def test_mutated_headers_are_refused_or_read_as_pydicom_reads_them(tmp_path, count):
    outcome = run(tmp_path, count)
    assert outcome.total() == count
    assert outcome["read"] > count / 10
    assert outcome["refused"] > count / 10


if __name__ == "__main__":
    print(run(Path(sys.argv[1]), int(sys.argv[2])))
