"""Tabulates how asymmetric a network's scores are beside what converting each layer loses.

    python scripts/asymmetry_table.py RUN [RUN ...]

Each run was written by `attnseg convert ... layers=auto`: its `conversion.csv` has the Dice of the
network in which only one block is converted. The scores are those of its parent, on evenly spaced
slices of the validation cases; the measures are those of `attnseg explain`, averaged over slices,
heads and attentions of a block. The last lines are Spearman's correlations over all blocks of all
runs; with a few blocks they say little.
"""

import sys
from collections.abc import Sequence

import pandas as pd
from scipy.stats import spearmanr

from attnseg.conversion.opening import draw_batches
from attnseg.explain.recording import AttentionRecord, record_attentions
from attnseg.explain.score_symmetry import measure_symmetry
from attnseg.preparation.datasets import load_dataset, open_reader
from attnseg.runs.run_folder import RunFolder

MEASURES = ("asymmetry", "beyond_kv")


def main() -> None:
    """Print the table of the named runs, and the correlations."""
    tables = [tabulate_blocks(RunFolder(name)) for name in sys.argv[1:]]
    print("| parent | to | block | asymmetry | beyond KV | loss of Dice |")
    print("|---|---|---|---|---|---|")
    for table in tables:
        for row in table.to_dict("records"):
            print(
                f"| `{row['parent']}` | `{row['attn']}` | {row['block']} | {row['asymmetry']:.2f} "
                f"| {row['beyond_kv']:.2f} | {row['loss']:.4f} |"
            )
    for measure, (rho, p, count) in correlate(tables).items():
        print(f"\nSpearman's rho of {measure} and loss: {rho:.2f} (p = {p:.3f}, {count} blocks)")


def tabulate_blocks(run: RunFolder) -> pd.DataFrame:
    """Return a row per converted block: the measures of its scores, and the loss of Dice alone."""
    steps = pd.read_csv(run.conversion_file.with_suffix(".csv"))
    parent = RunFolder(run.facts.parent["run"])
    measures = measure_validation(parent)
    first, rows = steps["dice"][0], []
    for step in steps[1:].sort_values("block").to_dict("records"):
        own = measures[measures["site"].isin(str(step["sites"]).split())]
        means = {name: own[name].mean() for name in MEASURES}
        loss = first - step["dice_alone"]
        names = {"parent": parent.name, "attn": run.option("attn@attn.other")}
        rows.append({**names, "block": int(step["block"]), **means, "loss": loss})
    return pd.DataFrame(rows)


def measure_validation(run: RunFolder) -> pd.DataFrame:
    """Return the measures of a run's scores, a row per slice, attention and head."""
    config = run.config
    data = load_dataset(config, open_reader(config))
    model, rows = run.model(), []
    for images in draw_batches(config, data.val):
        for image in images:
            for name, record in record_attentions(model, image[None]).items():
                found = measure_symmetry(record) if isinstance(record, AttentionRecord) else None
                if found is not None:
                    pairs = zip(found.asymmetry.tolist(), found.beyond_kv.tolist(), strict=True)
                    rows += [(name, *pair) for pair in pairs]
    return pd.DataFrame(rows, columns=["site", *MEASURES])


def correlate(tables: Sequence[pd.DataFrame]) -> dict[str, tuple[float, float, int]]:
    """Return Spearman's correlation with the loss, its p-value and the blocks, by measure."""
    table = pd.concat(tables).dropna()
    found = {name: spearmanr(table[name], table["loss"]) for name in MEASURES}
    return {name: (float(r.statistic), float(r.pvalue), len(table)) for name, r in found.items()}


if __name__ == "__main__":
    main()
