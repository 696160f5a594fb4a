"""Parts of U-shaped transformers: overlapping patches, Mix-FFN, and the expansion of patches.

The stages are those of SegFormer (Xie et al., 2021, arXiv 2105.15203), the feed-forward network is
MISSFormer's (Huang et al., 2021, arXiv 2109.07162), and patches are expanded as in Swin-Unet (Cao
et al., 2021, arXiv 2105.05537). MISSFormer and DAE-Former have them all.
"""

from collections.abc import Callable, Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from attnseg.layers.narrow import LayerNorm
from attnseg.layers.tokens import Grid
from attnseg.layers.vit import tokens_to_map

NORM_EPS = 1e-5


def layer_norm(dim: int) -> nn.LayerNorm:
    """Build a layer normalisation over the last axis, with the published epsilon."""
    return LayerNorm(dim, eps=NORM_EPS)


class MixFFN(nn.Module):
    """`fc2(GELU(norm(h + dwconv h)))` with `h = fc1 x` and a depthwise 3x3 convolution."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.dwconv = nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden)
        self.norm = layer_norm(hidden)
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, x: Tensor, grid: Grid) -> Tensor:
        """Map tokens `[B, N, C]` on a grid (h, w) to the same shape."""
        hidden = tokens_to_map(self.fc1(x), grid)
        mixed = hidden + self.dwconv(hidden)
        return recompute(self._narrow, mixed.flatten(2).transpose(1, 2))

    def _narrow(self, mixed: Tensor) -> Tensor:
        out: Tensor = self.fc2(F.gelu(self.norm(mixed)))
        return out


def recompute(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Call a function, and call it again for gradients instead of keeping its intermediate results.

    Norms and activations are cheap to compute twice. Kept, those of the feed-forward networks would
    be a quarter of the memory of a training step.
    """
    if not torch.is_grad_enabled() or torch.compiler.is_compiling():
        return function(x)
    out: Tensor = checkpoint(function, x, use_reentrant=False, preserve_rng_state=False)
    return out


class EncoderStage(nn.Module):
    """Overlapping patches as tokens, blocks `block(tokens, grid)`, and a norm at both ends."""

    def __init__(
        self, in_channels: int, dim: int, kernel: int, stride: int, blocks: Iterable[nn.Module]
    ) -> None:
        super().__init__()
        self.proj = nn.Conv2d(in_channels, dim, kernel, stride, kernel // 2)
        self.proj_norm = layer_norm(dim)
        self.blocks = nn.ModuleList(blocks)
        self.norm = layer_norm(dim)

    def forward(self, x: Tensor) -> tuple[Tensor, Grid]:
        """Map `[B, C, H, W]` to tokens `[B, h * w, dim]` on the grid (h, w)."""
        x = self.proj(x)
        grid = (x.shape[2], x.shape[3])
        tokens = self.proj_norm(x.flatten(2).transpose(1, 2))
        for block in self.blocks:
            tokens = block(tokens, grid)
        return self.norm(tokens), grid


class PatchExpand(nn.Module):
    """Expands each token into `factor` x `factor` tokens and normalises them."""

    def __init__(self, dim: int, out_dim: int, factor: int) -> None:
        super().__init__()
        self.factor = factor
        self.expand = nn.Linear(dim, factor * factor * out_dim, bias=False)
        self.norm = layer_norm(out_dim)

    def forward(self, x: Tensor, grid: Grid) -> Tensor:
        """Map tokens `[B, h * w, C]` to `[B, h * w * factor^2, out_dim]`."""
        cells = self.norm(self.expand(x).unflatten(2, (self.factor**2, -1)))
        return arrange_cells(cells, grid, self.factor)


class PatchClassify(nn.Module):
    """Expands each token into `factor` x `factor` pixels, normalises and classifies them."""

    def __init__(self, dim: int, out_dim: int, factor: int, num_classes: int) -> None:
        super().__init__()
        self.factor = factor
        self.classify = nn.Linear(out_dim, num_classes)
        self.expand = nn.Linear(dim, factor * factor * out_dim, bias=False)
        self.norm = layer_norm(out_dim)

    def forward(self, x: Tensor, grid: Grid) -> Tensor:
        """Map tokens `[B, h * w, C]` to logits `[B, h * w * factor^2, K]`."""
        pixels = self.norm(self.expand(x).unflatten(2, (self.factor**2, -1)))
        return arrange_cells(self.classify(pixels), grid, self.factor)


def arrange_cells(cells: Tensor, grid: Grid, factor: int) -> Tensor:
    """Arrange cells `[B, h * w, factor^2, D]` as tokens `[B, h * w * factor^2, D]` of a finer grid.

    The grid is (h, w), and each token has `factor` cells along each side.
    """
    cells = cells.unflatten(2, (factor, factor)).unflatten(1, grid)  # B h w p1 p2 D
    return cells.permute(0, 1, 3, 2, 4, 5).flatten(3, 4).flatten(1, 3)


def collect_cells(tokens: Tensor, grid: Grid, factor: int) -> Tensor:
    """Undo `arrange_cells`: collect tokens `[B, H * W, D]` of the finer grid (H, W) in cells."""
    rows: Tensor = tokens.unflatten(1, (grid[0] // factor, factor, grid[1] // factor, factor))
    return rows.transpose(2, 3).flatten(3, 4).flatten(1, 2)  # from B h p1 w p2 D
