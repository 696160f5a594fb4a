"""Decoding of items, and checks that the network can take them."""

import numpy as np

from attnseg.data.readers.nifti import check_same_grid, read_nifti, stack_channels, to_slices
from attnseg.data.readers.pictures import GREY8, GREY16, RGB, read_picture
from attnseg.data.readers.uw_madison import read_scan
from attnseg.errors import DataError, Problems
from attnseg.prediction.dicom import read_series
from attnseg.prediction.inputs import Item
from attnseg.prediction.scan import Scan, make_scan
from attnseg.prediction.spec import InferenceSpec


def read_item(item: Item, spec: InferenceSpec) -> tuple[Item, Scan]:
    """Decode an item with the channels, plane and window of a spec.

    Returns:
        The item, its files in the order of the slices, and the scan.

    Raises:
        DataError: a file is broken, or unlike those that the network was trained on.
    """
    if item.kind == "nifti":
        return item, _read_nifti_item(item, spec)
    if item.kind == "picture":
        return item, _read_picture_item(item, spec)
    if spec.channels != 1:
        raise DataError(
            f"{item.place}: 1 channel instead of {spec.channels}; give what was trained on"
        )
    if item.kind == "scan":
        image, spacing = read_scan(item.name, item.files)
        return item, make_scan(image, spacing, None, spec.window)
    series = read_series(item.files)
    slices, spacing = to_slices(series.voxels, series.affine, spec.plane)
    image = np.ascontiguousarray(slices[..., None])
    size = spacing if series.thick else None
    scan = make_scan(image, size, series.affine, spec.window, series.warnings)
    files = tuple(dict.fromkeys(frame.path for frame in series.frames))
    return Item(item.kind, item.name, files, series.frames), scan


def _read_nifti_item(item: Item, spec: InferenceSpec) -> Scan:
    if len(item.files) == 1:
        volume = read_nifti(item.files[0], spec.plane, spec.channels)
        voxels = volume.voxels if spec.channels > 1 else volume.voxels[..., None]
        return make_scan(voxels, volume.spacing, volume.affine, spec.window, volume.warnings)
    if len(item.files) != spec.channels:
        raise DataError(
            f"{item.place}: {len(item.files)} channels instead of {spec.channels}; give those "
            "that were trained on"
        )
    problems = Problems()
    volumes = []
    for path in item.files:
        with problems.gathered():
            volumes.append(read_nifti(path, spec.plane))
    problems.stop()
    for path, volume in zip(item.files, volumes, strict=True):
        check_same_grid(volumes[0], volume, (item.files[0], path))
    voxels = stack_channels([volume.voxels for volume in volumes])
    warnings = tuple(line for volume in volumes for line in volume.warnings)
    return make_scan(voxels, volumes[0].spacing, volumes[0].affine, spec.window, warnings)


def _read_picture_item(item: Item, spec: InferenceSpec) -> Scan:
    path = item.files[0]
    if spec.channels not in (1, 3):
        raise DataError(
            f"{path}: a picture, but the network takes {spec.channels} channels; give NIfTI files"
        )
    modes = RGB if spec.channels == 3 else (*GREY8, *GREY16)
    pixels = read_picture(path, modes)
    if min(pixels.shape[:2]) < 2:
        raise DataError(f"{path}: a single line of pixels; remove it")
    image = pixels.reshape(1, *pixels.shape[:2], spec.channels)
    return make_scan(image, None, None, spec.window)
