"""The dataset of training slices, and the sampler that orders them.

Augmentation and order depend on nothing but seed, epoch and index, which makes resuming exact.
"""

import random
from collections.abc import Iterator, Sequence
from typing import Any

import albumentations as A
import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset, Sampler

from attnseg.data.augment import Transforms
from attnseg.data.device_augment import BatchAugment
from attnseg.data.slicing import SliceView, network_input
from attnseg.data.store import StoredCase

SampleKey = tuple[int, int]  # epoch and index: all that a sample depends on, besides the seed
Sample = dict[str, Any]


class SliceDataset(Dataset[Sample]):
    """Slices of prepared cases, augmented by seed, epoch and index.

    The sample of a key is the same in every process, however many load samples.

    Args:
        cases: prepared cases; their order decides the indices.
        view: turns slices into the network's input.
        transforms: augmentation; empty for none. Of a `BatchAugment`, only numbers are drawn here.
        seed: seed of the augmentation.

    Raises:
        ValueError: the augmentation rotates by quarter turns, but images are not square.
    """

    def __init__(
        self,
        cases: Sequence[StoredCase],
        view: SliceView,
        transforms: Transforms | BatchAugment | None = None,
        seed: int = 0,
    ) -> None:
        self.cases = cases
        self.view = view
        self.later = transforms if isinstance(transforms, BatchAugment) else None
        self.augment = A.Compose(transforms) if transforms and self.later is None else None
        self.seed = seed
        self.index = [(c, s) for c, case in enumerate(cases) for s in range(case.shape[0])]
        probe = np.zeros((*view.size, 1), np.float32)
        empty = np.zeros(view.size, np.uint8)
        for index in range(16 if self.augment else 0):
            if self._change(probe, empty, 0, index)[0].shape != probe.shape:
                raise ValueError(
                    f"quarter turns need a square dataset.image_size, not {view.size[0]}x"
                    f"{view.size[1]}"
                )

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, key: SampleKey) -> Sample:
        """Return the sample of an epoch and the index of a slice.

        Returns:
            `image` `[C, H, W]` float32; `mask`, the label map `[H, W]`; `case`, index into
            `cases`; `slice`, its number in the case from 0; `draws` `[n]` float32, if the
            augmentation is of batches (see `device_augment`).
        """
        epoch, index = key
        at_case, at_slice = self.index[index]
        case = self.cases[at_case]
        image, mask = self.view.image(case, at_slice), self.view.mask(case.mask_slice(at_slice))
        if self.augment:
            image, mask = self._change(image, mask, epoch, index)
        drawn = {}
        if self.later is not None:
            drawn["draws"] = torch.from_numpy(self.later.draw(self._random(epoch, index)))
        return {
            "image": torch.from_numpy(network_input(image)),
            "mask": torch.from_numpy(np.ascontiguousarray(mask)),
            "case": at_case,
            "slice": at_slice,
            **drawn,
        }

    def foreground(self) -> NDArray[np.intp]:
        """Return the indices of the slices in which any class is present."""
        return np.flatnonzero(np.concatenate([case.counts.any(1) for case in self.cases]))

    def _change(
        self, image: NDArray[np.float32], mask: NDArray[np.uint8], epoch: int, index: int
    ) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
        """Augment a slice and its mask."""
        assert self.augment is not None
        # `set_random_seed` would give every transform the same draws, which ties the rotation of an
        # image to its brightness.
        rng = self._random(epoch, index)
        self.augment.set_random_state(rng, random.Random(int(rng.integers(2**63))))
        changed = self.augment(image=image, mask=mask)
        return np.clip(changed["image"], 0, 1), changed["mask"]

    def _random(self, epoch: int, index: int) -> np.random.Generator:
        """Return the random numbers of a sample."""
        return np.random.default_rng((self.seed, epoch, index))


class EpochSampler(Sampler[SampleKey]):
    """Yields the keys of one epoch, in an order that depends on seed and epoch alone.

    Several processes share an epoch, each of which takes every `world`-th key from its `rank` on:
    their batches of one step together are the batch that a single process with the same total batch
    size would have. A shuffled epoch draws `share` of its slices from the `favoured` indices, and
    the rest from all.
    """

    def __init__(
        self,
        length: int,
        shuffle: bool,
        seed: int = 0,
        rank: int = 0,
        world: int = 1,
        favoured: NDArray[np.intp] | None = None,
        share: float = 0.0,
    ) -> None:
        self.length, self.shuffle, self.seed = length, shuffle, seed
        self.rank, self.world = rank, world
        self.favoured, self.share = favoured, share
        self.epoch = self.first = 0

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch of the next iteration; Lightning calls this."""
        if epoch != self.epoch:
            self.epoch, self.first = epoch, 0

    def go_on(self, epoch: int, first: int) -> None:
        """Resume within an epoch at its key number `first`; later epochs are complete."""
        self.epoch, self.first = epoch, first

    def __len__(self) -> int:
        """Return the number of keys of a complete epoch, the same in every process.

        If slices cannot be divided evenly, shuffling leaves out the remainder; otherwise the last
        slice is repeated.
        """
        return self.length // self.world if self.shuffle else -(-self.length // self.world)

    def __iter__(self) -> Iterator[SampleKey]:
        if self.shuffle:
            order = self._shuffled()
        else:
            order = np.arange(len(self) * self.world).clip(max=self.length - 1)
        mine = order[self.rank :: self.world][: len(self)]
        return iter([(self.epoch, int(index)) for index in mine[self.first :]])

    def _shuffled(self) -> NDArray[np.intp]:
        """Return the shuffled indices of the epoch, with `share` of them favoured."""
        rng = np.random.default_rng((self.seed, self.epoch))
        order = rng.permutation(self.length)
        if self.favoured is None or len(self.favoured) == 0:
            return order
        count = round(self.share * self.length)
        # Whole permutations draw every favoured slice equally often, give or take one.
        rounds = -(-count // len(self.favoured))
        taken = np.concatenate(
            [rng.permutation(self.favoured) for _ in range(rounds)] or [order[:0]]
        )
        return rng.permutation(np.concatenate([taken[:count], order[: self.length - count]]))
