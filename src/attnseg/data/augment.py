"""Augmentation presets: functions that return the albumentations transforms of one preset.

Images are float32 `[H, W, C]` in [0, 1], masks uint8 `[H, W]`. Masks are never interpolated, and
images are clipped to [0, 1] afterwards.
"""

import os

os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"  # Otherwise its import looks for updates online.

from typing import Any

import albumentations as A
import cv2
import numpy as np
from albumentations.augmentations.geometric.distortion import BaseDistortion
from numpy.typing import NDArray

Transforms = list[A.BasicTransform | A.BaseCompose]

LINEAR = {
    "interpolation": cv2.INTER_LINEAR,
    "mask_interpolation": cv2.INTER_NEAREST,
    "border_mode": cv2.BORDER_CONSTANT,
}


def none() -> Transforms:
    """Return no transforms."""
    return []


def light(
    shift: float = 0.06,
    scale: float = 0.12,
    rotate: float = 12.0,
    brightness: float = 0.15,
    contrast: float = 0.2,
    flip: bool = False,
) -> Transforms:
    """Return small shifts, rotations and zooms, and changes of brightness and contrast.

    Args:
        shift: largest shift, share of the image.
        scale: largest zoom in or out, share.
        rotate: largest rotation, degrees.
        brightness: largest change of brightness, share of the range.
        contrast: largest change of contrast, share.
        flip: also mirror images; suits lesions, which have no side, but not organs.
    """
    return [
        *_mirrors(flip),
        _affine(shift, scale, rotate),
        A.RandomBrightnessContrast(brightness_limit=brightness, contrast_limit=contrast, p=0.8),
    ]


def strong(
    shift: float = 0.1,
    scale: float = 0.3,
    rotate: float = 25.0,
    elastic: float = 40.0,
    brightness: float = 0.25,
    contrast: float = 0.35,
    blur: float = 1.5,
    noise: float = 0.06,
    flip: bool = False,
) -> Transforms:
    """Return strong transforms for small datasets: geometry, elastic deformation, image quality.

    Args:
        shift: largest shift, share of the image.
        scale: largest zoom in or out, share.
        rotate: largest rotation, degrees.
        elastic: strength of the deformation in pixels, before smoothing.
        brightness: largest change of brightness, share of the range.
        contrast: largest change of contrast, share.
        blur: largest standard deviation of a blur, pixels.
        noise: largest standard deviation of noise, share of the range.
        flip: also mirror images; suits lesions, which have no side, but not organs.
    """
    return [
        *_mirrors(flip),
        _affine(shift, scale, rotate),
        A.ElasticTransform(alpha=elastic, sigma=8, approximate=True, **LINEAR, p=0.3),
        A.RandomBrightnessContrast(brightness_limit=brightness, contrast_limit=contrast, p=0.8),
        A.RandomGamma(gamma_limit=(70, 150), p=0.3),
        A.GaussianBlur(blur_limit=0, sigma_limit=(0.3, blur), p=0.2),
        A.Downscale(scale_range=(0.5, 0.9), p=0.15),
        A.GaussNoise(std_range=(0.0, noise), p=0.3),
    ]


def transunet(rotate: float = 20.0) -> Transforms:
    """Return the transforms of TransUNet's published code (arXiv 2102.04306).

    Half of the images are rotated by a multiple of 90 degrees and mirrored. Half of the others are
    rotated by a small angle. The rest is unchanged.

    Args:
        rotate: largest small rotation, degrees.
    """
    mirror = A.OneOf([A.HorizontalFlip(p=1), A.VerticalFlip(p=1)], p=1)
    quarter = A.Sequential([A.RandomRotate90(p=1), mirror], p=0.5)
    # The published code interpolates images by nearest neighbour, too.
    turn = A.Rotate(limit=rotate, **{**LINEAR, "interpolation": cv2.INTER_NEAREST}, p=0.25)
    return [A.OneOf([quarter, turn, A.NoOp(p=0.25)], p=1)]


def dae_former(noise: float = 1.275) -> Transforms:
    """Return the transforms of DAE-Former's published code (arXiv 2212.13504): 0 to 4 of ten.

    The code augments before it resizes and does not clip the result to [0, 1]; here both differ.

    Args:
        noise: standard deviation of the noise, share of the range. The code uses 0.005 * 255 on
            images in [0, 1], which hides a slice completely; 0.005 may have been meant.
    """
    changes = [
        A.VerticalFlip(p=0.5),
        A.HorizontalFlip(p=0.5),
        Noise(noise, p=1),
        A.GaussianBlur(blur_limit=0, sigma_limit=(1.0, 1.0), p=1),
        A.RandomBrightnessContrast(brightness_limit=0, contrast_limit=0.5, p=1),
        A.Affine(scale=(0.5, 2.0), **LINEAR, p=1),
        A.Affine(rotate=(-40, 40), **LINEAR, p=1),
        A.Affine(shear=(-16, 16), **LINEAR, p=1),
        Warp(0.008, 0.03, p=1),
        A.Affine(translate_percent=(-0.2, 0.2), **LINEAR, p=1),
    ]
    some = [A.SomeOf(changes, n=n, replace=False, p=1) for n in range(1, 5)]
    return [A.OneOf([A.NoOp(p=1), *some], p=1)]


class Noise(A.ImageOnlyTransform):  # type: ignore[misc]
    """Gaussian noise of any strength; `GaussNoise` allows no more than the range of the image.

    `std` is the standard deviation, share of the range.
    """

    def __init__(self, std: float, p: float) -> None:
        super().__init__(p=p)
        self.std = std

    def apply(self, img: NDArray[np.float32], **params: object) -> NDArray[np.float32]:
        """Add the noise."""
        drawn: NDArray[np.float64] = self.random_generator.normal(0, self.std, img.shape)
        return img + drawn.astype(np.float32)


class Warp(BaseDistortion):  # type: ignore[misc]
    """Smooth deformation: a grid of 4 x 4 points moves at random, pixels between follow.

    In albumentations 2.0.8, `PiecewiseAffine` folds the image in a fixed pattern, and
    `ThinPlateSpline` deforms several times more than asked. The standard deviation of a point's
    move is drawn between `low` and `high`, shares of the image.
    """

    def __init__(self, low: float, high: float, p: float) -> None:
        super().__init__(**LINEAR, keypoint_remapping_method="mask", p=p)
        self.low, self.high = low, high

    def get_params_dependent_on_data(
        self, params: dict[str, Any], data: dict[str, Any]
    ) -> dict[str, NDArray[np.float32]]:
        """Draw the position from which each pixel is sampled."""
        height, width = params["shape"][:2]
        std = self.py_random.uniform(self.low, self.high)
        moves = self.random_generator.normal(0, std, (4, 4, 2)) * (width, height)
        smooth = cv2.resize(moves.astype(np.float32), (width, height))
        return {
            "map_x": smooth[..., 0] + np.arange(width, dtype=np.float32),
            "map_y": smooth[..., 1] + np.arange(height, dtype=np.float32)[:, None],
        }


def _mirrors(flip: bool) -> Transforms:
    return [A.HorizontalFlip(p=0.5), A.VerticalFlip(p=0.5)] if flip else []


def _affine(shift: float, scale: float, rotate: float) -> A.Affine:
    return A.Affine(
        translate_percent=(-shift, shift),
        scale=(1 - scale, 1 + scale),
        rotate=(-rotate, rotate),
        **LINEAR,
        p=0.9,
    )
