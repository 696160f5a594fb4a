"""One training run, from a checked configuration to a complete run folder."""

import contextlib
import hashlib
import json
import logging
import math
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import EarlyStopping, EMAWeightAveraging, ModelCheckpoint
from rich.console import Console
from rich.table import Table

from attnseg.data import splits
from attnseg.data.augment import Transforms
from attnseg.data.datamodule import SliceDataModule
from attnseg.data.reader import Reader
from attnseg.data.store import VERSION, StoredCase, prepare
from attnseg.engine import cost, preview, worker
from attnseg.engine.build import build, factory
from attnseg.engine.callbacks import History, Progress
from attnseg.engine.evaluate import predict, score_cases, true_masks
from attnseg.engine.files import AtomicCheckpointIO, file_digest, write_text
from attnseg.engine.module import SegmentationModule
from attnseg.engine.run import Run, run_id
from attnseg.engine.schedules import Schedule
from attnseg.engine.schema import Config
from attnseg.errors import ConfigError, DataError
from attnseg.losses.loss import SegmentationLoss
from attnseg.metrics.strict import Strict
from attnseg.models.model import SegmentationModel

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Parts:
    """What a configuration builds, all of it before any data is read."""

    model: SegmentationModel
    loss: SegmentationLoss
    optimizer: Callable[..., torch.optim.Optimizer]
    schedule: Schedule
    transforms: Transforms


@dataclass(frozen=True)
class Data:
    """A dataset ready to train on."""

    cases: dict[str, list[StoredCase]]  # by role
    split: str  # the split file's text
    digest: str  # of all cases


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
    data = load_data(config, reader)
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
                fit(config, run.folder, reader, data, parts)
            load_best(config, run, model)
        with run.timing("evaluate"):
            finish(config, run, reader, data, model, profile)
        run.save(status="done", peak_memory_bytes=cost.peak_memory())
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


def open_reader(config: Config) -> Reader:
    """Return the dataset's reader; its phantom is made if no root is given."""
    dataset = config.dataset
    root = dataset.root
    if root is None:
        assert dataset.phantom is not None
        options = dataset.phantom.options
        name = "-".join([config.choices["dataset"], *(str(value) for value in options.values())])
        root = str(Path(config.paths.data, "phantoms", name))
        build("dataset.phantom", dataset.phantom, root=Path(root))
    reader: Reader = build("dataset", dataset, root=root)
    return reader


def build_parts(config: Config, reader: Reader) -> Parts:
    """Build everything for a reader's images; each part is tried, so that none fails later.

    Raises:
        ConfigError: an option is unknown, of another type, out of range, or fits no other.
    """
    channels = len(reader.classes) + (0 if reader.multilabel else 1)
    build("attn", config.attn, dim=8, num_heads=1)
    model = build(
        "model",
        config.model,
        in_channels=reader.channels,
        num_classes=channels,
        image_size=config.dataset.image_size,
        attn=factory("attn", config.attn, given=("dim", "num_heads", "bias", "scale")),
    )
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


def load_data(config: Config, reader: Reader) -> Data:
    """Prepare what is not prepared yet, and split by patient."""
    dataset = config.dataset
    refs = reader.cases()
    excluded = sorted({ref.case for ref in refs} & set(dataset.exclude))
    if excluded:
        log.info("Excluded, as listed in dataset.exclude: %s", ", ".join(excluded))
    refs = [ref for ref in refs if ref.case not in excluded]
    refs = splits.limit(refs, dataset.limit_cases, dataset.split.seed)
    roles = splits.draw(
        [ref.patient for ref in refs], dataset.split.val, dataset.split.test, dataset.split.seed
    )
    cases = prepare(reader, refs, store_folder(config, reader))
    for at, name in enumerate(reader.classes):
        for role in splits.ROLES:
            if not any(case.voxels[at] for case in cases if roles[case.patient] == role):
                log.warning("No %s in the %s split: its metrics are undefined", name, role)
    if not any(sum(case.voxels) for case in cases if roles[case.patient] == "val"):
        raise DataError("dataset: no class at all in the val split; use another dataset.split.seed")
    by_role = {r: [c for c in cases if roles[c.patient] == r] for r in splits.ROLES}
    digest = hashlib.sha256("".join(case.digest for case in cases).encode()).hexdigest()
    return Data(by_role, splits.table(cases, roles), digest)


def store_folder(config: Config, reader: Reader) -> Path:
    """Return where a reader's prepared cases are: another root or option, another folder."""
    dataset = config.dataset
    root = Path(getattr(reader, "root", dataset.root or ".")).resolve()
    text = json.dumps([VERSION, dataset.target, str(root), dataset.options], sort_keys=True)
    digest = hashlib.sha256(text.encode()).hexdigest()[:8]
    return Path(config.paths.data, "prepared", f"{config.choices['dataset']}-{digest}")


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
    fit(config, folder, reader, load_data(config, reader), build_parts(config, reader))


def fit(config: Config, folder: Path, reader: Reader, data: Data, parts: Parts) -> None:
    """Train, and leave checkpoints and history in the run folder."""
    options, model = config.trainer, parts.model
    module = SegmentationModule(
        model,
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
    datamodule = SliceDataModule(
        data.cases["train"],
        data.cases["val"],
        config.dataset.image_size,
        len(reader.classes),
        reader.multilabel,
        parts.transforms,
        config.dataset.batch_size,
        options.num_workers,
        config.seed,
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
        except SystemExit as error:  # what Lightning makes of Ctrl-C
            if isinstance(error.__context__, KeyboardInterrupt):
                raise KeyboardInterrupt from error
            raise
        if trainer.received_sigterm:
            raise SystemExit(143)


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


def finish(
    config: Config,
    run: Run,
    reader: Reader,
    data: Data,
    model: SegmentationModel,
    profile: Strict,
) -> None:
    """Score validation and test cases once, and write tables and pictures."""
    dataset = config.dataset
    device = torch.device("cuda" if config.trainer.accelerator == "gpu" else "cpu")
    model.to(device).eval()
    frames, metrics = [], {"profile": profile.describe()}
    for split in ("val", "test"):
        frame = score_cases(
            model,
            data.cases[split],
            dataset.image_size,
            reader.classes,
            reader.multilabel,
            dataset.batch_size,
            profile,
            split,
        )
        frames.append(frame)
        metrics[split] = summary(profile.summarise(frame), data.cases[split])
    cases = pd.concat(frames)
    write_text(run.folder / "cases.csv", cases.to_csv(index=False, lineterminator="\n"))
    write_text(run.folder / "metrics.json", json.dumps(metrics, indent=1, allow_nan=False) + "\n")
    draw_previews(config, run, reader, data, model, cases)
    for split, frame in zip(("val", "test"), frames, strict=True):
        show(profile, split, profile.summarise(frame), data.cases[split])


def summary(table: pd.DataFrame, cases: list[StoredCase]) -> dict[str, Any]:
    """Return a table of `Strict.summarise` as plain values; undefined numbers are null."""
    rows = {
        str(name): {
            str(metric): None if math.isnan(value) else float(value)
            for metric, value in row.items()
        }
        for name, row in table.iterrows()
    }
    for row in rows.values():
        row["undefined"] = int(row["undefined"] or 0)
    mean = rows.pop("mean")
    return {
        "patients": len({case.patient for case in cases}),
        "cases": len(cases),
        "mean": mean,
        "classes": rows,
    }


def show(profile: Strict, split: str, table: pd.DataFrame, cases: list[StoredCase]) -> None:
    """Print a table of `Strict.summarise`."""
    patients = len({case.patient for case in cases})
    printed = Table(
        title=f"{split}: {len(cases)} cases of {patients} patients, profile {profile.name} "
        f"({profile.digest})",
        title_justify="left",
    )
    for column in (
        "class",
        "Dice",
        "Jaccard",
        "HD95 (mm)",
        f"NSD ({profile.nsd_tolerance_mm:g} mm)",
    ):
        printed.add_column(column, justify="left" if column == "class" else "right")
    printed.add_column("undefined", justify="right")
    for name, row in table.iterrows():
        numbers = [f"{row['dice']:.4f}", f"{row['jaccard']:.4f}"]
        numbers += [f"{row['hd95_mm']:.2f}", f"{row['nsd']:.4f}", f"{row['undefined']:.0f}"]
        if name == "mean":
            printed.add_section()
        printed.add_row(str(name), *numbers)
    Console().print(printed)


def draw_previews(
    config: Config,
    run: Run,
    reader: Reader,
    data: Data,
    model: SegmentationModel,
    cases: pd.DataFrame,
) -> None:
    """Draw the best, the median and the worst test case by mean Dice."""
    dice = cases[(cases["split"] == "test") & (cases["metric"] == "dice")]
    ranked = (
        dice.groupby("case")["value"].mean().dropna().sort_values(ascending=False, kind="stable")
    )
    if ranked.empty:
        return
    by_name = {case.case: case for case in data.cases["test"]}
    for label, at in (("best", 0), ("median", len(ranked) // 2), ("worst", len(ranked) - 1)):
        case = by_name[str(ranked.index[at])]
        size, batch = config.dataset.image_size, config.dataset.batch_size
        preview.draw(
            run.folder / "previews" / f"{label}.png",
            f"{label} test case {case.case}: mean Dice {ranked.iloc[at]:.3f} (strict)",
            case.image,
            true_masks(case, len(reader.classes), reader.multilabel),
            predict(model, case, size, reader.multilabel, batch),
            reader.classes,
            case.spacing,
        )


@contextlib.contextmanager
def followers(folder: Path) -> Iterator[None]:
    """Have Lightning start the other processes of a distributed run on `worker.py`.

    It repeats the command line for them, which would repeat a whole multirun.
    """
    argv, safe = sys.argv, os.environ.get("PYTHONSAFEPATH")
    sys.argv = [worker.__file__, str(folder.resolve())]
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
