"""Training with Lightning: from a run's last checkpoint, or from the start, to its last epoch."""

import contextlib
import logging
import os
import re
import shlex
import sys
import warnings
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import EarlyStopping, EMAWeightAveraging
from pytorch_lightning.strategies import ModelParallelStrategy

from attnseg.config.components import Components
from attnseg.config.training import Config
from attnseg.config.training import Trainer as Options
from attnseg.data.datamodule import SliceDataModule
from attnseg.data.loader_processes import explain_loader_error
from attnseg.errors import ConfigError, ResourceError
from attnseg.evaluation.scoring import make_segmenter, score_cases
from attnseg.files import is_whole
from attnseg.layers.norm import share_batch_norm
from attnseg.preparation.datasets import PreparedData, slice_view
from attnseg.processes.launch import ProcessGroup, cluster_environment
from attnseg.processes.signals import Stopped, Stopping, ending
from attnseg.runs.checkpoints import AtomicCheckpointIO, read_checkpoint
from attnseg.runs.run_folder import RunFolder
from attnseg.training.callbacks.checkpoints import BestCheckpoint, LastCheckpoint
from attnseg.training.callbacks.history import History, OnEpoch, ProfileScores
from attnseg.training.callbacks.progress import EpochProgress
from attnseg.training.compiling import compile_model
from attnseg.training.loggers.run_loggers import RunLoggers
from attnseg.training.module import SegmentationModule
from attnseg.training.recompute import recompute_blocks

log = logging.getLogger(__name__)
NOISY = ("pytorch_lightning", "lightning.pytorch", "lightning_fabric", "lightning.fabric")
LOST = re.compile("Connection (closed|reset)|NCCL|Broken pipe|gloo")  # a process of a run


def fit(
    config: Config,
    folder: RunFolder,
    data: PreparedData,
    parts: Components,
    datamodule: SliceDataModule,
    stopping: Stopping,
    group: ProcessGroup,
    loggers: RunLoggers | None = None,
    watch: OnEpoch = lambda rows: None,
) -> None:
    """Train, leave checkpoints and history in the run folder, and tell the loggers.

    Raises:
        EndedEarly: `watch` has seen enough.
        AttnsegError: the loss is not finite, or a loader process failed.
        KeyboardInterrupt: stopped by Ctrl-C.
        SystemExit: stopped by another signal, with code 143.
    """
    options, reader = config.trainer, data.reader
    assert options.precision != "auto"  # it has been resolved
    if options.devices > 1 and options.accelerator == "cpu":
        share_batch_norm(parts.model)
    if options.gradient_checkpointing:
        recompute_blocks(parts.model)
    if options.compile:
        compile_model(parts.model, options.compile, options.accelerator == "gpu")
    module = SegmentationModule(
        parts.model,
        parts.loss,
        reader.labels,
        [case.case for case in data.train],
        [case.case for case in data.val],
        optimizer=parts.optimizer,
        schedule=parts.schedule,
        auxiliary_weight=options.auxiliary_weight,
        seed=config.seed,
    )
    last = folder.last_checkpoint
    mode = "max" if options.monitor == "val/dice" else "min"
    log_epoch = loggers.log_epoch if loggers else lambda row: None
    callbacks: list[pl.Callback] = [
        EpochProgress(reader.classes, "val" if data.watermark is None else "WATCHED TEST"),
        History(folder.history_file, data.watermark, log_epoch, watch),
        BestCheckpoint(folder.checkpoints, options.monitor, mode),
        LastCheckpoint(last, options.save_minutes, stopping),
    ]
    if options.score_every:
        score = partial(profile_means, config, data, parts)
        callbacks.insert(0, ProfileScores(options.score_every, score))
    if options.early_stopping:
        patience = options.early_stopping  # a monitor that is no number is no better, either
        callbacks.append(
            EarlyStopping(options.monitor, patience=patience, mode=mode, check_finite=False)
        )
    if options.ema_decay:
        callbacks.append(EMAWeightAveraging(decay=options.ema_decay))
    resumed = can_resume(last)
    if resumed:
        progress = read_checkpoint(last)
        if is_over(progress, options.max_epochs):
            return
        datamodule.first_epoch, datamodule.first_batch = position(progress)
    # Deterministic algorithms would also fill memory that nothing reads before it is written.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    with quiet(), followers(folder.path):
        trainer = pl.Trainer(
            max_epochs=options.max_epochs,
            accelerator=options.accelerator,
            devices=group.per_machine,
            num_nodes=group.machines,
            strategy=strategy(options),
            precision=options.precision,
            accumulate_grad_batches=options.accumulate,
            gradient_clip_val=options.gradient_clip,
            limit_train_batches=options.limit_batches,
            limit_val_batches=options.limit_batches,
            deterministic="warn" if options.deterministic else False,
            sync_batchnorm=options.accelerator == "gpu" and options.devices > 1,
            plugins=[AtomicCheckpointIO(), cluster_environment()],
            callbacks=callbacks,
            default_root_dir=folder.path,
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
            use_distributed_sampler=False,
        )
        stopping.deferring = True
        try:
            trainer.fit(module, datamodule, ckpt_path=last if resumed else None)
        except Stopped as stopped:
            log.info("Stopped after %d steps; the same command goes on", trainer.global_step)
            raise ending(stopped.number) from None
        except SystemExit as error:  # what Lightning makes of a second Ctrl-C
            if isinstance(error.__context__, KeyboardInterrupt):
                raise KeyboardInterrupt from error
            raise
        except Exception as error:
            for watched in datamodule.watched:
                watched.kill()
            known = explain_loader_error(error, datamodule.watched)
            if known is not None:
                raise known from error
            if options.devices > 1 and LOST.search(str(error)):
                raise ResourceError(
                    "trainer.devices: another process of this run has ended, see above; the same "
                    "command goes on"
                ) from error
            if isinstance(error, ConfigError):
                log.info("To see that again, from the last checkpoint on: %s", command())
            raise
        finally:
            stopping.deferring = False
    if stopping.asked:  # when it was over already
        raise ending(stopping.asked)


def command() -> str:
    """Return the command line of this process."""
    program, *arguments = sys.argv
    start = ["python", program] if program.endswith(".py") else ["attnseg", "train"]
    return shlex.join([*start, *arguments])


def strategy(options: Options) -> str | ModelParallelStrategy:
    """Return how the processes share the work, as Lightning takes it."""
    if options.strategy == "fsdp":
        # Whole checkpoints: one plain file, as of any other run.
        return ModelParallelStrategy(options.devices, 1, save_distributed_checkpoint=False)
    return options.strategy


def can_resume(last: Path) -> bool:
    """Return whether an earlier attempt left a checkpoint to go on from."""
    if is_whole(last):
        log.info("Going on from %s", last)
        return True
    if last.exists():
        log.warning("%s: damaged, unlike its SHA-256; training starts over", last)
    return False


def is_over(checkpoint: dict[str, Any], max_epochs: int) -> bool:
    """Return whether training had ended with a checkpoint: by its length, or stopped early."""
    stopped = any(
        state["wait_count"] >= state["patience"]
        for state in checkpoint["callbacks"].values()
        if "wait_count" in state
    )
    return stopped or position(checkpoint)[0] >= max_epochs


def position(checkpoint: dict[str, Any]) -> tuple[int, int]:
    """Return how many epochs, and batches of the next one, were done when a checkpoint was kept."""
    epochs, batches = checkpoint.get("position", (checkpoint["epoch"] + 1, 0))
    return int(epochs), int(batches)


def profile_means(config: Config, data: PreparedData, parts: Components) -> dict[str, float]:
    """Return the profile's means over the validation cases, as the model is now."""
    labels, batch_size = data.reader.labels, config.dataset.batch_size
    segmenter = make_segmenter(parts.model, labels, slice_view(config), batch_size)
    scores = score_cases(segmenter, data.val, [parts.profile], "val")
    profile = parts.profile
    mean = profile.summarise(scores).loc["mean"].to_dict()
    found = [m.name for m in profile.metrics if m.name in mean]
    return {f"{profile.name}/{name}": float(mean[name]) for name in found}


@contextlib.contextmanager
def followers(folder: Path) -> Iterator[None]:
    """Have Lightning start the other processes of a distributed run on `rank_main.py`.

    It repeats the command line for them, which would repeat a whole multirun.
    """
    argv, safe = sys.argv, os.environ.get("PYTHONSAFEPATH")
    sys.argv = [str(Path(__file__).with_name("rank_main.py")), str(folder.resolve())]
    os.environ["PYTHONSAFEPATH"] = "1"  # rank_main.py's neighbours must not shadow other packages
    try:
        yield
    finally:
        sys.argv = argv
        if safe is None:
            del os.environ["PYTHONSAFEPATH"]


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep Lightning's advice off the terminal; what matters is said by us."""
    loggers = [logging.getLogger(name) for name in NOISY]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"pytorch_lightning|lightning_fabric|torch")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
