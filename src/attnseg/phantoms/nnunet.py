"""Phantom of a dataset in nnU-Net's raw format: synthetic MRI of two contrasts, region labels.

    dataset.json
    imagesTr/ABD_001_0000.nii.gz, imagesTr/ABD_001_0001.nii.gz, labelsTr/ABD_001.nii.gz
    imagesTs/ABD_006_0000.nii.gz, imagesTs/ABD_006_0001.nii.gz, labelsTs/ABD_006.nii.gz

Format: https://github.com/MIC-DKFZ/nnUNet/blob/master/documentation/dataset_format.md and
region_based_training.md.
"""

import json
from pathlib import Path

import numpy as np
from numpy.random import default_rng
from numpy.typing import NDArray

from attnseg.data.parallel import work_in_parallel
from attnseg.phantoms.abdomen import Abdomen
from attnseg.phantoms.body import union
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

MR_AXES = ("RAS", "LPS", "LAS")  # axes of the files' arrays; cases use them in turn
VALUES = LARGE_BOWEL, SMALL_BOWEL, STOMACH = 1, 2, 3

NNUNET_PRESETS = {
    "tiny": ScanSpec(5, 2, 8, ((72, 60, 5.2, 6.0), (68, 64, 5.4, 5.0))),
    "demo": ScanSpec(10, 4, 20, ((128, 104, 2.8, 5.0), (120, 112, 3.0, 6.0))),
    "published": PublishedScanSpec(18, 12, 0, FRAMES, depths=DEPTHS),  # of BTCV's size
}


def make_nnunet(root: Path, preset: str = "demo", seed: int = 0) -> None:
    """Write a phantom in nnU-Net's raw format to `root`; see `make_preset`.

    `root` is the dataset's folder (`DatasetXXX_Name`), which will hold `dataset.json`.
    """
    make_preset(root, NNUNET_PRESETS, preset, seed, _write_nnunet)


def make_mr(
    seed: int, case: int, shape: tuple[int, int, int], spacing: float
) -> tuple[list[NDArray[np.int16]], NDArray[np.uint8]]:
    """Draw one patient's two scans; `spacing` is in-plane, mm.

    Returns:
        T1- and T2-weighted images and label map, each `[S, H, W]`, oriented as in `Case`.
    """
    body = Abdomen(default_rng([seed, case]), default_rng([seed, case, 1]), shape, spacing)
    # T1 and T2: fluid is dark in the first and bright in the second.
    images = [_draw_weighting(body, 0), _draw_weighting(body, 1)]
    return images, body.label_map(
        (LARGE_BOWEL, body.large_bowel), (SMALL_BOWEL, body.small_bowel), (STOMACH, body.stomach)
    )


def _draw_weighting(body: Abdomen, weighting: int) -> NDArray[np.int16]:
    """Return the image of one weighting; later tissues cover earlier ones, as labels do."""
    tissues = (
        (body.skin, (0.35, 0.30), 0.03),
        (body.skin + 3, (0.82, 0.60), 0.04),  # fat
        (body.muscle, (0.36, 0.20), 0.03),
        (body.cavity, (0.72, 0.50), 0.07),  # fat
        (body.lungs, (0.05, 0.05), 0.02),
        (body.heart, (0.20, 0.25), 0.05),
        (body.spine, (0.46, 0.36), 0.04),
        (body.arch, (0.30, 0.22), 0.04),
        (body.canal, (0.15, 0.85), 0.02),
        (body.ribs, (0.24, 0.14), 0.03),
        (body.liver, (0.52, 0.28), 0.02),
        (body.spleen, (0.36, 0.52), 0.02),
        (union(body.vena_cava, body.aorta), (0.14, 0.08), 0.02),
        (union(body.right_kidney, body.left_kidney), (0.44, 0.58), 0.02),
        (union(body.right_kidney, body.left_kidney) + 8, (0.34, 0.68), 0.04),
        (body.pancreas, (0.58, 0.38), 0.04),
        (body.portal_vein, (0.16, 0.12), 0.02),
        (body.gallbladder, (0.18, 0.95), 0.02),
        (body.large_bowel, (0.40, 0.34), 0.03),
        (body.large_bowel + 3, (0.56, 0.18), 0.08),
        (body.small_bowel, (0.44, 0.40), 0.03),
        (body.small_bowel + 3, (0.26, 0.80), 0.08),
        (body.stomach, (0.42, 0.36), 0.03),
        (body.stomach + 4, (0.14, 0.94), 0.05),
    )
    image = body.mr((field, values[weighting], grain) for field, values, grain in tissues)
    return np.asarray(np.minimum(image, np.iinfo(np.int16).max), np.int16)


def _write_nnunet(spec: ScanSpec, root: Path) -> None:
    for folder in ("imagesTr", "labelsTr", "imagesTs", "labelsTs"):
        (root / folder).mkdir()

    def write_case(case: int) -> None:
        *_, spacing, distance = spec.frames[case % len(spec.frames)]
        shape = spec.shape_of(case)
        if isinstance(spec, PublishedScanSpec):
            rng = default_rng([spec.seed, case])
            image, label = draw_cheap_scan(rng, shape, len(VALUES))
            images = [image, image.max() - image]
        else:
            images, label = make_mr(spec.seed, case, shape, spacing)
        rng = default_rng([spec.seed, case, 2])
        affine = tilted_affine(rng, shape, (distance, spacing, spacing))
        part = "Tr" if case < spec.train else "Ts"
        name, axes = f"ABD_{case + 1:03d}", MR_AXES[case % len(MR_AXES)]
        for channel, image in enumerate(images):
            save_scan(root / f"images{part}" / f"{name}_{channel:04d}.nii.gz", image, affine, axes)
        save_scan(root / f"labels{part}" / f"{name}.nii.gz", label, affine, axes)

    cases = range(spec.train + spec.test)
    work_in_parallel(write_case, cases, "Making the phantom", "cases", root)
    description = {
        "channel_names": {"0": "T1", "1": "T2"},
        "labels": {
            "background": 0,
            "bowel": [LARGE_BOWEL, SMALL_BOWEL],
            "small_bowel": [SMALL_BOWEL],
            "stomach": [STOMACH],
        },
        "regions_class_order": VALUES,
        "numTraining": spec.train,
        "file_ending": ".nii.gz",
    }
    (root / "dataset.json").write_text(json.dumps(description, indent=1) + "\n")
