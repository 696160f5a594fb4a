"""Loaders for training and validation. There is none for the test set: Lightning never sees it."""

from collections.abc import Sequence

import cv2
import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader

from attnseg.data.augment import Transforms
from attnseg.data.slices import EpochSampler, Sample, SliceDataset
from attnseg.data.store import StoredCase
from attnseg.errors import ConfigError


class SliceDataModule(pl.LightningDataModule):
    """Slices of the training and validation cases in batches.

    Args:
        train: cases to train on.
        val: cases to validate on.
        size: height and width for the network.
        classes: number of foreground classes.
        multilabel: whether they overlap.
        transforms: augmentation of the training slices.
        batch_size: slices per batch and process.
        num_workers: loader processes; 0 loads in the training process.
        seed: of order and augmentation.

    Raises:
        ConfigError: a batch is larger than the training set.
    """

    def __init__(
        self,
        train: Sequence[StoredCase],
        val: Sequence[StoredCase],
        size: tuple[int, int],
        classes: int,
        multilabel: bool,
        transforms: Transforms,
        batch_size: int,
        num_workers: int,
        seed: int,
    ) -> None:
        super().__init__()
        self.train = SliceDataset(train, size, classes, multilabel, transforms, seed)
        self.val = SliceDataset(val, size, classes, multilabel)
        self.batch_size = batch_size
        self.num_workers = num_workers
        self.seed = seed
        if batch_size > len(self.train):
            raise ConfigError(
                f"dataset.batch_size: {batch_size} is larger than the {len(self.train)} training "
                f"slices; use at most {len(self.train)}"
            )

    def train_dataloader(self) -> DataLoader[Sample]:
        """Return shuffled batches, all of the full size."""
        return self._loader(self.train, shuffle=True)

    def val_dataloader(self) -> DataLoader[Sample]:
        """Return every validation slice once, in order."""
        return self._loader(self.val, shuffle=False)

    def _loader(self, dataset: SliceDataset, shuffle: bool) -> DataLoader[Sample]:
        rank, world = 0, 1
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            rank, world = torch.distributed.get_rank(), torch.distributed.get_world_size()
        cv2.setNumThreads(0)  # the loader's processes are the parallelism
        return DataLoader(
            dataset,
            batch_size=self.batch_size,
            sampler=EpochSampler(len(dataset), shuffle, self.seed, rank, world),
            num_workers=self.num_workers,
            drop_last=shuffle,
            pin_memory=torch.cuda.is_available(),
            persistent_workers=self.num_workers > 0,
        )
