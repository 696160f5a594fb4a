"""Conversion of the layers that a budget of Dice allows: the search, its curve, and the run."""

import json
import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import nn

from attnseg.config import cost
from attnseg.config.training import Config
from attnseg.conversion.layer_search import LayerSearch, search_layers
from attnseg.conversion.sites import find_sites
from attnseg.errors import ConfigError
from attnseg.files import write_text
from attnseg.processes.gpus import VISIBLE, leased
from attnseg.runs.run_folder import RunFolder
from attnseg.training.conversion_report import measure_dice, write_report
from attnseg.training.precision import resolve_precision
from attnseg.training.setup import TrainingSetup, network_input_shape, set_up_training
from attnseg.training.train import train

log = logging.getLogger(__name__)


def convert_found_layers(
    derive: Callable[[Sequence[int] | None], Config],
    budget: float,
    on_folder: Callable[[Path], None],
) -> Path:
    """Search for the layers to convert, train the network in which they are, and write the curve.

    The search takes no training: networks are scored as they are after surgery. The run folder gets
    `conversion.csv` and `conversion.png`, and `conversion.json` an entry `layers`.

    Args:
        derive: returns the configuration that converts the blocks of these numbers, or all.
        budget: largest loss of validation Dice against the original network.
        on_folder: called with the run folder as soon as this process holds it.

    Returns:
        The run folder.

    Raises:
        ConfigError: no layer can be converted within the budget.
    """
    config = resolve_precision(derive(None))
    if config.trainer.devices > 1:
        raise ConfigError(
            "layers: auto searches in one process; find the blocks with trainer.devices=1 and "
            "epochs=0, then give them as layers=[...]"
        )
    with leased(config) as lease:
        lease()
        search, table = search_setup(set_up_training(config, lease))
        gpu = os.environ.get(VISIBLE)
    chosen = search.choose(budget)
    table["chosen"] = table["step"].between(1, len(chosen.layers))
    log.info("Converted within the loss of %g: blocks %s", budget, sorted(chosen.layers))
    with _kept_visible(gpu):
        folder = RunFolder(train(derive(sorted(chosen.layers)), on_folder))
    table_file, picture = (folder.conversion_file.with_suffix(end) for end in (".csv", ".png"))
    write_text(table_file, table.to_csv(index=False, lineterminator="\n"))
    draw_curve(table, budget).savefig(picture, metadata={"Software": None})
    report = json.loads(folder.conversion_file.read_text())
    report["layers"] = {"budget": budget, "blocks": sorted(chosen.layers), "dice": chosen.dice}
    write_report(folder, report)
    log.info("Written: %s", picture)
    return folder.path


@contextmanager
def _kept_visible(gpu: str | None) -> Iterator[None]:
    """Let the training reserve no GPU but the one of the search, which this process has opened."""
    before = os.environ.get(VISIBLE)
    if gpu is not None:
        os.environ[VISIBLE] = gpu
    try:
        yield
    finally:
        os.environ.pop(VISIBLE, None)
        if before is not None:
            os.environ[VISIBLE] = before


def search_setup(setup: TrainingSetup) -> tuple[LayerSearch, pd.DataFrame]:
    """Search a conversion of every layer for those that lose little; return the curve, too.

    Returns:
        The search, and a row for each of its steps: number of the step, block that it converts,
        names of its attentions, Dice of the network in which only this block is converted, Dice,
        loss of Dice against the original, multiply-accumulates and their share of the original's.
    """
    conversion = setup.conversion
    if conversion is None:
        raise ValueError("the run is no conversion")
    shape = network_input_shape(setup.config, setup.data)
    original, converted = conversion.teacher, setup.components.model
    sites = find_sites(setup.config, shape[0], setup.data.reader.labels.channels)

    def evaluate(layers: Sequence[int]) -> float:
        with mixed(original, converted, [n for layer in layers for n in sites[layer]]):
            dice = measure_dice(original, setup)
        log.info("Blocks %s converted: validation Dice %.4f", list(layers), dice)
        return dice

    search, macs = search_layers(list(sites), evaluate), []
    for step in search.steps:
        with mixed(original, converted, [n for layer in step.layers for n in sites[layer]]):
            macs.append(cost.count_macs(original, shape))
    return search, tabulate_search(search, sites, macs)


@contextmanager
def mixed(original: nn.Module, converted: nn.Module, names: Sequence[str]) -> Iterator[None]:
    """Put modules of a converted network in the places of the original's, within the block."""
    before = {name: original.get_submodule(name) for name in names}
    try:
        for name in names:
            original.set_submodule(name, converted.get_submodule(name))
        yield
    finally:
        for name, module in before.items():
            original.set_submodule(name, module)


def tabulate_search(
    search: LayerSearch, sites: Mapping[int, Sequence[str]], macs: Sequence[int]
) -> pd.DataFrame:
    """Return the steps of a search as rows; see `search_setup`."""
    first = search.steps[0].dice
    rows: list[dict[str, Any]] = []
    for number, (step, count) in enumerate(zip(search.steps, macs, strict=True)):
        layer = step.layers[-1] if step.layers else None
        rows.append(
            {
                "step": number,
                "block": layer,
                "sites": "" if layer is None else " ".join(sites[layer]),
                "dice_alone": None if layer is None else search.alone[layer],
                "dice": step.dice,
                "loss": first - step.dice,
                "macs": count,
                "macs_share": count / macs[0],
            }
        )
    return pd.DataFrame(rows).astype({"block": "Int64"})


def draw_curve(table: pd.DataFrame, budget: float) -> Figure:
    """Draw validation Dice over multiply-accumulates, by the table of `search_setup`.

    Each point is named by the block that it converts; the chosen ones are filled.
    """
    figure = Figure(figsize=(6, 4), dpi=100, layout="constrained")
    axis = figure.subplots()
    gmacs = table["macs"] / 1e9
    axis.plot(gmacs, table["dice"], color="C0", marker="o", markerfacecolor="white")
    kept = table["chosen"]
    axis.plot(gmacs[kept], table["dice"][kept], "o", color="C0", label="chosen")
    least = table["dice"][0] - budget
    axis.axhline(least, color="grey", linestyle=":", label=f"a loss of {budget:g}")
    for at, row in table.iterrows():
        name = "original" if at == 0 else f"+{row['block']}"
        axis.annotate(name, (row["macs"] / 1e9, row["dice"]), (4, 6), textcoords="offset points")
    axis.margins(0.1)
    axis.invert_xaxis()
    axis.xaxis.set_major_locator(MaxNLocator(6))
    axis.set(xlabel="GMACs of a forward pass", ylabel="validation Dice after surgery")
    axis.legend(fontsize=8)
    return figure
