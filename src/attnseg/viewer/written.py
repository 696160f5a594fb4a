"""Reads the images, masks and uncertainty of predictions that were written earlier."""

import csv
import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from attnseg.data.labels import Floats, Masks
from attnseg.data.readers import rle
from attnseg.data.readers.nifti import read_nifti, to_slices
from attnseg.data.readers.pictures import read_label_picture
from attnseg.errors import DataError, first_line
from attnseg.prediction.folder import find_root
from attnseg.prediction.images import read_item
from attnseg.prediction.inputs import Item
from attnseg.prediction.manifest import MANIFEST
from attnseg.prediction.results import WHITE
from attnseg.prediction.scan import Scan
from attnseg.prediction.segment import Segmented
from attnseg.prediction.spec import InferenceSpec
from attnseg.viewer.shown import Shown
from attnseg.viewer.sides import SeenCase, Side, name_masks


def open_predictions(folder: Path) -> Side:
    """Return the results that `attnseg predict` has written in a folder.

    Raises:
        DataError: the folder holds none.
        CheckpointError: the inference spec in its manifest is of another version.
    """
    path = folder / MANIFEST
    try:
        facts = json.loads(path.read_text())
        spec = InferenceSpec.from_json(json.dumps(facts["recipes"][0]), path)
        source = Path(facts["input"])
        side = Side(str(folder), spec, lines=[str(line) for line in facts["failed"]])
        for entry in facts["items"]:
            masks = name_masks(entry, folder, Path(entry["name"]).name)
            load = partial(read_case, entry, source, folder, spec)
            side.cases[entry["name"]] = SeenCase(entry["name"], entry, masks, load)
    except (OSError, ValueError, TypeError, KeyError, IndexError, AttributeError) as error:
        raise DataError(
            f"{path}: no manifest of a prediction; give the output folder of attnseg predict"
        ) from error
    return side


def read_case(entry: dict[str, Any], source: Path, folder: Path, spec: InferenceSpec) -> Shown:
    """Read an image of a manifest with its masks and, if written, its uncertainty.

    Raises:
        DataError: an image or a result is missing, damaged, or of a kind that is not drawn.
    """
    root = find_root(source)
    item = Item(entry["kind"], entry["name"], tuple(root / file for file in entry["files"]))
    if missing := [path for path in item.files if not path.is_file()]:
        raise DataError(f"{missing[0]}: the image is not there any more")
    item, scan = read_item(item, spec)
    own = [folder / name for name in entry["outputs"]]
    masks = [path for path in own if path.is_relative_to(folder / "masks")]
    try:
        read = read_masks(masks, item, scan, spec)
        uncertainty = read_uncertainty(folder / "uncertainty", own, spec)
    except DataError:
        raise
    except Exception as error:  # Libraries raise anything for a damaged file.
        raise DataError(f"{masks[0]}: cannot be read ({first_line(error)[:120]})") from error
    if read.shape[1:] != scan.shape:
        raise DataError(f"{masks[0]}: masks of another image")
    return Shown.from_slices(scan, Segmented(read, None, uncertainty), spec)


def read_masks(paths: Sequence[Path], item: Item, scan: Scan, spec: InferenceSpec) -> Masks:
    """Return masks `[classes, S, H, W]` from the files that `ResultWriter` has written."""
    path, labels = paths[0], spec.labels
    values = spec.values or range(1, len(labels) + 1)
    if path.suffix == ".csv":
        with path.open(newline="") as file:
            codes = [row[-1] for row in list(csv.reader(file))[1:]]
        planes = [rle.decode(code, (scan.shape[1], scan.shape[2])) for code in codes]
        return np.stack(planes).reshape(scan.shape[0], len(labels), *scan.shape[1:]).swapaxes(0, 1)
    if path.suffix == ".dcm":
        return _read_segmentation(path, item, scan, spec)
    if path.suffix == ".png":
        maps = [read_label_picture(each)[0][None] for each in paths]
        if labels.one_per_pixel:
            return np.stack([maps[0] == value for value in values])
        return np.stack(maps) > 0
    if labels.one_per_pixel:
        voxels = read_nifti(path, spec.plane).voxels
        return np.stack([voxels == value for value in values])
    return np.moveaxis(read_nifti(path, spec.plane, len(labels)).voxels > 0, -1, 0)


def _read_segmentation(path: Path, item: Item, scan: Scan, spec: InferenceSpec) -> Masks:
    """Return the masks of a DICOM segmentation; structure sets are not drawn."""
    import highdicom as hd
    from pydicom import dcmread

    if dcmread(path, stop_before_pixels=True).Modality != "SEG":
        raise DataError(f"{path}: a structure set, whose outlines are not drawn here")
    assert scan.affine is not None
    segmentation = hd.seg.segread(path)
    uids = [str(frame.header.SOPInstanceUID) for frame in item.frames]
    numbers = [frame.number for frame in item.frames]
    if numbers[0] is None:
        pixels = segmentation.get_pixels_by_source_instance(
            uids, assert_missing_frames_are_empty=True
        )
    else:
        pixels = segmentation.get_pixels_by_source_frame(
            uids[0], [1 + (number or 0) for number in numbers], assert_missing_frames_are_empty=True
        )
    # From slices, rows, columns, segments to what `read_series` returns, segments last.
    voxels = pixels.transpose(2, 1, 0, 3) > 0
    return np.moveaxis(to_slices(voxels, scan.affine, spec.plane)[0], -1, 0)


def read_uncertainty(folder: Path, outputs: Sequence[Path], spec: InferenceSpec) -> Floats | None:
    """Return the uncertainty `[S, H, W]` among the outputs of an item, if it was written."""
    path = next((path for path in outputs if path.is_relative_to(folder)), None)
    if path is None:
        return None
    values: NDArray[Any]
    if path.suffix == ".png":
        values = read_label_picture(path)[0][None].astype(np.float32) / WHITE
    else:
        values = read_nifti(path, spec.plane).voxels
    return np.asarray(values, np.float32)
