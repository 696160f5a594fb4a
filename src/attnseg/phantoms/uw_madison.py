"""Phantom of the UW-Madison download: synthetic abdomens in the same files and layout.

Patients differ in anatomy (body, liver, spleen, kidneys, spine, and the stomach, large and small
bowel to segment). The days of a patient differ in the position of the body, the filling of the
stomach and the loops of the bowel. Slices look like MRI: soft edges, a bias field, Rician noise and
a brightness that varies from scan to scan. The same specification gives the same bytes.
"""

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from numpy.random import default_rng
from numpy.typing import NDArray
from PIL import Image

from attnseg.data.parallel import work_in_parallel
from attnseg.data.readers import rle
from attnseg.data.readers.uw_madison import TABLE_COLUMNS, UWMadison
from attnseg.phantoms.body import Body
from attnseg.phantoms.cheap import draw_cheap_scan
from attnseg.phantoms.phantom import make_preset


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


@dataclass(frozen=True)
class PublishedScans(PhantomSpec):
    """Numbers of the published dataset, drawn cheaply.

    Attributes:
        scans: number of scans; the first patients have one more than `max_days` says.
        short: number of scans that have `short_slices` only.
        short_slices: slices of these.
    """

    scans: int = 274
    short: int = 15
    short_slices: int = 80


UW_MADISON_PRESETS = {
    "tiny": PhantomSpec(6, 2, 8, ((72, 60, 5.5), (56, 64, 5.8))),
    "demo": PhantomSpec(15, 3, 20, ((144, 120, 2.45), (128, 144, 2.6), (160, 136, 2.3))),
    "native": PhantomSpec(6, 1, 48, ((266, 266, 1.5),)),  # slices of the download's usual size
    # 38,496 slices of 85 patients. Three of the download's four sizes of slices.
    "published": PublishedScans(85, 5, 144, ((266, 266, 1.5), (360, 310, 1.5), (276, 276, 1.63))),
}


def make_uw_madison(root: Path, preset: str = "demo", seed: int = 0) -> None:
    """Write a phantom in the UW-Madison layout to `root`; see `make_preset`."""
    make_preset(root, UW_MADISON_PRESETS, preset, seed, _write_uw_madison)


def _write_uw_madison(spec: PhantomSpec, root: Path) -> None:
    write, days = partial(_write_scan, spec, root), _list_days(spec)
    rows = work_in_parallel(write, days, "Making the phantom", "scans", root)
    lines = [",".join(TABLE_COLUMNS), *(row for rows_of_scan in rows for row in rows_of_scan)]
    (root / "train.csv").write_text("\n".join(lines) + "\n")


def _list_days(spec: PhantomSpec) -> list[tuple[int, int, int]]:
    """Return patient, day and number of slices of each scan."""
    days = [1 + patient % spec.max_days for patient in range(spec.patients)]
    if not isinstance(spec, PublishedScans):
        return [(p, d, spec.slices) for p, count in enumerate(days) for d in range(count)]
    few = [patient for patient, count in enumerate(days) if count < spec.max_days]
    for patient in few[: spec.scans - sum(days)]:
        days[patient] += 1
    scans = [(p, d) for p, count in enumerate(days) for d in range(count)]
    sizes = [spec.short_slices] * spec.short + [spec.slices] * (len(scans) - spec.short)
    return [(*scan, size) for scan, size in zip(scans, sizes, strict=True)]


def _write_scan(spec: PhantomSpec, root: Path, scan_day: tuple[int, int, int]) -> list[str]:
    """Write the slices of one of `_list_days`, and return its rows of the table."""
    patient, day, slices = scan_day
    width, height, spacing = spec.frames[patient % len(spec.frames)]
    # The download's numbers have gaps, too.
    scan = f"case{2 * patient + 1}_day{5 * day}"
    folder = root / "train" / scan.split("_")[0] / scan / "scans"
    folder.mkdir(parents=True)
    shape = (slices, height, width)
    quick = isinstance(spec, PublishedScans)
    if quick:
        drawn, labels = draw_cheap_scan(default_rng([spec.seed, patient, day]), shape, 3)
        image = drawn.astype(np.uint16)
        masks = np.stack([labels == 1 + organ for organ in range(3)])
        _clear_ends(masks)
    else:
        image, masks = make_mr_scan(spec.seed, patient, day, shape, spacing)
    rows = []
    for index in range(slices):
        number = f"{index + 1:04d}"
        name = f"slice_{number}_{width}_{height}_{spacing:.2f}_{spacing:.2f}.png"
        Image.fromarray(image[index]).save(folder / name, compress_level=1 if quick else -1)
        for organ, mask in zip(UWMadison.labels.names, masks[:, index], strict=True):
            rows.append(f"{scan}_slice_{number},{organ},{rle.encode(mask)}")
    return rows


def make_mr_scan(
    seed: int, patient: int, day: int, shape: tuple[int, int, int], spacing: float
) -> tuple[NDArray[np.uint16], NDArray[np.bool_]]:
    """Draw the scan of a patient on a day, both numbered from 0; `spacing` is in-plane, mm.

    Returns:
        Image `[S, H, W]` and masks `[3, S, H, W]` in the order of `UWMadison.labels`.
    """
    body = Body(default_rng([seed, patient]), default_rng([seed, patient, 1 + day]), shape, spacing)
    masks = np.stack([body.large_bowel, body.small_bowel, body.stomach]) < 0
    _clear_ends(masks)
    return body.render(), masks


def _clear_ends(masks: NDArray[np.bool_]) -> None:
    """Clear the masks `[3, S, H, W]` of the first and last slices; the download has none there."""
    masks[:, 0] = False
    masks[:, -max(1, masks.shape[1] // 12) :] = False
