"""One input never ends a batch: faults at every place, full disks, and a thousand inputs.

`python -m tests.prediction.test_batches FOLDER GOOD FAULTY` makes such a batch and segments it.
"""

import logging
import re
import resource
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from attnseg.errors import CheckpointError, ConfigError, DataError, ResourceError
from attnseg.prediction import folder, images, inputs, manifest, results
from tests.limits import HANG
from tests.prediction.made import Threshold, organ, segment, spec
from tests.prediction.test_dicom import put, write

ROOT = Path(__file__).parents[2]


def nifti(path: Path, array=None, seed: int = 0, affine=None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    array = organ((10, 8, 4), seed) if array is None else array
    nib.save(
        nib.Nifti1Image(array, np.eye(4) if affine is None else affine, dtype=array.dtype), path
    )
    return path


class Unprintable(Exception):
    def __str__(self) -> str:
        return "several\nlines"


ERRORS = (ValueError("x"), KeyError("x"), ZeroDivisionError("x"), RecursionError("x"),
          AssertionError(), Unprintable(), OSError(5, "Input/output error"), MemoryError(),
          IndexError("x"), UnicodeDecodeError("utf-8", b"x", 0, 1, "x"))  # fmt: skip
PLACES = {
    "content": (inputs, "detect_kind"),
    "reading for the digest": (folder, "_digest_item"),
    "decoding": (folder, "read_item"),
    "normalisation": (images, "make_scan"),
    "memory": (folder.FolderRun, "_check_feasible"),
    "clean-up": (folder, "clean_mask"),
    "writing": (results, "replacing"),
    "picture": (folder, "draw_overlay"),
    "digest of results": (manifest, "file_digest"),
}


@pytest.mark.parametrize("place", [*PLACES, "network"])
def test_whatever_an_item_raises_is_a_line_for_it_and_the_rest_is_done(
    tmp_path, monkeypatch, capfd, place
):
    for error in ERRORS:
        source = tmp_path / type(error).__name__
        for at in range(3):
            nifti(source / f"in/{at}.nii.gz", seed=at)
        calls = []

        def fail_in_the_second(plain, error=error, calls=calls):
            def wrapped(*arguments, **options):
                calls.append(arguments)
                if len(calls) == 2:
                    raise error
                return plain(*arguments, **options)

            return wrapped

        network = Threshold(spec())
        with monkeypatch.context() as patched:
            if place == "network":
                network = fail_in_the_second(network)
            else:
                home, name = PLACES[place]
                patched.setattr(home, name, fail_in_the_second(getattr(home, name)))
            with pytest.raises((DataError, ResourceError)) as raised:
                segment(source / "in", source / "out", network)
        masks = sorted(path.name for path in (source / "out/masks").iterdir())
        assert {"0.nii.gz", "2.nii.gz"} <= set(masks) or place in ("writing", "digest of results")
        assert len(masks) >= 2
        message = str(raised.value)
        assert str(source) in message
        assert message.count("\n") == 0
        assert "; " in message
        assert "Traceback" not in capfd.readouterr().err
        segment(source / "in", source / "out")  # What is left can be done.
        assert len(list((source / "out/masks").iterdir())) == 3


def test_the_traceback_of_a_bug_is_kept(tmp_path, monkeypatch):
    nifti(tmp_path / "in/a.nii.gz")
    monkeypatch.setattr(folder, "draw_overlay", lambda *_: 1 / 0)
    with pytest.raises(DataError, match=r"a.nii.gz: cannot be segmented \(ZeroDivisionError") as e:
        segment(tmp_path / "in", tmp_path / "out")
    assert str(tmp_path / "out/errors.log") in str(e.value)
    assert "ZeroDivisionError: division by zero" in (tmp_path / "out/errors.log").read_text()


def test_a_configuration_error_concerns_all_items_and_ends_the_batch(tmp_path, monkeypatch):
    for at in range(3):
        nifti(tmp_path / f"in/{at}.nii.gz", seed=at)

    def refuse(*_):
        raise ConfigError("device: x; y")

    with pytest.raises(ConfigError, match="device"):
        segment(tmp_path / "in", tmp_path / "out", refuse)


def test_a_network_that_answers_one_input_with_nan_does_the_others(tmp_path):
    for at in range(3):
        nifti(tmp_path / f"in/{at}.nii.gz", seed=at)
    plain, seen = Threshold(spec()), []

    def answer(images):
        seen.append(0)
        return plain(images) * (np.float32(np.nan) if len(seen) == 2 else 1)

    with pytest.raises(DataError, match=r"1.nii.gz: .*NaN"):
        segment(tmp_path / "in", tmp_path / "out", answer)
    assert len(list((tmp_path / "out/masks").iterdir())) == 2
    with pytest.raises(CheckpointError, match="3 problems"):
        segment(tmp_path / "in", tmp_path / "none", lambda images: plain(images) * np.nan)


def test_a_result_beyond_the_size_that_the_system_allows(tmp_path):
    """A real limit: what is small enough is written, also after what is not."""
    for name, shape in (("a", (8, 8, 4)), ("b", (60, 60, 60)), ("c", (8, 8, 4))):
        nifti(tmp_path / f"in/{name}.nii", organ(shape))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    try:
        with pytest.raises(ResourceError, match=r"masks/b.nii: cannot be written \(File too large"):
            segment(tmp_path / "in", tmp_path / "out", wanted={"overlays": False})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert sorted(p.name for p in (tmp_path / "out/masks").iterdir()) == ["a.nii", "c.nii"]


def test_a_disk_that_stays_full_ends_the_batch_soon(tmp_path):
    for at in range(9):
        nifti(tmp_path / f"in/{at}.nii", organ((40, 40, 20), at))
    network, before = Threshold(spec()), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))
    try:
        with pytest.raises(ResourceError, match="problems"):
            segment(tmp_path / "in", tmp_path / "out", network)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert len(network.seen) == 3 * folder.MOST_UNWRITTEN  # batches of each volume


def test_constants_huge_numbers_and_nan(tmp_path, caplog, capfd):
    """With the percentiles of each image, since a window would hide them."""
    shape, rng = (10, 8, 4), np.random.default_rng(0)
    sound = {
        "zero": np.zeros(shape, np.int16),
        "constant": np.full(shape, 7, np.uint8),
        "int64": rng.integers(-(2**62), 2**62, shape),
        "uint64": np.full(shape, 2**64 - 1, np.uint64),
        "tiny": rng.random(shape) * 1e-40,
    }
    faulty = {
        "nan": np.full(shape, np.nan, np.float32),
        "some nan": np.where(rng.random(shape) < 0.1, np.nan, 1.0),
        "infinite": np.where(rng.random(shape) < 0.1, np.inf, 1.0),
        "double": rng.random(shape) * 1e300,
        "too far apart": np.where(rng.random(shape) < 0.5, -3e38, 3e38).astype(np.float32),
    }
    for name, array in {**sound, **faulty}.items():
        nifti(tmp_path / f"in/{name}.nii.gz", array)
    with pytest.raises(DataError, match=f"{len(faulty)} problems"):
        segment(tmp_path / "in", tmp_path / "out", window=None)
    told = capfd.readouterr().err
    assert all(f"in/{name}.nii.gz: " in told for name in faulty)
    names = {path.name.removesuffix(".nii.gz") for path in (tmp_path / "out/masks").iterdir()}
    assert names == set(sound)
    assert "constant: every voxel has the same intensity" in caplog.text


def _cut(path: Path) -> None:
    nifti(path, seed=1)
    path.write_bytes(path.read_bytes()[:200])


def _series(edit) -> Callable[[Path], None]:
    return lambda path: write(path, organ((1, 8, 10)), path.name, edit=lambda at, made: edit(made))


def _picture(array, **options) -> Callable[[Path], None]:
    return lambda path: Image.fromarray(array).save(path, **options)


GOOD = {
    "volume-{}.nii.gz": lambda path, at: nifti(path, seed=at),
    "plain-{}.nii": lambda path, at: nifti(path, seed=at),
    "picture-{}.png": lambda path, at: Image.fromarray(
        organ((9, 8), at).astype(np.uint8)
    ).save(path),
    "series-{}": lambda path, at: write(path, organ((2, 8, 10), at), path.name),
}  # fmt: skip
FAULTY: dict[str, Callable[[Path], object]] = {
    "empty-{}.nii.gz": lambda path: path.write_bytes(b""),
    "cut-{}.nii.gz": _cut,
    "page-{}.nii": lambda path: path.write_text("<html>not found</html>"),
    "pointer-{}.dcm": lambda path: path.write_text("version https://git-lfs.github.com/spec/v1"),
    "nan-{}.nii.gz": lambda path: nifti(path, np.full((4, 4, 4), np.nan)),
    "channels-{}.nii.gz": lambda path: nifti(path, np.zeros((4, 4, 4, 3), np.int16)),
    "sheared-{}.nii.gz": lambda path: nifti(path, affine=np.eye(4) + 0.5 * np.eye(4, k=1)),
    "complex-{}.nii": lambda path: nifti(path, np.ones((4, 4, 4), np.complex64)),
    "colour-{}.png": _picture(np.zeros((8, 8, 3), np.uint8)),
    "line-{}.png": _picture(np.zeros((1, 8), np.uint8)),
    "cut-{}.png": lambda path: (
        Image.fromarray(organ((40, 40)).astype(np.uint8)).save(path),
        path.write_bytes(path.read_bytes()[:-300]),
    ),
    "frames-{}": _series(put(NumberOfFrames="7")),
    "rows-{}": _series(put(Rows=[8, 8])),
    "colours-{}": _series(put(PhotometricInterpretation="PALETTE COLOR")),
    "spacing-{}": _series(put(PixelSpacing=[0, 1])),
    "slope-{}": _series(put(RescaleSlope=0)),
    "place-{}": _series(put(ImagePositionPatient=None)),
    "turned-{}": _series(put(ImageOrientationPatient=[3, 0, 0, 0, 1, 0])),
    "pixels-{}": _series(put(PixelData=b"\0\0")),
    "uid-{}": _series(put(SeriesInstanceUID="../x")),
    "patients-{}": lambda path: write(
        path, organ((2, 8, 10)), path.name, edit=lambda at, made: put(PatientID=str(at))(made)
    ),
}


def make_batch(place: Path, good: int, faulty: int) -> None:
    """Write so many sound and faulty inputs, of all kinds in turn."""
    place.mkdir(parents=True)
    for kinds, count in ((GOOD, good), (FAULTY, faulty)):
        names = list(kinds)
        for at in range(count):
            path = place / names[at % len(names)].format(at)
            kinds[names[at % len(names)]](*((path, at) if kinds is GOOD else (path,)))


def segment_batch(place: Path, good: int, faulty: int) -> tuple[DataError, int]:
    """Segment a batch of that many inputs; return the error, and MB of memory that it took.

    The memory for one sound input of each kind, segmented first, is not counted.
    """
    make_batch(place / "in", good, faulty)
    make_batch(place / "first", len(GOOD), 0)
    segment(place / "first", place / "before", wanted={"overlays": False})
    if sys.platform == "linux":
        Path("/proc/self/clear_refs").write_text("5")  # Resets the peak.
    before = read_peak()
    with pytest.raises(DataError) as raised:
        segment(place / "in", place / "out", wanted={"overlays": False})
    grown = read_peak() - before
    masks = sum(path.is_file() for path in (place / "out/masks").rglob("*"))
    assert masks == good
    return raised.value, grown // 1024


def read_peak() -> int:
    """Return the peak of resident memory, kB; that of `getrusage` starts from the parent's peak."""
    if sys.platform != "linux":
        return 0
    status = Path("/proc/self/status").read_text()
    return int(re.search(r"VmHWM:\s*(\d+) kB", status)[1])


@pytest.mark.parametrize(("good", "faulty"), [
    (16, len(FAULTY)), pytest.param(900, 100, marks=pytest.mark.slow),
])  # fmt: skip
def test_a_batch_of_all_faults_has_a_mask_or_a_line_for_each_input(tmp_path, good, faulty):
    """In a process of its own, since other tests have used memory in this one."""
    command = [sys.executable, "-m", "tests.prediction.test_batches", tmp_path, good, faulty]
    done = subprocess.run(
        [*map(str, command)], cwd=ROOT, capture_output=True, text=True, timeout=HANG
    )
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    assert len(lines) == faulty
    for at in range(faulty):
        name = list(FAULTY)[at % len(FAULTY)].format(at)
        assert sum(f"/in/{name}" in line for line in lines) == 1, name
    assert all(line.startswith("error: ") and "; " in line for line in lines)
    *_, error, end = done.stdout.splitlines()
    assert f"{faulty} problems, listed above; {good} others are done" in error
    assert end.startswith("exit 3, ")
    assert int(end.split()[2]) < 200, end


if __name__ == "__main__":
    logging.disable()  # Only errors are printed.
    warnings.simplefilter("ignore")
    ended, megabytes = segment_batch(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
    print(f"error: {ended}\nexit {ended.exit_code}, {megabytes} MB")
