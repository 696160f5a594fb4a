"""Writes a page per attention: `python scripts/attention_pages.py [ATTENTION ...]`.

The pages in docs/attentions/ have the definition, the reach, the cost and the options of each
attention, from its YAML file and the docstrings of its classes. The index is always of all
attentions; in the table of costs in docs/benchmarks.md, the rows of the others are kept.
"""

import functools
import inspect
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from matplotlib import colormaps
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from attnseg.attention.attention import ALL_TOKENS, SHARINGS, Attention, load_part
from attnseg.attention.gather import Gather
from attnseg.attention.mixing import Mixing
from attnseg.config import cost
from attnseg.config.budget import build_model
from attnseg.config.build import ATTENTION, factory, locate
from attnseg.config.components import attention_component, model_nodes
from attnseg.config.folder import (
    NO_ATTENTION,
    attentions_of,
    configs_folder,
    list_attentions,
    list_choices,
)
from attnseg.config.nodes import Component
from attnseg.explain.attention_pictures import weights_as_image
from attnseg.explain.jacobian import derive_weights
from attnseg.explain.recording import record_attentions
from attnseg.layers.tokens import Place, TokenMixer

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = DOCS / "attentions"
GRID, DIM, HEADS, SEEDS = (14, 14), 64, 4, 5  # of the pictures
TOKEN_PIXELS = 12
LEVELS = 23  # of brightness; few make small files
OUTLINE, WHITE = 254, 255  # colours of the palette; those before are of the map
COST_DIM, COST_HEADS = 768, 12
COST_SIDES = (14, 28, 56, 112)
IMAGE = (3, 224, 224)
CLASSES = 9
BEGIN, END = "<!-- Written by scripts/attention_pages.py. -->", "<!-- End. -->"
SHARED = {
    "none": "three projections",
    "qk": "queries and keys share one",
    "k_v": "keys and values share one",
    "single": "one for all three",
    "factored": "keys and values share one, and queries have two factors",
}
PROJECTIONS = {
    "qk": "Queries are keys: Q = K = X Wk, V = X Wv.",
    "k_v": "Keys are values: Q = X Wq, K = V = X Wv.",
    "single": "Queries, keys and values are the same: Q = K = V = X Wv.",
    "factored": "Keys are values, and queries have two factors: Q = X W1 W2, K = V = X Wv.",
}


def main() -> None:
    """Write the named pages, or all, and every table."""
    (PAGES / "images").mkdir(parents=True, exist_ok=True)
    names = sys.argv[1:] or list_attentions()
    for name in names:
        lines = draw_reach(name, PAGES / "images" / f"{name}.png")
        (PAGES / f"{name}.md").write_text(write_page(name, lines))
    (PAGES / "README.md").write_text(write_index())
    page = DOCS / "benchmarks.md"
    before, rest = page.read_text(encoding="utf-8").split(BEGIN)
    kept, after = rest.split(END)
    table = "\n".join(cost_table({} if names == list_attentions() else _rows_by_name(kept, names)))
    page.write_text(f"{before}{BEGIN}\n\n{table}\n\n{END}{after}")


def _rows_by_name(table: str, names: list[str]) -> dict[str, str]:
    """Return the rows of a table of costs by attention, without the named ones."""
    rows = {match[1]: match[0] for match in re.finditer(r"^\| \[`(\w+)`\].*$", table, re.MULTILINE)}
    return {name: row for name, row in rows.items() if name not in names}


def write_page(name: str, reach: list[str]) -> str:
    """Return the page of an attention; the lines about its reach are given."""
    node = _component(name)
    return "\n".join(
        [
            f"# `attn={name}`",
            "",
            *_comment_lines(name),
            "",
            *_parts_table(node),
            "",
            "## Definition",
            "",
            *_definition(node),
            "## Reach",
            "",
            f"![Weights of the middle token in two blocks](images/{name}.png)",
            "",
            *reach,
            "",
            "How the picture was made: [index](README.md#reach).",
            "",
            "## Cost",
            "",
            *_cost_of_one(name),
            "",
            "## Options",
            "",
            *_options(name),
            "",
        ]
    )


def write_index() -> str:
    """Return the page that lists all attentions and where models use them."""
    side = COST_SIDES[-1]
    rows = []
    for name in list_attentions():
        node = _component(name)
        small, large = (mixer_cost(name, s)[0] / mixer_cost("qkv", s)[0] for s in (14, side))
        parameters = mixer_cost(name, 14)[1] / mixer_cost("qkv", 14)[1]
        choices = " | ".join(_choices(node))
        rows.append(
            f"| [`{name}`]({name}.md) | {_markdown(_comment(name)[0])} | {choices} | "
            f"{small:.2f} | {large:.3g} | {parameters:.2f} |"
        )
    return "\n".join(
        [
            "# Attentions",
            "",
            "Every attention goes into every model that has one: `attn=NAME`. Most are a "
            "combination of *sharing* x *gather* x *mixing*,",
            "three choices that can be made one by one (`attn.sharing=qk`, `attn.gather=...`, "
            "`attn.mixing=...`): which of query, key and value",
            "share a projection, which tokens give keys and values, and how values are combined. "
            "The others replace the attention as a whole.",
            "",
            '<div class="described" markdown>',
            "",
            "| `attn=` | | sharing | gather | mixing | MACs at 196 tokens | at 12,544 tokens | "
            "parameters |",
            "|---|---|---|---|---|---|---|---|",
            *rows,
            "",
            "</div>",
            "",
            f"Costs are shares of those of `qkv`, at a width of {COST_DIM} with {COST_HEADS} "
            "heads, projections included, in block 0.",
            "What whole models cost: [benchmarks.md](../benchmarks.md#what-each-attention-costs).",
            "",
            "## Reach",
            "",
            f"Each page shows which tokens the middle token of a {GRID[0]} x {GRID[1]} grid takes "
            "from in blocks 0 and 1 (left and right), before any training:",
            f"random weights, random tokens, a width of {DIM} with {HEADS} heads; the mean over "
            f"heads and {SEEDS} draws. The token has a blue outline, brightness is the root of a",
            "weight's share of the largest one. *Reached* are keys whose weight is not exactly 0; "
            "*effectively* is 2 to the power of the entropy in bits.",
            "The weights are the exact ones of [attention_maps.md](../attention_maps.md): "
            "derivatives by values, or Jacobians where there are none.",
            "",
            "## Where models use them",
            "",
            *_sites_table(),
            "",
            "Sites at published sizes and 224 x 224 pixels. A `*` stands for a number.",
            "",
            "These pages are written by `python scripts/attention_pages.py` from YAML files and "
            "docstrings.",
            "",
        ]
    )


def cost_table(kept: Mapping[str, str]) -> Iterator[str]:
    """Yield parameters and MACs of every model with every attention, at published sizes.

    Rows that are kept are not computed again.
    """
    models = [name for name in list_choices("model") if attentions_of(name) == list_attentions()]
    titles = (f"{model}: parameters | GMACs (attention)" for model in models)
    yield f"| attention | {' | '.join(titles)} |"
    yield "|---" * (1 + 2 * len(models)) + "|"
    for attn in list_attentions():
        if attn in kept:
            yield kept[attn]
            continue
        cells = []
        for model in models:
            parameters, macs, own = model_cost(model, attn)
            cells.append(f"{parameters:,} | {macs / 1e9:.2f} ({own / 1e9:.2f})")
        yield f"| [`{attn}`](attentions/{attn}.md) | {' | '.join(cells)} |"
    yield from ("", "| model without attention | parameters | GMACs |", "|---|---|---|")
    for model in list_choices("model"):
        if model not in models:
            parameters, macs, _ = model_cost(model, NO_ATTENTION)
            yield f"| `{model}` | {parameters:,} | {macs / 1e9:.2f} |"


def model_cost(model: str, attn: str) -> tuple[int, int, int]:
    """Return parameters, MACs and MACs of attention, whose closed form must be what is counted."""
    network = _build(model, attn)
    macs, closed, counted = cost.count_all_macs(network, IMAGE)
    if closed != counted:
        raise ValueError(f"{model} with {attn}: {closed:,} MACs by formula, {counted:,} counted")
    return cost.count_parameters(network)["total"], macs, closed


@functools.cache
def mixer_cost(name: str, side: int) -> tuple[int, int]:
    """Return MACs and parameters of one attention on a square grid."""
    with torch.device("meta"):
        mixer = _make(name, COST_DIM, COST_HEADS, Place(0, 0, (side, side)))
    return mixer.macs(side * side, (side, side)), sum(p.numel() for p in mixer.parameters())


def draw_reach(name: str, path: Path) -> list[str]:
    """Draw what the middle token takes from in two blocks; return a line about each."""
    size = (GRID[0] * TOKEN_PIXELS, GRID[1] * TOKEN_PIXELS)
    maps = np.zeros((2, *size))
    counts = np.zeros((2, 3))
    kinds = ["", ""]
    for seed in range(SEEDS):
        torch.manual_seed(seed)
        network: Any = TwoBlocks(name).eval()
        records = record_attentions(network, torch.randn(1, GRID[0] * GRID[1], DIM))
        for block, record in enumerate(records.values()):
            token = record.token_at((size[0] // 2, size[1] // 2), size)
            found = derive_weights(record, token)
            kinds[block], shares = found.kind, found.shares
            if found.kind == "channels":  # No token takes from another one.
                shares = torch.eye(record.layout.key_tokens)[token][None]
            maps[block] += weights_as_image(shares.numpy(), record, size) / SEEDS
            counts[block] += np.array(_count_keys(shares)) / SEEDS
    _save(maps, path)
    lines = []
    for block, (kind, (keys, reached, effective)) in enumerate(zip(kinds, counts, strict=True)):
        text = f"{reached:.0f} of {keys:.0f} keys reached, {effective:.0f} effectively"
        if kind == "channels":
            text = "channels are mixed, and no token takes values of another"
        how = " (Jacobian)" if kind == "jacobian" else ""
        lines.append(f"- Block {block}{how}: {text}.")
    return lines


class TwoBlocks(nn.Module):
    """The attentions of two successive blocks, each called with the same tokens."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.mixers = nn.ModuleList(_make(name, DIM, HEADS, Place(0, i, GRID)) for i in range(2))

    def forward(self, tokens: Tensor) -> None:
        """Call both."""
        for mixer in self.mixers:
            mixer(tokens, GRID)


def _count_keys(shares: Tensor) -> tuple[float, float, float]:
    """Return the number of keys, of those reached, and of those that count, as means of heads."""
    shares = shares / shares.sum(1, keepdim=True)
    effective = (-torch.xlogy(shares, shares).sum(1)).exp().nanmean()
    return shares.shape[1], float(shares.count_nonzero(1).float().mean()), float(effective)


def _save(maps: NDArray[np.float64], path: Path) -> None:
    """Save maps beside each other, with an outline around the middle token.

    Brightness is the root of a weight, so that small ones can be seen beside large ones.
    """
    panels = []
    for image in maps:
        panel = np.round((image / image.max()) ** 0.5 * LEVELS) * ((OUTLINE - 1) // LEVELS)
        panel = panel.astype(np.uint8)
        top, left = (n // 2 * TOKEN_PIXELS for n in GRID)
        square = np.zeros(panel.shape, bool)
        square[top : top + TOKEN_PIXELS, left : left + TOKEN_PIXELS] = True
        square[top + 2 : top + TOKEN_PIXELS - 2, left + 2 : left + TOKEN_PIXELS - 2] = False
        panel[square] = OUTLINE
        panels += [panel, np.full((len(panel), TOKEN_PIXELS), WHITE, np.uint8)]
    picture = Image.fromarray(np.hstack(panels[:-1]), "P")
    colours = np.round(colormaps["inferno"](np.arange(OUTLINE) / (OUTLINE - 1))[:, :3] * 255)
    picture.putpalette([*colours.astype(int).ravel().tolist(), 64, 200, 255, 255, 255, 255])
    picture.save(path, optimize=True)


@functools.cache
def _component(name: str) -> Component:
    return attention_component(name)


def _make(name: str, dim: int, heads: int, place: Place) -> TokenMixer:
    make = factory("attn", _component(name), ATTENTION)
    mixer: TokenMixer = make(dim=dim, num_heads=heads, place=place)
    return mixer


def _build(model: str, attn: str | None) -> Any:  # noqa: ANN401
    node, own = model_nodes(model, attn)
    with torch.device("meta"):
        return build_model(node, own, IMAGE[0], CLASSES, IMAGE[1:])


def _comment(name: str) -> list[str]:
    """Return the lines of comment at the top of an attention's YAML file."""
    lines = (configs_folder() / "attn" / f"{name}.yaml").read_text(encoding="utf-8").splitlines()
    count = next(i for i, line in enumerate(lines) if not line.startswith("#"))
    return [line.removeprefix("# ") for line in lines[:count]]


def _comment_lines(name: str) -> list[str]:
    first, *rest = _comment(name)
    return [_markdown(first), *("\n" + re.sub(r"(attn=.*)", r"`\1`", line) for line in rest)]


def _choices(node: Component) -> tuple[str, ...]:
    """Return sharing, gather and mixing, or what stands in their place."""
    if locate("attn", node.target) is not Attention:
        return "-", "-", "-"
    own = {"sharing": "none", "gather": ALL_TOKENS, "mixing": "softmax", **node.options}
    return tuple(f"`{own[key]}`" for key in ("sharing", "gather", "mixing"))


def _parts_table(node: Component) -> list[str]:
    target = locate("attn", node.target)
    if target is not Attention:
        kind = "function that makes a mixer" if inspect.isfunction(target) else "mixer of its own"
        return [f"A {kind}: {_source_link(target, node.target.rpartition('.')[2])}."]
    sharing, gather, mixing = (choice.strip("`") for choice in _choices(node))
    parts = {base: part for part, base in _loaded(node)}
    linked = _source_link(parts[Gather], gather) if Gather in parts else "`none`: all tokens"
    return [
        "| sharing | gather | mixing |",
        "|---|---|---|",
        f"| `{sharing}`: {SHARED[sharing]} | {linked} | {_source_link(parts[Mixing], mixing)} |",
    ]


def _loaded(node: Component) -> Iterator[tuple[type[nn.Module], type[nn.Module]]]:
    """Yield the classes of mixing and gather, each with its base."""
    assert set(SHARED) == set(SHARINGS)
    for kind, base in (("mixing", Mixing), ("gather", Gather)):
        name = node.options.get(kind, "softmax" if base is Mixing else ALL_TOKENS)
        if name != ALL_TOKENS:
            yield load_part(kind, name, base, node.options.get(f"{kind}_options", {})), base


def _source_link(part: Callable[..., Any], name: str) -> str:
    return f"[`{name}`](../../src/{part.__module__.replace('.', '/')}.py)"


def _definition(node: Component) -> list[str]:
    target = locate("attn", node.target)
    parts = [part for part, _ in _loaded(node)] if target is Attention else [target]
    lines = []
    if target is Attention and (shared := PROJECTIONS.get(_choices(node)[0].strip("`"))):
        lines += [f"{shared} [The KV line](../kv_line.md) describes every way of sharing."]
    for part in parts:
        module = inspect.cleandoc(sys.modules[part.__module__].__doc__ or "")
        own = inspect.cleandoc(part.__doc__ or "").split("\nArgs:")[0].split("\nRaises:")[0]
        for text in (module, own):
            lines += [_paragraph(block) for block in text.strip().split("\n\n")]
    return [line for block in lines for line in (block, "")]


def _paragraph(block: str) -> str:
    """Return a paragraph of a docstring as Markdown; equations are indented in both."""
    return block if block.startswith("    ") else _markdown(block)


def _markdown(text: str) -> str:
    """Escape what Markdown would take for markup, outside of code, and link sources."""
    pieces = text.split("`")
    for at in range(0, len(pieces), 2):
        plain = re.sub(r"([*_<|])", r"\\\1", pieces[at])
        pieces[at] = re.sub(r"\b(\d{4}\.\d{4,5})\b", r"[\1](https://arxiv.org/abs/\1)", plain)
    return "`".join(pieces)


def _cost_of_one(name: str) -> list[str]:
    macs = [mixer_cost(name, side)[0] for side in COST_SIDES]
    shares = [own / mixer_cost("qkv", s)[0] for own, s in zip(macs, COST_SIDES, strict=True)]
    parameters = mixer_cost(name, 14)[1]
    share = parameters / mixer_cost("qkv", 14)[1]
    return [
        "| tokens | " + " | ".join(f"{side**2:,}" for side in COST_SIDES) + " |",
        "|---" * (1 + len(macs)) + "|",
        "| GMACs | " + " | ".join(f"{own / 1e9:.3g}" for own in macs) + " |",
        "| of `qkv`'s | " + " | ".join(f"{own:.3g}" for own in shares) + " |",
        "",
        f"One attention of width {COST_DIM} with {COST_HEADS} heads in block 0, projections "
        f"included; {parameters:,} parameters at 196 tokens, {share:.2f} of `qkv`'s.",
    ]


def _nested(name: str) -> dict[str, str]:
    """Return the attentions that another one is made of, by option."""
    node = yaml.safe_load((configs_folder() / "attn" / f"{name}.yaml").read_text(encoding="utf-8"))
    entries = [entry for entry in node.get("defaults", []) if isinstance(entry, dict)]
    return {key.rpartition("@")[2]: f"`{own}`" for e in entries for key, own in e.items()}


def _options(name: str) -> list[str]:
    node = _component(name)
    target = locate("attn", node.target)
    rows = []
    if target is Attention:
        for part, base in _loaded(node):
            key = f"attn.{'mixing' if base is Mixing else 'gather'}_options"
            given = node.options.get(key.removeprefix("attn."), {})
            rows += list(_option_rows(part, len(inspect.signature(base).parameters), key, given))
    else:
        given = {**node.options, **_nested(name)}
        rows += list(_option_rows(target, len(ATTENTION), "attn", given))
    if not rows:
        return ["None of its own."]
    return ["| option | default | |", "|---|---|---|", *rows]


def _option_rows(
    part: Callable[..., Any], common: int, key: str, given: dict[str, Any]
) -> Iterator[str]:
    """Yield a row per option of a class: those after the arguments of its base."""
    meanings = _argument_meanings(part.__doc__ or "")
    for name, parameter in list(inspect.signature(part).parameters.items())[common:]:
        value = given.get(name, parameter.default)
        text = "null" if value is None else str(value).lower() if value in (True, False) else value
        added = "" if name in given else "+"  # Hydra asks for it where the YAML file lacks the key.
        yield f"| `{added}{key}.{name}` | {text} | {_markdown(meanings.get(name, ''))} |"


def _argument_meanings(docstring: str) -> dict[str, str]:
    """Return the descriptions of arguments in a docstring."""
    after = inspect.cleandoc(docstring).partition("Args:\n")[2].partition("\n\n")[0]
    entries = re.findall(r"^    (\w+): (.*(?:\n {8}.*)*)", after, re.MULTILINE)
    return {name: re.sub(r"\s+", " ", text) for name, text in entries}


def _sites_table() -> list[str]:
    rows = ["| model | site | number | width | heads | tokens |", "|---|---|---|---|---|---|"]
    for model in list_choices("model"):
        if attentions_of(model) == list_attentions():
            sites = Counter(_call_sites(model))
            for (site, dim, heads, tokens), count in sites.items():
                rows.append(f"| `{model}` | `{site}` | {count} | {dim} | {heads} | {tokens} |")
    return rows


def _call_sites(model: str) -> Iterator[tuple[str, int, int, str]]:
    """Yield name without numbers, width, heads and tokens of each attention of a model."""
    network = _build(model, None)
    calls: list[tuple[Any, str]] = []

    def note(mixer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:  # noqa: ANN401
        x, grid, context, context_grid = cost.bind_tokens(mixer, args, kwargs)
        tokens = _name_tokens(x.shape[1], grid)
        if context is not None and context_grid is not None:
            tokens += f" from {_name_tokens(context.shape[1], context_grid)}"
        calls.append((mixer, tokens))

    names = {mixer: name for name, mixer in cost.find_attentions(network).items()}
    for mixer in names:
        mixer.register_forward_pre_hook(note, with_kwargs=True)
    network.eval()(torch.zeros(1, *IMAGE, device="meta"))
    for mixer, tokens in calls:
        yield re.sub(r"\d+", "*", names[mixer]), mixer.dim, mixer.num_heads, tokens


def _name_tokens(tokens: int, grid: tuple[int, int]) -> str:
    """Return a grid and the number of tokens before it, such as `14x14 + 1`."""
    places = grid[0] * grid[1]
    names = [f"{grid[0]}x{grid[1]}"] if places else []
    return " + ".join(names + [str(tokens - places)] * (tokens > places))


if __name__ == "__main__":
    main()
