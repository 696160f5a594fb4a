"""The files that `attnseg new` writes: of each kind a module, its choice, and a test.

`my_idea` and `MyIdea` stand for the names of module and class.
"""

from typing import NamedTuple


class Files(NamedTuple):
    """Texts of the three files of a part."""

    module: str
    choice: str
    test: str


ATTENTION = Files(
    '''"""My idea of how values are combined."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attnseg.attention.mixing import Layout, Mixing
from attnseg.layers.tokens import DEFAULT_PLACE, Place


class MyIdea(Mixing):
    """Softmax attention, with a learned factor for each head.

    `macs(layout)` is inherited: that of N x M scores. Define it if yours are others.
    """

    def __init__(
        self,
        head_dim: int,
        num_heads: int,
        scale: float,
        place: Place = DEFAULT_PLACE,
        start: float = 1.0,
    ) -> None:
        super().__init__(head_dim, num_heads, scale, place)
        self.factor = nn.Parameter(torch.full((num_heads, 1, 1), start))

    def forward(self, q: Tensor, k: Tensor, v: Tensor, layout: Layout) -> Tensor:
        """Mix values `[B, h, M, d]` for queries `[B, h, N, d]`."""
        return self.factor * F.scaled_dot_product_attention(q, k, v, scale=self.scale)
''',
    """# My idea.
_target_: attnseg.attention.attention.Attention
sharing: none      # none | qk | k_v | single | factored
mixing: my_idea    # the class MyIdea of my_idea.py
mixing_options:    # what its constructor takes besides the first four arguments
  start: 1.0
gather: none
gather_options: {}
""",
    '''"""Tests of my_idea."""

import my_idea
import torch

import attnseg
from attnseg.plugins import add_files


def test_every_weight_gets_a_gradient():
    add_files([my_idea.__file__])
    attention = attnseg.create_attention("my_idea", dim=16, num_heads=2)
    tokens = torch.randn(2, 12, 16)
    mixed = attention(tokens, grid=(3, 4))
    assert mixed.shape == tokens.shape
    mixed.square().sum().backward()
    for name, weight in attention.named_parameters():
        if name != "project.k.linear.bias":  # The softmax cancels it.
            assert weight.grad is not None and weight.grad.abs().max() > 0, name
''',
)

MODEL = Files(
    '''"""My idea of a model."""

from torch import Tensor, nn

from attnseg.layers.tokens import AttentionFactory, Place
from attnseg.layers.vit import Block, PatchTokens, tokens_to_map
from attnseg.models.model import SegmentationModel, check_divisible

SIZES = {"tiny": (48, 2), "base": (384, 12)}  # width and depth
PATCH = 8


class MyIdea(SegmentationModel):
    """Patches of 8 x 8 pixels, transformer blocks, one transposed convolution.

    Raises:
        ValueError: the sides of the image are not divisible by 8, or there is no such size.
    """

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        image_size: tuple[int, int],
        attn: AttentionFactory,
        size: str = "tiny",
        mlp_ratio: float = 4.0,
    ) -> None:
        super().__init__()
        check_divisible("image_size", image_size, PATCH)
        if size not in SIZES:
            raise ValueError(f"no size {size!r}; choose one of {', '.join(SIZES)}")
        dim, depth = SIZES[size]
        grid = (image_size[0] // PATCH, image_size[1] // PATCH)
        self.embed = PatchTokens(in_channels, dim, PATCH, grid, class_token=False)
        self.blocks = nn.ModuleList(
            Block(dim, attn(dim, dim // 16, place=Place(0, n, grid)), 1e-6, mlp_ratio=mlp_ratio)
            for n in range(depth)
        )
        self.head = nn.ConvTranspose2d(dim, num_classes, PATCH, PATCH)

    def forward(self, image: Tensor) -> Tensor:
        """Map images `[B, C, H, W]` to logits `[B, K, H, W]`."""
        check_divisible("image_size", (image.shape[2], image.shape[3]), PATCH)
        tokens, grid = self.embed(image)
        for block in self.blocks:
            tokens = block(tokens, grid)
        logits: Tensor = self.head(tokens_to_map(tokens, grid))
        return logits
''',
    """# My idea.
defaults:
  - override /attn@_global_.attn: qkv  # the attention if none is chosen
_target_: my_idea.MyIdea
size: tiny  # tiny | base
mlp_ratio: 4.0
match: null
pretrained: null
""",
    '''"""Tests of my_idea."""

import my_idea
import pytest
import torch

import attnseg
from attnseg.plugins import add_files


@pytest.mark.parametrize("attn", ["qkv", "kv"])
def test_logits_have_the_size_of_the_image(attn):
    add_files([my_idea.__file__])
    model = attnseg.create_model("my_idea", attn, 1, 3, image_size=(32, 48))
    assert model(torch.randn(2, 1, 32, 48)).shape == (2, 3, 32, 48)
    assert model(torch.randn(1, 1, 64, 32)).shape == (1, 3, 64, 32)
    with pytest.raises(ValueError, match="divisible by 8"):
        model(torch.randn(1, 1, 30, 32))
''',
)

DATASET = Files(
    '''"""My idea of a dataset: a reader, and a phantom in the same layout."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from attnseg.data.labels import Labels
from attnseg.data.reader import Case, CaseRef, Reader
from attnseg.errors import DataError
from attnseg.phantoms.phantom import make_preset


class MyIdea(Reader):
    """Reads `PATIENT.npz` files, each with an `image` and a `mask` of `[H, W]` bytes."""

    labels = Labels(("disc",))  # the classes that are 1, 2, ... in a mask
    channels = 1
    volumetric = False  # pictures, not scans

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root)

    def cases(self) -> list[CaseRef]:
        """List the pictures, each of a patient of its own."""
        paths = sorted(self.root.glob("*.npz"))
        if not paths:
            raise DataError(f"{self.root}: no .npz files; set dataset.root")
        return [CaseRef(path.stem, path.stem, (path,)) for path in paths]

    def read(self, ref: CaseRef) -> Case:
        """Decode one picture."""
        with np.load(ref.files[0], allow_pickle=False) as arrays:
            image, mask = arrays["image"], arrays["mask"]
        return Case(image[None, :, :, None], mask[None], spacing=None, window=(0.0, 255.0))


@dataclass(frozen=True)
class Spec:
    """Number of pictures, their side, and the seed of the random numbers."""

    pictures: int
    side: int
    seed: int = 0


PRESETS = {"tiny": Spec(12, 64), "demo": Spec(60, 128)}


def make_my_idea(root: Path, preset: str = "demo", seed: int = 0) -> None:
    """Write the phantom to `root`, unless it is there."""
    make_preset(root, PRESETS, preset, seed, _write)


def _write(spec: Spec, root: Path) -> None:
    for number in range(spec.pictures):
        rng = np.random.default_rng([spec.seed, number])
        rows, columns = np.mgrid[: spec.side, : spec.side] / spec.side
        y, x, radius = rng.uniform((0.3, 0.3, 0.1), (0.7, 0.7, 0.25))
        mask = np.hypot(rows - y, columns - x) < radius
        image = (80 + 80 * mask + rng.normal(0, 20, mask.shape)).clip(0, 255)
        np.savez(root / f"{number:03d}", image=image.astype(np.uint8), mask=mask.astype(np.uint8))
''',
    """# My idea.
defaults:
  - _split
  - _self_
_target_: my_idea.MyIdea
root: null  # null: the phantom
exclude: []
limit_cases: null
phantom:
  _target_: my_idea.make_my_idea
  preset: ${phantom_size}
  seed: 0
image_size: [64, 64]
slices: 1
stride: 1
foreground: 0.0
batch_size: 8
max_epochs: 4
""",
    '''"""Tests of my_idea."""

from my_idea import MyIdea, make_my_idea

from attnseg.data.reader import check_case


def test_the_phantom_can_be_read(tmp_path):
    make_my_idea(tmp_path / "root", "tiny")
    reader = MyIdea(tmp_path / "root")
    refs = reader.cases()
    assert len(refs) == 12
    for ref in refs:
        case = reader.read(ref)
        check_case(case, ref, reader)
        assert case.mask.any()
''',
)

LOSS = Files(
    '''"""My idea of a loss."""

import torch.nn.functional as F
from torch import Tensor

from attnseg.losses.loss import SegmentationLoss


class MyIdea(SegmentationLoss):
    """One minus the mean soft Jaccard index of the foreground classes over a batch."""

    def __init__(self, overlapping: bool, smooth: float = 1.0) -> None:
        super().__init__(overlapping)
        self.smooth = smooth

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return the loss of logits `[B, K, H, W]`; the target is as in `SegmentationLoss`."""
        if self.overlapping:
            shares, truth = logits.sigmoid(), target.float()
        else:
            shares = logits.softmax(1)[:, 1:]
            truth = F.one_hot(target.long(), logits.shape[1]).movedim(-1, 1)[:, 1:].float()
        both = (shares * truth).sum((0, 2, 3))
        either = (shares + truth).sum((0, 2, 3)) - both
        return 1 - ((both + self.smooth) / (either + self.smooth)).mean()
''',
    """# My idea.
_target_: my_idea.MyIdea
smooth: 1.0
""",
    '''"""Tests of my_idea."""

import torch
from my_idea import MyIdea


def test_the_truth_costs_least():
    target = torch.randint(0, 3, (2, 8, 8), generator=torch.manual_seed(0))
    right = torch.nn.functional.one_hot(target, 3).movedim(-1, 1) * 20.0
    loss = MyIdea(overlapping=False)
    assert loss(right, target) < 0.01 < 0.3 < loss(torch.zeros_like(right), target)
    masks = torch.stack([target == 1, target == 2], 1)
    assert MyIdea(overlapping=True)((masks.float() - 0.5) * 40, masks) < 0.01
''',
)
