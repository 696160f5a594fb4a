"""Synthetic scans as NIfTI files: tilted, and with axes in any order, as scanners write them."""

from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
from nibabel.orientations import axcodes2ornt, inv_ornt_aff, ornt_transform
from numpy.random import Generator
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from attnseg.phantoms.body import Field


@dataclass(frozen=True)
class ScanSpec:
    """Number and size of the synthetic scans of an abdomen.

    Attributes:
        train: number of training cases.
        test: number of test cases.
        slices: slices per scan; the abdomen is compressed or stretched to fill them.
        frames: width and height (pixels), pixel spacing and slice distance (mm); cases use them in
            turn.
        seed: another seed gives other anatomies.
    """

    train: int
    test: int
    slices: int
    frames: tuple[tuple[int, int, float, float], ...]
    seed: int = 0

    def shape_of(self, case: int) -> tuple[int, int, int]:
        """Return slices, height and width of a case."""
        width, height, *_ = self.frames[case % len(self.frames)]
        return self.slices, height, width


@dataclass(frozen=True)
class PublishedScanSpec(ScanSpec):
    """Numbers of a published dataset, drawn cheaply.

    Attributes:
        depths: slices of each case.
    """

    depths: tuple[int, ...] = ()

    def shape_of(self, case: int) -> tuple[int, int, int]:
        """Return slices, height and width of a case."""
        _, height, width = super().shape_of(case)
        return self.depths[case], height, width


# Of BTCV: the slices of the 18 training cases are published, of the others only their sum; and the
# range of voxel sizes, mm.
TRAIN_DEPTHS = (117, 131, 163, 149, 148, 143, 96, 124, 131, 88, 89, 153, 93, 104, 98, 99, 90, 195)
DEPTHS = (*TRAIN_DEPTHS, *8 * (131,), *4 * (130,))
FRAMES = ((512, 512, 0.54, 5.0), (512, 512, 0.76, 3.0), (512, 512, 0.98, 2.5))


def tilted_affine(
    rng: Generator, shape: tuple[int, int, int], spacing: tuple[float, float, float]
) -> Field:
    """Return the affine of a scan whose patient lies tilted by a few degrees, for `save_scan`.

    It is `[4, 4]`, from voxel indices along width, height and slices to mm (NIfTI's axes: right,
    front, up). `spacing` is the voxel size along slices, height and width, mm.
    """
    affine = np.eye(4)
    turn = Rotation.from_euler("xyz", rng.uniform(-7, 7, 3), degrees=True).as_matrix()
    thick, high, wide = spacing
    affine[:3, :3] = turn @ np.diag([-wide, -high, thick])
    middle = (np.array(shape[::-1]) - 1) / 2
    affine[:3, 3] = rng.uniform(-40, 40, 3) - affine[:3, :3] @ middle
    return affine


def save_scan(path: Path, scan: NDArray[np.generic], affine: Field, axes: str) -> None:
    """Write a scan `[S, H, W]`, oriented as in `Case`, as NIfTI.

    `axes` are the directions of the axes of the file's array: `RAS` is right, front, up.
    """
    turn = ornt_transform(axcodes2ornt("LPS"), axcodes2ornt(tuple(axes)))
    array = scan.transpose(2, 1, 0)
    turned = affine @ inv_ornt_aff(turn, array.shape)
    image = nib.Nifti1Image(nib.orientations.apply_orientation(array, turn), None)
    image.set_sform(turned, 1)
    image.set_qform(turned, 1)
    image.header.set_xyzt_units("mm")
    nib.save(image, path)
