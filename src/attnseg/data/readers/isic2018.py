"""Reader of ISIC 2018 Task 1: dermoscopic photographs, each with the mask of one lesion.

Layout as downloaded (https://challenge.isic-archive.com/landing/2018/45/), likewise for
`Validation` and `Test`:

    ISIC2018_Task1-2_Training_Input/ISIC_0000000.jpg
    ISIC2018_Task1_Training_GroundTruth/ISIC_0000000_segmentation.png
"""

import csv
import logging
from functools import cached_property
from itertools import chain
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from attnseg.data.labels import Labels
from attnseg.data.reader import Case, CaseRef, Reader, shape_text
from attnseg.data.readers.pictures import GREY8, RGB, read_label_picture, read_picture
from attnseg.errors import DataError, Problems

log = logging.getLogger(__name__)

FOLDER_PARTS = {"train": "Training", "val": "Validation", "test": "Test"}
IMAGES = (".jpg", ".jpeg", ".png")
GROUP_COLUMNS = ("image", "group")


class ISIC2018(Reader):
    """Reads each photograph as a case; the download does not name patients.

    Photographs longer than `max_side` are shrunk in proportion: the image by averaging (OpenCV's
    INTER_AREA), the mask by nearest neighbour.

    Args:
        root: folder that holds the downloaded folders. Validation and test are used if both their
            images and their ground truth are there; cases then have the download's roles.
        groups: CSV file with columns `image` and `group`, relative to `root`. Photographs of one
            group count as one patient's; a photograph that is not listed is a patient of its own.
        max_side: longest side of an image, pixels.

    Raises:
        ValueError: `max_side` is below 2.
    """

    labels = Labels(("lesion",))
    channels = 3
    volumetric = False

    def __init__(self, root: str | Path, groups: str | None = None, max_side: int = 1024) -> None:
        if max_side < 2:
            raise ValueError(f"max_side is {max_side}; at least 2 pixels are needed")
        self.root = Path(root)
        self.table = self.root / groups if groups else None
        self.max_side = max_side

    def cases(self) -> list[CaseRef]:
        """List the photographs by role and name; see `Reader.cases`."""
        if not self.root.is_dir():
            raise DataError(
                f"{self.root}: no such folder; set dataset.root to the folder that holds "
                f"{_folders(self.root, 'train')[0].name}"
            )
        roles = [role for role in FOLDER_PARTS if self._is_complete(role)]
        problems = Problems()
        pairs = {role: _pairs(*_folders(self.root, role), problems) for role in roles}
        seen: dict[str, Path] = {}
        for name, (image, _) in chain.from_iterable(p.items() for p in pairs.values()):
            if name in seen:
                problems.found.append(f"{image}: {seen[name]} has this name, too; remove one")
            seen[name] = image
        if not seen and not problems.found:
            problems.found.append(f"{self.root}: no photographs found; unpack the download")
        problems.stop()
        if unknown := [name for name in self._groups if name not in seen]:
            raise DataError(
                f"{self.table}: {len(unknown)} images that are not there, {unknown[0]!r} the "
                "first; remove their rows"
            )
        return [
            CaseRef(self._groups.get(name, name), name, files, role if len(roles) > 1 else None)
            for role, pairs_of_role in pairs.items()
            for name, files in pairs_of_role.items()
        ]

    def source(self, ref: CaseRef) -> str:
        """Return the photograph's group."""
        return ref.patient

    def read(self, ref: CaseRef) -> Case:
        """Decode one photograph; see `Reader.read`."""
        image_path, mask_path = ref.files
        problems = Problems()
        with problems.gathered():
            image = np.asarray(read_picture(image_path, RGB), np.uint8)
        with problems.gathered():
            mask = _read_binary_mask(mask_path)
        problems.stop()
        if image.shape[:2] != mask.shape:
            raise DataError(
                f"{mask_path}: {shape_text(mask.shape)} pixels, but {image_path.name} has "
                f"{shape_text(image.shape[:2])}; restore the pair or exclude the case"
            )
        if not mask.any():
            log.warning("%s: an empty mask", mask_path)
        image, mask = self._shrink(image, mask)
        return Case(image[None], mask[None], spacing=None, window=(0.0, 255.0))

    def _is_complete(self, role: str) -> bool:
        """Return whether a role's images and ground truth both exist; training must have them."""
        missing = [folder for folder in _folders(self.root, role) if not folder.is_dir()]
        if missing and role == "train":
            raise DataError(f"{missing[0]}: not found; unpack the download to {self.root}")
        if len(missing) == 1:
            log.info("%s: not there, so the %s images are left out", missing[0], FOLDER_PARTS[role])
        return not missing

    def _shrink(
        self, image: NDArray[np.uint8], mask: NDArray[np.uint8]
    ) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        """Shrink an image and its mask to `max_side`; smaller ones stay as they are."""
        factor = self.max_side / max(mask.shape)
        if factor >= 1:
            return image, mask
        height, width = (max(1, round(side * factor)) for side in mask.shape)
        small = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)
        outline = cv2.resize(mask, (width, height), interpolation=cv2.INTER_NEAREST_EXACT)
        return np.asarray(small, np.uint8), np.asarray(outline, np.uint8)

    @cached_property
    def _groups(self) -> dict[str, str]:
        """Group by image id, both as text."""
        if self.table is None:
            return {}
        try:
            with self.table.open(newline="", encoding="utf-8-sig") as lines:
                rows = list(csv.reader(lines))
        except (OSError, UnicodeDecodeError, csv.Error) as error:
            raise DataError(f"{self.table}: not a readable CSV file ({error}); mend it") from error
        return _parse_groups(self.table, rows)


def _folders(root: Path, role: str) -> tuple[Path, Path]:
    """Return the folders of a role's images and ground truth."""
    part = FOLDER_PARTS[role]
    return root / f"ISIC2018_Task1-2_{part}_Input", root / f"ISIC2018_Task1_{part}_GroundTruth"


def _pairs(inputs: Path, truths: Path, problems: Problems) -> dict[str, tuple[Path, Path]]:
    """Return image and mask by image id; add files without a partner to the problems."""
    images = _by_id(inputs, IMAGES, "", problems)
    masks = _by_id(truths, (".png",), "_segmentation", problems)
    for name in sorted(images.keys() - masks.keys()):
        problems.found.append(
            f"{images[name]}: no {name}_segmentation.png in {truths.name}; restore the pair"
        )
    for name in sorted(masks.keys() - images.keys()):
        problems.found.append(f"{masks[name]}: no image {name} in {inputs.name}; restore the pair")
    return {name: (images[name], masks[name]) for name in sorted(images.keys() & masks.keys())}


def _by_id(
    folder: Path, suffixes: tuple[str, ...], ending: str, problems: Problems
) -> dict[str, Path]:
    """Return a folder's pictures by the part of the name before `ending`, ignoring its case."""
    pictures: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        stem = path.stem.lower()
        if path.name.startswith(".") or path.suffix.lower() not in suffixes:
            continue
        if stem.endswith("_superpixels") or not stem.endswith(ending):
            continue
        name = path.stem[: len(path.stem) - len(ending)]
        if not path.is_file():
            problems.found.append(f"{path}: not a file; restore it")
        elif name in pictures:
            problems.found.append(f"{path}: {pictures[name].name} is there, too; keep one file")
        pictures[name] = path
    return pictures


def _read_binary_mask(path: Path) -> NDArray[np.uint8]:
    """Return a mask `[H, W]` of 0 and 1 from a picture of 0 and 1, or 0 and white."""
    pixels, white = read_label_picture(path, GREY8)
    values = set(np.unique(pixels).tolist())
    if not (values <= {0, 1} or values <= {0, white}):
        others = sorted(values - {0, white})[:5]
        raise DataError(
            f"{path}: grey values {', '.join(map(str, others))} in a mask of 0 and {white}; "
            "restore the file as downloaded"
        )
    return np.asarray(pixels != 0, np.uint8)


def _parse_groups(table: Path, rows: list[list[str]]) -> dict[str, str]:
    """Return group by image id from the rows of a table, the first of which is its header."""
    header = rows[0] if rows else []
    if any(header.count(name) != 1 for name in GROUP_COLUMNS):
        raise DataError(
            f"{table}: columns {','.join(header)[:80]!r}; expected {','.join(GROUP_COLUMNS)}"
        )
    at_image, at_group = (header.index(name) for name in GROUP_COLUMNS)
    groups: dict[str, str] = {}
    problems = Problems()
    for line, row in enumerate(rows[1:], 2):
        if not "".join(row).strip():
            continue
        if len(row) != len(header):
            problems.found.append(
                f"{table}: row {line} has {len(row)} cells instead of {len(header)}; correct it"
            )
        elif not row[at_group]:
            problems.found.append(f"{table}: row {line}: no group; name one or remove the row")
        elif row[at_image] in groups:
            problems.found.append(
                f"{table}: row {line}: {row[at_image]!r} appears twice; keep one row"
            )
        else:
            groups[row[at_image]] = row[at_group]
    problems.stop()
    return groups
