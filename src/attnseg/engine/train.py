"""One training run, from a checked configuration to a complete run folder."""

import contextlib
import hashlib
import logging
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import EarlyStopping, EMAWeightAveraging, ModelCheckpoint

from attnseg.data.augment import Transforms
from attnseg.data.datamodule import SliceDataModule
from attnseg.data.reader import Reader
from attnseg.engine import cost, results
from attnseg.engine.budget import build_model
from attnseg.engine.build import build, factory
from attnseg.engine.callbacks import History, Progress
from attnseg.engine.data import Data, load, open_reader
from attnseg.engine.files import AtomicCheckpointIO, file_digest, write_text
from attnseg.engine.module import SegmentationModule
from attnseg.engine.run import Run, run_id
from attnseg.engine.schedules import Schedule
from attnseg.engine.schema import Config
from attnseg.errors import ConfigError
from attnseg.losses.loss import SegmentationLoss
from attnseg.metrics.strict import Strict
from attnseg.models.model import SegmentationModel
from attnseg.models.pretrained import load_file_into

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Parts:
    """What a configuration builds, all of it before any data is read."""

    model: SegmentationModel
    loss: SegmentationLoss
    optimizer: Callable[..., torch.optim.Optimizer]
    schedule: Schedule
    transforms: Transforms


def train(config: Config, text: str) -> Path:
    """Train, validate and test as configured.

    Args:
        config: checked.
        text: the same as YAML, to be kept.

    Returns:
        The run folder.

    Raises:
        AttnsegError: what the person at the terminal can mend.
    """
    check_device(config)
    reader = open_reader(config)
    pl.seed_everything(config.seed, workers=True, verbose=False)
    parts = build_parts(config, reader)
    model = parts.model
    data = load(config, reader)
    datamodule = make_datamodule(config, data, parts)
    split_digest = hashlib.sha256(data.split.encode()).hexdigest()
    run = Run(config, text, run_id(config, data.digest, split_digest))
    handler = run.log_to_file()
    profile = Strict()
    try:
        write_text(run.folder / "split.csv", data.split)
        image = (reader.channels, *config.dataset.image_size)
        run.save(
            profile=profile.describe(),
            data_digest=data.digest,
            split_digest=split_digest,
            parameters=cost.parameters(model),
            macs=cost.macs(model, image),
        )
        announce(config, run, data)
        if config.trainer.max_epochs == 0:
            log.info("No training (trainer.max_epochs=0): the initial weights are evaluated")
        else:
            with run.timing("fit"):
                fit(config, run.folder, data, parts, datamodule)
            load_best(config, run, model)
        with run.timing("evaluate"):
            results.report(config, run, data, model, profile)
        run.save(status="done", peak_memory_bytes=cost.peak_memory())
        log.info("Done in %.0f s: %s", run.facts["seconds"]["total"], run.folder)
    except BaseException as error:
        run.save(status="failed", reason=f"{type(error).__name__}: {error}")
        log.debug("The run failed", exc_info=True)
        raise
    finally:
        logging.getLogger("attnseg").removeHandler(handler)
        handler.close()
    return run.folder


def check_device(config: Config) -> None:
    """Refuse devices that this machine lacks.

    Raises:
        ConfigError: says what there is.
    """
    if config.trainer.accelerator == "gpu":
        found = torch.cuda.device_count()
        if found == 0:
            raise ConfigError("trainer.accelerator: no GPU found on this machine; use trainer=cpu")
        if config.trainer.devices > found:
            raise ConfigError(f"trainer.devices: {config.trainer.devices} asked for, {found} found")


def build_parts(config: Config, reader: Reader) -> Parts:
    """Build everything for a reader's images; each part is tried, so that none fails later.

    Raises:
        ConfigError: an option is unknown, of another type, out of range, or fits no other.
    """
    channels = len(reader.classes) + (0 if reader.multilabel else 1)
    model = build_model(
        config.model, config.attn, reader.channels, channels, config.dataset.image_size
    )
    if config.model.pretrained is not None:
        loaded = load_file_into(model, config.model.pretrained)
        log.info("%s: %s", config.model.pretrained, loaded)
    loss = build("loss", config.loss, multilabel=reader.multilabel)
    logits = torch.zeros(1, channels, 2, 2)
    try:
        loss(logits, logits if reader.multilabel else logits[:, 0])
    except ValueError as error:
        raise ConfigError(f"loss: {error}") from error
    build("optimizer", config.optimizer, params=[torch.nn.Parameter(torch.zeros(1))])
    optimizer = factory("optimizer", config.optimizer, given=("params",))
    schedule = build("scheduler", config.scheduler)
    return Parts(model, loss, optimizer, schedule, build("augment", config.augment))


def announce(config: Config, run: Run, data: Data) -> None:
    """Say what is about to be trained on what."""
    choices, facts = config.choices, run.facts
    log.info(
        "%s with %s attention, %.2f M parameters, %.2f GMAC per %dx%d slice",
        choices["model"],
        choices["attn"],
        facts["parameters"]["total"] / 1e6,
        facts["macs"] / 1e9,
        *config.dataset.image_size,
    )
    parts = []
    for role, cases in data.cases.items():
        patients, slices = len({c.patient for c in cases}), sum(c.shape[0] for c in cases)
        parts.append(f"{role} {patients} patients, {len(cases)} cases, {slices} slices")
    log.info("%s: %s", choices["dataset"], "; ".join(parts))
    log.info("Run folder: %s", run.folder)


def follow(config: Config, folder: Path) -> None:
    """Be one of the other processes of a distributed run: train, and leave no trace.

    Args:
        config: of the run.
        folder: the run folder that the first process made.
    """
    reader = open_reader(config)
    pl.seed_everything(config.seed, workers=True, verbose=False)
    parts = build_parts(config, reader)
    data = load(config, reader)
    fit(config, folder, data, parts, make_datamodule(config, data, parts))


def make_datamodule(config: Config, data: Data, parts: Parts) -> SliceDataModule:
    """Return the loaders for training and validation."""
    return SliceDataModule(
        data.cases["train"],
        data.cases["val"],
        config.dataset.image_size,
        len(data.reader.classes),
        data.reader.multilabel,
        parts.transforms,
        config.dataset.batch_size,
        config.trainer.num_workers,
        config.seed,
    )


def fit(
    config: Config, folder: Path, data: Data, parts: Parts, datamodule: SliceDataModule
) -> None:
    """Train, and leave checkpoints and history in the run folder."""
    options, reader = config.trainer, data.reader
    module = SegmentationModule(
        parts.model,
        parts.loss,
        reader.classes,
        reader.multilabel,
        [case.case for case in data.cases["train"]],
        len(data.cases["val"]),
        optimizer=parts.optimizer,
        schedule=parts.schedule,
        auxiliary_weight=options.auxiliary_weight,
        seed=config.seed,
    )
    checkpoints = folder / "checkpoints"
    mode = "max" if options.monitor == "val/dice" else "min"
    callbacks: list[pl.Callback] = [
        Progress(reader.classes),
        History(folder / "history.csv"),
        ModelCheckpoint(
            checkpoints,
            filename="best",
            monitor=options.monitor,
            mode=mode,
            enable_version_counter=False,
        ),
        # Not `save_last`, which only follows the best.
        ModelCheckpoint(checkpoints, filename="last", enable_version_counter=False),
    ]
    if options.early_stopping:
        callbacks.append(EarlyStopping(options.monitor, patience=options.early_stopping, mode=mode))
    if options.ema_decay:
        callbacks.append(EMAWeightAveraging(decay=options.ema_decay))
    with quiet(), followers(folder):
        trainer = pl.Trainer(
            max_epochs=options.max_epochs,
            accelerator=options.accelerator,
            devices=options.devices,
            strategy=options.strategy,
            precision=options.precision,
            accumulate_grad_batches=options.accumulate,
            gradient_clip_val=options.gradient_clip,
            limit_train_batches=options.limit_batches,
            limit_val_batches=options.limit_batches,
            deterministic="warn" if options.deterministic else False,
            sync_batchnorm=options.accelerator == "gpu" and options.devices > 1,
            plugins=[AtomicCheckpointIO()],
            callbacks=callbacks,
            default_root_dir=folder,
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
            use_distributed_sampler=False,
        )
        try:
            trainer.fit(module, datamodule)
        except SystemExit as error:  # what Lightning makes of Ctrl-C and of SIGTERM
            if isinstance(error.__context__, KeyboardInterrupt):
                raise KeyboardInterrupt from error
            raise SystemExit(143 if trainer.received_sigterm else error.code) from error


def load_best(config: Config, run: Run, model: SegmentationModel) -> None:
    """Load the weights of the best epoch by `trainer.monitor`."""
    checkpoints = run.folder / "checkpoints"
    best = torch.load(checkpoints / "best.ckpt", map_location="cpu", weights_only=True)
    prefix = "model."
    found = best["state_dict"].items()
    model.load_state_dict({n.removeprefix(prefix): t for n, t in found if n.startswith(prefix)})
    run.save(
        best_epoch=best["epoch"] + 1,
        checkpoints={p.name: file_digest(p) for p in sorted(checkpoints.glob("*.ckpt"))},
    )
    log.info("Best epoch by %s: %d", config.trainer.monitor, best["epoch"] + 1)


@contextlib.contextmanager
def followers(folder: Path) -> Iterator[None]:
    """Have Lightning start the other processes of a distributed run on `worker.py`.

    It repeats the command line for them, which would repeat a whole multirun.
    """
    argv, safe = sys.argv, os.environ.get("PYTHONSAFEPATH")
    sys.argv = [str(Path(__file__).with_name("worker.py")), str(folder.resolve())]
    os.environ["PYTHONSAFEPATH"] = "1"  # worker.py's neighbours must not shadow other packages
    try:
        yield
    finally:
        sys.argv = argv
        if safe is None:
            del os.environ["PYTHONSAFEPATH"]


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep Lightning's advice off the terminal; what matters is said by us."""
    loggers = [logging.getLogger(name) for name in ("pytorch_lightning", "lightning.pytorch")]
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
