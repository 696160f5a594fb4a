"""Parts of the Vision Transformer, for any attention.

Dosovitskiy et al., 2021, arXiv 2010.11929.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attnseg.layers.conv import resize


class QuickGELU(nn.Module):
    """Sigmoid approximation of GELU: `x sigmoid(s x)`, which is `silu(s x) / s`."""

    scale = 1.702  # s

    def forward(self, x: Tensor) -> Tensor:
        """Apply the activation to a tensor of any shape."""
        return F.silu(self.scale * x) / self.scale


class Mlp(nn.Module):
    """Two linear layers with an activation in between, applied to each token alone."""

    def __init__(
        self, dim: int, hidden_dim: int, dropout: float = 0.0, act: type[nn.Module] = nn.GELU
    ) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden_dim)
        self.act = act()
        self.fc2 = nn.Linear(hidden_dim, dim)
        self.drop = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Map tokens `[B, N, C]` to tokens of the same shape."""
        out: Tensor = self.drop(self.fc2(self.drop(self.act(self.fc1(x)))))
        return out


class DropPath(nn.Module):
    """Stochastic depth: drops the whole branch of random samples while training.

    Huang et al., 2016, arXiv 1603.09382.
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        """Set some samples of `[B, ...]` to zero and scale the others up."""
        if not self.training or self.rate == 0:
            return x
        kept = torch.rand(len(x), *[1] * (x.ndim - 1), device=x.device) >= self.rate
        return x * (kept / (1 - self.rate))


class Block(nn.Module):
    """Pre-norm transformer block: `x + attention(norm x)`, then `x + mlp(norm x)`.

    Args:
        dim: width of the tokens.
        attn: the attention of the block.
        norm_eps: epsilon of both norms.
        dropout: rate in the MLP.
        drop_path: rate at which a branch is dropped while training.
        act: activation of the MLP.
        mlp_ratio: hidden width of the MLP, as a multiple of `dim`.
    """

    def __init__(
        self,
        dim: int,
        attn: nn.Module,
        norm_eps: float,
        dropout: float = 0.0,
        drop_path: float = 0.0,
        act: type[nn.Module] = nn.GELU,
        mlp_ratio: float = 4.0,
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=norm_eps)
        self.attn = attn
        self.norm2 = nn.LayerNorm(dim, eps=norm_eps)
        self.mlp = Mlp(dim, round(mlp_ratio * dim), dropout, act)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor, grid: tuple[int, int]) -> Tensor:
        """Map tokens `[B, N, C]` on a grid of (height, width) tokens to the same shape."""
        x = x + self.drop_path(self.attn(self.norm1(x), grid))
        x = x + self.drop_path(self.mlp(self.norm2(x)))
        return x


class PatchTokens(nn.Module):
    """Cuts an image into tokens: strided convolution, optional class token, learned positions.

    Args:
        in_channels: channels of the image.
        dim: width of the tokens.
        patch_size: side of a patch, pixels.
        grid: height and width of the grid that the positions are learned for; they are
            interpolated bilinearly for images of another size.
        class_token: whether a learned token precedes the grid's.
    """

    def __init__(
        self, in_channels: int, dim: int, patch_size: int, grid: tuple[int, int], class_token: bool
    ) -> None:
        super().__init__()
        self.grid = grid
        self.proj = nn.Conv2d(in_channels, dim, patch_size, patch_size)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim)) if class_token else None
        self.pos_embed = nn.Parameter(torch.zeros(1, int(class_token) + grid[0] * grid[1], dim))
        nn.init.trunc_normal_(self.pos_embed, std=0.02)

    def forward(self, image: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """Cut `[B, C, H, W]`, in multiples of the patch size, into tokens on a grid (h, w).

        Returns:
            Tokens `[B, prefix + h * w, dim]` and the grid.
        """
        patches: Tensor = self.proj(image)
        grid = (patches.shape[2], patches.shape[3])
        # With the strides of the map, the norms of all blocks would take twice as long.
        tokens = patches.flatten(2).transpose(1, 2).contiguous()
        if self.cls_token is not None:
            tokens = torch.cat((self.cls_token.expand(image.shape[0], -1, -1), tokens), 1)
        return tokens + resize_positions(self.pos_embed, self.grid, grid), grid


@torch.no_grad()
def set_sine_positions(embed: PatchTokens) -> None:
    """Set the positions of a grid to sines and cosines of row and column, each in half the width.

    The angular frequencies fall from 1.5 per token by a factor of 8, so that neighbours differ
    clearly and positions as far apart as the grid is wide still differ. Training then goes on.
    """
    height, width = embed.grid
    quarter = embed.pos_embed.shape[2] // 4
    waves = 1.5 * 8.0 ** (-torch.arange(quarter) / quarter)
    rows, columns = (torch.arange(n)[:, None] * waves for n in embed.grid)
    prefix = embed.pos_embed.shape[1] - height * width
    grid = embed.pos_embed[0, prefix:].unflatten(0, embed.grid)
    for first, values in ((0, rows[:, None]), (2, columns[None])):
        for number, wave in enumerate((values.sin(), values.cos()), first):
            grid[..., number * quarter : (number + 1) * quarter] = wave


def resize_positions(pos_embed: Tensor, old: tuple[int, int], new: tuple[int, int]) -> Tensor:
    """Interpolate learned positions `[1, prefix + h * w, C]` from an old to a new grid (h, w)."""
    if old == new:
        return pos_embed
    prefix = pos_embed.shape[1] - old[0] * old[1]
    grid = pos_embed[:, prefix:].transpose(1, 2).unflatten(2, old)
    resized = resize(grid, new).flatten(2).transpose(1, 2)
    return torch.cat((pos_embed[:, :prefix], resized), 1)


def tokens_to_map(tokens: Tensor, grid: tuple[int, int]) -> Tensor:
    """Drop prefix tokens of `[B, prefix + h * w, C]` and lay the rest out as `[B, C, h, w]`."""
    if tokens.shape[1] != grid[0] * grid[1]:  # The gradient of any slice costs a copy.
        tokens = tokens[:, -grid[0] * grid[1] :]
    # `permute` tells PyTorch that even a single item is channels-last. After `transpose` and
    # `unflatten` its strides would not, and every convolution would copy it.
    patches: Tensor = tokens.unflatten(1, grid).permute(0, 3, 1, 2)
    return patches


def init_weights(module: nn.Module) -> None:
    """Initialise linear layers as ViT does: truncated normal of std 0.02, zero bias."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
