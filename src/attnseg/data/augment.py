"""Augmentation presets, by albumentations: functions that return the transforms of one preset.

Images come as float32 `[H, W, C]` in [0, 1], masks as uint8 `[H, W]`; masks are never interpolated.
"""

import os

os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"  # at import it would ask the network for its version

import albumentations as A
import cv2

Transforms = list[A.BasicTransform]


def none() -> Transforms:
    """No augmentation."""
    return []


def light(
    shift: float = 0.06,
    scale: float = 0.12,
    rotate: float = 12.0,
    brightness: float = 0.15,
    contrast: float = 0.2,
) -> Transforms:
    """Small shifts, turns and zooms, another brightness and contrast; no flips: organs have a side.

    Args:
        shift: largest shift, share of the image.
        scale: largest zoom in or out, share.
        rotate: largest turn, degrees.
        brightness: largest change, share of the range.
        contrast: largest change, share.
    """
    return [
        A.Affine(
            translate_percent=(-shift, shift),
            scale=(1 - scale, 1 + scale),
            rotate=(-rotate, rotate),
            interpolation=cv2.INTER_LINEAR,
            mask_interpolation=cv2.INTER_NEAREST,
            border_mode=cv2.BORDER_CONSTANT,
            p=0.9,
        ),
        A.RandomBrightnessContrast(brightness_limit=brightness, contrast_limit=contrast, p=0.8),
    ]
