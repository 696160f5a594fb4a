"""Augmentation of whole batches on the device that trains, a GPU or a CPU.

What becomes of a slice is drawn on the CPU by seed, epoch and index, as for other presets, and
travels with its sample. The device then computes every pixel by itself: a sample does not depend on
the others of its batch, nor on the number of loader processes.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

KNOTS = 4  # of a warp along each axis


class BatchAugment(ABC):
    """Augments batches of which each sample has `draws`, the numbers that were drawn for it."""

    @abstractmethod
    def draw(self, rng: np.random.Generator) -> NDArray[np.float32]:
        """Return the numbers `[n]` that decide what becomes of a slice."""

    @abstractmethod
    def change(self, images: Tensor, masks: Tensor, draws: Tensor) -> tuple[Tensor, Tensor]:
        """Augment images `[B, C, H, W]` in [0, 1] and label maps `[B, H, W]` by draws `[B, n]`.

        Images are clipped to [0, 1] afterwards. Nothing may depend on other samples of the batch.
        """

    @torch.no_grad()
    def __call__(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """Return a batch whose images, in [-1, 1], and masks are augmented, without its draws."""
        images, masks = self.change(batch["image"] / 2 + 0.5, batch["mask"], batch["draws"])
        kept = {name: value for name, value in batch.items() if name != "draws"}
        return {**kept, "image": images.clamp(0, 1) * 2 - 1, "mask": masks}


class DeviceAugment(BatchAugment):
    """Shifts, rotations, zooms, warps, and changes of brightness and contrast.

    By default they are as in the preset `light`, for the same share of slices.

    Args:
        shift: largest shift, share of the image.
        scale: largest zoom in or out, share.
        rotate: largest rotation, degrees.
        warp: standard deviation of the moves of 4 x 4 points, share of the image; pixels between
            follow smoothly. Of three slices in ten.
        brightness: largest change of brightness, share of the range.
        contrast: largest change of contrast, share.
        flip: also mirror images; suits lesions, which have no side, but not organs.
    """

    def __init__(
        self,
        shift: float = 0.06,
        scale: float = 0.12,
        rotate: float = 12.0,
        warp: float = 0.0,
        brightness: float = 0.15,
        contrast: float = 0.2,
        flip: bool = False,
    ) -> None:
        if not 0 <= scale < 1:
            raise ValueError(f"scale is {scale}; it must be at least 0 and below 1")
        if min(shift, rotate, warp, brightness, contrast) < 0:
            raise ValueError("shift, rotate, warp, brightness and contrast must be at least 0")
        self.shift, self.scale, self.rotate, self.warp = shift, scale, rotate, warp
        self.brightness, self.contrast, self.flip = brightness, contrast, flip

    def draw(self, rng: np.random.Generator) -> NDArray[np.float32]:
        """Return a matrix by rows, a shift, contrast, brightness, and the moves of the points."""
        angle = math.radians(rng.uniform(-self.rotate, self.rotate))
        zoom = rng.uniform(1 - self.scale, 1 + self.scale)
        shift = rng.uniform(-self.shift, self.shift, 2)
        cosine, sine = math.cos(angle) / zoom, math.sin(angle) / zoom
        matrix = np.array([[cosine, sine], [-sine, cosine]])
        if rng.random() >= 0.9:
            matrix, shift = np.eye(2), np.zeros(2)
        mirrored = (rng.random(2) < 0.5) & self.flip
        matrix = matrix * np.where(mirrored, -1.0, 1.0)[:, None]
        contrast = 1 + rng.uniform(-self.contrast, self.contrast)
        brightness = rng.uniform(-self.brightness, self.brightness)
        if rng.random() >= 0.8:
            contrast, brightness = 1.0, 0.0
        moves = rng.normal(0, self.warp, (2, KNOTS, KNOTS)) * (rng.random() < 0.3)
        drawn = [*matrix.ravel(), *shift, contrast, brightness, *moves.ravel()]
        return np.array(drawn, np.float32)

    def change(self, images: Tensor, masks: Tensor, draws: Tensor) -> tuple[Tensor, Tensor]:
        """Move, then scale intensities; see `BatchAugment.change`. Masks are not interpolated."""
        height, width = images.shape[-2:]
        numbers = draws[:, :8, None, None].unbind(1)
        places = _find_places(numbers[:6], (height, width))
        if self.warp:
            moves = draws[:, 8:].unflatten(1, (2, KNOTS, KNOTS))
            places = places + _interpolate_moves(moves, (height, width))
        # Places are in shares of the image, from its middle; `grid_sample` wants half shares.
        grid = 2 * places.movedim(1, -1)
        moved = F.grid_sample(images, grid, "bilinear", "zeros", align_corners=False)
        labels = masks[:, None].float()
        labels = F.grid_sample(labels, grid, "nearest", "zeros", align_corners=False)
        contrast, brightness = (number[:, None] for number in numbers[6:])
        return moved * contrast + brightness, labels[:, 0].to(masks.dtype)


def _find_places(numbers: tuple[Tensor, ...], size: tuple[int, int]) -> Tensor:
    """Return the place from which each pixel is taken, x and y: `[B, 2, H, W]`.

    `numbers` are a matrix, by rows, and a shift, `[B, 1, 1]` each. No matrix product is taken: its
    rounding may depend on the size of the batch, and on TF32.
    """
    height, width = size
    device = numbers[0].device
    x = torch.arange(width, device=device) - (width - 1) / 2
    y = (torch.arange(height, device=device) - (height - 1) / 2)[:, None]
    a, b, c, d, right, down = numbers
    return torch.stack([(a * x + b * y) / width + right, (c * x + d * y) / height + down], 1)


def _interpolate_moves(moves: Tensor, size: tuple[int, int]) -> Tensor:
    """Return the moves `[B, 2, H, W]` of all pixels between points `[B, 2, KNOTS, KNOTS]`."""
    along_y, along_x = (_weigh_knots(length, moves.device) for length in size)
    rows = sum(moves[..., k, None] * along_x[k] for k in range(KNOTS))
    assert isinstance(rows, Tensor)
    total = sum(rows[..., k, None, :] * along_y[k][:, None] for k in range(KNOTS))
    assert isinstance(total, Tensor)
    return total


def _weigh_knots(length: int, device: torch.device) -> Tensor:
    """Return the weights `[KNOTS, length]` of the points along an axis; they sum to 1."""
    at = torch.arange(length, device=device) * ((KNOTS - 1) / max(length - 1, 1))
    near = (1 - (at - torch.arange(KNOTS, device=device)[:, None]).abs()).clamp(min=0)
    return near * near * (3 - 2 * near)
