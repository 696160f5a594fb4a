"""The loaders for training and validation; by design, there is none for the test set."""

import sys
from collections.abc import Callable, Sequence
from functools import partial

import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader

from attnseg.data.augment import Transforms
from attnseg.data.device_augment import BatchAugment
from attnseg.data.loader_processes import WatchedDataset, set_up_loader_process
from attnseg.data.slices import EpochSampler, Sample, SliceDataset
from attnseg.data.slicing import SliceView
from attnseg.data.store import StoredCase
from attnseg.errors import ConfigError


class SliceDataModule(pl.LightningDataModule):
    """Batches of slices from the training and validation cases.

    Args:
        train: cases to train on.
        val: cases to validate on.
        view: turns slices into the network's input.
        transforms: augmentation of the training slices.
        batch_size: slices per batch and process.
        num_workers: number of loader processes; 0 loads in the training process.
        seed: seed of order and augmentation.
        foreground: share of the training slices that is drawn from those with any class.
        timeout: seconds to wait for a loader process; 0 waits without limit.
        prepare_worker: called in each new loader process with its number.
        pin_memory: copy batches to memory from which a GPU reads them while it computes.

    Attributes:
        watched: the dataset of each loader made so far.
        first_epoch: epoch at which training starts or resumes; set it before loaders are made.
        first_batch: batch of `first_epoch` at which training starts or resumes.

    Raises:
        ConfigError: a batch is larger than the training set, or the augmentation does not fit the
            size of the images.
    """

    def __init__(
        self,
        train: Sequence[StoredCase],
        val: Sequence[StoredCase],
        view: SliceView,
        transforms: Transforms | BatchAugment,
        batch_size: int,
        num_workers: int,
        seed: int,
        foreground: float = 0.0,
        timeout: float = 0.0,
        prepare_worker: Callable[[int], None] | None = None,
        pin_memory: bool = False,
    ) -> None:
        super().__init__()
        try:
            self.train = SliceDataset(train, view, transforms, seed)
        except ValueError as error:
            raise ConfigError(f"augment: {error}") from error
        self.val = SliceDataset(val, view)
        self.batch_size, self.seed, self.foreground = batch_size, seed, foreground
        self.num_workers, self.prepare_worker, self.timeout = num_workers, prepare_worker, timeout
        self.pin_memory = pin_memory
        self.first_epoch = self.first_batch = 0
        self.watched: list[WatchedDataset] = []
        if batch_size > len(self.train):
            raise ConfigError(
                f"dataset.batch_size: {batch_size} is larger than the {len(self.train)} training "
                f"slices; use at most {len(self.train)}"
            )

    def train_dataloader(self) -> DataLoader[Sample]:
        """Return the loader of shuffled batches, all of the full size."""
        return self._loader(self.train, shuffle=True)

    def val_dataloader(self) -> DataLoader[Sample]:
        """Return the loader of the validation slices, each once and in order."""
        return self._loader(self.val, shuffle=False)

    def _loader(self, dataset: SliceDataset, shuffle: bool) -> DataLoader[Sample]:
        rank, world = 0, 1
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            rank, world = torch.distributed.get_rank(), torch.distributed.get_world_size()
        favoured = dataset.foreground() if shuffle and self.foreground else None
        sampler = EpochSampler(
            len(dataset), shuffle, self.seed, rank, world, favoured, self.foreground
        )
        # Lightning sets the epoch only after loader processes have begun to fetch the first batch.
        first = self.first_batch * self.batch_size if shuffle else 0
        sampler.go_on(self.first_epoch, first)
        self.watched.append(WatchedDataset(dataset, self.num_workers))
        return DataLoader(
            self.watched[-1],
            batch_size=self.batch_size,
            sampler=sampler,
            num_workers=self.num_workers,
            # From Python 3.14, other loader processes would import everything anew.
            multiprocessing_context="fork"
            if self.num_workers and sys.platform == "linux"
            else None,
            drop_last=shuffle,
            pin_memory=self.pin_memory,
            persistent_workers=self.num_workers > 0,
            timeout=self.timeout if self.num_workers else 0,
            worker_init_fn=partial(set_up_loader_process, then=self.prepare_worker),
        )
