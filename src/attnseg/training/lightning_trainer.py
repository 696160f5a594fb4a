"""Builds Lightning's Trainer, silences it, and makes it start the other ranks by `rank_main.py`.

Deterministic training is strict on GPUs: an operation that has no deterministic kernel there ends
the run. In PyTorch's milder mode, attention and losses would stay nondeterministic. On CPUs all
operations are deterministic.
"""

import contextlib
import logging
import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

import pytorch_lightning as pl
import torch
from pytorch_lightning.strategies import DDPStrategy, ModelParallelStrategy, Strategy

from attnseg.config.training import Trainer as TrainerOptions
from attnseg.plugins import list_added_files
from attnseg.processes.launch import ProcessGroup, cluster_environment
from attnseg.runs.checkpoints import AtomicCheckpointIO

LIGHTNING_LOGGERS = "pytorch_lightning lightning.pytorch lightning_fabric lightning.fabric".split()


def make_trainer(
    options: TrainerOptions, group: ProcessGroup, callbacks: Sequence[pl.Callback], folder: Path
) -> pl.Trainer:
    """Build the Trainer from the options, whose precision must be resolved already (not `auto`)."""
    assert options.precision != "auto"
    # Deterministic mode would also fill uninitialised memory. Nothing here reads any.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    strategy: str | Strategy = options.strategy
    if strategy == "fsdp":  # One plain file per checkpoint, as in other runs.
        strategy = ModelParallelStrategy(options.devices, 1, save_distributed_checkpoint=False)
    elif strategy == "ddp":
        # Every batch uses every weight. Only one that ends a step exchanges gradients, however,
        # which PyTorch does not allow in a static graph.
        static = options.accumulate == 1
        strategy = DDPStrategy(gradient_as_bucket_view=True, static_graph=static)
    return pl.Trainer(
        max_epochs=options.max_epochs,
        accelerator=options.accelerator,
        devices=group.per_machine,  # options.devices counts those of all machines.
        num_nodes=group.machines,
        strategy=strategy,
        precision=32 if options.precision == "tf32" else options.precision,
        accumulate_grad_batches=options.accumulate,
        gradient_clip_val=options.gradient_clip,
        limit_train_batches=options.limit_batches,
        limit_val_batches=options.limit_batches,
        deterministic=deterministic_mode(options),
        sync_batchnorm=options.accelerator == "gpu" and options.devices > 1,
        plugins=[AtomicCheckpointIO(), cluster_environment()],
        callbacks=list(callbacks),
        default_root_dir=folder,
        # Logging, progress and the order of samples are this package's own.
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
    )


def deterministic_mode(options: TrainerOptions) -> bool | Literal["warn"]:
    """Return how strictly training is deterministic, as Lightning's Trainer takes it."""
    if not options.deterministic:
        return False
    return True if options.accelerator == "gpu" else "warn"


@contextlib.contextmanager
def deterministic_algorithms(options: TrainerOptions) -> Iterator[None]:
    """Compute within the block as Lightning's Trainer will."""
    mode, before = deterministic_mode(options), torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(mode is not False, warn_only=mode == "warn")
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before, warn_only=warn_only)


@contextlib.contextmanager
def quiet_lightning() -> Iterator[None]:
    """Hide Lightning's hints and warnings; this package reports what users need to know."""
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
def launch_ranks_with_rank_main(folder: Path) -> Iterator[None]:
    """Make Lightning start the other ranks with `rank_main.py RUN_FOLDER PLUGIN...`.

    By default, Lightning repeats this process's command line for each rank, which would repeat a
    whole multirun. Its launcher has no setting for the command and reads `sys.argv` and the name
    of a module that was run by `python -m`; both are therefore replaced for the time being, here
    and nowhere else.
    """
    argv, safe_path = sys.argv, os.environ.get("PYTHONSAFEPATH")
    started = sys.modules["__main__"]
    spec, started.__spec__ = started.__spec__, None
    script = Path(__file__).with_name("rank_main.py")
    sys.argv = [str(script), str(folder.resolve()), *list_added_files()]
    # Without this variable, the modules beside rank_main.py would shadow packages of the same name.
    os.environ["PYTHONSAFEPATH"] = "1"
    try:
        yield
    finally:
        sys.argv, started.__spec__ = argv, spec
        if safe_path is None:
            del os.environ["PYTHONSAFEPATH"]
        else:
            os.environ["PYTHONSAFEPATH"] = safe_path
