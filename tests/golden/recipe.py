"""Weights and inputs of the golden files, from the file alone.

A file holds what a published implementation answered, in float32 on a CPU, to a fixed input on
weights filled by a recipe from the names and shapes of its own state dict.
"""

import zlib
from pathlib import Path

import numpy as np
import torch

FOLDER = Path(__file__).parent


class Golden:
    """One golden file, its weights and input checked against the sums it carries."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.stored = np.load(FOLDER / f"{name}.npz")
        sums = zip(
            self.stored["names"], self.stored["shapes"], self.stored["weight_sums"], strict=True
        )
        self.weights = {}
        for key, shape, total in sums:
            value = fill(str(key), tuple(int(side) for side in str(shape).split(",")))
            # Sums of millions of values depend a little on the order of summation.
            assert np.isclose(value.sum(dtype=np.float64), total, rtol=0, atol=1e-7), key
            self.weights[str(key)] = torch.from_numpy(value)
        rng = np.random.Generator(np.random.PCG64(int(self.stored["input_seed"])))
        image = rng.standard_normal(self.stored["input_shape"]).astype(np.float32)
        assert np.isclose(image.sum(dtype=np.float64), float(self.stored["input_sum"]), atol=1e-6)
        self.image = torch.from_numpy(image)

    def largest_difference(self, logits: torch.Tensor) -> float:
        """Largest absolute difference of `[B, K, H, W]` logits to the stored ones."""
        stride = int(self.stored["stride"])
        assert tuple(logits.shape) == tuple(self.stored["logits_full_shape"])
        ours = logits[:, :, ::stride, ::stride].numpy()
        return float(np.abs(ours - self.stored["logits"]).max())


def fill(name: str, shape: tuple[int, ...]) -> np.ndarray:
    rng = np.random.Generator(np.random.PCG64(zlib.crc32(name.encode())))
    if name.endswith("running_var"):
        value = 1 + 0.1 * rng.random(shape)
    elif name.endswith("running_mean"):
        value = 0.05 * rng.standard_normal(shape)
    elif len(shape) == 1 and name.endswith(".weight"):
        value = 1 + 0.05 * rng.standard_normal(shape)
    elif len(shape) >= 2:
        value = rng.standard_normal(shape) / np.sqrt(np.prod(shape[1:]))
    else:
        value = 0.02 * rng.standard_normal(shape)
    return value.astype(np.float32)
