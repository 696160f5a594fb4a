"""Multi-head attention as two independent choices: what is projected, and how scores mix values.

- *sharing*: which of query, key and value share one projection. `none` is the usual QKV
  (Vaswani et al., 2017, arXiv 1706.03762); `qk` is the Key-Value transformer (Borji, 2023,
  arXiv 2305.19129); `k_v` and `single` are the other two sharings of its successor
  (arXiv 2606.04032).
- *mixing*: a `Mixing` module; the files beside this one hold one idea each.

Notation: B batch, N query tokens, M key tokens, C width, h heads, d = C / h head width.
"""

import importlib
import inspect
import pkgutil
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

import attnseg.attention
from attnseg.layers.linear import Linear

# The projection that each of query, key and value reads, by sharing.
SHARINGS: dict[str, dict[str, str]] = {
    "none": {"q": "q", "k": "k", "v": "v"},
    "qk": {"q": "qk", "k": "qk", "v": "v"},
    "k_v": {"q": "q", "k": "kv", "v": "kv"},
    "single": {"q": "qkv", "k": "qkv", "v": "qkv"},
}


class Mixing(nn.Module):
    """How queries and keys decide which values are mixed: `forward(q, k, v)`.

    A subclass in a file `attention/some_name.py` is called `SomeName` and is chosen by
    `mixing="some_name"`. Its constructor takes these three arguments, then options of its own.

    Args:
        head_dim: d, the width of one head.
        num_heads: h.
        scale: factor of the scores, for those mixings that have scores to scale.

    Attributes:
        equal_tokens: whether there must be as many query as key tokens.
    """

    equal_tokens = False

    def __init__(self, head_dim: int, num_heads: int, scale: float) -> None:
        super().__init__()
        self.head_dim = head_dim
        self.num_heads = num_heads
        self.scale = scale

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Mix values.

        Args:
            q: queries `[B, h, N, d]`.
            k: keys `[B, h, M, d]`.
            v: values `[B, h, M, d]`.

        Returns:
            Mixed values `[B, h, N, d]`.
        """
        raise NotImplementedError

    def macs(self, queries: int, keys: int) -> int:
        """Return the multiply-accumulates of `forward` for one item of N queries and M keys.

        Matrix products only, as counters count them; by default scores and their use on values.
        """
        return 2 * self.num_heads * queries * keys * self.head_dim

    def absorbed(
        self, q: Tensor, k: Tensor, tokens: Tensor, value: nn.Linear, out: nn.Linear
    ) -> Tensor:
        """Project tokens to values, mix them, and project the result, in another order.

        What is linear may be multiplied in any order, and a mixing that does not form scores of
        N x M can meet the weights first. Only called where `absorbed_macs` is above 0.

        Args:
            q: queries `[B, h, N, d]`.
            k: keys `[B, h, M, d]`.
            tokens: `[B, M, C]`, that values are projected from.
            value: the projection to values.
            out: the projection of what is mixed.

        Returns:
            `[B, N, C]`, as `out` of the heads of `forward(q, k, value(tokens))`.
        """
        raise NotImplementedError

    def absorbed_macs(self, queries: int, keys: int, value: nn.Linear) -> int:
        """Return how many multiply-accumulates `absorbed` saves for one item; by default none."""
        return 0


def mixing_class(name: str) -> type[Mixing]:
    """Return the mixing called `name`: class `SomeName` of the file `some_name.py`.

    Raises:
        ValueError: there is no such mixing; the message lists those there are.
    """
    class_name = "".join(part.capitalize() for part in name.split("_"))
    known = sorted(module.name for module in pkgutil.iter_modules(attnseg.attention.__path__))
    known.remove("attention")
    if name not in known:
        raise ValueError(f"unknown mixing {name!r}; choose one of {', '.join(known)}")
    found: type[Mixing] = getattr(importlib.import_module(f"attnseg.attention.{name}"), class_name)
    return found


def make_mixing(
    name: str, head_dim: int, num_heads: int, scale: float, options: dict[str, Any]
) -> Mixing:
    """Build the mixing called `name`; other arguments as in `Mixing` and `Attention`.

    Raises:
        ValueError: no such mixing, or an option it does not take.
    """
    found = mixing_class(name)
    known = list(inspect.signature(found).parameters)[3:]
    for option in options:
        if option not in known:
            raise ValueError(
                f"mixing {name} has no option {option!r}; it takes {', '.join(known) or 'none'}"
            )
    return found(head_dim, num_heads, scale, **options)


class LinearProjection(nn.Module):
    """Projects each token by itself.

    A projection of another kind has the same methods and a `stride`. If that is above 1, `forward`
    can return fewer tokens, and `thinned(projected, grid)` picks those of them from all.

    Args:
        dim: C, width of the tokens in and out.
        bias: whether it has one.
    """

    stride = 1

    def __init__(self, dim: int, bias: bool) -> None:
        super().__init__()
        self.linear = Linear(dim, dim, bias)

    def forward(self, tokens: Tensor, grid: tuple[int, int], strided: bool) -> Tensor:
        """Project tokens `[B, N, C]` on a grid (h, w), fewer of them if `strided`."""
        projected: Tensor = self.linear(tokens)
        return projected

    def macs(self, tokens: int, grid: tuple[int, int], strided: bool) -> tuple[int, int]:
        """Return the multiply-accumulates for one item, and how many tokens come out."""
        return tokens * self.linear.in_features * self.linear.out_features, tokens


class Attention(nn.Module):
    """Multi-head self- or cross-attention with a chosen sharing and mixing.

    Queries keep every token; keys and values are as many as the kind of projection makes them. If
    queries and keys share a projection with a stride, keys are every stride-th of the queries.

    Args:
        dim: C, the width of the tokens.
        num_heads: h; must divide `dim`.
        bias: whether the query, key and value projections have a bias.
        scale: factor of the scores; `None` is `d ** -0.5`.
        projection: makes a projection from `dim` and `bias`; `None` is `LinearProjection`.
        sharing: one of `SHARINGS`.
        mixing: name of a `Mixing`.
        mixing_options: what the mixing's constructor takes beside head width, heads and scale.

    Attributes:
        absorbs: whether a mixing may meet the weights first, where that takes fewer operations.

    Raises:
        ValueError: `num_heads` does not divide `dim`, or `sharing` or `mixing` is unknown.
    """

    absorbs = True

    def __init__(
        self,
        dim: int,
        num_heads: int,
        bias: bool = True,
        scale: float | None = None,
        projection: Callable[[int, bool], nn.Module] | None = None,
        sharing: str = "none",
        mixing: str = "softmax",
        mixing_options: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        if num_heads < 1 or dim % num_heads:
            valid = [h for h in range(1, dim + 1) if dim % h == 0]
            nearest = sorted(sorted(valid, key=lambda h: abs(h - num_heads))[:2])
            raise ValueError(
                f"num_heads {num_heads} does not divide the width {dim}; "
                f"nearest: {' or '.join(map(str, nearest))}"
            )
        if sharing not in SHARINGS:
            raise ValueError(f"unknown sharing {sharing!r}; choose one of {', '.join(SHARINGS)}")
        self.num_heads = num_heads
        head_dim = dim // num_heads
        self.reads = SHARINGS[sharing]
        make = projection or LinearProjection
        self.project = nn.ModuleDict(
            {name: make(dim, bias) for name in dict.fromkeys(self.reads.values())}
        )
        self.mix = make_mixing(
            mixing, head_dim, num_heads, scale or head_dim**-0.5, mixing_options or {}
        )
        self.out = Linear(dim, dim)

    def forward(self, x: Tensor, grid: tuple[int, int], context: Tensor | None = None) -> Tensor:
        """Let every token of `x` attend.

        Args:
            x: tokens `[B, N, C]`; any prefix tokens first, then the grid in row-major order.
            grid: height and width of the grid of tokens.
            context: tokens `[B, M, C]` that give keys and values; `None` is `x` itself.

        Returns:
            Attended tokens `[B, N, C]`.
        """
        memory = x if context is None else context
        strided = not self.mix.equal_tokens
        queried = self._project("q", x, grid, False)
        q = self._heads(queried)
        k, v = q, q
        if self.reads["k"] != self.reads["q"] or memory is not x:
            k = v = self._heads(self._project("k", memory, grid, strided))
        elif strided and self._projection("k").stride != 1:
            k = v = self._heads(self._projection("k").thinned(queried, grid))
        # Exported graphs keep their weights as factors of their own, which can be 8-bit numbers.
        absorbs = self.absorbs and not torch.compiler.is_exporting()
        if absorbs and self._absorbed_macs(q.shape[2], k.shape[2]) > 0:
            value = self._projection("v").linear
            absorbed: Tensor = self.mix.absorbed(q, k, memory, value, self.out)
            return absorbed
        if self.reads["v"] != self.reads["k"]:
            v = self._heads(self._project("v", memory, grid, strided))
        mixed: Tensor = self.mix(q, k, v)
        out: Tensor = self.out(mixed.transpose(1, 2).flatten(2))
        return out

    def macs(self, tokens: int, grid: tuple[int, int]) -> int:
        """Return the multiply-accumulates of self-attention for one item, in closed form.

        Args:
            tokens: N, prefix tokens included.
            grid: height and width of the grid of tokens.
        """
        strided = not self.mix.equal_tokens
        total = tokens * self.out.in_features * self.out.out_features
        projections: Any = self.project.items()
        for name, projection in projections:
            total += projection.macs(tokens, grid, strided and name != self.reads["q"])[0]
        keys = self._projection("k").macs(tokens, grid, strided)[1]
        return total + self.mix.macs(tokens, keys) - self._absorbed_macs(tokens, keys)

    def _absorbed_macs(self, queries: int, keys: int) -> int:
        """Return what is saved where values have a linear projection of their own, 0 elsewhere."""
        project = self.project[self.reads["v"]]
        own = self.reads["v"] not in (self.reads["q"], self.reads["k"])
        if not own or not isinstance(project, LinearProjection):
            return 0
        return max(0, self.mix.absorbed_macs(queries, keys, project.linear))

    def _projection(self, role: str) -> Any:  # noqa: ANN401
        return self.project[self.reads[role]]

    def _project(self, role: str, tokens: Tensor, grid: tuple[int, int], strided: bool) -> Tensor:
        projected: Tensor = self._projection(role)(tokens, grid, strided)
        return projected

    def _heads(self, projected: Tensor) -> Tensor:
        heads: Tensor = projected.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
        return heads
