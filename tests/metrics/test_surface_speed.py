"""Eight organs of one CT scan: time and memory, and the same figures by MONAI for comparison."""

import re
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from monai.metrics import compute_hausdorff_distance, compute_surface_dice

from attnseg.metrics.profiles.strict import Strict
from attnseg.metrics.surface import assd, hd95, nsd, surface_distances, surface_elements

SHAPE, SPACING, TOLERANCE = (148, 512, 512), (3.0, 0.8, 0.8), 3.0
NAMES = [str(label) for label in range(1, 9)]
# First corner and size, voxels, liver to gallbladder.
ORGANS = [
    ((20, 100, 30), (100, 250, 300)),  # liver
    ((40, 90, 340), (60, 120, 150)),  # stomach
    ((50, 220, 380), (50, 90, 110)),  # spleen
    ((30, 360, 100), (45, 75, 75)),  # right kidney
    ((35, 360, 330), (45, 75, 75)),  # left kidney
    ((60, 320, 200), (30, 35, 120)),  # pancreas
    ((4, 400, 240), (140, 32, 32)),  # aorta
    ((50, 50, 100), (20, 40, 40)),  # gallbladder
]


def organ(size, waves):
    """An ellipsoid that fills a box, with bumps as high as `waves`."""
    z, y, x = np.meshgrid(*[np.linspace(-1, 1, n, dtype="f") for n in size], sparse=True)
    z, y, x = (np.moveaxis(axis, 0, 1) for axis in (z, y, x))
    bumps = sum(np.sin(k * z) * np.sin(k * y + 1) * np.sin(k * x + 2) for k in (3, 5, 8))
    return z * z + y * y + x * x + waves * bumps < 0.8


def case(waves, shift):
    labels = np.zeros(SHAPE, np.uint8)
    for label, (corner, size) in enumerate(ORGANS, 1):
        at = tuple(slice(c + shift, c + shift + n) for c, n in zip(corner, size, strict=True))
        labels[at][organ(size, waves)] = label
    return labels


def split(labels):
    return np.stack([labels == k for k in range(1, 9)])


class Few(Strict):
    def score(self, truth, prediction, spacing):
        distances = surface_distances(truth, prediction, spacing)
        elements = surface_elements(truth, prediction, spacing)
        total = np.count_nonzero(truth) + np.count_nonzero(prediction)
        return {
            "dice": 2 * np.count_nonzero(truth & prediction) / total,
            "hd95": hd95(distances),
            "assd": assd(distances),
            "nsd": nsd(elements, TOLERANCE),
        }


def by_monai(truth, prediction):
    """HD95 and NSD of one-hot booleans `[1, classes, S, H, W]`."""
    common = {"include_background": True, "spacing": SPACING}
    return (
        compute_hausdorff_distance(prediction, truth, percentile=95, **common)[0],
        compute_surface_dice(
            prediction, truth, [TOLERANCE] * len(ORGANS), use_subvoxels=True, **common
        )[0],
    )


def timed(function, *args):
    start = time.perf_counter()
    result = function(*args)
    return time.perf_counter() - start, result


@pytest.mark.slow
def test_faster_than_monai_and_equal():
    given = split(case(0.1, 0)), split(case(0.12, 1))
    masks = [torch.from_numpy(mask)[None] for mask in given]
    ours, theirs, profile = [], [], []
    for _ in range(3):
        profile.append(timed(Strict().score_case, *given, SPACING, NAMES)[0])
        seconds, rows = timed(Few().score_case, *given, SPACING, NAMES)
        ours.append(seconds)
        seconds, (monai_hd95, monai_nsd) = timed(by_monai, *masks)
        theirs.append(seconds)
    ours, theirs, profile = (statistics.median(times) for times in (ours, theirs, profile))
    print(f"Dice, HD95, ASSD and NSD {ours:.2f} s; all of `strict` {profile:.2f} s")
    print(f"MONAI's HD95 and NSD {theirs:.2f} s")
    assert profile <= 3
    dice, hd95s, assds, nsds = (
        [value for _, metric, value in rows if metric == name]
        for name in ("dice", "hd95", "assd", "nsd")
    )
    assert hd95s == pytest.approx(monai_hd95.tolist(), rel=1e-5)
    assert nsds == pytest.approx(monai_nsd.tolist(), rel=1e-5)
    assert all(0.8 < value < 0.99 for value in dice)
    assert min(assds) > 0
    assert max(nsds) < 1
    assert ours <= 3
    assert theirs >= 4 * ours


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory(tmp_path):
    """The case is built here, so that building it does not raise the other process's peak."""
    paths = [tmp_path / "truth.npy", tmp_path / "prediction.npy"]
    for path, labels in zip(paths, [case(0.1, 0), case(0.12, 1)], strict=True):
        np.save(path, labels)
    run = subprocess.run(
        [sys.executable, __file__, *map(str, paths)], capture_output=True, text=True, check=True
    )
    extra = float(run.stdout)
    print(f"{extra:.2f} GiB on top of the masks")
    assert 0 < extra <= 2


def peak_gib():
    """Peak of resident memory; getrusage would begin at the parent process's."""
    status = Path("/proc/self/status").read_text()
    return int(re.search(r"VmHWM:\s*(\d+) kB", status)[1]) / 2**20


if __name__ == "__main__":
    truth, prediction = (split(np.load(path)) for path in sys.argv[1:])
    Path("/proc/self/clear_refs").write_text("5")  # The peak of splitting is forgotten.
    before = peak_gib()
    Strict().score_case(truth, prediction, SPACING, NAMES)
    print(peak_gib() - before)
