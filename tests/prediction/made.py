"""Networks whose answers are known, specs, and images written for the tests of prediction."""

from collections.abc import Sequence
from pathlib import Path

import nibabel as nib
import numpy as np
from nibabel.orientations import axcodes2ornt, io_orientation, ornt_transform

from attnseg.prediction.folder import OutputOptions, segment_folder
from attnseg.prediction.postprocess import Rule
from attnseg.prediction.segment import Member, Segmenter
from attnseg.prediction.spec import InferenceSpec

DIGEST = "0" * 64
# Between 100 and 200, a tilted grid of unlike spacings.
WINDOW = (0.0, 200.0)
TURN = nib.eulerangles.euler2mat(0.2, -0.1, 0.15)
TILTED = np.eye(4)
TILTED[:3, :3] = TURN @ np.diag([0.7, 1.3, 5.0])
TILTED[:3, 3] = (-20.0, 33.0, -7.0)


def spec(**values) -> InferenceSpec:
    defaults = {
        "run": "0123456789", "model": "setr", "attn": "kv", "dataset": "made",
        "classes": ("organ",), "multilabel": True, "channels": 1, "size": (24, 30), "slices": 1,
        "stride": 1, "window": WINDOW, "volumetric": True, "plane": "axial", "spacing": None,
        "profile": ("strict", "94e58393"), "data_digest": DIGEST, "split_digest": DIGEST,
        "weights_sha256": DIGEST,
    }  # fmt: skip
    return InferenceSpec(**{**defaults, **values})


class Threshold:
    """Answers with its input, so that what is above the window's middle is of the first class.

    Where classes exclude each other, the background has the opposite logit. A second class, if
    there is one, is the darkest part.
    """

    def __init__(self, spec: InferenceSpec) -> None:
        self.spec = spec
        self.seen: list[np.ndarray] = []

    def __call__(self, images):
        self.seen.append(images)
        middle = images[:, images.shape[1] // 2]
        answers = [middle, -0.805 - middle][: len(self.spec.classes)]
        if not self.spec.multilabel:
            answers.insert(0, np.zeros_like(middle))
        return np.ascontiguousarray(np.stack(answers, 1))


class Constant:
    """Answers with one probability for each channel, everywhere."""

    def __init__(self, *probabilities: float) -> None:
        p = np.array(probabilities, np.float32)
        self.logits = np.log(p / (1 - p))[None, :, None, None]

    def __call__(self, images):
        shape = (len(images), self.logits.shape[1], *images.shape[2:])
        return np.broadcast_to(self.logits, shape).astype(np.float32)


def segment(
    place: Path,
    output: Path,
    network=None,
    rules: dict[str, Rule] | None = None,
    how: dict | None = None,
    wanted: dict | None = None,
    **values,
):
    """Predict with one network; return it."""
    made = spec(**values)
    network = network or Threshold(made)
    all_rules = {name: Rule() for name in made.classes} | (rules or {})
    segmenter = Segmenter(made.labels, [Member(network, made.view)], **(how or {}))
    options = OutputOptions(all_rules, **(wanted or {}))
    segment_folder(segmenter, [made], options, place, output, "test")
    return network


def organ(shape: Sequence[int] = (10, 8, 7), seed: int = 0) -> np.ndarray:
    """An image in which no two parts are alike: about a third lies above the window's middle."""
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 99, shape).astype(np.int16)
    bright = rng.random(shape) < 0.35
    image[bright] += 101
    return image


def reoriented(image: np.ndarray, affine: np.ndarray, axes: str) -> nib.Nifti1Image:
    """The same image in space, its file's axes running as said: "RAS", "PIL" and so on."""
    made = nib.Nifti1Image(image, affine)
    there = ornt_transform(io_orientation(affine), axcodes2ornt(axes))
    return made.as_reoriented(there)
