"""Lightning's Trainer as this package uses it, without its output and its way to start ranks."""

import contextlib
import logging
import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytorch_lightning as pl
import torch
from pytorch_lightning.strategies import ModelParallelStrategy

from attnseg.config.training import Trainer as TrainerOptions
from attnseg.processes.launch import ProcessGroup, cluster_environment
from attnseg.runs.checkpoints import AtomicCheckpointIO

LIGHTNING_LOGGERS = "pytorch_lightning lightning.pytorch lightning_fabric lightning.fabric".split()


def make_trainer(
    options: TrainerOptions, group: ProcessGroup, callbacks: Sequence[pl.Callback], folder: Path
) -> pl.Trainer:
    """Return the Trainer that the options, with a resolved precision, describe."""
    assert options.precision != "auto"
    # Deterministic algorithms would also fill uninitialised memory, which nothing here reads.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    strategy: str | ModelParallelStrategy = options.strategy
    if strategy == "fsdp":  # Its checkpoints are one plain file, as those of any other run.
        strategy = ModelParallelStrategy(options.devices, 1, save_distributed_checkpoint=False)
    return pl.Trainer(
        max_epochs=options.max_epochs,
        accelerator=options.accelerator,
        devices=group.per_machine,
        num_nodes=group.machines,
        strategy=strategy,
        precision=options.precision,
        accumulate_grad_batches=options.accumulate,
        gradient_clip_val=options.gradient_clip,
        limit_train_batches=options.limit_batches,
        limit_val_batches=options.limit_batches,
        deterministic="warn" if options.deterministic else False,
        sync_batchnorm=options.accelerator == "gpu" and options.devices > 1,
        plugins=[AtomicCheckpointIO(), cluster_environment()],
        callbacks=list(callbacks),
        default_root_dir=folder,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
    )


@contextlib.contextmanager
def quiet_lightning() -> Iterator[None]:
    """Hide Lightning's hints and warnings; what users need to know, this package reports."""
    loggers = [logging.getLogger(name) for name in LIGHTNING_LOGGERS]
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


@contextlib.contextmanager
def ranks_run_rank_main(folder: Path) -> Iterator[None]:
    """Make Lightning start the other ranks with `rank_main.py RUN_FOLDER`.

    By default it repeats this process's command line for them, which could be a whole multirun. Its
    launcher reads `sys.argv` alone, so that this is the one place that edits it.
    """
    argv, safe_path = sys.argv, os.environ.get("PYTHONSAFEPATH")
    sys.argv = [str(Path(__file__).with_name("rank_main.py")), str(folder.resolve())]
    # Without it, the modules beside rank_main.py would shadow packages of the same name.
    os.environ["PYTHONSAFEPATH"] = "1"
    try:
        yield
    finally:
        sys.argv = argv
        if safe_path is None:
            del os.environ["PYTHONSAFEPATH"]
