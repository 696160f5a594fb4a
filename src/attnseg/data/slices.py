"""Slices as the network takes them: one place scales and resizes, for training and prediction."""

import random
from collections.abc import Iterator, Sequence
from typing import Any

import albumentations as A
import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from attnseg.data.augment import Transforms
from attnseg.data.store import StoredCase

Key = tuple[int, int]  # epoch, index: all that a sample depends on
Sample = dict[str, Any]


def network_image(
    image: NDArray[np.generic], low: float, high: float, size: tuple[int, int]
) -> NDArray[np.float32]:
    """Scale intensities to [0, 1] and resize.

    Args:
        image: `[H, W, C]`, the file's values.
        low: value that becomes 0, as all below it.
        high: value that becomes 1, as all above it.
        size: height and width for the network; the aspect ratio is not kept.

    Returns:
        `[*size, C]`.
    """
    scaled = np.clip((image.astype(np.float32) - low) / (high - low), 0, 1).astype(np.float32)
    resized = cv2.resize(scaled, (size[1], size[0]), interpolation=cv2.INTER_LINEAR)
    return np.asarray(resized, np.float32).reshape(*size, image.shape[2])


def network_tensor(image: NDArray[np.float32]) -> Tensor:
    """Turn `[H, W, C]` in [0, 1] into the network's `[C, H, W]` in [-1, 1]."""
    return torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1))) * 2 - 1


class SliceDataset(Dataset[Sample]):
    """Slices of prepared cases, augmented by (seed, epoch, index) alone.

    Whatever process asks for a key, and however many do, the sample is the same.

    Args:
        cases: in a fixed order.
        size: height and width for the network.
        classes: number of foreground classes.
        multilabel: whether masks hold a bit per class, not an index.
        transforms: augmentation; empty for none.
        seed: of the augmentation.
    """

    def __init__(
        self,
        cases: Sequence[StoredCase],
        size: tuple[int, int],
        classes: int,
        multilabel: bool,
        transforms: Transforms | None = None,
        seed: int = 0,
    ) -> None:
        self.cases = cases
        self.size = size
        self.bits = np.arange(classes, dtype=np.uint8)[:, None, None] if multilabel else None
        self.augment = A.Compose(transforms) if transforms else None
        self.seed = seed
        self.index = [(c, s) for c, case in enumerate(cases) for s in range(case.shape[0])]

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, key: Key) -> Sample:
        """Return a sample.

        Args:
            key: epoch and index of the slice.

        Returns:
            `image` `[C, H, W]` float32; `target` as `SegmentationLoss` takes it, uint8; `case`,
            index into `cases`; `slice`, its number in the case from 0.
        """
        epoch, index = key
        at_case, at_slice = self.index[index]
        case = self.cases[at_case]
        image = network_image(case.image[at_slice], case.low, case.high, self.size)
        mask = cv2.resize(
            case.mask[at_slice], (self.size[1], self.size[0]), interpolation=cv2.INTER_NEAREST
        )
        if self.augment:
            # Not `set_random_seed`: it starts every transform at the same draws, which ties the
            # turn of an image to its brightness.
            rng = np.random.default_rng((self.seed, epoch, index))
            self.augment.set_random_state(rng, random.Random(int(rng.integers(2**63))))
            changed = self.augment(image=image, mask=mask)
            image, mask = np.clip(changed["image"], 0, 1), changed["mask"]
        target = mask if self.bits is None else (mask[None] >> self.bits) & 1
        return {
            "image": network_tensor(image),
            "target": torch.from_numpy(np.ascontiguousarray(target)),
            "case": at_case,
            "slice": at_slice,
        }


class EpochSampler(Sampler[Key]):
    """Keys of one epoch: an order that depends on seed and epoch alone, shared among processes.

    Args:
        length: number of slices.
        shuffle: whether to shuffle.
        seed: of the order.
        rank: number of this process, from 0.
        world: number of processes; each takes every `world`-th key.
    """

    def __init__(
        self, length: int, shuffle: bool, seed: int = 0, rank: int = 0, world: int = 1
    ) -> None:
        self.length, self.shuffle, self.seed, self.rank, self.world = (
            length,
            shuffle,
            seed,
            rank,
            world,
        )
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch that the next iteration is of; Lightning calls this."""
        self.epoch = epoch

    def __len__(self) -> int:
        """Return the keys of this process; when shuffled, all processes have as many."""
        if self.shuffle:
            return self.length // self.world
        return len(range(self.rank, self.length, self.world))

    def __iter__(self) -> Iterator[Key]:
        if self.shuffle:
            order = np.random.default_rng((self.seed, self.epoch)).permutation(self.length)
        else:
            order = np.arange(self.length)
        mine = order[self.rank :: self.world][: len(self)]
        return iter([(self.epoch, int(index)) for index in mine])
