"""Cheap content for phantoms as large as the published datasets: textures, ellipses and grain.

Nothing here looks like a patient. It has the size, the type and about the bytes of what was
published, no two patients share a picture, and a slice is drawn in a few milliseconds.
"""

import cv2
import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

GRID = 24  # cells of the texture along a side
EVERY = 8  # slices from one texture to the next
GRAIN = 64  # values of the noise, which hardly compresses


def draw_cheap_scan(
    rng: Generator, shape: tuple[int, int, int], organs: int
) -> tuple[NDArray[np.int16], NDArray[np.uint8]]:
    """Draw a scan of ellipsoids in an elliptic body.

    Returns:
        Image `[S, H, W]` of 0 to about 2,500, and label map `[S, H, W]` of 1 to `organs`.
    """
    slices, height, width = shape
    image, labels = np.empty(shape, np.int16), np.zeros(shape, np.uint8)
    rows = np.linspace(-1, 1, height, dtype=np.float32)[:, None]
    columns = np.linspace(-1, 1, width, dtype=np.float32)[None]
    reach = rng.uniform((0.5, 0.75), (0.7, 0.92))
    body = np.clip(8 * (1 - (rows / reach[0]) ** 2 - (columns / reach[1]) ** 2), 0, 1)
    textures = rng.standard_normal((slices // EVERY + 2, GRID, GRID), np.float32)
    grain = rng.integers(0, GRAIN, (height, width), np.int16)
    middles = rng.uniform((0.3, -0.35, -0.5), (0.7, 0.35, 0.5), (organs, 3))
    radii = rng.uniform(0.1, 0.2, organs)
    for index in range(slices):
        at, part = divmod(index, EVERY)
        texture = textures[at] + part / EVERY * (textures[at + 1] - textures[at])
        plane = body * (1200 + 300 * cv2.resize(texture, (width, height)))
        for organ in range(organs):
            depth, y, x = middles[organ]
            size = radii[organ] * np.sqrt(max(0.0, 1 - ((index / slices - depth) / 0.25) ** 2))
            top, bottom = ((np.array([y - size, y + size]) + 1) / 2 * height).astype(int)
            left, right = ((np.array([x - size, x + size]) + 1) / 2 * width).astype(int)
            window = slice(top, bottom), slice(left, right)
            far = (rows[window[0]] - y) ** 2 + (columns[:, window[1]] - x) ** 2
            inside = far < size**2
            labels[index][window][inside] = organ + 1
            plane[window][inside] += 150 * (1 + organ % 3)
        image[index] = np.clip(plane, 0, None).astype(np.int16) + np.roll(grain, 17 * index)
    return image, labels


def draw_cheap_photograph(
    rng: Generator, frame: tuple[int, int]
) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """Draw a photograph with one lesion; `frame` is its width and height in pixels.

    Returns:
        Image `[H, W, 3]` and the lesion's mask `[H, W]`.
    """
    width, height = frame
    coarse = rng.normal((200, 150, 130), 12, (GRID, GRID, 3)).clip(0, 255).astype(np.uint8)
    grain = (np.frombuffer(rng.bytes(height * width), np.uint8) // 20).reshape(height, width)
    image = cv2.add(cv2.resize(coarse, frame), cv2.merge([grain] * 3))
    mask = np.zeros((height, width), np.uint8)
    shares = rng.uniform(0.4, 0.6, 2)
    centre = [int(side * share) for side, share in zip(frame, shares, strict=True)]
    axes = [int(min(frame) * share) for share in rng.uniform(0.12, 0.35, 2)]
    cv2.ellipse(mask, centre, axes, rng.uniform(0, 180), 0, 360, 1, -1)
    cv2.subtract(image, np.full(4, rng.uniform(50, 90)), image, mask)
    return np.asarray(image, np.uint8), mask > 0
