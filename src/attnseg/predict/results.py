"""Masks out: in the kind of file, place, size and orientation of what they were made of."""

import contextlib
import csv
import gzip
import io
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import quote

import nibabel as nib
import numpy as np
from nibabel.nifti1 import Nifti1Extension
from numpy.typing import NDArray
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from attnseg.data.labels import Floats, Masks
from attnseg.data.readers import rle
from attnseg.data.readers.nifti import from_slices
from attnseg.data.readers.uw_madison import TABLE_COLUMNS
from attnseg.errors import ResourceError
from attnseg.files import replacing
from attnseg.predict.dicom import write_segmentation
from attnseg.predict.inputs import Item
from attnseg.predict.scan import Scan
from attnseg.predict.spec import InferenceSpec

COMMENT = 6  # code of a NIfTI extension
WHITE = 65535  # of a 16-bit picture: a probability or uncertainty of 1
Write = Callable[[BinaryIO], object]


@dataclass(frozen=True)
class Results:
    """Where the results of an item go, and how they are written.

    Attributes:
        output: folder of all results.
        item: its files in the order of the slices.
        scan: that was segmented.
        spec: of the network.
    """

    output: Path
    item: Item
    scan: Scan
    spec: InferenceSpec

    def write_masks(self, masks: Masks, version: str, identity: str) -> list[Path]:
        """Write masks.

        NIfTI: a label map, or one volume per class if they overlap, with the affine and codes of
        the original. DICOM: a segmentation. Pictures: PNG, a label map or one file per class. Scans
        of the UW-Madison download: run-length codes in the layout of train.csv.

        Args:
            masks: `[classes, S, H, W]`.
            version: of the program.
            identity: the same for the same masks of the same input.

        Returns:
            The files.
        """
        if self.item.kind == "nifti":
            end = ".nii.gz" if self.item.files[0].name.lower().endswith(".gz") else ".nii"
            return [self._volume("masks", end, self._merged(masks), self._described())]
        if self.item.kind == "dicom":
            ordered = np.stack([self._to_file(mask) for mask in masks])
            algorithm = (f"{self.spec.model} with {self.spec.attn}, {self.spec.run}", version)
            files, classes = self.item.files, self.spec.classes

            def write(file: BinaryIO) -> None:
                write_segmentation(file, ordered, files, classes, algorithm, identity)

            return [self._write("masks", ".dcm", write)]
        if self.item.kind == "scan":
            return [self._write("masks", ".csv", lambda file: file.write(self._codes(masks)))]
        if self.spec.labels.one_per_pixel:
            return [self._png("masks", "", self._merged(masks)[0], self._described())]
        return [
            self._png("masks", f".{quote(name, safe=' ')}", 255 * mask[0].astype(np.uint8), name)
            for name, mask in zip(self.spec.classes, masks, strict=True)
        ]

    def write_values(self, what: str, values: Floats) -> list[Path]:
        """Write probabilities `[classes, S, H, W]`, or an uncertainty `[S, H, W]`.

        Pictures become 16-bit PNG files, scans NIfTI files of float32.

        Args:
            what: name of the folder.
            values: from 0 to 1.

        Returns:
            The files.
        """
        if self.item.kind != "picture":
            volume = values if values.ndim == 3 else np.moveaxis(values, 0, -1)
            return [self._volume(what, ".nii.gz", volume, self._described())]
        pixels = np.rint(values * WHITE).astype(np.uint16)
        if values.ndim == 3:
            return [self._png(what, "", pixels[0], what)]
        return [
            self._png(what, f".{quote(name, safe=' ')}", shown[0], name)
            for name, shown in zip(self.spec.classes, pixels, strict=True)
        ]

    def write_overlay(self, picture: NDArray[np.uint8]) -> list[Path]:
        """Write a picture `[H, W, 3]` of the result; return the file."""
        return [self._png("overlays", "", picture, self._described())]

    def _merged(self, masks: Masks) -> NDArray[np.uint8]:
        """Return a label map `[S, H, W]`, or `[S, H, W, classes]` if classes overlap."""
        labels = self.spec.labels
        if labels.one_per_pixel:
            return labels.merge(masks)
        return np.moveaxis(masks, 0, -1).astype(np.uint8)

    def _described(self) -> str:
        """Return what the values, or the last axis, of a file mean, as JSON."""
        classes = self.spec.classes
        first = 1 if self.spec.labels.one_per_pixel else 0
        meaning = {str(number): name for number, name in enumerate(classes, first)}
        key = "labels" if self.spec.labels.one_per_pixel else "volumes"
        return json.dumps({key: meaning, "run": self.spec.run}, ensure_ascii=False)

    def _to_file(self, slices: NDArray[Any]) -> NDArray[Any]:
        """Return slices in the order of the file they come from."""
        if self.scan.affine is None:  # a scan of pictures: columns, rows, slices
            return slices.transpose(2, 1, 0, *range(3, slices.ndim))
        return from_slices(slices, self.scan.affine, self.spec.plane)

    def _volume(self, folder: str, end: str, slices: NDArray[Any], described: str) -> Path:
        voxels = self._to_file(slices)
        image: Any
        if self.item.kind == "nifti":
            original: Any = nib.load(self.item.files[0])
            header = original.header.copy()
            header.extensions.clear()
            for key in ("cal_min", "cal_max", "scl_slope", "scl_inter"):
                header[key] = 0
            header.set_data_shape(voxels.shape)
            # Without an affine, those of the header stay, and their codes.
            image = type(original)(voxels, None, header, dtype=voxels.dtype)
        else:
            affine = self.scan.affine
            if affine is None:
                assert self.scan.spacing is not None
                affine = np.diag([*self.scan.spacing[::-1], 1.0])
            image = nib.Nifti1Image(voxels, affine, dtype=voxels.dtype)
            image.header.set_xyzt_units("mm")
        image.header["descrip"] = b"attnseg"
        image.header.set_intent("label" if folder == "masks" and voxels.ndim == 3 else "none")
        image.header.extensions.append(Nifti1Extension(COMMENT, described.encode()))

        def write(file: BinaryIO) -> None:
            if not end.endswith(".gz"):
                image.to_stream(file)
                return
            with gzip.GzipFile("", "wb", 6, file, mtime=0) as packed:
                image.to_stream(packed)

        return self._write(folder, end, write)

    def _codes(self, masks: Masks) -> bytes:
        text = io.StringIO()
        table = csv.writer(text, lineterminator="\n")
        table.writerow(TABLE_COLUMNS)
        scan = self.item.name.rpartition("/")[2]
        for index, path in enumerate(self.item.files):
            number = path.name.split("_")[1]
            for name, mask in zip(self.spec.classes, masks, strict=True):
                table.writerow((f"{scan}_slice_{number}", name, rle.encode(mask[index])))
        return text.getvalue().encode()

    def _png(self, folder: str, end: str, pixels: NDArray[Any], described: str) -> Path:
        text = PngInfo()
        text.add_itxt("Description", described)
        image = Image.fromarray(pixels)
        return self._write(folder, f"{end}.png", lambda file: image.save(file, "PNG", pnginfo=text))

    def _write(self, folder: str, end: str, write: Write) -> Path:
        path = self.output / folder / f"{self.item.name}{end}"
        with written(path), replacing(path) as file:
            write(file)
        return path


@contextlib.contextmanager
def written(path: Path) -> Iterator[None]:
    """Make a file's folder, and name the file if it cannot be written.

    Raises:
        ResourceError: the disk is full, say.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        raise ResourceError(
            f"{path}: cannot be written ({error.strerror or error}); free space or set output, and "
            "repeat the command"
        ) from error


def volumes_ml(
    counts: Sequence[int], spacing: tuple[float, float, float] | None
) -> list[float] | None:
    """Return volumes in ml of numbers of voxels; `None` if their size is unknown."""
    if spacing is None:
        return None
    return [round(count * float(np.prod(spacing)) / 1000, 6) for count in counts]
