"""Where attention goes, found from what a mixing does to its values; nothing else is asked of it.

With queries and keys as they are, every mixing is linear in the values. So the weight with which
query token i takes value token j is the derivative of its output by that value:

    d out_i / d v_j = w_ij I      where tokens are mixed (softmax and its kin, efficient),
    d out_i / d v_i = A           where channels are (transpose): no other token is reached.

One backward pass through `mixing(q, k, v)` gives row i of w, one forward pass with unit vectors as
values gives columns of it. Notation: see `attnseg.attention.attention`.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from attnseg.config.cost import find_attentions
from attnseg.models.model import SegmentationModel

Kind = Literal["tokens", "channels", "both"]
QUERIES = 256  # about the most that means are taken over: they cost queries x keys^2
TOLERANCE = 1e-4  # of the largest derivative: what is below is rounding


@dataclass(frozen=True)
class Site:
    """One attention of a model, and what went through it for one image.

    Attributes:
        name: of the module in the model.
        mix: the mixing.
        q: queries `[1, h, N, d]`: prefix tokens, then the grid in row-major order.
        k: keys `[1, h, M, d]`, likewise.
        v: values `[1, h, M, d]`.
        out: what the mixing made of them, `[1, h, N, d]`.
        grid: height and width of the grid of query tokens.
        stride: a key stands at every stride-th query, per axis.
    """

    name: str
    mix: nn.Module
    q: Tensor
    k: Tensor
    v: Tensor
    out: Tensor
    grid: tuple[int, int]
    stride: int

    @property
    def prefix(self) -> int:
        """Number of tokens before the grid: class tokens."""
        return self.q.shape[2] - self.grid[0] * self.grid[1]

    @property
    def key_grid(self) -> tuple[int, int]:
        """Height and width of the grid of keys."""
        return -(-self.grid[0] // self.stride), -(-self.grid[1] // self.stride)

    def token(self, point: tuple[int, int], shape: tuple[int, int]) -> int:
        """Return the query token, prefix included, that a pixel (row, column) of a slice is in."""
        row, column = (
            int((at + 0.5) * cells / pixels)
            for at, cells, pixels in zip(point, self.grid, shape, strict=True)
        )
        return self.prefix + row * self.grid[1] + column

    def places(self, cell: tuple[float, float], keys: bool) -> Tensor:
        """Return the centres of the grid's query or key tokens, `[n, 2]`.

        Args:
            cell: height and width of a query token, in the unit wanted.
            keys: whether those of keys are asked for.
        """
        step, grid = (self.stride, self.key_grid) if keys else (1, self.grid)
        rows, columns = (
            (torch.arange(count) * step + 0.5) * size
            for count, size in zip(grid, cell, strict=True)
        )
        return torch.cartesian_prod(rows, columns)


@dataclass(frozen=True)
class Reach:
    """What one query token takes, and from where.

    Attributes:
        kind: whether tokens are mixed, channels, or both at once.
        weights: of keys, `[h, M]`; of channels, `[h, d, d]`; if both are mixed, the size of the
            derivative by each value token, `[h, M]`.
        error: largest difference between the mixing's output and the one made of the derivative, as
            a share of the largest output.
    """

    kind: Kind
    weights: Tensor
    error: float


@torch.no_grad()
def record(model: SegmentationModel, image: Tensor) -> dict[str, Site]:
    """Run a model on an image `[1, C, H, W]` and return its attentions by name, in order.

    Args:
        model: in evaluation mode; is left as it was.
        image: on the model's device.
    """
    sites: dict[str, Site] = {}
    handles = []
    for name, attention in find_attentions(model).items():
        grids: list[tuple[int, int]] = []

        def ask(
            module: nn.Module,
            inputs: tuple[Any, ...],
            keywords: dict[str, Any],
            grids: list[tuple[int, int]] = grids,
        ) -> None:
            grids.append(inputs[1] if len(inputs) > 1 else keywords["grid"])

        def keep(
            mix: nn.Module,
            inputs: tuple[Tensor, Tensor, Tensor],
            out: Tensor,
            name: str = name,
            grids: list[tuple[int, int]] = grids,
        ) -> None:
            q, k, v = inputs
            sites[name] = Site(name, mix, q, k, v, out, grids[-1], _stride(q, k, grids[-1]))

        handles.append(attention.register_forward_pre_hook(ask, with_kwargs=True))
        handles.append(attention.mix.register_forward_hook(keep))
        attention.absorbs = False  # the values themselves are asked for
    try:
        model(image)
    finally:
        for attention in find_attentions(model).values():
            del attention.absorbs
        for handle in handles:
            handle.remove()
    return sites


def _stride(q: Tensor, k: Tensor, grid: tuple[int, int]) -> int:
    places = k.shape[2] - (q.shape[2] - grid[0] * grid[1])
    steps = range(1, max(grid) + 1)
    return next(s for s in steps if -(-grid[0] // s) * -(-grid[1] // s) == places)


def reach(site: Site, token: int) -> Reach:
    """Return what a query token takes, prefix tokens counted."""
    generator = torch.Generator().manual_seed(0)
    heads, _, width = site.v.shape[1:]
    # A direction of which no channel is like another: scaled, not turned, if tokens are mixed.
    along = torch.randn(heads, width, generator=generator).to(site.v)
    pulled = _pull(site, token, along)
    weights = (pulled @ along[..., None])[..., 0] / along.square().sum(1, keepdim=True)
    kind: Kind = "tokens"
    if _negligible(pulled - weights[..., None] * along[:, None], pulled):
        rebuilt = (weights[:, None] @ site.v[0])[:, 0]
    else:
        units = torch.eye(width).to(site.v)
        derivative = torch.stack([_pull(site, token, u.expand(heads, -1)) for u in units], 2)
        rebuilt = torch.einsum("hmcd,hmd->hc", derivative, site.v[0])
        others = torch.arange(derivative.shape[1]) != token
        if _negligible(derivative[:, others], derivative):
            kind, weights = "channels", derivative[:, token]
        else:
            kind, weights = "both", derivative.norm(dim=(2, 3)) / width**0.5
    out = site.out[0, :, token]
    error = (rebuilt - out).abs().max() / out.abs().max().clamp_min(torch.finfo(out.dtype).tiny)
    return Reach(kind, weights.cpu(), float(error))


def _pull(site: Site, token: int, along: Tensor) -> Tensor:
    """Return the derivative of a token's output along `[h, d]` by the values: `[h, M, d]`."""
    with torch.enable_grad():
        v = site.v.detach().requires_grad_()
        out = site.mix(site.q, site.k, v)[0, :, token]
        return torch.autograd.grad(out, v, along)[0][0]


def _negligible(rest: Tensor, whole: Tensor) -> bool:
    return rest.numel() == 0 or bool(rest.abs().max() <= TOLERANCE * whole.abs().max())


@torch.no_grad()
def columns(site: Site, queries: Tensor | None = None) -> Iterator[tuple[int, Tensor]]:
    """Yield the weights of queries, a few keys at a time, where tokens are mixed.

    Args:
        site: from `record`.
        queries: indices of those wanted, prefix tokens counted; `None` for all.

    Yields:
        The first key of the block, prefix tokens counted, and `[h, queries, keys of the block]`.
    """
    q = site.q if queries is None else site.q[:, :, queries]
    keys, width = site.v.shape[2:]
    for start in range(0, keys, width):
        at = torch.arange(min(width, keys - start))
        units = torch.zeros_like(site.v)
        units[..., start + at, at] = 1
        yield start, site.mix(q, site.k, units)[0, ..., : len(at)]


@torch.no_grad()
def sample(site: Site) -> Tensor | None:
    """Return the indices of some of the grid's queries, evenly taken, prefix tokens counted.

    Returns:
        `None` for all: where they are few, or the mixing does not treat each query by itself.
    """
    step = -(-site.grid[0] * site.grid[1] // QUERIES)
    if step <= 1:
        return None
    # Odd: an even one may meet the same columns only.
    some = torch.arange(site.prefix, site.q.shape[2], step | 1)
    try:
        out = site.mix(site.q[:, :, some], site.k, site.v)
    except (RuntimeError, ValueError):  # it wants them all
        return None
    expected = site.out[:, :, some]
    same = out.shape == expected.shape and _negligible(out - expected, expected)
    return some if same else None


@dataclass(frozen=True)
class Spread:
    """How far attention is spread, per head `[h]`; means over the query tokens of `sample`.

    Attributes:
        entropy: of the weights on the grid's keys, or on channels; bits.
        highest: entropy of equal weights, bits.
        distance: mean distance of the keys by weight, in the unit of the cell; 0 where no other
            token is reached.
        on_grid: sum of the weights on the grid's keys; the rest is on class tokens.
    """

    entropy: Tensor
    highest: float
    distance: Tensor
    on_grid: Tensor


def spread(site: Site, found: Reach, cell: tuple[float, float]) -> Spread | None:
    """Return how far a site's attention is spread; `None` where tokens and channels are mixed.

    Args:
        site: from `record`.
        found: what any of its tokens takes.
        cell: height and width of a query token, mm or pixels.
    """
    if found.kind == "both":
        return None
    if found.kind == "channels":
        entropy = _entropy(found.weights.abs()).mean(1)
        total = found.weights.sum(2).mean(1)
        highest = math.log2(found.weights.shape[2])
        return Spread(entropy, highest, torch.zeros_like(entropy), total)
    some = sample(site)
    rows = torch.arange(site.prefix, site.q.shape[2]) if some is None else some
    queries = site.places(cell, keys=False)[rows - site.prefix]
    keys = site.places(cell, keys=True)
    shape = (site.q.shape[1], len(queries))
    total, surprise, moved = torch.zeros(shape), torch.zeros(shape), torch.zeros(shape)
    for start, block in columns(site, some):
        first = max(site.prefix - start, 0)
        weights = (block[:, rows] if some is None else block)[..., first:].float().abs().cpu()
        at = start + first - site.prefix
        total += weights.sum(2)
        surprise -= torch.xlogy(weights, weights).sum(2)
        moved += (weights * torch.cdist(queries, keys[at : at + weights.shape[2]])).sum(2)
    # Of the weights' shares of their sum on the grid.
    entropy = (surprise / total + total.log()) / math.log(2)
    distance = moved / total
    return Spread(entropy.mean(1), math.log2(len(keys)), distance.mean(1), total.mean(1))


def _entropy(weights: Tensor) -> Tensor:
    shares = weights / weights.sum(-1, keepdim=True)
    return -torch.xlogy(shares, shares).sum(-1) / math.log(2)


def asymmetry(site: Site) -> Tensor | None:
    """Return how far from symmetric the scores S = Q K^T are, per head `[h]`, in time linear in N.

    Of the grid's tokens: the norm of (S - S^T) / 2 over that of S. 0 is symmetric, as in KV
    attention, where S = K K^T; independent queries and keys have 0.71. `None` where queries and
    keys stand on different grids.
    """
    if site.stride != 1:
        return None
    q, k = (tokens[0, :, site.prefix :].double() for tokens in (site.q, site.k))
    squares = ((q.mT @ q) * (k.mT @ k)).sum((1, 2))
    product = k.mT @ q
    with_own_transpose = (product * product.mT).sum((1, 2))
    return ((1 - with_own_transpose / squares) / 2).clamp_min(0).sqrt().cpu()


def scores(site: Site, most: int) -> Tensor | None:
    """Return the scores Q K^T of the grid's tokens, mean over heads: `[n, n]`.

    Args:
        site: from `record`.
        most: about the largest n; of more tokens, every second, third, ... is taken.

    Returns:
        `None` where queries and keys stand on different grids.
    """
    if site.stride != 1:
        return None
    step = -(-(site.q.shape[2] - site.prefix) // most)
    q, k = (tokens[0, :, site.prefix :: step] for tokens in (site.q, site.k))
    return (q @ k.mT).mean(0).cpu()
