"""Multi-head attention as two independent choices: shared projections, and the mixing of values.

- *sharing*: which of query, key and value share one projection. `none` is the usual QKV
  (Vaswani et al., 2017, arXiv 1706.03762); `qk` is the Key-Value transformer (Borji, 2023,
  arXiv 2305.19129); `k_v` and `single` are the other two sharings of its successor
  (arXiv 2606.04032).
- *mixing*: a subclass of `Mixing`, each in a file of its own beside this one.

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
from attnseg.attention.mixing import Mixing

# The projection that query, key and value each use, by sharing.
SHARINGS: dict[str, dict[str, str]] = {
    "none": {"q": "q", "k": "k", "v": "v"},
    "qk": {"q": "qk", "k": "qk", "v": "v"},
    "k_v": {"q": "q", "k": "kv", "v": "kv"},
    "single": {"q": "qkv", "k": "qkv", "v": "qkv"},
}


def list_mixings() -> list[str]:
    """Return the names of the mixings: the files of this folder that define one."""
    files = {module.name for module in pkgutil.iter_modules(attnseg.attention.__path__)}
    return sorted(files - {"attention", "mixing"})


def make_mixing(
    name: str, head_dim: int, num_heads: int, scale: float, options: dict[str, Any]
) -> Mixing:
    """Build the mixing called `name`, class `SomeName` of the file `some_name.py`.

    Raises:
        ValueError: there is no such mixing, or it does not take one of the options.
    """
    if name not in list_mixings():
        raise ValueError(f"unknown mixing {name!r}; choose one of {', '.join(list_mixings())}")
    class_name = "".join(part.capitalize() for part in name.split("_"))
    cls: type[Mixing] = getattr(importlib.import_module(f"attnseg.attention.{name}"), class_name)
    known = list(inspect.signature(cls).parameters)[3:]
    for option in options:
        if option not in known:
            raise ValueError(
                f"mixing {name} has no option {option!r}; it takes {', '.join(known) or 'none'}"
            )
    return cls(head_dim, num_heads, scale, **options)


class LinearProjection(nn.Module):
    """Projects each token by itself.

    Other kinds of projection have the same methods and a `stride`. If the stride is above 1,
    `forward` can return fewer tokens, and `thinned(projected, grid)` selects the same tokens from
    the projection of all of them.

    Args:
        dim: C, width of the tokens in and out.
        bias: whether the projection has a bias.
    """

    stride = 1

    def __init__(self, dim: int, bias: bool) -> None:
        super().__init__()
        self.linear = nn.Linear(dim, dim, bias)

    def forward(self, tokens: Tensor, grid: tuple[int, int], strided: bool) -> Tensor:
        """Project tokens `[B, N, C]` on a grid (h, w); `strided` asks for fewer tokens."""
        projected: Tensor = self.linear(tokens)
        return projected

    def macs(self, tokens: int, grid: tuple[int, int], strided: bool) -> tuple[int, int]:
        """Return the multiply-accumulates for one item, and how many tokens come out."""
        return tokens * self.linear.in_features * self.linear.out_features, tokens


class Attention(nn.Module):
    """Multi-head self- or cross-attention with a chosen sharing and mixing.

    Queries keep every token; the kind of projection decides how many keys and values there are. If
    queries and keys share a projection with a stride, the keys are every stride-th query.

    Args:
        dim: C, the width of the tokens.
        num_heads: h; must divide `dim`.
        bias: whether the query, key and value projections have a bias.
        scale: factor of the scores; `None` is `d ** -0.5`.
        projection: makes a projection from `dim` and `bias`; `None` is `LinearProjection`.
        sharing: one of `SHARINGS`.
        mixing: name of a `Mixing`.
        mixing_options: the mixing's own options, beside head width, heads and scale.

    Attributes:
        absorbs: whether `Mixing.absorbed` is used where it saves operations; if `False`, every
            value is computed.

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
        self.out = nn.Linear(dim, dim)

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
        queried = self._projection("q")(x, grid, False)
        q = self._heads(queried)
        k, v = q, q
        if self.reads["k"] != self.reads["q"] or memory is not x:
            k = v = self._heads(self._projection("k")(memory, grid, strided))
        elif strided and self._projection("k").stride != 1:
            k = v = self._heads(self._projection("k").thinned(queried, grid))
        if self._may_absorb() and self._absorbed_macs(q.shape[2], k.shape[2]) > 0:
            value = self._projection("v").linear
            absorbed: Tensor = self.mix.absorbed(q, k, memory, value, self.out)
            return absorbed
        if self.reads["v"] != self.reads["k"]:
            v = self._heads(self._projection("v")(memory, grid, strided))
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

    def _may_absorb(self) -> bool:
        """Return whether the weights may be used without calling their layers.

        A layer with a hook, an adapter or 8-bit weights must be called; so must the layers of an
        exported graph, whose weights may be made 8-bit numbers later.
        """
        if not self.absorbs or torch.compiler.is_exporting():
            return False
        project = self._projection("v")
        return isinstance(project, LinearProjection) and all(
            type(layer) is nn.Linear and not layer._forward_hooks and not layer._forward_pre_hooks
            for layer in (project.linear, self.out)
        )

    def _absorbed_macs(self, queries: int, keys: int) -> int:
        """Return the saving where values have a linear projection of their own, 0 elsewhere."""
        project = self._projection("v")
        own = self.reads["v"] not in (self.reads["q"], self.reads["k"])
        if not own or not isinstance(project, LinearProjection):
            return 0
        return max(0, self.mix.absorbed_macs(queries, keys, project.linear))

    def _projection(self, role: str) -> Any:  # noqa: ANN401
        return self.project[self.reads[role]]

    def _heads(self, projected: Tensor) -> Tensor:
        heads: Tensor = projected.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
        return heads
