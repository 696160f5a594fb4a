"""Fits a model with Lightning, from the start or from a run's last checkpoint."""

import contextlib
import logging
import re
import shlex
import sys
from collections.abc import Callable, Iterator
from functools import partial

import pytorch_lightning as pl
from pytorch_lightning.callbacks import EarlyStopping

from attnseg.config.training import Trainer as TrainerOptions
from attnseg.data.datamodule import SliceDataModule
from attnseg.data.loader_processes import explain_loader_error
from attnseg.errors import ConfigError, ResourceError
from attnseg.evaluation.scoring import make_segmenter, score_cases
from attnseg.layers.norm import share_batch_norm
from attnseg.models.model import SegmentationModel
from attnseg.preparation.datasets import slice_view
from attnseg.processes.launch import ProcessGroup
from attnseg.processes.signals import Stopped, Stopping, ending
from attnseg.processes.tf32 import tf32_products
from attnseg.runs.run_folder import RunFolder
from attnseg.training.callbacks.averaging import WeightAverage
from attnseg.training.callbacks.checkpoints import BestCheckpoint, LastCheckpoint
from attnseg.training.callbacks.history import (
    Diagnostics,
    History,
    HistoryRow,
    OnEpoch,
    ProfileScores,
)
from attnseg.training.callbacks.progress import EpochProgress
from attnseg.training.compiling import (
    compile_model,
    computing_uncompiled,
    restore_plain_model,
)
from attnseg.training.lightning_trainer import (
    launch_ranks_with_rank_main,
    make_trainer,
    quiet_lightning,
)
from attnseg.training.module import SegmentationModule
from attnseg.training.recompute import recompute_blocks
from attnseg.training.resume import find_resume_point
from attnseg.training.setup import TrainingSetup, network_input_shape
from attnseg.training.sharding import list_called_blocks

log = logging.getLogger(__name__)
NO_DETERMINISTIC_KERNEL = re.compile(r"(\S+) does not have a deterministic implementation")
# Parts of the messages that PyTorch raises when another rank has ended.
LOST_RANK = re.compile("Connection (closed|reset)|NCCL|Broken pipe|gloo")


def fit(
    setup: TrainingSetup,
    folder: RunFolder,
    group: ProcessGroup,
    stopping: Stopping,
    log_epoch: Callable[[HistoryRow], None] = lambda row: None,
    on_epoch: OnEpoch = lambda rows: None,
) -> None:
    """Train to the last epoch, writing checkpoints and history to the run folder.

    `log_epoch` is called with every new row of the history before it is written, `on_epoch` with
    all rows after every epoch. Training stops when a signal asks for it.

    Raises:
        EndedEarly: `on_epoch` ended the run.
        AttnsegError: the loss is not finite, or a loader process failed.
        KeyboardInterrupt: stopped by Ctrl-C.
        SystemExit: stopped by another signal, with code 143.
    """
    options, loaders, model = setup.config.trainer, setup.loaders, setup.components.model
    resume = find_resume_point(folder.last_checkpoint, options.max_epochs)
    if resume is not None:
        if resume.over:
            return
        loaders.first_epoch, loaders.first_batch = resume.epoch, resume.batch
    blocks = []
    if options.strategy == "fsdp":
        blocks = list_called_blocks(model, network_input_shape(setup.config, setup.data))
    prepare_model(model, options)
    module = SegmentationModule(
        setup.components,
        setup.data.reader.labels,
        train_cases=[case.case for case in setup.data.train],
        val_cases=[case.case for case in setup.data.val],
        auxiliary_weight=options.auxiliary_weight,
        seed=setup.config.seed,
        blocks=blocks,
        distiller=None if setup.conversion is None else setup.conversion.distiller,
    )
    callbacks = make_callbacks(setup, folder, stopping, log_epoch, on_epoch)
    with (
        quiet_lightning(),
        launch_ranks_with_rank_main(folder.path),
        tf32_products(options.precision == "tf32"),
    ):
        trainer = make_trainer(options, group, callbacks, folder.path)
        with stopping.deferred(), translated_failures(trainer, loaders, options.devices):
            trainer.fit(module, loaders, ckpt_path=folder.last_checkpoint if resume else None)
    restore_plain_model(model)
    if stopping.asked:  # The signal came after the last step.
        raise ending(stopping.asked)


def prepare_model(model: SegmentationModel, options: TrainerOptions) -> None:
    """Change a model in place for distributed training, gradient checkpointing and compilation."""
    if options.devices > 1 and (options.accelerator == "cpu" or options.strategy == "fsdp"):
        share_batch_norm(model)
    if options.gradient_checkpointing:
        recompute_blocks(model, compiled=options.compile is not None)
    if options.compile:
        compile_model(model, options)


def make_callbacks(
    setup: TrainingSetup,
    folder: RunFolder,
    stopping: Stopping,
    log_epoch: Callable[[HistoryRow], None],
    on_epoch: OnEpoch,
) -> list[pl.Callback]:
    """Return the callbacks that the options ask for, in the order in which they are called."""
    options, data = setup.config.trainer, setup.data
    mode = "max" if options.monitor == "val/dice" else "min"
    callbacks: list[pl.Callback] = []
    if options.score_every:
        callbacks.append(ProfileScores(options.score_every, partial(score_validation, setup)))
    split = "val" if data.watermark is None else "WATCHED TEST"
    callbacks += [
        Diagnostics(),
        EpochProgress(data.reader.labels.names, split),
        History(folder.history_file, data.watermark, log_epoch, on_epoch),
        BestCheckpoint(folder.checkpoints, options.monitor, mode),
        LastCheckpoint(folder.last_checkpoint, options.save_minutes, stopping),
    ]
    if patience := options.early_stopping:
        # An epoch whose monitored value is not finite counts as one without improvement.
        callbacks.append(
            EarlyStopping(options.monitor, patience=patience, mode=mode, check_finite=False)
        )
    if options.ema_decay:
        callbacks.append(WeightAverage(options.ema_decay))
    return callbacks


def score_validation(setup: TrainingSetup) -> dict[str, float]:
    """Return the mean of each metric over the validation cases, for the model as it is now."""
    view, batch_size = slice_view(setup.config), setup.config.dataset.batch_size
    profile, data = setup.components.profile, setup.data
    segmenter = make_segmenter(setup.components.model, data.reader.labels, view, batch_size)
    with computing_uncompiled(setup.components.model):
        scores = score_cases(segmenter, data.val, [profile], "val")
    means = profile.summarise(scores).loc["mean"].to_dict()
    names = [metric.name for metric in profile.metrics if metric.name in means]
    return {f"{profile.name}/{name}": float(means[name]) for name in names}


@contextlib.contextmanager
def translated_failures(
    trainer: pl.Trainer, loaders: SliceDataModule, devices: int
) -> Iterator[None]:
    """Turn an interruption of Lightning's fit into the errors and exit codes of `fit`.

    Apart from signals, a loader process may have failed, another rank may have ended, or the loss
    may not be finite.
    """
    try:
        yield
    except Stopped as stopped:
        log.info("Stopped after %d steps; the same command goes on", trainer.global_step)
        raise ending(stopped.number) from None
    except SystemExit as error:  # Lightning raises it after a second Ctrl-C.
        if isinstance(error.__context__, KeyboardInterrupt):
            raise KeyboardInterrupt from error
        raise
    except Exception as error:
        for watched in loaders.watched:
            watched.kill()
        loader_failure = explain_loader_error(error, loaders.watched)
        if loader_failure is not None:
            raise loader_failure from error
        if devices > 1 and LOST_RANK.search(str(error)):
            raise ResourceError(
                "trainer.devices: another process of this run has ended, see above; the same "
                "command goes on"
            ) from error
        if match := NO_DETERMINISTIC_KERNEL.search(str(error)):
            raise ConfigError(
                f"trainer.deterministic: {match[1]} has no deterministic form on this GPU; choose "
                "another component or set trainer.deterministic=false"
            ) from error
        if isinstance(error, ConfigError):
            log.info("To see that again, from the last checkpoint on: %s", command_line())
        raise


def command_line() -> str:
    """Return the command line of this process."""
    program, *arguments = sys.argv
    start = ["python", program] if program.endswith(".py") else ["attnseg"]
    return shlex.join([*start, *arguments])
