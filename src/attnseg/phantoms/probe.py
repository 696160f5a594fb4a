"""Phantoms of the probes: their pictures in nnU-Net's raw format.

    dataset.json
    imagesTr/G0001_a_0000.png, labelsTr/G0001_a.png
    imagesTs/T0001_a_0000.png, labelsTs/T0001_a.png
    evidence/G0001_a.png, evidence/T0001_a.png: the pixels that show the answer

A group of pictures that differ in the evidence alone is a patient.
"""

from dataclasses import dataclass
from functools import partial
from pathlib import Path

from PIL import Image

from attnseg.phantoms.phantom import make_preset, save_picture, write_description
from attnseg.probes.probe import find_probe


@dataclass(frozen=True)
class ProbeSpec:
    """Number of the pictures.

    Attributes:
        train: groups for training and validation.
        test: groups for the test.
        seed: another seed gives other pictures.
    """

    train: int
    test: int
    seed: int = 0


PROBE_PRESETS = {"tiny": ProbeSpec(10, 4), "demo": ProbeSpec(800, 100)}


def make_probe(root: Path, probe: str, preset: str = "demo", seed: int = 0) -> None:
    """Write the pictures of a probe in nnU-Net's raw format to `root`; see `make_preset`.

    Args:
        root: the dataset's folder.
        probe: name of the probe.
        preset: number of pictures, by name.
        seed: another one gives other pictures.
    """
    make_preset(root, PROBE_PRESETS, preset, seed, partial(_write_probe, probe), probe=probe)


def _write_probe(probe_name: str, spec: ProbeSpec, root: Path) -> None:
    probe = find_probe(probe_name)
    parts = (("Tr", "G", "train", spec.train), ("Ts", "T", "test", spec.test))
    (root / "evidence").mkdir()
    for part, letter, split, groups in parts:
        drawn = probe.pictures(groups * probe.group, spec.seed, split=split)
        for index, (image, labels, evidence) in enumerate(zip(*drawn, strict=True)):
            group, member = divmod(index, probe.group)
            grey = (image[0] + 1) * 127.5
            name = f"{letter}{group + 1:04d}_{'abc'[member]}"
            save_picture(root, part, name, grey, labels)
            Image.fromarray(evidence).save(root / "evidence" / f"{name}.png")
    write_description(root, probe.classes, spec.train * probe.group)
