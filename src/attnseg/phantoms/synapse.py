"""Phantom of the Synapse (BTCV) abdomen: synthetic CT scans in the same files and layout.

The same scans can be written in two layouts (https://www.synapse.org/#!Synapse:syn3193805):

    RawData/Training/img/img0001.nii.gz, RawData/Training/label/label0001.nii.gz
    train_npz/case0005_slice000.npz, test_vol_h5/case0001.npy.h5

The second is TransUNet's package (https://github.com/Beckschen/TransUNet): intensities are clipped
to -125..275 HU and scaled to 0..1, only 8 of the 13 organs are labelled, and slices are transposed:
rows run from the patient's right to the left, columns from front to back. (mmsegmentation's
tools/dataset_converters/synapse.py obtains this by transposing and flipping the raw arrays.)
"""

from functools import partial
from pathlib import Path

import h5py
import numpy as np
from numpy.random import Generator, default_rng
from numpy.typing import NDArray
from scipy import ndimage

from attnseg.data.parallel import work_in_parallel
from attnseg.phantoms.abdomen import Abdomen
from attnseg.phantoms.body import Field, overlap, union
from attnseg.phantoms.cheap import draw_cheap_scan
from attnseg.phantoms.phantom import make_preset
from attnseg.phantoms.scan import (
    DEPTHS,
    FRAMES,
    PublishedScanSpec,
    ScanSpec,
    save_scan,
    tilted_affine,
)

# TransUNet's published split, by case number.
TRAIN = (5, 6, 7, 9, 10, 21, 23, 24, 26, 27, 28, 30, 31, 33, 34, 37, 39, 40)
TEST = (8, 22, 38, 36, 32, 2, 29, 3, 1, 4, 25, 35)
CT_AXES = ("LAS", "RAS", "LPS", "PSL")  # axes of the files' arrays; cases use them in turn
# Label of each organ in TransUNet's package, by its label in the download.
PACKAGE_LABELS = {8: 1, 4: 2, 3: 3, 2: 4, 6: 5, 11: 6, 1: 7, 7: 8}
ORGANS = 13
LAYOUTS = ("raw", "package")
WINDOW = (-125.0, 275.0)  # range of intensities in the package, HU
NOISE = 12.0  # standard deviation, HU

SYNAPSE_PRESETS = {
    "tiny": ScanSpec(4, 2, 8, ((72, 60, 5.2, 5.0), (70, 64, 5.4, 4.0))),
    "demo": ScanSpec(8, 4, 20, ((136, 112, 2.7, 5.0), (128, 116, 2.8, 4.0), (144, 120, 2.6, 3.0))),
    "published": PublishedScanSpec(18, 12, 0, FRAMES, depths=DEPTHS),
}


def make_synapse(root: Path, preset: str = "demo", seed: int = 0, layout: str = "raw") -> None:
    """Write a phantom of the Synapse abdomen to `root`; see `make_preset`.

    The scans of the two `LAYOUTS` are the same.

    Raises:
        ValueError: there is no such preset or layout.
    """
    if layout not in LAYOUTS:
        raise ValueError(f"no layout {layout!r}; choose one of {', '.join(LAYOUTS)}")
    write = partial(_write_synapse, layout)
    make_preset(root, SYNAPSE_PRESETS, preset, seed, write, layout=layout)


def make_ct(
    seed: int, case: int, shape: tuple[int, int, int], spacing: float
) -> tuple[NDArray[np.int16], NDArray[np.uint8]]:
    """Draw one CT scan; `spacing` is in-plane, mm.

    Returns:
        Image `[S, H, W]` in HU and label map `[S, H, W]` of the 13 organs, oriented as in `Case`.
    """
    today = default_rng([seed, case, 1])
    body = Abdomen(default_rng([seed, case]), today, shape, spacing)
    return _draw_image(body, today), _organ_labels(body)


def _organ_labels(body: Abdomen) -> NDArray[np.uint8]:
    return body.label_map(
        (6, body.liver),
        (7, body.stomach),
        (1, body.spleen),
        (9, body.vena_cava),
        (8, body.aorta),
        (2, body.right_kidney),
        (3, body.left_kidney),
        (11, body.pancreas),
        (10, body.portal_vein),
        (4, body.gallbladder),
        (5, body.oesophagus),
        (12, body.right_adrenal),
        (13, body.left_adrenal),
    )


def _draw_image(body: Abdomen, rng: Generator) -> NDArray[np.int16]:
    """Return a CT in the portal venous phase; organs cover each other as their labels do."""
    contrast = rng.uniform(0.9, 1.1)  # contrast agent in vessels and perfused organs
    kidneys = union(body.right_kidney, body.left_kidney)
    image = body.paint(
        -1000.0,
        (
            (_table(body), 40, 10),
            (body.skin, 15, 10),
            (body.skin + 3, -105, 12),
            (body.muscle, 58, 12),
            (body.cavity, -98, 20),
            (_strands(body, rng), -35, 25),
            (body.lungs, -860, 60),
            (body.heart, 115 * contrast, 12),
            (body.spine, 360, 30),
            (body.spine + 2.5, 190, 45),
            (body.arch, 400, 50),
            (body.canal, 35, 5),
            (body.ribs, 430, 80),
            (body.small_bowel, 90, 10),
            (body.small_bowel + 3, 38, 18),
            (body.large_bowel, 70, 10),
            (body.large_bowel + 3, 15, 70),
            (_gas(body, rng), -820, 60),
            (body.liver, 105 * contrast, 8),
            (_branches(body, rng), 140 * contrast, 5),
            (body.stomach, 75, 10),
            (body.stomach + 4, 28, 14),
            (_bubble(body), -930, 10),
            (body.spleen, 122 * contrast, 8),
            (body.vena_cava, 140 * contrast, 8),
            (body.aorta, 160 * contrast, 5),
            (kidneys, 185 * contrast, 12),  # cortex
            (kidneys + 8, 150 * contrast, 25),
            (body.sinuses, -60, 30),
            (body.pancreas, 88 * contrast, 22),
            (body.portal_vein, 165 * contrast, 5),
            (body.gallbladder, 8, 4),
            (body.oesophagus, 45, 8),
            (union(body.right_adrenal, body.left_adrenal), 75 * contrast, 6),
        ),
    )
    blurred = ndimage.gaussian_filter(image, (0, 0.45, 0.45))
    noise = ndimage.gaussian_filter(rng.standard_normal(body.shape), (0, 0.6, 0.6))
    noisy = np.rint(blurred + NOISE * noise / noise.std())
    return np.asarray(np.clip(noisy, -1024, 3071), np.int16)


def _table(body: Abdomen) -> Field:
    """Return the curved table of the scanner under the patient's back."""
    x, y, _ = body.axes
    plate = np.abs(y - (108 * body.depth + 9 - 0.0009 * x**2)) - 2.5
    return np.broadcast_to(plate, body.shape)


def _strands(body: Abdomen, rng: Generator) -> Field:
    """Return the fine vessels in the fat of the abdominal cavity."""
    return overlap((np.abs(body.smooth_noise(rng, 0.7, 9)) - 0.15) * 8, body.cavity + 12)


def _gas(body: Abdomen, rng: Generator) -> Field:
    """Return pockets of gas in the large bowel."""
    return overlap((0.5 - body.smooth_noise(rng, 1, 10)) * 10, body.large_bowel + 5)


def _bubble(body: Abdomen) -> Field:
    """Return the gas in the stomach, which collects in front of a patient lying on the back."""
    return overlap(body.axes[1] + 46 * body.depth, body.stomach + 5)


def _branches(body: Abdomen, rng: Generator) -> Field:
    """Return the veins of the liver."""
    # The points where two smooth fields are both near zero form lines in space.
    line = np.hypot(*(body.smooth_noise(rng, 1.5, 14) for _ in range(2)))
    return overlap((line - 0.28) * 12, body.liver + 5)


def _write_synapse(layout: str, spec: ScanSpec, root: Path) -> None:
    cases = [(c, "train") for c in TRAIN[: spec.train]] + [(c, "test") for c in TEST[: spec.test]]

    def write_case(turn: int) -> None:
        case, role = cases[turn]
        *_, spacing, distance = spec.frames[turn % len(spec.frames)]
        shape = spec.shape_of(turn)
        if isinstance(spec, PublishedScanSpec):
            image, label = draw_cheap_scan(default_rng([spec.seed, case]), shape, ORGANS)
            image -= 1024  # Hounsfield units begin there.
        else:
            image, label = make_ct(spec.seed, case, shape, spacing)
        if layout == "raw":
            rng = default_rng([spec.seed, case, 2])
            affine = tilted_affine(rng, shape, (distance, spacing, spacing))
            folder = root / "RawData" / "Training"
            axes = CT_AXES[turn % len(CT_AXES)]
            for kind, scan in (("img", image), ("label", label)):
                (folder / kind).mkdir(parents=True, exist_ok=True)
                save_scan(folder / kind / f"{kind}{case:04d}.nii.gz", scan, affine, axes)
        else:
            _write_package(root, case, role, image, label)

    work_in_parallel(write_case, range(len(cases)), "Making the phantom", "scans", root)


def _write_package(
    root: Path, case: int, role: str, image: NDArray[np.int16], label: NDArray[np.uint8]
) -> None:
    low, high = WINDOW
    scaled = (np.clip(image, low, high).astype(np.float32) - low) / (high - low)
    numbers = np.zeros(14, np.uint8)
    numbers[list(PACKAGE_LABELS)] = list(PACKAGE_LABELS.values())
    volumes = scaled.transpose(0, 2, 1), numbers[label].transpose(0, 2, 1)
    if role == "test":
        (root / "test_vol_h5").mkdir(exist_ok=True)
        with h5py.File(root / "test_vol_h5" / f"case{case:04d}.npy.h5", "w") as file:
            for name, volume in zip(("image", "label"), volumes, strict=True):
                file.create_dataset(name, data=volume)
        return
    (root / "train_npz").mkdir(exist_ok=True)
    for index, (picture, organs) in enumerate(zip(*volumes, strict=True)):
        name = f"case{case:04d}_slice{index:03d}.npz"
        np.savez(root / "train_npz" / name, image=picture, label=organs)
