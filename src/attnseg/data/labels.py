"""The foreground classes of a dataset, and the forms that their masks take.

Four forms are in use. A *label map* is what readers, the store and files hold: one uint8 per pixel,
the number of its class from 1, or 0 for background; where classes overlap, bit k for class k. Where
a dataset declares it, `IGNORE` stands for pixels whose class nobody knows: no loss and no metric
counts them.
*Masks* are booleans with one leading axis for the classes: what is scored, drawn and written. A
*target* is what a loss takes. *Logits* are what a network returns.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from torch import Tensor

Masks = NDArray[np.bool_]
Floats = NDArray[np.float32]

MAX_EXCLUSIVE, MAX_OVERLAPPING = 255, 8  # classes that the uint8 of a label map can hold
IGNORE = 255  # in a label map; one class fewer can then be held
MIN_DIGEST_VOXELS = 10  # Smaller masks may be equal by chance.


@dataclass(frozen=True)
class Labels:
    """Names the foreground classes and converts between the forms of their masks.

    Attributes:
        names: in the order of the numbers, bits and channels.
        overlapping: whether a pixel may belong to several classes. Each channel is then decided by
            a sigmoid; otherwise a softmax decides, and channel 0 is the background.
        ignore: whether label maps may hold `IGNORE`.
    """

    names: tuple[str, ...]
    overlapping: bool = False
    ignore: bool = False

    def __len__(self) -> int:
        """Return the number of foreground classes."""
        return len(self.names)

    @property
    def channels(self) -> int:
        """Number of channels of the logits."""
        return len(self.names) + (not self.overlapping)

    @property
    def largest_value(self) -> int:
        """Largest value that a label map may hold."""
        return (1 << len(self.names)) - 1 if self.overlapping else len(self.names)

    @property
    def one_per_pixel(self) -> bool:
        """Whether no pixel can belong to two classes: a single class cannot overlap."""
        return not self.overlapping or len(self.names) == 1

    def mask_of(self, label_map: NDArray[Any], index: int) -> Masks:
        """Return the mask of one class, of the shape of the label map."""
        if not self.overlapping:
            return np.asarray(label_map == index + 1, bool)
        known = (label_map != IGNORE) if self.ignore else True
        return np.asarray((label_map >> index & 1 == 1) & known, bool)

    def find_ignored(self, label_map: NDArray[Any]) -> Masks | None:
        """Return where a label map holds `IGNORE`; `None` if the dataset declares no such label."""
        return np.asarray(label_map == IGNORE) if self.ignore else None

    def split(self, label_map: NDArray[Any]) -> Masks:
        """Return a label map as masks `[classes, *label_map.shape]`."""
        return np.stack([self.mask_of(label_map, index) for index in range(len(self.names))])

    def merge(self, masks: Masks) -> NDArray[np.uint8]:
        """Return masks `[classes, ...]` as a label map; the last of exclusive classes wins."""
        label_map = np.zeros(masks.shape[1:], np.uint8)
        for index, mask in enumerate(masks):
            if self.overlapping:
                label_map |= mask.astype(np.uint8) << index
            else:
                label_map[mask] = index + 1
        return label_map

    def target(self, label_maps: Tensor) -> Tensor:
        """Return label maps `[B, H, W]` as the target of a `SegmentationLoss`, uint8.

        Overlapping classes share one byte until they are on the network's device, and get channels
        of their own, `[B, classes, H, W]`, only here. Values at `IGNORE` mean nothing.
        """
        if not self.overlapping:
            return label_maps
        import torch

        bits = torch.arange(len(self), dtype=label_maps.dtype, device=label_maps.device)
        return (label_maps[:, None] >> bits[:, None, None]) & 1

    def decide(self, logits: Floats) -> Masks:
        """Return the masks `[classes, B, H, W]` that logits `[B, K, H, W]` stand for.

        Overlapping classes are present where their own probability is above 0.5. Otherwise the
        largest channel wins, the first of equal ones.
        """
        return (logits > 0).swapaxes(0, 1) if self.overlapping else _find_largest(logits)

    def decide_probabilities(self, probabilities: Floats) -> Masks:
        """Return masks as `decide` does, from the probabilities of the channels."""
        if self.overlapping:
            return (probabilities > 0.5).swapaxes(0, 1)
        return _find_largest(probabilities)


def number_values(
    regions: Mapping[str, tuple[int, ...]], overlapping: bool, ignore: int | None = None
) -> dict[int, int]:
    """Return the value in a label map of each value in a dataset's label files.

    Args:
        regions: the values in the files of each class.
        overlapping: whether classes share values.
        ignore: the value in the files of pixels whose class nobody knows, if there is one.
    """
    new_value = {0: 0}
    for index, values in enumerate(regions.values()):
        for value in values:
            bit = 1 << index if overlapping else index + 1
            new_value[value] = new_value.get(value, 0) + bit
    return new_value if ignore is None else {**new_value, ignore: IGNORE}


def digest_masks(masks: Iterable[Masks]) -> tuple[str, ...]:
    """Return a digest of each mask `[S, H, W]` that has `MIN_DIGEST_VOXELS` or more."""
    digests = []
    for mask in masks:
        if np.count_nonzero(mask) >= MIN_DIGEST_VOXELS:
            content = repr(mask.shape).encode() + np.packbits(mask).tobytes()
            digests.append(hashlib.sha256(content).hexdigest())
    return tuple(digests)


def _find_largest(values: Floats) -> Masks:
    """Return where each channel but the first is the largest: `[K - 1, B, H, W]`."""
    best = values[:, 0].copy()
    index = np.zeros(best.shape, np.uint8)
    for k in range(1, values.shape[1]):  # This is faster than argmax over an inner axis.
        index[values[:, k] > best] = k
        np.maximum(best, values[:, k], out=best)
    classes = np.arange(1, values.shape[1], dtype=np.uint8)
    return np.asarray(index == classes[:, None, None, None])
