"""Overlays: up to three slices of an image with outlined masks, and a legend of the classes."""

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageColor, ImageDraw, ImageFont

from attnseg.data.labels import Masks
from attnseg.prediction.scan import Scan

# The palette of Okabe and Ito, distinguishable with any colour vision.
COLOURS = ("#E69F00", "#56B4E9", "#009E73", "#CC79A7", "#F0E442", "#D55E00", "#0072B2", "#999999")
SLICES = 3
LONGEST = 640  # pixels along the longer side of a drawn slice
LEAST = 320  # smaller slices are enlarged to this
OPACITY = 0.3
ROW = 22  # height of a line of the legend, pixels
FONT = 14


def draw_overlay(scan: Scan, masks: Masks, classes: Sequence[str]) -> NDArray[np.uint8]:
    """Draw the slices that show most of the masks `[classes, S, H, W]`, side by side.

    Returns:
        Picture `[H, W, 3]`.
    """
    chosen = slices_to_show(masks)
    drawn = np.hstack([_draw_slice(scan, masks, index) for index in chosen])
    numbers = [f"slice {index + 1}" for index in chosen] if scan.shape[0] > 1 else []
    return np.vstack([drawn, _draw_legend(drawn.shape[1], numbers, masks, classes)])


def slices_to_show(masks: Masks) -> list[int]:
    """Return the fullest slice of each third of the slices that show a class; three at most."""
    area = masks.sum((2, 3)).astype(float)
    # Every class has the same weight, however large it is.
    seen = (area / np.maximum(area.max(1, keepdims=True), 1)).sum(0)
    filled = np.flatnonzero(seen)
    if filled.size == 0:
        return [masks.shape[1] // 2]
    parts = np.array_split(filled, min(SLICES, filled.size))
    return [int(part[seen[part].argmax()]) for part in parts]


def _draw_slice(scan: Scan, masks: Masks, index: int) -> NDArray[np.uint8]:
    tall = 1.0 if scan.spacing is None else scan.spacing[1] / scan.spacing[2]
    return outline_masks(magnify(scan.scaled(np.array([index]))[0], tall), masks[:, index])


def magnify(
    slice_: NDArray[np.float32], tall: float, largest: int = LONGEST
) -> NDArray[np.float32]:
    """Return a slice `[H, W, C]` in [0, 1] as colours `[h, w, 3]` of 0 to 255, in screen size.

    Args:
        slice_: one channel or three; of others the first is shown.
        tall: height of a pixel in widths.
        largest: limit of the longer side of the result, pixels.
    """
    shown = slice_ if slice_.shape[2] == 3 else slice_[..., :1].repeat(3, 2)
    height, width = shown.shape[0] * tall, float(shown.shape[1])
    longest = max(height, width)
    zoom = min(largest, max(LEAST, longest)) / longest
    size = max(1, round(width * zoom)), max(1, round(height * zoom))
    drawn = cv2.resize(shown, size, interpolation=cv2.INTER_AREA if zoom < 1 else cv2.INTER_LINEAR)
    return np.ascontiguousarray(drawn * 255, np.float32)


def outline_masks(
    drawn: NDArray[np.float32], masks: Masks, thickness: int = 1
) -> NDArray[np.uint8]:
    """Draw masks `[classes, H, W]`, tinted and outlined, on what `magnify` returned.

    However small a part of a mask is, it is drawn as one pixel at least.

    Args:
        drawn: picture `[h, w, 3]`, which is changed.
        masks: masks of the same slice, of any size.
        thickness: that of the outlines, pixels.
    """
    size = drawn.shape[1], drawn.shape[0]
    for k, mask in enumerate(masks):
        if mask.any():
            small = _resize_mask(mask, size)
            colour = np.array(_colour(k), np.float32)
            drawn[small > 0] += OPACITY * (colour - drawn[small > 0])
            outlines, _ = cv2.findContours(small, cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
            cv2.drawContours(drawn, outlines, -1, _colour(k), thickness)
    return np.asarray(drawn.round(), np.uint8)


def _resize_mask(mask: NDArray[np.bool_], size: tuple[int, int]) -> NDArray[np.uint8]:
    """Return a mask in another width and height: 1 in each pixel of which it covers any part."""
    smaller = min(size[0], mask.shape[1]), min(size[1], mask.shape[0])
    shares = cv2.resize(mask.astype(np.float32), smaller, interpolation=cv2.INTER_AREA)
    covered = (np.asarray(shares) > 0).astype(np.uint8)
    return np.asarray(cv2.resize(covered, size, interpolation=cv2.INTER_NEAREST_EXACT), np.uint8)


def _draw_legend(
    width: int, numbers: Sequence[str], masks: Masks, classes: Sequence[str]
) -> NDArray[np.uint8]:
    """Draw the numbers of the slices, and below them each class's colour and name, in lines."""
    font = ImageFont.load_default(FONT)
    entries = [
        (name if mask.any() else f"{name} (none)", _colour(k))
        for k, (name, mask) in enumerate(zip(classes, masks, strict=True))
    ]
    places, x, y = [], 8, ROW if numbers else 0
    for text, colour in entries:
        needed = 20 + round(font.getlength(text)) + 16
        if x > 8 and x + needed > width:
            x, y = 8, y + ROW
        places.append((x, y, text, colour))
        x += needed
    picture = Image.new("RGB", (width, y + ROW + 4), "white")
    pen = ImageDraw.Draw(picture)
    for at, number in enumerate(numbers):
        pen.text((8 + at * width // len(numbers), 3), number, "black", font)
    for x, y, text, colour in places:
        pen.rectangle((x, y + 5, x + 13, y + 18), colour)
        pen.text((x + 20, y + 3), text, "black", font)
    return np.asarray(picture)


def _colour(k: int) -> tuple[int, int, int]:
    red, green, blue, *_ = ImageColor.getrgb(COLOURS[k % len(COLOURS)])
    return red, green, blue
