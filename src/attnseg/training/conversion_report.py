"""The report of a conversion: Dice before, after surgery and after each epoch; cost; losses."""

import json
import logging
import math
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import Any

import torch
from torch.utils.data import DataLoader

from attnseg.config import cost
from attnseg.config.nodes import flatten_options
from attnseg.conversion.surgery import SiteReport
from attnseg.errors import join_names
from attnseg.files import file_digest, write_text
from attnseg.metrics.running import CaseDice
from attnseg.models.model import SegmentationModel
from attnseg.runs.active_run import ActiveRun
from attnseg.runs.run_folder import RunFolder
from attnseg.training.module import count_known_areas
from attnseg.training.precision import autocast
from attnseg.training.setup import TrainingSetup, network_input_shape

log = logging.getLogger(__name__)


def start_report(run: ActiveRun, setup: TrainingSetup) -> None:
    """Score the parent and the converted network before the first step, and write the report.

    Of a run that is no conversion, nothing is done.
    """
    conversion, options = setup.conversion, setup.config.conversion
    if conversion is None or options is None:
        return
    parent, folder = conversion.parent, run.folder
    run.save(
        parent={
            "run": str(parent),
            "id": parent.facts.id,
            "attn": parent.facts.choices["attn"],
            "weights": file_digest(parent.best_checkpoint),
        }
    )
    for line in describe_surgery(conversion.sites):
        log.info("%s", line)
    if folder.last_checkpoint.exists() and folder.conversion_file.exists():
        return  # A run that goes on was scored when it began.
    models = {"parent": conversion.teacher, "converted": setup.components.model}
    dice = {name: measure_dice(model, setup) for name, model in models.items()}
    shape = network_input_shape(setup.config, setup.data)
    report = {
        "parent": run.facts.parent,
        "attn": setup.config.choices["attn"],
        "surgery": options.surgery,
        "dice": {"parent": dice["parent"], "surgery": dice["converted"], "epochs": []},
        "image": shape,
        "cost": {name: _count_cost(model, shape) for name, model in models.items()},
        "sites": {name: asdict(site) for name, site in conversion.sites.items()},
    }
    write_report(folder, report)
    log.info(
        "Validation Dice of the parent %.4f, after surgery %.4f",
        dice["parent"],
        dice["converted"],
    )


def finish_report(run: ActiveRun, setup: TrainingSetup) -> None:
    """Add the Dice of each epoch to the report, print it, and name the command that compares.

    Of a run that is no conversion, nothing is done.
    """
    if setup.conversion is None:
        return
    folder = RunFolder(run.folder)
    report = json.loads(folder.conversion_file.read_text())
    dice, history = report["dice"], folder.history
    dice["epochs"] = [float(value) for value in history["val/dice"]] if len(history) else []
    command = name_comparison(folder, setup.conversion.parent, setup.config.trainer.open_test)
    report["compare"] = command
    write_report(folder, report)
    epochs = "".join(f", {value:.4f}" for value in dice["epochs"])
    log.info(
        "Validation Dice of the parent %.4f, after surgery %.4f%s",
        *(math.nan if dice[name] is None else dice[name] for name in ("parent", "surgery")),
        f", after each epoch{epochs.removeprefix(',')}" if epochs else "",
    )
    before, after = (report["cost"][name] for name in ("parent", "converted"))
    for name, unit, scale in (("parameters", "M parameters", 1e6), ("macs", "GMAC", 1e9)):
        change = 100 * (after[name] / before[name] - 1)
        log.info("%.3f %s, %+.1f %%", after[name] / scale, unit, change)
    log.info("As good as its parent? %s", command)


@torch.no_grad()
def measure_dice(model: SegmentationModel, setup: TrainingSetup) -> float:
    """Return the validation Dice of a model as after an epoch of training: `val/dice`.

    It is NaN if an output is not finite, as even NaN logits have a largest channel.
    """
    options, labels = setup.config.trainer, setup.data.reader.labels
    device = options.device_type
    dice = CaseDice(len(setup.data.val), len(labels)).to(device)
    trained = model.training
    model.to(device).eval()
    slices, size = setup.loaders.val, setup.loaders.batch_size
    keys = [(0, index) for index in range(len(slices))]
    if options.limit_batches is not None:  # It holds for validation, too.
        keys = keys[: options.limit_batches * size * options.devices]
    for batch in DataLoader(slices, size, sampler=keys):
        image, mask, case = (batch[name].to(device) for name in ("image", "mask", "case"))
        with autocast(options):
            logits = model(image)
        if not logits.isfinite().all():
            model.train(trained)
            return math.nan
        dice.update(count_known_areas(logits, mask, labels), case)
    model.train(trained)
    return float(dice.compute().nanmean())


def describe_surgery(sites: Mapping[str, SiteReport]) -> Iterator[str]:
    """Yield a line for each outcome at some attentions, but for what is kept."""
    for outcome in ("neutral", "fresh", "lost"):
        names: dict[str, list[str]] = {}
        for site, report in sites.items():
            for tensor in getattr(report, outcome):
                names.setdefault(tensor, []).append(site)
        for tensor, places in names.items():
            yield f"{outcome}: {tensor} of {join_names(places, 2)}"
    tied: dict[tuple[str, str], list[str]] = {}
    for site, report in sites.items():
        for projection, how in report.tied.items():
            tied.setdefault((projection, how), []).append(site)
    for (projection, how), places in tied.items():
        yield f"tied: {projection} of {join_names(places, 2)}: {how}"


def name_comparison(run: RunFolder, parent: RunFolder, tested: bool) -> str:
    """Return the command that compares a converted run with its parent.

    If both attentions have one name, the option is named in which they differ.
    """
    by, baseline = "attn", parent.facts.choices["attn"]
    words = ["attnseg", "compare", f"runs=[{parent},{run}]", f"baseline={baseline}"]
    if baseline == run.facts.choices["attn"]:
        for by, value in flatten_options(parent.raw_config["attn"], "attn"):
            if run.option(by) != value:
                words[3:] = [f"baseline={value}", f"by=[{by}]"]
                break
    return shlex.join([*words, *([] if tested else ["split=val"])])


def _count_cost(model: SegmentationModel, shape: tuple[int, int, int]) -> dict[str, int]:
    macs, inside, _ = cost.count_all_macs(model, shape)
    return {
        "parameters": cost.count_parameters(model)["total"],
        "attention_parameters": cost.count_attention_parameters(model),
        "macs": macs,
        "attention_macs": inside,
    }


def write_report(folder: RunFolder, report: Mapping[str, Any]) -> None:
    """Write the report of a conversion; a Dice that is NaN becomes `null`."""
    dice = {
        name: [_known(each) for each in value] if isinstance(value, list) else _known(value)
        for name, value in report["dice"].items()
    }
    text = json.dumps({**report, "dice": dice}, indent=1, allow_nan=False)
    write_text(folder.conversion_file, text + "\n")


def _known(value: float | None) -> float | None:
    return None if value is None or math.isnan(value) else value
