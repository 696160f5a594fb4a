"""Reliability curves: how often a class is present where the network gives it some probability."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from attnseg.files import write_text
from attnseg.metrics.calibration import BINS, Calibration


def write_reliability(
    folder: Path, calibration: Calibration, classes: Sequence[str], title: str
) -> None:
    """Write `reliability.csv`, a row per class and bin of probability, and `reliability.png`."""
    table = tabulate_reliability(calibration, classes)
    text = table.to_csv(index=False, lineterminator="\n")
    write_text(folder / "reliability.csv", text)
    draw_reliability(table, title).savefig(folder / "reliability.png", metadata={"Software": None})


def tabulate_reliability(calibration: Calibration, classes: Sequence[str]) -> pd.DataFrame:
    """Return the pixels, mean probability and share of the class, by class and bin."""
    edges = np.arange(BINS + 1) / BINS
    with np.errstate(invalid="ignore"):
        mean, share = (
            values / calibration.count for values in (calibration.probability, calibration.true)
        )
    rows = [
        (name, edges[at], edges[at + 1], int(calibration.count[k, at]), mean[k, at], share[k, at])
        for k, name in enumerate(classes)
        for at in range(BINS)
    ]
    columns = ["class", "from", "to", "pixels", "mean_probability", "share"]
    return pd.DataFrame(rows, columns=columns)


def draw_reliability(table: pd.DataFrame, title: str) -> Figure:
    """Draw the share of each class over its probability, above the number of pixels per bin."""
    figure = Figure(figsize=(5.5, 6), dpi=100, layout="constrained")
    curve, pixels = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    curve.plot([0, 1], [0, 1], color="grey", linestyle=":", label="perfectly calibrated")
    for name, own in table[table["pixels"] > 0].groupby("class", sort=False):
        curve.plot(own["mean_probability"], own["share"], marker="o", label=str(name))
        pixels.plot(own["mean_probability"], own["pixels"], marker=".")
    curve.set(ylabel="share of the class among the pixels", xlim=(0, 1), ylim=(0, 1))
    pixels.set(xlabel="predicted probability", ylabel="pixels", yscale="log")
    curve.legend(fontsize=8)
    figure.suptitle(title, fontsize=10)
    return figure
