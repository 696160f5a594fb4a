"""Slices to train on: augmented by seed, epoch and index alone, in an order of the seed."""

import random
from collections.abc import Iterator, Sequence
from typing import Any

import albumentations as A
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from attnseg.data.augment import Transforms
from attnseg.data.slicing import SliceView, network_input
from attnseg.data.store import StoredCase

SampleKey = tuple[int, int]  # epoch, index: all that a sample depends on
Sample = dict[str, Any]


def network_tensor(image: NDArray[np.float32]) -> Tensor:
    """Turn `[H, W, C]` in [0, 1] into the network's `[C, H, W]` in [-1, 1]."""
    return torch.from_numpy(network_input(image))


class SliceDataset(Dataset[Sample]):
    """Slices of prepared cases, augmented by (seed, epoch, index) alone.

    Whatever process asks for a key, and however many do, the sample is the same.

    Args:
        cases: in a fixed order.
        view: how slices become input.
        transforms: augmentation; empty for none.
        seed: of the augmentation.

    Raises:
        ValueError: the augmentation turns images that are not square.
    """

    def __init__(
        self,
        cases: Sequence[StoredCase],
        view: SliceView,
        transforms: Transforms | None = None,
        seed: int = 0,
    ) -> None:
        self.cases = cases
        self.view = view
        self.augment = A.Compose(transforms) if transforms else None
        self.seed = seed
        self.index = [(c, s) for c, case in enumerate(cases) for s in range(case.shape[0])]
        probe = np.zeros((*view.size, 1), np.float32)
        for index in range(16 if self.augment else 0):
            if (
                self._change(probe, probe[..., 0].astype(np.uint8), 0, index)[0].shape
                != probe.shape
            ):
                raise ValueError(
                    f"quarter turns need a square dataset.image_size, not {view.size[0]}x"
                    f"{view.size[1]}"
                )

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, key: SampleKey) -> Sample:
        """Return a sample.

        Args:
            key: epoch and index of the slice.

        Returns:
            `image` `[C, H, W]` float32; `mask`, the label map `[H, W]`; `case`, index
            into `cases`; `slice`, its number in the case from 0.
        """
        epoch, index = key
        at_case, at_slice = self.index[index]
        case = self.cases[at_case]
        image, mask = self.view.image(case, at_slice), self.view.mask(case, at_slice)
        if self.augment:
            image, mask = self._change(image, mask, epoch, index)
        return {
            "image": network_tensor(image),
            "mask": torch.from_numpy(np.ascontiguousarray(mask)),
            "case": at_case,
            "slice": at_slice,
        }

    def foreground(self) -> NDArray[np.intp]:
        """Return the indices of the slices in which any class is present."""
        return np.flatnonzero(np.concatenate([case.counts.any(1) for case in self.cases]))

    def _change(
        self, image: NDArray[np.float32], mask: NDArray[np.uint8], epoch: int, index: int
    ) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
        assert self.augment is not None
        # Not `set_random_seed`: it starts every transform at the same draws, which ties the turn of
        # an image to its brightness.
        rng = np.random.default_rng((self.seed, epoch, index))
        self.augment.set_random_state(rng, random.Random(int(rng.integers(2**63))))
        changed = self.augment(image=image, mask=mask)
        return np.clip(changed["image"], 0, 1), changed["mask"]


class EpochSampler(Sampler[SampleKey]):
    """Keys of one epoch: an order that depends on seed and epoch alone, shared among processes.

    The batches of all processes together are those that one process would have with as many slices
    in each as all of them have.

    Args:
        length: number of slices.
        shuffle: whether to shuffle.
        seed: of the order.
        rank: number of this process, from 0.
        world: number of processes; each takes every `world`-th key.
        favoured: slices of which an epoch holds more than their share.
        share: share of an epoch's slices that are taken from the favoured ones; the rest is taken
            from all.
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
        """Choose the epoch that the next iteration is of; Lightning calls this."""
        if epoch != self.epoch:
            self.epoch, self.first = epoch, 0

    def go_on(self, epoch: int, first: int) -> None:
        """Have the epoch begin with its key number `first`; all others are whole."""
        self.epoch, self.first = epoch, first

    def __len__(self) -> int:
        """Return the keys of this process in a whole epoch; all processes have as many.

        When shuffled, what is left over is left out; otherwise the last slice is repeated.
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
        rng = np.random.default_rng((self.seed, self.epoch))
        order = rng.permutation(self.length)
        if self.favoured is None or len(self.favoured) == 0:
            return order
        count = round(self.share * self.length)
        rounds = -(
            -count // len(self.favoured)
        )  # each is taken as often as any other, give or take
        taken = np.concatenate(
            [rng.permutation(self.favoured) for _ in range(rounds)] or [order[:0]]
        )
        return rng.permutation(np.concatenate([taken[:count], order[: self.length - count]]))
