"""One training run, from a checked configuration to a complete run folder."""

import contextlib
import hashlib
import logging
import sys
from collections.abc import Callable
from pathlib import Path

import pytorch_lightning as pl
import torch

from attnseg.config import cost
from attnseg.config.components import Components, build_components
from attnseg.config.identity import run_id
from attnseg.config.training import Config
from attnseg.data.datamodule import SliceDataModule
from attnseg.data.sealed import count_cases
from attnseg.errors import AttnsegError, ConfigError
from attnseg.files import check_room, file_digest, write_text
from attnseg.models.model import SegmentationModel
from attnseg.preparation.datasets import (
    PreparedData,
    describe_input,
    load_dataset,
    open_reader,
    slice_view,
)
from attnseg.processes.gpus import leased
from attnseg.processes.launch import ProcessGroup
from attnseg.processes.malloc import keep_freed_memory
from attnseg.processes.signals import Stopping, leave_to_the_main_process
from attnseg.runs.active_run import ActiveRun
from attnseg.runs.checkpoints import load_weights
from attnseg.runs.run_folder import RunFolder
from attnseg.training.auto_batch import find_largest_batch
from attnseg.training.callbacks.history import EndedEarly, OnEpoch
from attnseg.training.final_evaluation import report
from attnseg.training.fit import fit
from attnseg.training.loggers.run_loggers import RunLoggers
from attnseg.training.precision import resolve_precision

log = logging.getLogger(__name__)


def train(
    config: Config,
    claimed: Callable[[Path], None] = lambda folder: None,
    watch: OnEpoch = lambda rows: None,
) -> Path:
    """Train, validate and test as configured.

    Args:
        config: checked.
        claimed: is told the run folder as soon as it is this run's.
        watch: is told the history after every epoch; may raise `EndedEarly`.

    Returns:
        The run folder.

    Raises:
        AttnsegError: what the person at the terminal can mend.
        EndedEarly: `watch` has seen enough.
    """
    if config.trainer.accelerator == "cpu":
        keep_freed_memory()
    config = resolve_precision(config)
    group = ProcessGroup(config.trainer.devices, config.to_yaml())
    check_device(config, group.per_machine)
    if not group.leads:
        folder = group.receive_folder()
        if folder is not None:
            follow(config, folder, group)
        return folder or Path(config.paths.outputs)
    try:
        return lead(config, claimed, watch, group)
    finally:
        group.send_folder(None)


def lead(
    config: Config,
    claimed: Callable[[Path], None],
    watch: OnEpoch,
    group: ProcessGroup,
) -> Path:
    """Be the process that makes the run folder, and the only one that writes and evaluates.

    Args:
        config: checked.
        claimed: as for `train`.
        watch: as for `train`.
        group: the processes of the run.

    Returns:
        The run folder.
    """
    reader = open_reader(config)
    pl.seed_everything(config.seed, workers=True, verbose=False)
    parts = build_components(config, reader)
    loggers = RunLoggers(config)
    model = parts.model
    data = load_dataset(config, reader)
    image = (reader.channels * config.dataset.slices, *config.dataset.image_size)
    if config.trainer.auto_batch:
        fits = find_largest_batch(config, parts, image, reader.labels)
        fits = min(fits, sum(case.shape[0] for case in data.train))
        config = config.revise("dataset", batch_size=fits)
    datamodule = make_datamodule(config, data, parts)
    split_digest = hashlib.sha256(data.split.encode()).hexdigest()
    run = ActiveRun(config, run_id(config, data.digest, split_digest))
    claimed(run.folder.path)
    if run.finished:
        log.info("Done before, not run again (trainer.repeat=true would): %s", run.folder)
        return run.folder.path
    handler = run.log_to_file()
    profile = parts.profile
    stopping = Stopping()
    stopping.install()
    held = contextlib.ExitStack()
    try:
        check_room(run.folder.path, checkpoint_bytes(config, model), "checkpoints")
        held.enter_context(leased(config))
        run.note_device(config)
        write_text(run.folder.split_file, data.split)
        run.save(
            profile=profile.describe(),
            data=describe_input(data),
            data_digest=data.digest,
            split_digest=split_digest,
            parameters=cost.count_parameters(model),
            macs=cost.count_macs(model, image),
        )
        announce(config, run, data)
        loggers.open(run.folder, data.watermark)
        if data.watermark is not None:
            run.save(watermark=data.watermark)
            data.test.open(str(run.folder), "watched after every epoch")
        if config.trainer.max_epochs == 0:
            log.info("No training (trainer.max_epochs=0): the initial weights are evaluated")
        else:
            group.send_folder(run.folder.path)
            with run.timing("fit"):
                fit(config, run.folder, data, parts, datamodule, stopping, group, loggers, watch)
            if config.trainer.strategy == "fsdp":
                model = build_components(config, reader).model  # the other is in pieces
            load_best(config, run, model)
        with run.timing("evaluate"):
            report(config, run, data, model, profile)
        run.save(peak_memory_bytes=cost.peak_memory())
        loggers.finish("success")
        run.end("done")
        log.info("Done in %.0f s: %s", run.facts.seconds["total"], run.folder)
    except (KeyboardInterrupt, SystemExit) as error:
        loggers.finish("stopped")
        run.end("stopped", type(error).__name__)
        raise
    except EndedEarly as error:
        loggers.finish("stopped")
        run.end("stopped", str(error))
        raise
    except BaseException as error:
        loggers.finish("failed")
        run.end("failed", f"{type(error).__name__}: {error}")
        log.debug("The run failed", exc_info=True)
        raise
    finally:
        held.close()
        stopping.restore()
        logging.getLogger("attnseg").removeHandler(handler)
        handler.close()
    return run.folder.path


def checkpoint_bytes(config: Config, model: SegmentationModel) -> int:
    """Return the room for the best and the last checkpoint, and one that is being written."""
    copies = 3 if config.trainer.ema_decay is None else 4  # weights, two averages of gradients
    return 3 * copies * sum(p.numel() * p.element_size() for p in model.parameters())


def check_device(config: Config, processes: int) -> None:
    """Refuse devices that this machine lacks.

    Args:
        config: checked.
        processes: of the run on this machine.

    Raises:
        ConfigError: says what there is.
    """
    if config.trainer.accelerator == "gpu":
        found = torch.cuda.device_count()
        if found == 0:
            raise ConfigError("trainer.accelerator: no GPU found on this machine; use trainer=cpu")
        if processes > found:
            raise ConfigError(f"trainer.devices: {processes} asked for, {found} found")


def announce(config: Config, run: ActiveRun, data: PreparedData) -> None:
    """Say what is about to be trained on what."""
    choices, facts = config.choices, run.facts
    log.info(
        "%s with %s attention, %.2f M parameters, %.2f GMAC per %dx%d slice",
        choices["model"],
        choices["attn"],
        facts.parameters["total"] / 1e6,
        facts.macs / 1e9,
        *config.dataset.image_size,
    )
    parts = []
    described = {"train": count_cases(data.train), "val": count_cases(data.val)}
    for role, counted in {**described, "test": data.test.counts}.items():
        parts.append(f"{role} " + ", ".join(f"{count} {what}" for what, count in counted.items()))
    log.info("%s: %s", config.dataset_name, "; ".join(parts))
    log.info("Run folder: %s", run.folder)


def follow(config: Config, folder: Path, group: ProcessGroup) -> None:
    """Be one of the other processes of a distributed run: train, and leave no trace.

    Args:
        config: of the run.
        folder: the run folder that the first process made.
        group: the processes of the run.

    Raises:
        SystemExit: training failed; what only this process knows of is said.
    """
    logging.getLogger("attnseg").setLevel(logging.ERROR)
    reader = open_reader(config)
    pl.seed_everything(config.seed, workers=True, verbose=False)
    parts = build_components(config, reader)
    data = load_dataset(config, reader)
    stopping = Stopping()
    stopping.install()
    try:
        fit(
            config,
            RunFolder(folder),
            data,
            parts,
            make_datamodule(config, data, parts),
            stopping,
            group,
        )
    except AttnsegError as error:
        if not isinstance(error, ConfigError):  # that, all processes find
            print(f"error: {error}", file=sys.stderr, flush=True)
        raise SystemExit(error.exit_code) from error
    finally:
        stopping.restore()


def make_datamodule(config: Config, data: PreparedData, parts: Components) -> SliceDataModule:
    """Return the loaders for training and validation.

    Raises:
        ConfigError: the batches of all processes hold more slices than there are.
    """
    slices, processes = sum(case.shape[0] for case in data.train), config.trainer.devices
    if slices // processes < config.dataset.batch_size and processes > 1:
        raise ConfigError(
            f"dataset.batch_size: {config.dataset.batch_size} in each of {processes} processes is "
            f"more than the {slices} training slices; use at most {slices // processes}"
        )
    return SliceDataModule(
        data.train,
        data.val,
        slice_view(config),
        parts.transforms,
        config.dataset.batch_size,
        config.trainer.num_workers,
        config.seed,
        config.dataset.foreground,
        config.trainer.loader_timeout or 0,
        leave_to_the_main_process,
    )


def load_best(config: Config, run: ActiveRun, model: SegmentationModel) -> None:
    """Load the weights of the best epoch by `trainer.monitor`.

    Raises:
        ConfigError: there is none.
    """
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
