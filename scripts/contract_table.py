"""Writes docs/contracts.md: every attention in every model, held to every promise.

    python scripts/contract_table.py [ATTENTION | MODEL ...]

Two processes take about ten minutes on two idle cores. Rows of other pairs are kept.
"""

import sys
import warnings
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

from attnseg.config.components import attention_component, model_nodes
from attnseg.config.folder import attentions_of, list_attentions, list_choices
from attnseg.contracts.check import hold_network
from attnseg.contracts.networks import CONTRACTS

PAGE = Path(__file__).parents[1] / "docs" / "contracts.md"
HEADER = f"""# Every attention in every model

Each pair, of size `tiny`, is held to the promises of `src/attnseg/contracts/networks.py`, as
`attnseg check attn=NAME` does: gradients of all parameters, ten steps of training, items that are
independent of each other, other sizes, logits under bfloat16 autocast, operations by closed form
and as PyTorch counts them, maps that explain the output, one graph for export, and ONNX Runtime.
A number is the largest difference of logits, or the maps' error as a share of the output. What is
bold is broken. `token_merging` matches the most similar keys; some keys of `missformer` are equal
but for rounding, which then decides, so that noise of 1e-7 in the image changes the logits by
2e-02, and so does computing them with ONNX Runtime. Written by `scripts/contract_table.py`.

| attention | model | {" | ".join(CONTRACTS)} |
|---|---|{"---|" * len(CONTRACTS)}
"""


def check_pair(pair: tuple[str, str]) -> str:
    """Return the row of an attention and a model."""
    attn, model = pair
    warnings.filterwarnings("ignore")
    node, _ = model_nodes(model, size="tiny")
    outcomes = hold_network(node, attention_component(attn))
    cells = [f"**{o.problem}**" if o.problem else o.measured for o in outcomes.values()]
    print(f"{attn} {model}", flush=True)
    return f"| `{attn}` | `{model}` | {' | '.join(cells)} |"


def main() -> None:
    """Check the named attentions in the named models, or all, and write the page."""
    attentions = list_attentions()
    models = [model for model in list_choices("model") if attentions_of(model) == attentions]
    pairs = [
        (attn, model)
        for attn in [name for name in attentions if name in sys.argv] or attentions
        for model in [name for name in models if name in sys.argv] or models
    ]
    with ProcessPoolExecutor(2, get_context("spawn")) as pool:
        rows = dict(zip(pairs, pool.map(check_pair, pairs), strict=True))
    old = PAGE.read_text().splitlines() if PAGE.is_file() else []
    for line in old:
        cells = [cell.strip(" `") for cell in line.split("|")]
        if len(cells) > 3 and (cells[1], cells[2]) not in rows and cells[1] in list_attentions():
            rows[cells[1], cells[2]] = line
    PAGE.write_text(HEADER + "\n".join(rows[pair] for pair in sorted(rows)) + "\n")


if __name__ == "__main__":
    main()
