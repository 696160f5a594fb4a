"""A training run, from a checked configuration to a complete run folder.

`train` follows the order of a run: join the processes of a distributed run, resolve the precision,
set up model and data, claim the run folder, reserve GPUs, fit, load the best weights, and evaluate
once. Only rank 0 writes and evaluates; the other ranks follow it (see `rank_main`).
"""

import logging
from collections.abc import Callable
from pathlib import Path

from attnseg.config import cost
from attnseg.config.components import build_components
from attnseg.config.identity import run_id
from attnseg.config.training import Config
from attnseg.errors import ConfigError
from attnseg.files import check_room, file_digest
from attnseg.models.model import SegmentationModel
from attnseg.processes.gpus import leased
from attnseg.processes.launch import ProcessGroup
from attnseg.processes.malloc import keep_freed_memory
from attnseg.processes.signals import Stopping
from attnseg.runs.active_run import ActiveRun
from attnseg.runs.checkpoints import load_weights, save_weights
from attnseg.training.callbacks.history import OnEpoch
from attnseg.training.conversion_report import finish_report, start_report
from attnseg.training.final_evaluation import evaluate_run
from attnseg.training.fit import fit
from attnseg.training.loggers.run_loggers import RunLoggers
from attnseg.training.precision import resolve_precision
from attnseg.training.rank_main import follow_rank_zero
from attnseg.training.run_records import (
    announce_run,
    record_setup,
    recorded_outcome,
    warn_of_findings,
)
from attnseg.training.setup import TrainingSetup, check_devices, checkpoint_bytes, set_up_training

log = logging.getLogger(__name__)


def train(
    config: Config,
    on_folder: Callable[[Path], None] = lambda folder: None,
    on_epoch: OnEpoch = lambda rows: None,
) -> Path:
    """Train, validate and test as configured.

    Args:
        config: the checked configuration.
        on_folder: called with the run folder as soon as this process holds it.
        on_epoch: called with the history after every epoch; may raise `EndedEarly`.

    Returns:
        The run folder.

    Raises:
        AttnsegError: an option, the data, a checkpoint or the machine does not allow the run.
        EndedEarly: `on_epoch` ended the run.
    """
    if config.trainer.accelerator == "cpu":
        keep_freed_memory()
    group = ProcessGroup(config.trainer.devices, config.to_yaml())
    check_devices(config, group.per_machine)
    config = resolve_precision(config)
    if not group.leads:
        folder = group.receive_folder()
        if folder is not None:
            follow_rank_zero(config, folder, group)
        return folder or Path(config.paths.outputs)
    try:
        # A process keeps the first GPU that it opens: nothing may touch CUDA before the lease.
        with leased(config) as lease:
            loggers = RunLoggers(config)
            setup = set_up_training(config, lease)
            identity = run_id(setup.config, setup.data.digest, setup.data.split_digest)
            run = ActiveRun(setup.config, identity)
            on_folder(run.folder.path)
            if run.finished:
                reader = setup.data.reader
                run.facts.check_classes(run.folder, reader.classes, reader.values)
                log.info("Done before, not run again (trainer.repeat=true would): %s", run.folder)
            else:
                fit_and_evaluate(run, setup, group, loggers, on_epoch, lease)
            return run.folder.path
    finally:
        group.send_folder(None)


def fit_and_evaluate(
    run: ActiveRun,
    setup: TrainingSetup,
    group: ProcessGroup,
    loggers: RunLoggers,
    on_epoch: OnEpoch,
    lease: Callable[[], None],
) -> None:
    """Train in a run folder that this process holds, and score the best weights once."""
    config, data, model = setup.config, setup.data, setup.components.model
    with Stopping() as stopping, recorded_outcome(run, loggers):
        run.facts.check_classes(run.folder, data.reader.classes, data.reader.values)
        check_room(run.folder.path, checkpoint_bytes(config, model), "checkpoints")
        lease()
        run.note_device(config)
        record_setup(run, setup)
        announce_run(run, setup)
        loggers.open(run.folder, data.watermark)
        if data.watermark is not None:
            data.test.open(str(run.folder), "watched after every epoch")
        start_report(run, setup)
        if config.trainer.max_epochs == 0:
            log.info("No training (trainer.max_epochs=0): the initial weights are evaluated")
            save_weights(model, run.folder.best_checkpoint)
        else:
            group.send_folder(run.folder.path)
            with run.timing("fit"):
                fit(setup, run.folder, group, stopping, loggers.log_epoch, on_epoch)
            if config.trainer.strategy == "fsdp":  # This process holds only a shard of the model.
                model = build_components(config, data.reader).model
            load_best_weights(run, config, model)
            warn_of_findings(model)
        with run.timing("evaluate"):
            evaluate_run(run, setup, model)
        finish_report(run, setup)
        run.note_energy_per_step()
        run.save(peak_memory_bytes=cost.peak_memory())


def load_best_weights(run: ActiveRun, config: Config, model: SegmentationModel) -> None:
    """Load the weights of the best epoch by `trainer.monitor`, and record its number."""
    folder = run.folder
    if not folder.best_checkpoint.exists():
        raise ConfigError(
            f"trainer.monitor: {config.trainer.monitor} was not finite after any epoch; lower "
            "optimizer.lr or use trainer.precision=32"
        )
    best = load_weights(model, folder.best_checkpoint)
    run.save(
        best_epoch=best["epoch"] + 1,
        checkpoints={p.name: file_digest(p) for p in sorted(folder.checkpoints.glob("*.ckpt"))},
    )
    log.info("Best epoch by %s: %d", config.trainer.monitor, best["epoch"] + 1)
