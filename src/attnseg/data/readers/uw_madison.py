"""Reader of the UW-Madison GI Tract download: abdominal MRI with three organs that may overlap.

Layout as downloaded (https://doi.org/10.1016/j.dib.2024.111159):

    train.csv                                       id,class,segmentation
    train/case2/case2_day1/scans/slice_0001_266_266_1.50_1.50.png

A file name contains the slice number, width, height and the pixel spacing in mm; images are 16-bit
grey. An id is `case2_day1_slice_0001`. Each slice has one row per class, with a run-length encoded
mask (see `attnseg.data.readers.rle`) or an empty one. Slices are 3 mm thick.
"""

import csv
import io
import logging
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from functools import cached_property
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from attnseg.data.labels import Labels
from attnseg.data.reader import Case, CaseRef, Reader, shape_text
from attnseg.data.readers import rle
from attnseg.data.readers.pictures import read_picture
from attnseg.errors import DataError, Problems

log = logging.getLogger(__name__)

SLICE_THICKNESS_MM = 3.0
TABLE_COLUMNS = ("id", "class", "segmentation")
LONGEST_CODE = 1 << 24  # characters of a run-length code; the usual limit of a cell is 131,072
SLICE_FILE_NAME = re.compile(r"slice_(\d+)_(\d+)_(\d+)_(\d+(?:\.\d+)?)_(\d+(?:\.\d+)?)\.png")
SCAN_FOLDER_NAME = re.compile(r"(case\d+)_day\d+")


class UWMadison(Reader):
    """Reads each scan as a case; a patient has a scan on each of several days.

    Args:
        root: folder that holds `train.csv` and `train/`.
    """

    labels = Labels(("large_bowel", "small_bowel", "stomach"), overlapping=True)
    channels = 1

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root)
        self.table = self.root / "train.csv"
        self.scans = self.root / "train"

    def cases(self) -> list[CaseRef]:
        """List the scans by case and day number; see `Reader.cases`."""
        if not self.root.is_dir():
            raise DataError(
                f"{self.root}: no such folder; set dataset.root to the folder that holds train.csv"
            )
        for part in (self.table, self.scans):
            if not part.exists():
                raise DataError(
                    f"{part}: not found; unpack the UW-Madison download so that train.csv and "
                    f"train/ lie in {self.root}"
                )
        slices: dict[str, list[Path]] = defaultdict(list)
        for path in sorted(self.scans.glob("case*/case*_day*/scans/*.png")):
            slices[path.parts[-3]].append(path)
        if not slices:
            raise DataError(
                f"{self.scans}: no slices found; expected case2/case2_day1/scans/slice_0001_*.png"
            )
        refs = []
        problems = Problems()
        # By the numbers in the name, so that case10 comes after case2.
        for scan in sorted(slices, key=lambda name: [int(n) for n in re.findall(r"\d+", name)]):
            match = SCAN_FOLDER_NAME.fullmatch(scan)
            folder = slices[scan][0].parent
            if match is None or match[1] != folder.parent.parent.name:
                problems.found.append(
                    f"{folder.parent}: not a scan folder; expected caseN/caseN_dayM as downloaded"
                )
                continue
            with problems.gathered():
                refs.append(CaseRef(match[1], scan, tuple(sort_slices(slices[scan]))))
        problems.stop()
        known = {slice_id(ref.case, path) for ref in refs for path in ref.files}
        if orphans := [name for name in self._codes if name not in known]:
            log.warning(
                "%s: %d slices without an image, %s the first", self.table, len(orphans), orphans[0]
            )
        return refs

    def source(self, ref: CaseRef) -> str:
        """Return the scan's rows of `train.csv`."""
        ids = (slice_id(ref.case, path) for path in ref.files)
        return "\n".join(f"{i},{self._codes[i]}" for i in ids if i in self._codes)

    def read(self, ref: CaseRef) -> Case:
        """Decode one scan; see `Reader.read`."""
        masks: list[NDArray[np.uint8]] = []
        image, spacing = read_scan(
            ref.case,
            ref.files,
            lambda path, shape: masks.append(self._slice_mask(ref, path, shape)),
        )
        return Case(image, np.stack(masks), spacing)

    def _slice_mask(self, ref: CaseRef, path: Path, shape: tuple[int, ...]) -> NDArray[np.uint8]:
        """Return a slice's mask `[H, W]`, decoded for an image of this shape."""
        name = slice_id(ref.case, path)
        codes = self._codes.get(name, {})
        if missing := [class_name for class_name in self.classes if class_name not in codes]:
            raise DataError(
                f"{self.table}: no row for {name}, {missing[0]}; add it or remove the image"
            )
        problems = Problems()
        mask = np.zeros(shape, np.uint8)
        for bit, class_name in enumerate(self.classes):
            try:
                decoded = rle.decode(codes[class_name], (shape[0], shape[1]))
                mask |= decoded.astype(np.uint8) << bit
            except ValueError as error:
                problems.found.append(
                    f"{self.table}: {name}, {class_name}: {error}; "
                    "correct the row or exclude the scan"
                )
        problems.stop()
        return mask

    @cached_property
    def _codes(self) -> dict[str, dict[str, str]]:
        """Run-length codes of `train.csv` by id and class."""
        codes: dict[str, dict[str, str]] = defaultdict(dict)
        usual = csv.field_size_limit(LONGEST_CODE)
        try:
            with self.table.open(newline="", encoding="utf-8-sig") as lines:
                rows = csv.reader(lines)
                header = next(rows, [])
                if sorted(header) != sorted(TABLE_COLUMNS):
                    raise DataError(
                        f"{self.table}: columns {','.join(header)[:80]!r}; "
                        f"expected {','.join(TABLE_COLUMNS)}"
                    )
                problems = Problems()
                for row in rows:
                    if not "".join(row).strip():  # Many programs write a blank line at the end.
                        continue
                    with problems.gathered():
                        self._add_row(codes, rows.line_num, header, row)
                problems.stop()
        except (OSError, UnicodeDecodeError, csv.Error) as error:
            raise DataError(f"{self.table}: not a CSV file ({error}); download it again") from error
        finally:
            csv.field_size_limit(usual)  # It holds for the whole process.
        return dict(codes)

    def _add_row(
        self, codes: dict[str, dict[str, str]], line: int, header: list[str], row: list[str]
    ) -> None:
        """Add a row to the codes, once it has been checked."""
        if len(row) != len(header):
            raise DataError(
                f"{self.table}: line {line} has {len(row)} cells instead of {len(header)}; "
                "correct it"
            )
        cells = dict(zip(header, row, strict=True))
        slice_name, name, text = (cells[column] for column in TABLE_COLUMNS)
        if name not in self.classes:
            raise DataError(
                f"{self.table}: line {line}: class {name!r}; "
                f"expected one of {', '.join(self.classes)}"
            )
        if name in codes[slice_name]:
            raise DataError(
                f"{self.table}: line {line}: {slice_name}, {name} appears twice; keep one row"
            )
        codes[slice_name][name] = "" if text.strip().lower() == "nan" else text


def read_scan(
    name: str,
    files: Sequence[Path],
    check_slice: Callable[[Path, tuple[int, ...]], None] = lambda path, shape: None,
) -> tuple[NDArray[np.generic], tuple[float, float, float]]:
    """Decode the slices of a scan, whose files are in the order of the slices.

    `check_slice` is called with file and shape (H, W) of each sound slice; a `DataError` from it is
    one of the problems.

    Returns:
        Image `[S, H, W, 1]` and voxel size along S, H, W, mm.

    Raises:
        DataError: files are broken or contradict each other; lists every problem.
    """
    problems = Problems()
    folder = files[0].parent
    numbers = [parse_slice_name(path)[0] for path in files]
    for number, following in pairwise(numbers):
        if number == following:
            problems.found.append(f"{folder}: slice {number} twice; keep one file")
        if number + 1 < following:
            log.warning("%s: no slice between %d and %d", name, number, following)
    spacings = {parse_slice_name(path)[3:] for path in files}
    if len(spacings) > 1:
        problems.found.append(
            f"{folder}: slices of different spacing {sorted(spacings)}; restore their names"
        )
    images: list[NDArray[np.generic]] = []
    for path in files:
        with problems.gathered():
            image = read_picture(path, ("I;16",))
            if images and image.shape != images[0].shape:
                raise DataError(
                    f"{path}: {shape_text(image.shape)} pixels, unlike the scan's first slice "
                    f"({shape_text(images[0].shape)}), {files[0].name}; restore the wrong one"
                )
            width, height = parse_slice_name(path)[1:3]
            if image.shape not in ((height, width), (width, height)):
                raise DataError(
                    f"{path}: {shape_text(image.shape)} pixels, unlike its name; restore the file"
                )
            images.append(image)
            check_slice(path, image.shape)
    problems.stop()
    spacing_x, spacing_y = spacings.pop()
    return np.stack(images)[..., None], (SLICE_THICKNESS_MM, spacing_y, spacing_x)


def parse_slice_name(path: Path) -> tuple[int, int, int, float, float]:
    """Return slice number, width and height (pixels), spacing along both (mm) from a file name."""
    match = SLICE_FILE_NAME.fullmatch(path.name)
    if match is None or float(match[4]) == 0 or float(match[5]) == 0:
        raise DataError(
            f"{path}: not named slice_<number>_<width>_<height>_<spacing>_<spacing>.png; "
            "restore the name or remove the file"
        )
    return int(match[1]), int(match[2]), int(match[3]), float(match[4]), float(match[5])


def slice_id(scan: str, path: Path) -> str:
    """Return a slice's id in `train.csv`; its number is written as in the file name."""
    return f"{scan}_slice_{path.name.split('_')[1]}"


def find_scan_folder(path: Path) -> Path | None:
    """Return the folder `caseN_dayM/scans` that a slice's file lies in; `None` for other files."""
    folder = path.absolute().parent
    in_scan = folder.name == "scans" and SCAN_FOLDER_NAME.fullmatch(folder.parent.name)
    return path.parent if in_scan and SLICE_FILE_NAME.fullmatch(path.name) else None


def sort_slices(files: Iterable[Path]) -> list[Path]:
    """Return a scan's files in the order of their slice numbers."""
    return sorted(files, key=lambda path: (parse_slice_name(path)[0], path.name))


def encode_table(
    scan: str, files: Sequence[Path], classes: Sequence[str], masks: NDArray[np.bool_]
) -> bytes:
    """Return a scan's masks `[classes, S, H, W]` as a table with the columns of `train.csv`."""
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(TABLE_COLUMNS)
    for index, path in enumerate(files):
        for name, mask in zip(classes, masks, strict=True):
            table.writerow((slice_id(scan, path), name, rle.encode(mask[index])))
    return text.getvalue().encode()
