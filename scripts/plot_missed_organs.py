"""Draw what each profile makes of missed organs: `python scripts/plot_missed_organs.py FILE.png`.

Twelve made-up cases with eight organs each, predicted a little off. Then a share of the organs is
taken out of the prediction, in one fixed order, so that a higher rate misses all that a lower one
misses.
"""

import sys
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from scipy import ndimage

from attnseg.metrics.profiles.monai import MONAI
from attnseg.metrics.profiles.profile import Profile
from attnseg.metrics.profiles.strict import Strict
from attnseg.metrics.profiles.transunet import TransUNet

CASES, ORGANS = 12, 8
SHAPE, SPACING = (24, 64, 64), (5.0, 3.0, 3.0)
RATES = (0, 5, 10, 20)  # percent of the organs
PROFILES: tuple[Profile, ...] = (Strict(), TransUNet(), MONAI())


def organs(case: int) -> tuple[np.ndarray, np.ndarray]:
    """Return truth and prediction of a case, `[ORGANS, *SHAPE]`."""
    rng = np.random.default_rng(case)
    grid = np.stack(np.meshgrid(*(np.arange(n) for n in SHAPE), indexing="ij"))
    truth, prediction = [], []
    for _ in range(ORGANS):
        radii = rng.uniform((3, 5, 5), (7, 13, 13))
        centre = rng.uniform(radii, SHAPE - radii)
        for masks, at in ((truth, centre), (prediction, centre + rng.normal(0, 0.8, 3))):
            rough = ndimage.gaussian_filter(rng.standard_normal(SHAPE), 2) * 2
            distance = (((grid - at[:, None, None, None]) / radii[:, None, None, None]) ** 2).sum(0)
            masks.append(distance + rough < 1)
    return np.array(truth), np.array(prediction)


def means() -> pd.DataFrame:
    """Return Dice, HD95 and left-out cases by rate and profile."""
    order = np.random.default_rng(0).permutation(CASES * ORGANS)
    data = [organs(case) for case in range(CASES)]
    names = [f"organ {k + 1}" for k in range(ORGANS)]
    rows = []
    for rate in RATES:
        missed = set(order[: round(rate / 100 * len(order))].tolist())
        for profile in PROFILES:
            scores = []
            for case, (truth, prediction) in enumerate(data):
                left = prediction.copy()
                left[[k for k in range(ORGANS) if case * ORGANS + k in missed]] = False
                found = profile.score_case(truth, left, SPACING, names)
                scores += [(f"p{case}", f"c{case}", *score) for score in found]
            frame = pd.DataFrame(scores, columns=["patient", "case", "class", "metric", "value"])
            mean = profile.summarise(frame).loc["mean"]
            hd95 = "hd95_mm" if "hd95_mm" in mean else "hd95_voxels"
            unit = hd95.removeprefix("hd95_")
            rows.append((rate, profile.name, mean["dice"], mean[hd95], unit, int(mean["missed"])))
    columns = ["missed, %", "profile", "Dice", "HD95", "unit", "organs missed"]
    return pd.DataFrame(rows, columns=columns)


def draw(table: pd.DataFrame, path: Path) -> None:
    """Plot the means over the rate of missed organs."""
    figure = Figure(figsize=(9, 3.6), dpi=110, layout="constrained")
    left, right = figure.subplots(1, 2)
    colours = {"strict": "#D55E00", "transunet": "#0072B2", "monai": "#009E73"}
    for name, rows in table.groupby("profile", sort=False):
        first = rows["HD95"].iloc[0]
        unit = rows["unit"].iloc[0]
        label = f"{name}: {first:.2f} to {rows['HD95'].iloc[-1]:.2f} {unit}"
        style = {"marker": "o", "color": colours[str(name)]}
        left.plot(rows["missed, %"], rows["HD95"] / first, label=label, **style)
        right.plot(rows["missed, %"], rows["Dice"], label=name, **style)
    left.set(
        title="HD95 against that of no organ missed", xlabel="organs missed, %", ylabel="ratio"
    )
    left.set_yscale("log")
    left.axhline(1, color="grey", lw=0.8)
    right.set(title="Dice", xlabel="organs missed, %", ylim=(0.6, 1))
    left.legend(frameon=False)
    right.legend(frameon=False)
    figure.savefig(path, metadata={"Software": None})


if __name__ == "__main__":
    found = means()
    print(found.to_string(index=False, float_format="%.3f"))
    if len(sys.argv) > 1:
        draw(found, Path(sys.argv[1]))
