"""All files that pydicom brings for its own tests; `python FILE` prints what becomes of them."""

import gzip
import sys
import warnings
from collections import Counter
from pathlib import Path

import numpy as np
import pydicom
from pydicom.pixels.processing import apply_modality_lut

from attnseg.errors import DataError, Problems
from attnseg.prediction.dicom import DicomVolume, read_series
from attnseg.prediction.dicom_headers import group_series, read_dicom
from attnseg.prediction.inputs import detect_kind

FILES = Path(pydicom.__file__).parent / "data"


def list_files() -> list[Path]:
    """The files of pydicom's folders of tests, character sets and palettes."""
    folders = (FILES / name for name in ("test_files", "charset_files", "palettes"))
    return sorted(path for folder in folders for path in folder.rglob("*") if path.is_file())


def decode(volume: DicomVolume) -> np.ndarray:
    """The same slices by pydicom alone, `[columns, rows, slices]`."""
    planes = []
    for frame in volume.frames:
        packed = frame.path.read_bytes().startswith(b"\x1f\x8b")
        with (gzip.open if packed else open)(frame.path, "rb") as file:
            header = pydicom.dcmread(file, force=True)
        if "TransferSyntaxUID" not in header.file_meta:
            header.file_meta.TransferSyntaxUID = read_dicom(frame.path).file_meta.TransferSyntaxUID
        stored = header.pixel_array
        if frame.number is not None:
            header, stored = frame.header, stored.reshape(-1, *stored.shape[-2:])[frame.number]
        planes.append(apply_modality_lut(stored, header))
    return np.stack(planes).transpose(2, 1, 0).astype(np.float32)


def sort_out(paths: list[Path]) -> tuple[dict[str, list[str]], int]:
    """Read everything; return what became of the files, by outcome, and the number of voxels."""
    outcome: dict[str, list[str]] = {"passed over": [], "refused": [], "done": []}
    problems, dicom, voxels = Problems(), [], 0
    for path in paths:
        with problems.gathered():
            if detect_kind(path) == "dicom":
                dicom.append(path)
            else:
                outcome["passed over"].append(f"{path}: no DICOM")
    series, others = group_series(dicom, problems)
    outcome["passed over"] += [f"{path}: no image" for path in others]
    for _, _, files, _ in series:
        try:
            volume = read_series(files)
        except DataError as error:
            outcome["refused"] += [str(error)] * len(files)
            continue
        expected = decode(volume)
        assert np.array_equal(volume.voxels.astype(np.float32), expected), files
        voxels += expected.size
        outcome["done"] += list(map(str, files))
    outcome["refused"] += problems.found
    return outcome, voxels


def read_all() -> tuple[dict[str, dict[str, list[str]]], int]:
    """Read all files as one folder, and then each alone, since many are copies of one slice."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        together, voxels = sort_out(list_files())
        alone: dict[str, list[str]] = {name: [] for name in together}
        for path in list_files():
            outcome, more = sort_out([path])
            voxels += more
            for name, lines in outcome.items():
                alone[name] += lines
    return {"as one folder": together, "each alone": alone}, voxels


def test_all_files_of_pydicom_are_done_passed_over_or_refused():
    tables, voxels = read_all()
    for outcome in tables.values():
        assert sum(map(len, outcome.values())) == len(list_files()) > 170
        for line in outcome["refused"]:
            assert line.startswith(str(FILES))
            assert "; " in line
            assert "\n" not in line
    assert len(tables["as one folder"]["done"]) >= 13
    assert len(tables["each alone"]["done"]) >= 40
    assert voxels > 1e6


if __name__ == "__main__":
    tables, voxels = read_all()
    for title, outcome in tables.items():
        counts = ", ".join(f"{len(lines)} {name}" for name, lines in outcome.items())
        print(f"\n{title}: {counts}")
        for name, lines in outcome.items():
            reasons = Counter(line.partition(": ")[2] or line for line in lines)
            for reason, count in reasons.most_common():
                print(f"{name:12} {count:4} {reason.replace(str(FILES), '')}")
    print(f"\n{voxels} voxels equal to pydicom's", file=sys.stderr)
