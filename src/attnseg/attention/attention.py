"""Multi-head attention as three independent choices: sharing x gather x mixing.

- *sharing*: which of query, key and value share one projection. `none` is the usual QKV
  (Vaswani et al., 2017, arXiv 1706.03762); `qk` is the Key-Value transformer (Borji, 2023,
  arXiv 2305.19129); `k_v` and `single` are the other two sharings of its successor
  (arXiv 2606.04032). `factored` is `k_v` with two factors in the place of the queries' matrix, as
  in QVV (Gao, 2026, arXiv 2606.21848); see `attnseg.layers.factored`.
- *gather*: which tokens give keys and values. `none` takes all tokens; any other is a subclass of
  `Gather`, in a file of its own beside this one.
- *mixing*: how values are combined; a subclass of `Mixing`, in a file of its own beside this one.

Notation: B batch, N query tokens, M key tokens, C width, h heads, d = C / h head width.
"""

import importlib
import importlib.util
import inspect
import pkgutil
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

import attnseg.attention
from attnseg.attention.fused import AUTO, BACKENDS
from attnseg.attention.gather import Gather, Gathered
from attnseg.attention.mixing import Layout, Mixing
from attnseg.layers.factored import FactoredLinear
from attnseg.layers.narrow import narrow_once
from attnseg.layers.sight import Sees
from attnseg.layers.tokens import DEFAULT_PLACE, Grid, Place, TokenMixer
from attnseg.plugins import find_plugin

# The projection that query, key and value each use, by sharing.
SHARINGS: dict[str, dict[str, str]] = {
    "none": {"q": "q", "k": "k", "v": "v"},
    "qk": {"q": "qk", "k": "qk", "v": "v"},
    "k_v": {"q": "q", "k": "kv", "v": "kv"},
    "single": {"q": "qkv", "k": "qkv", "v": "qkv"},
    "factored": {"q": "q", "k": "kv", "v": "kv"},
}
ALL_TOKENS = "none"  # the gather that takes all tokens
NO_OPTIONS: Mapping[str, Any] = {}  # never changed


def list_parts(base: type[nn.Module]) -> list[str]:
    """Return the names of the mixings or gathers: the files of this folder that define one."""
    names = [module.name for module in pkgutil.iter_modules(attnseg.attention.__path__)]
    return sorted(name for name in names if _find_part(name, base))


def load_part(kind: str, name: str, base: type[nn.Module], options: Mapping[str, Any]) -> Any:  # noqa: ANN401
    """Return the class `SomeName` of the file `some_name.py`, whose options were checked.

    Args:
        kind: `mixing` or `gather`, for messages.
        name: name of the file; `my_plugin.some_name` is a file of a plugin, and `my_plugin` the
            plugin itself, if it is a single file.
        base: the class must be a subclass of it.
        options: what its constructor will be given beside the arguments of the base.

    Raises:
        ValueError: there is no such part, or it does not take one of the options.
    """
    part = _find_part(name, base)
    if part is None:
        known = list_parts(base) + ([ALL_TOKENS] if base is Gather else [])
        raise ValueError(f"unknown {kind} {name!r}; choose one of {', '.join(sorted(known))}")
    common = len(inspect.signature(base).parameters)
    known = list(inspect.signature(part).parameters)[common:]
    for option in options:
        if option not in known:
            raise ValueError(
                f"{kind} {name} has no option {option!r}; it takes {', '.join(known) or 'none'}"
            )
    return part


def _find_part(name: str, base: type[nn.Module]) -> type[nn.Module] | None:
    own = f"attnseg.attention.{name}"
    is_own = "." not in name and importlib.util.find_spec(own) is not None
    plugin = find_plugin(name)
    if is_own and plugin is not None:
        raise ValueError(f"{name!r} is the name of a plugin and of a part of attnseg; rename one")
    if not is_own and plugin is None:
        return None
    try:
        module = importlib.import_module(own if is_own else name)
    except ModuleNotFoundError as error:
        if error.name != name:
            raise
        return None
    words = name.rpartition(".")[2].split("_")
    part = getattr(module, "".join(word.capitalize() for word in words), None)
    is_part = isinstance(part, type) and issubclass(part, base) and part is not base
    # What a module merely imports is not reachable through it.
    return part if is_part and part.__module__ == module.__name__ else None


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


class Attention(TokenMixer):
    """Multi-head self- or cross-attention with a chosen sharing, gather and mixing.

    Queries keep every token; the gather, or without one the kind of projection, decides how many
    keys and values there are. If queries and keys share a projection with a stride, the keys are
    every stride-th query.

    Args:
        dim: C, the width of the tokens.
        num_heads: h; must divide `dim`.
        bias: whether the query, key and value projections have a bias.
        scale: factor of the scores; `None` is `d ** -0.5`.
        projection: makes a projection from `dim` and `bias`; `None` is `LinearProjection`.
        place: where in the model the attention stands.
        sharing: one of `SHARINGS`.
        mixing: name of a `Mixing`.
        mixing_options: the mixing's own options.
        gather: name of a `Gather`; `none` takes all tokens.
        gather_options: the gather's own options.
        backend: kernel that computes the attention, see `attnseg.attention.fused`; other choices
            than `auto` are for mixings that have it.

    Attributes:
        absorbs: whether `Mixing.absorbed` is used where it saves operations; if `False`, every
            value is computed.

    Raises:
        ValueError: `num_heads` does not divide `dim`; `sharing`, `mixing`, `gather` or `backend` is
            unknown; no fused kernel computes the mixing, and a backend is given; or the mixing
            needs all tokens as keys, and the gather changes them.
    """

    absorbs = True

    def __init__(
        self,
        dim: int,
        num_heads: int,
        bias: bool = True,
        scale: float | None = None,
        projection: Callable[[int, bool], nn.Module] | None = None,
        place: Place = DEFAULT_PLACE,
        sharing: str = "none",
        mixing: str = "softmax",
        mixing_options: dict[str, Any] | None = None,
        gather: str = ALL_TOKENS,
        gather_options: Mapping[str, Any] = NO_OPTIONS,
        backend: str = AUTO,
    ) -> None:
        super().__init__(dim, num_heads, bias, scale, projection, place)
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
        if sharing == "factored":
            project: Any = self.project["q"]
            project.linear = FactoredLinear(project.linear)
        options = mixing_options or {}
        make_mixing = load_part("mixing", mixing, Mixing, options)
        scale = head_dim**-0.5 if scale is None else scale
        self.mix = make_mixing(head_dim, num_heads, scale, place, **options)
        if backend not in BACKENDS:
            raise ValueError(f"unknown backend {backend!r}; choose one of {', '.join(BACKENDS)}")
        if backend != AUTO:
            if not self.mix.fused:
                raise ValueError(f"no fused kernel computes {mixing} mixing; use backend=auto")
            self.mix.backend = backend
        self.out = nn.Linear(dim, dim)
        self.gather: Gather | None = None
        if gather != ALL_TOKENS:
            if self.mix.equal_tokens:
                raise ValueError(f"mixing {mixing} needs all tokens as keys; use gather=none")
            make_gather = load_part("gather", gather, Gather, gather_options)
            self.gather = make_gather(dim, num_heads, place, **gather_options)
        elif gather_options:
            raise ValueError(f"gather none has no option {next(iter(gather_options))!r}")
        local = projection is not None or self.gather is not None
        self.needs_grid = local or self.mix.needs_grid

    def forward(
        self,
        x: Tensor,
        grid: Grid,
        context: Tensor | None = None,
        context_grid: Grid | None = None,
    ) -> Tensor:
        """Let every token of `x` attend; see `TokenMixer.forward`.

        Raises:
            ValueError: the mixing needs as many key as query tokens, and the context has others.
        """
        given, x = x, narrow_once(x)
        if context is not None:
            context = x if context is given else narrow_once(context)
        strided = self._is_strided()
        queried = self._projection("q")(x, grid, False)
        source = Gathered(x, grid)
        if context is not None and context is not x:
            source = Gathered(context, context_grid or (1, context.shape[1]))
        if self.gather is not None:
            source = self.gather(*source[:2], queried, grid)
        tokens = source.tokens
        self._check_number(x.shape[1], tokens.shape[1])
        q = self._heads(queried)
        k, v = q, q
        if self.reads["k"] != self.reads["q"] or tokens is not x:
            k = v = self._heads(self._projection("k")(tokens, source.grid, strided))
        elif strided and self._projection("k").stride != 1:
            k = v = self._heads(self._projection("k").thinned(queried, grid))
        prefixes = (x.shape[1] - grid[0] * grid[1], tokens.shape[1] - _area(source.grid))
        others = context is not None and context is not x
        layout = self._layout(grid, source, prefixes, strided, others)
        if self._may_absorb() and self._absorbed_macs(layout) > 0:
            value = self._projection("v").linear
            absorbed: Tensor = self.mix.absorbed(q, k, tokens, value, self.out)
            return absorbed
        if self.reads["v"] != self.reads["k"]:
            v = self._heads(self._projection("v")(tokens, source.grid, strided))
        mixed: Tensor = self.mix.finish(self.mix(q, k, v, layout))
        out: Tensor = self.out(mixed.transpose(1, 2).flatten(2))
        return out

    def predict_sight(self) -> Sees:
        """Return what the mixing declares, and the gather instead where it declares something."""
        return {**self.mix.sees, **({} if self.gather is None else self.gather.sees)}

    def diagnostics(self) -> dict[str, Tensor]:
        """Return those of the mixing; see `TokenMixer.diagnostics`."""
        named: dict[str, Tensor] = self.mix.diagnostics()
        return named

    def findings(self) -> list[str]:
        """Return those of the mixing; see `TokenMixer.findings`."""
        found: list[str] = self.mix.findings()
        return found

    def macs(
        self, tokens: int, grid: Grid, context: int | None = None, context_grid: Grid | None = None
    ) -> int:
        """Return the multiply-accumulates for one item; see `TokenMixer.macs`."""
        strided = self._is_strided()
        total: int = tokens * self.out.in_features * self.out.out_features
        total += self._projection("q").macs(tokens, grid, False)[0]
        source, source_grid = tokens, grid
        if context is not None:
            source, source_grid = context, context_grid or (1, context)
        if self.gather is not None:
            gathering, source, source_grid = self.gather.macs(source, source_grid)
            total += gathering
        self._check_number(tokens, source)
        # A projection that is shared with the queries is applied again to other tokens.
        others = context is not None or not (self.gather is None or self.gather.keeps_all)
        projections: Any = self.project.items()
        for name, projection in projections:
            if name in (self.reads["k"], self.reads["v"]) and (others or name != self.reads["q"]):
                total += projection.macs(source, source_grid, strided)[0]
        prefixes = (tokens - _area(grid), source - _area(source_grid))
        gathered = Gathered(torch.empty(0), source_grid)
        layout = self._layout(grid, gathered, prefixes, strided, context is not None)
        mixing: int = self.mix.macs(layout)
        return total + mixing - self._absorbed_macs(layout)

    def _check_number(self, queries: int, keys: int) -> None:
        """Raise a ValueError if the mixing does not take these numbers of tokens."""
        if self.mix.equal_tokens and queries != keys:
            raise ValueError(
                f"{type(self.mix).__name__} mixing needs as many query as key tokens, got "
                f"{queries} and {keys}"
            )

    def _is_strided(self) -> bool:
        """Return whether the projections may leave out keys; a gather decides that alone."""
        equal: bool = self.mix.equal_tokens
        return self.gather is None and not equal

    def _layout(
        self,
        grid: Grid,
        source: Gathered,
        prefixes: tuple[int, int],
        strided: bool,
        of_context: bool,
    ) -> Layout:
        """Return where queries and projected keys lie; the prefixes are theirs, in this order."""
        stride = self._projection("k").stride if strided else 1
        keys = (-(-source.grid[0] // stride), -(-source.grid[1] // stride))
        cell = source.cell * stride
        return Layout(grid, keys, *prefixes, cell, source.joined, source.positions, of_context)

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

    def _absorbed_macs(self, layout: Layout) -> int:
        """Return the saving where values have a linear projection of their own, 0 elsewhere."""
        project = self._projection("v")
        own = self.reads["v"] not in (self.reads["q"], self.reads["k"])
        if not own or not isinstance(project, LinearProjection):
            return 0
        saving: int = self.mix.absorbed_macs(layout, project.linear)
        return max(0, saving)

    def _projection(self, role: str) -> Any:  # noqa: ANN401
        return self.project[self.reads[role]]

    def _heads(self, projected: Tensor) -> Tensor:
        heads: Tensor = projected.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
        return heads


def _area(grid: Grid) -> int:
    return grid[0] * grid[1]
