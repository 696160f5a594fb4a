"""Published sizes of the networks and rates of GPUs, for modules that must not import torch yet."""

import re
from dataclasses import dataclass
from itertools import pairwise

SIZES = {"setr": "base", "transunet": "base", "cvt": "cvt-13", "dae_former": "base"}


@dataclass(frozen=True)
class Card:
    """A GPU by its data sheet.

    Attributes:
        capability: CUDA compute capability, 90 for 9.0.
        half: dense TFLOP/s of bfloat16, or of float16 where there is no bfloat16.
        tf32: of TF32.
        single: of float32.
        bandwidth: TB/s of the memory.
    """

    capability: int
    half: float
    tf32: float
    single: float
    bandwidth: float


CARDS = {
    # NVIDIA H100 Tensor Core GPU Datasheet, column SXM, without sparsity
    "h100": Card(90, 989, 494, 67, 3.35),
    # NVIDIA A100 Tensor Core GPU Datasheet, column 80GB SXM, without sparsity
    "a100": Card(80, 312, 156, 19.5, 2.04),
    # NVIDIA Ada GPU Architecture (white paper), GeForce RTX 4090, accumulated in float32
    "rtx4090": Card(89, 165, 83, 83, 1.01),
    # NVIDIA Turing GPU Architecture (white paper), Tesla T4
    "t4": Card(75, 65, 8.1, 8.1, 0.32),
}
# A device whose name has one of these words runs at other rates than the card that it names.
VARIANTS = {"laptop", "pcie", "nvl", "d", "mig"}


def find_card(name: str) -> str | None:
    """Return the card of `CARDS` that a device's name names in whole words; none for a variant."""
    words = re.findall(r"[a-z0-9]+", name.lower())
    if VARIANTS & set(words):
        return None
    names = {*words, *(first + second for first, second in pairwise(words))}
    return next((card for card in CARDS if card in names), None)
