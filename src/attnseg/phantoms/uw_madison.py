"""Phantom of the UW-Madison download: synthetic abdomens in the same files and layout.

Patients differ in anatomy (body, liver, spleen, kidneys, spine, and the stomach, large and small
bowel to segment). The days of a patient differ in the position of the body, the filling of the
stomach and the loops of the bowel. Slices look like MRI: soft edges, a bias field, Rician noise and
a brightness that varies from scan to scan. The same specification gives the same bytes.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.random import default_rng
from numpy.typing import NDArray
from PIL import Image

from attnseg.data.readers import rle
from attnseg.data.readers.uw_madison import TABLE_COLUMNS, UWMadison
from attnseg.phantoms.body import Body
from attnseg.phantoms.phantom import make_preset
from attnseg.progress import track


@dataclass(frozen=True)
class PhantomSpec:
    """Number and size of the synthetic scans.

    Attributes:
        patients: number of patients.
        max_days: patient n has 1 + n % max_days scans.
        slices: slices per scan, 3 mm apart.
        frames: width and height (pixels) and pixel spacing (mm) of the scanners; patients use them
            in turn.
        seed: another seed gives other anatomies.
    """

    patients: int
    max_days: int
    slices: int
    frames: tuple[tuple[int, int, float], ...]
    seed: int = 0


UW_MADISON_PRESETS = {
    "tiny": PhantomSpec(6, 2, 8, ((72, 60, 5.5), (56, 64, 5.8))),
    "demo": PhantomSpec(15, 3, 20, ((144, 120, 2.45), (128, 144, 2.6), (160, 136, 2.3))),
    "native": PhantomSpec(6, 1, 48, ((266, 266, 1.5),)),  # slices of the download's usual size
}


def make_uw_madison(root: Path, preset: str = "demo", seed: int = 0) -> None:
    """Write a phantom in the UW-Madison layout to `root`; see `make_preset`."""
    make_preset(root, UW_MADISON_PRESETS, preset, seed, _write_uw_madison)


def _write_uw_madison(spec: PhantomSpec, root: Path) -> None:
    rows = [",".join(TABLE_COLUMNS)]
    days = [(p, d) for p in range(spec.patients) for d in range(1 + p % spec.max_days)]
    for patient, day in track(days, "Making the phantom", "scans"):
        width, height, spacing = spec.frames[patient % len(spec.frames)]
        # The download's numbers have gaps, too.
        scan = f"case{2 * patient + 1}_day{5 * day}"
        folder = root / "train" / scan.split("_")[0] / scan / "scans"
        folder.mkdir(parents=True)
        shape = (spec.slices, height, width)
        image, masks = make_mr_scan(spec.seed, patient, day, shape, spacing)
        for index in range(spec.slices):
            number = f"{index + 1:04d}"
            name = f"slice_{number}_{width}_{height}_{spacing:.2f}_{spacing:.2f}.png"
            Image.fromarray(image[index]).save(folder / name)
            for organ, mask in zip(UWMadison.labels.names, masks[:, index], strict=True):
                rows.append(f"{scan}_slice_{number},{organ},{rle.encode(mask)}")
    (root / "train.csv").write_text("\n".join(rows) + "\n")


def make_mr_scan(
    seed: int, patient: int, day: int, shape: tuple[int, int, int], spacing: float
) -> tuple[NDArray[np.uint16], NDArray[np.bool_]]:
    """Draw the scan of a patient on a day, both numbered from 0; `spacing` is in-plane, mm.

    Returns:
        Image `[S, H, W]` and masks `[3, S, H, W]` in the order of `UWMadison.labels`.
    """
    body = Body(default_rng([seed, patient]), default_rng([seed, patient, 1 + day]), shape, spacing)
    masks = np.stack([body.large_bowel, body.small_bowel, body.stomach]) < 0
    # As in the download, the first and the last slices have no mask.
    masks[:, 0] = False
    masks[:, -max(1, shape[0] // 12) :] = False
    return body.render(), masks
