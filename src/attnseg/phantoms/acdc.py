"""Phantom of ACDC: synthetic cine MRI of the heart, two labelled frames of each patient.

    training/patient001/Info.cfg                      numbers of the two frames, kind of disease
    training/patient001/patient001_frame01.nii.gz     end of diastole
    training/patient001/patient001_frame01_gt.nii.gz  0 background, 1 right ventricle,
                                                      2 myocardium, 3 left ventricle
    training/patient001/patient001_frame12.nii.gz     end of systole, likewise
    testing/patient006/...                            likewise

The file of all frames, `patient001_4d.nii.gz`, is not made.
"""

from functools import partial
from pathlib import Path

import numpy as np
from numpy.random import Generator, default_rng
from numpy.typing import NDArray

from attnseg.data.parallel import work_in_parallel
from attnseg.phantoms.body import Drawing, overlap, union
from attnseg.phantoms.cheap import draw_cheap_scan
from attnseg.phantoms.phantom import make_preset
from attnseg.phantoms.scan import PublishedScanSpec, ScanSpec, save_scan, tilted_affine

RIGHT_VENTRICLE, MYOCARDIUM, LEFT_VENTRICLE = 1, 2, 3
# Size of the left cavity, thickness of its wall and size of the right cavity, as shares of the
# normal ones, and the share of its width that the left cavity keeps in systole.
GROUPS = {
    "NOR": (1.0, 1.0, 1.0, 0.65), "MINF": (1.15, 0.9, 1.0, 0.85), "DCM": (1.35, 0.85, 1.1, 0.9),
    "HCM": (0.9, 1.7, 0.95, 0.5), "RV": (0.95, 1.0, 1.4, 0.65),
}  # fmt: skip

ACDC_PRESETS = {
    "tiny": ScanSpec(5, 2, 4, ((60, 54, 3.2, 20.0), (56, 58, 3.4, 20.0))),
    "demo": ScanSpec(15, 5, 9, ((112, 100, 1.7, 10.0), (104, 108, 1.8, 9.0))),
    # 150 patients (Bernard et al. 2018); sizes of about those that are met there.
    "published": PublishedScanSpec(
        100, 50, 0, ((216, 256, 1.5, 10.0), (232, 256, 1.6, 8.0)), depths=150 * (10,)
    ),
}


def make_acdc(root: Path, preset: str = "demo", seed: int = 0) -> None:
    """Write the phantom to `root`; see `make_preset`."""
    make_preset(root, ACDC_PRESETS, preset, seed, _write_acdc)


class Heart(Drawing):
    """The chest around the heart in short-axis slices, from the apex to the base.

    Args:
        anatomy: draws what both frames of a patient share.
        today: draws textures and noise.
        shape: slices, height, width.
        spacing: pixel size within slices, mm.
        group: kind of disease, one of `GROUPS`.
        systole: whether the ventricles are contracted.
    """

    HEIGHT = 88.0

    def __init__(
        self,
        anatomy: Generator,
        today: Generator,
        shape: tuple[int, int, int],
        spacing: float,
        group: str,
        systole: bool,
    ) -> None:
        super().__init__(today, shape, spacing, anatomy.normal(0, 4, 2))
        left, wall, right, kept = GROUPS[group]
        size = anatomy.uniform(0.92, 1.08)
        girth = anatomy.uniform(0.95, 1.1)
        x, y = anatomy.normal(0, 2, 2)
        radius = 22 * size * left * (kept if systole else 1)
        thick = 9 * wall * (1.35 if systole else 1)
        base = 0.92 * self.HEIGHT
        self.cavity = self._ellipsoid((12 + x, y, base), (radius, radius, 0.8 * self.HEIGHT))
        outer = radius + thick
        self.wall = self._ellipsoid((12 + x, y, base), (outer, outer, 0.94 * self.HEIGHT))
        reach = 26 * size * right * (0.8 if systole else 1)
        chamber = self._ellipsoid(
            (x - outer + 4, y - 10, base), (reach, 1.25 * reach, 0.78 * self.HEIGHT)
        )
        self.right = overlap(chamber, -self.wall)
        self.muscles = union(
            *(
                self._ellipsoid((12 + x + s * 0.45 * radius, y + 0.4 * radius, 30), (4, 4, 26))
                for s in (-1, 1)
            )
        )
        self.skin = self._ellipsoid((0, 0, 44), (88 * girth, 76 * girth, 1e4))
        self.chest = self._ellipsoid((0, 0, 44), (78 * girth, 66 * girth, 1e4))
        self.sac = self._ellipsoid((4, 0, base), (62, 52, 1.3 * self.HEIGHT))
        self.liver = overlap(self._ellipsoid((-45, 40, -10), (60, 45, 60)), self.chest)

    def picture(self) -> NDArray[np.int16]:
        """Return the image `[S, H, W]`, on which blood is bright."""
        image = self.mr(
            (
                (self.skin, 0.75, 0.05),  # fat
                (self.chest, 0.06, 0.03),  # lungs
                (self.liver, 0.34, 0.03),
                (self.sac, 0.5, 0.06),  # fat
                (self.right - 3, 0.3, 0.03),  # the thin wall of the right ventricle
                (self.right, 0.85, 0.05),
                (self.wall, 0.26, 0.03),
                (self.cavity, 0.9, 0.04),
                (self.muscles, 0.35, 0.03),
            )
        )
        return np.asarray(np.minimum(image, np.iinfo(np.int16).max), np.int16)

    def labels(self) -> NDArray[np.uint8]:
        """Return the label map `[S, H, W]`; papillary muscles belong to the cavity."""
        return self.label_map(
            (RIGHT_VENTRICLE, self.right), (MYOCARDIUM, self.wall), (LEFT_VENTRICLE, self.cavity)
        )


def _write_acdc(spec: ScanSpec, root: Path) -> None:
    patients, write = range(spec.train + spec.test), partial(_write_patient, spec, root)
    work_in_parallel(write, patients, "Making the phantom", "patients", root)


def _write_patient(spec: ScanSpec, root: Path, patient: int) -> None:
    """Write both frames of a patient, and the file about them."""
    *_, spacing, distance = spec.frames[patient % len(spec.frames)]
    shape = spec.shape_of(patient)
    rng = default_rng([spec.seed, patient])
    affine = tilted_affine(rng, shape, (distance, spacing, spacing))
    group, last = list(GROUPS)[patient % len(GROUPS)], int(rng.integers(8, 15))
    name = f"patient{patient + 1:03d}"
    folder = root / ("training" if patient < spec.train else "testing") / name
    folder.mkdir(parents=True)
    (folder / "Info.cfg").write_text(
        f"ED: 1\nES: {last}\nGroup: {group}\nHeight: {rng.integers(155, 190)}.0\n"
        f"NbFrame: 30\nWeight: {rng.integers(55, 95)}.0\n"
    )
    for frame in (1, last):
        today = default_rng([spec.seed, patient, 2, frame])
        if isinstance(spec, PublishedScanSpec):
            picture, labels = draw_cheap_scan(today, shape, 3)
        else:
            anatomy = default_rng([spec.seed, patient, 1])
            heart = Heart(anatomy, today, shape, spacing, group, systole=frame > 1)
            picture, labels = heart.picture(), heart.labels()
        file = folder / f"{name}_frame{frame:02d}"
        save_scan(Path(f"{file}.nii.gz"), picture, affine, "LPS")
        save_scan(Path(f"{file}_gt.nii.gz"), labels, affine, "LPS")
