"""Everything that a training process checks and builds before its first step."""

from collections.abc import Callable
from dataclasses import dataclass

import pytorch_lightning as pl
import torch

from attnseg.config.components import Components, build_components
from attnseg.config.training import Config, Trainer
from attnseg.conversion.opening import OpenConversion, open_conversion
from attnseg.data.datamodule import SliceDataModule
from attnseg.errors import ConfigError
from attnseg.models.model import SegmentationModel
from attnseg.preparation.datasets import PreparedData, load_dataset, open_reader, slice_view
from attnseg.processes.gpus import check_driver
from attnseg.processes.launch import count_own_cores
from attnseg.processes.signals import leave_to_the_main_process
from attnseg.training.auto_batch import find_largest_batch

MOST_WORKERS = 16  # loader processes that `trainer.num_workers=auto` starts


@dataclass(frozen=True)
class TrainingSetup:
    """A training run before its first step.

    The configuration has the batch size that `trainer.auto_batch` has chosen, if it is set.
    """

    config: Config
    data: PreparedData
    components: Components
    loaders: SliceDataModule
    conversion: OpenConversion | None = None  # of a trained network, if this run is one


def set_up_training(config: Config, lease: Callable[[], None] = lambda: None) -> TrainingSetup:
    """Seed all random numbers, build the components, prepare the dataset and its loaders.

    `lease` is called before anything is put on a GPU.
    """
    reader = open_reader(config)
    pl.seed_everything(config.seed, workers=True, verbose=False)
    components = build_components(config, reader)
    data = load_dataset(config, reader)
    if config.trainer.auto_batch:
        lease()
        shape = network_input_shape(config, data)
        largest = find_largest_batch(config, components, shape, reader.labels)
        config = config.revise("dataset", batch_size=min(largest, count_slices(data)))
    loaders = make_loaders(config, data, components)
    conversion = open_conversion(config, components.model, data)
    return TrainingSetup(config, data, components, loaders, conversion)


def make_loaders(config: Config, data: PreparedData, components: Components) -> SliceDataModule:
    """Return the loaders for training and validation; refuse batches that exceed the slices."""
    slices, processes = count_slices(data), config.trainer.devices
    if slices // processes < config.dataset.batch_size and processes > 1:
        raise ConfigError(
            f"dataset.batch_size: {config.dataset.batch_size} in each of {processes} processes is "
            f"more than the {slices} training slices; use at most {slices // processes}"
        )
    return SliceDataModule(
        data.train,
        data.val,
        slice_view(config),
        components.transforms,
        config.dataset.batch_size,
        count_workers(config.trainer),
        config.seed,
        config.dataset.foreground,
        config.trainer.loader_timeout or 0,
        leave_to_the_main_process,
        pin_memory=config.trainer.accelerator == "gpu",
    )


def count_workers(options: Trainer) -> int:
    """Return the number of loader processes for each training process."""
    if options.num_workers != "auto":
        return options.num_workers
    if options.accelerator == "cpu":
        return 0
    return max(1, min(MOST_WORKERS, count_own_cores(options.devices)))


def count_slices(data: PreparedData) -> int:
    """Return the number of training slices."""
    return sum(case.shape[0] for case in data.train)


def network_input_shape(config: Config, data: PreparedData) -> tuple[int, int, int]:
    """Return channels, height and width of the network's input."""
    height, width = config.dataset.image_size
    return data.reader.channels * config.dataset.slices, height, width


def check_devices(config: Config, processes: int) -> None:
    """Refuse a run with more processes on this machine than it has GPUs."""
    if config.trainer.accelerator == "gpu":
        check_driver()
        gpus = torch.cuda.device_count()
        if gpus == 0:
            raise ConfigError("trainer.accelerator: no GPU found on this machine; use trainer=cpu")
        if processes > gpus:
            raise ConfigError(f"trainer.devices: {processes} asked for, {gpus} found")


def checkpoint_bytes(config: Config, model: SegmentationModel) -> int:
    """Return the disk space for the best and the last checkpoint and one that is being written."""
    # Weights and the optimizer's two moments; the moving average of the weights, if it is kept.
    copies = 3 if config.trainer.ema_decay is None else 4
    return 3 * copies * sum(p.numel() * p.element_size() for p in model.parameters())
