"""Writing of results, with the file format, size and orientation of the input."""

import contextlib
import errno
import gzip
import json
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, Self
from urllib.parse import quote

import nibabel as nib
import numpy as np
from nibabel.nifti1 import Nifti1Extension
from numpy.typing import NDArray
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from attnseg.data.labels import Floats, Masks
from attnseg.data.readers.nifti import from_slices, open_nifti
from attnseg.data.readers.uw_madison import encode_table
from attnseg.errors import DataError, ResourceError
from attnseg.files import replacing
from attnseg.prediction.dicom_headers import refusing_unreadable
from attnseg.prediction.dicom_results import (
    Origin,
    find_obstacle,
    write_segmentation,
    write_structure_set,
)
from attnseg.prediction.inputs import Item
from attnseg.prediction.scan import Scan
from attnseg.prediction.spec import InferenceSpec

log = logging.getLogger(__name__)

COMMENT = 6  # code of NIfTI extensions that hold plain text
WHITE = 65535  # of a 16-bit picture, for a probability or uncertainty of 1
Write = Callable[[BinaryIO], object]
DICOM_WRITERS = {"dicom_seg": write_segmentation, "rtstruct": write_structure_set}


@dataclass(frozen=True)
class ResultWriter:
    """Writes the results of one item; each method returns the files that it has written.

    Attributes:
        output: folder of all results.
        item: the item, with its files in the order of the slices.
        scan: the decoded item.
        spec: inference spec of the network.
        output_type: file format of the masks of a DICOM series, `dicom_seg`, `rtstruct` or `nifti`.
    """

    output: Path
    item: Item
    scan: Scan
    spec: InferenceSpec
    output_type: str = "dicom_seg"

    def adapted(self) -> Self:
        """Return a writer of NIfTI, with a warning, if DICOM allows no result for the series."""
        if self.item.kind != "dicom" or self.output_type == "nifti":
            return self
        with refusing_unreadable(self.item.place):
            obstacle = find_obstacle(self.item.frames, self.output_type)
        return self if obstacle is None else self._as_nifti(obstacle)

    def _as_nifti(self, obstacle: str) -> Self:
        log.warning(
            "%s: %s, so no %s can be made of it; its masks are written as NIfTI",
            self.item.place,
            obstacle,
            self.output_type,
        )
        return replace(self, output_type="nifti")

    def write_masks(self, masks: Masks, version: str, identity: str) -> list[Path]:
        """Write masks.

        NIfTI: a label map, or one volume per class if they overlap, with the affine and codes of
        the original. DICOM: as `output_type` says, or NIfTI if the series' headers allow nothing
        else. Pictures: PNG, a label map or one file per class. Scans of the UW-Madison download:
        run-length codes in the layout of train.csv.

        Args:
            masks: `[classes, S, H, W]`.
            version: version of this program.
            identity: digest of the input and the settings, from which DICOM UIDs are derived.
        """
        if self.item.kind == "nifti":
            end = ".nii.gz" if self.item.files[0].name.lower().endswith(".gz") else ".nii"
            return [self._write_volume("masks", end, self._as_voxels(masks))]
        if self.item.kind == "dicom":
            return [self._write_dicom(masks, version, identity)]
        if self.item.kind == "scan":
            name, files = self.item.name.rpartition("/")[2], self.item.files
            table = encode_table(name, files, self.spec.classes, masks)
            return [self._write_file("masks", ".csv", lambda file: file.write(table))]
        if self.spec.labels.one_per_pixel:
            return [self._write_png("masks", "", self._as_voxels(masks)[0], self._meaning())]
        return self._write_png_per_class("masks", 255 * masks[:, 0].astype(np.uint8))

    def _write_dicom(self, masks: Masks, version: str, identity: str) -> Path:
        """Write the masks of a DICOM series; as NIfTI if its headers turn out to allow no more."""
        if self.output_type == "nifti":
            return self._write_volume("masks", ".nii.gz", self._as_voxels(masks))
        ordered = np.stack([self._to_file_order(mask) for mask in masks])
        name = f"{self.spec.model} with {self.spec.attn}, {self.spec.run}"
        origin = Origin(name, version, identity)
        write = partial(
            DICOM_WRITERS[self.output_type],
            masks=ordered,
            frames=self.item.frames,
            classes=self.spec.classes,
            origin=origin,
        )
        try:
            return self._write_file("masks", ".dcm", write)
        except DataError as error:
            return self._as_nifti(str(error).partition(": ")[2])._write_dicom(
                masks, version, identity
            )

    def write_values(self, folder: str, values: Floats) -> list[Path]:
        """Write probabilities `[classes, S, H, W]`, or an uncertainty `[S, H, W]`.

        The values range from 0 to 1. Those of pictures become 16-bit PNG files, those of scans
        NIfTI files of float32, in a folder of the given name below the output.
        """
        if self.item.kind != "picture":
            volume = values if values.ndim == 3 else np.moveaxis(values, 0, -1)
            return [self._write_volume(folder, ".nii.gz", volume)]
        pixels = np.rint(values * WHITE).astype(np.uint16)
        if values.ndim == 3:
            return [self._write_png(folder, "", pixels[0], folder)]
        return self._write_png_per_class(folder, pixels[:, 0])

    def write_overlay(self, picture: NDArray[np.uint8]) -> list[Path]:
        """Write a picture `[H, W, 3]` of the result."""
        return [self._write_png("overlays", "", picture, self._meaning())]

    def _as_voxels(self, masks: Masks) -> NDArray[Any]:
        """Return a label map `[S, H, W]`, or `[S, H, W, classes]` if classes overlap."""
        labels, values = self.spec.labels, self.spec.values
        if labels.one_per_pixel:
            merged = labels.merge(masks)
            if values is None:
                return merged
            return np.array((0, *values), np.min_scalar_type(max(values)))[merged]
        return np.moveaxis(masks, 0, -1).astype(np.uint8)

    def _meaning(self) -> str:
        """Return, as JSON, the classes that the values or the last axis of a file stand for."""
        classes, values = self.spec.classes, self.spec.values
        key, first = ("labels", 1) if self.spec.labels.one_per_pixel else ("volumes", 0)
        numbers = values or range(first, first + len(classes))
        meaning = {str(number): name for number, name in zip(numbers, classes, strict=True)}
        return json.dumps({key: meaning, "run": self.spec.run}, ensure_ascii=False)

    def _to_file_order(self, slices: NDArray[Any]) -> NDArray[Any]:
        """Return slices `[S, H, W, ...]` with the axes of the file that they come from."""
        if self.scan.affine is None:  # a scan of pictures: columns, rows, slices
            return slices.transpose(2, 1, 0, *range(3, slices.ndim))
        return from_slices(slices, self.scan.affine, self.spec.plane)

    def _write_volume(self, folder: str, end: str, slices: NDArray[Any]) -> Path:
        voxels = self._to_file_order(slices)
        image: Any
        if self.item.kind == "nifti":
            with open_nifti(self.item.files[0]) as original:
                header = original.header.copy()
                header.extensions.clear()
                if len(original.shape) == 2:
                    voxels = voxels.reshape(*original.shape, *voxels.shape[3:])
            for key in ("cal_min", "cal_max", "scl_slope", "scl_inter"):
                header[key] = 0
            header.set_data_shape(voxels.shape)
            # Without an affine of its own, the image keeps those of the header, and their codes.
            single: Any = nib.Nifti2Image if header["sizeof_hdr"] == 540 else nib.Nifti1Image
            image = single(voxels, None, header, dtype=voxels.dtype)
        else:
            affine = self.scan.affine
            if affine is None:
                assert self.scan.spacing is not None
                affine = np.diag([*self.scan.spacing[::-1], 1.0])
            image = nib.Nifti1Image(voxels, affine, dtype=voxels.dtype)
            image.header.set_xyzt_units("mm")
        image.header["descrip"] = b"attnseg"
        image.header.set_intent("label" if folder == "masks" and voxels.ndim == 3 else "none")
        image.header.extensions.append(Nifti1Extension(COMMENT, self._meaning().encode()))

        def write(file: BinaryIO) -> None:
            if not end.endswith(".gz"):
                image.to_stream(file)
                return
            with gzip.GzipFile("", "wb", 6, file, mtime=0) as packed:
                image.to_stream(packed)

        return self._write_file(folder, end, write)

    def _write_png_per_class(self, folder: str, pictures: NDArray[Any]) -> list[Path]:
        """Write a picture of each class, `[classes, H, W]`."""
        return [
            self._write_png(folder, f".{quote(name, safe=' ')}", picture, name)
            for name, picture in zip(self.spec.classes, pictures, strict=True)
        ]

    def _write_png(self, folder: str, end: str, pixels: NDArray[Any], meaning: str) -> Path:
        text = PngInfo()
        text.add_itxt("Description", meaning)
        image = Image.fromarray(pixels)
        return self._write_file(
            folder, f"{end}.png", lambda file: image.save(file, "PNG", pnginfo=text)
        )

    def _write_file(self, folder: str, end: str, write: Write) -> Path:
        path = self.output / folder / f"{self.item.name}{end}"
        with reporting_write_errors(path), replacing(path) as file:
            write(file)
        return path


@contextlib.contextmanager
def reporting_write_errors(path: Path) -> Iterator[None]:
    """Create a file's folder, and turn an `OSError` within into an error that names the file."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            raise DataError(
                f"{path}: a name longer than the file system allows; rename the input"
            ) from error
        raise ResourceError(
            f"{path}: cannot be written ({error.strerror or error}); free space or set output, and "
            "repeat the command"
        ) from error


def volumes_ml(
    counts: Sequence[int], spacing: tuple[float, float, float] | None
) -> list[float] | None:
    """Convert numbers of voxels to volumes in ml; `None` if the voxel size (mm) is unknown."""
    if spacing is None:
        return None
    return [round(count * float(np.prod(spacing)) / 1000, 6) for count in counts]
