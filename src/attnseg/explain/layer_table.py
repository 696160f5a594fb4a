"""The table of attention layers: measures per layer and head, and their means on the terminal."""

import math

import pandas as pd
from rich.console import Console
from rich.table import Table

from attnseg.data.store import StoredCase
from attnseg.explain.evidence import Mask, measure_evidence_share
from attnseg.explain.recording import AttentionRecord, recorded_part
from attnseg.explain.run_attention import RunAttention
from attnseg.explain.score_symmetry import measure_symmetry
from attnseg.explain.spread import measure_spread

SYMMETRY = ("score_asymmetry", "beyond_kv")
SHARES = ("evidence_share", "uniform_share")


def tabulate_layers(
    attention: RunAttention, case: StoredCase, unit: str, truth: tuple[Mask, Mask] | None = None
) -> pd.DataFrame:
    """Return the measures of a run's attention to a slice of the case: a row per layer and head.

    Args:
        attention: the records and weights of a run.
        case: prepared case.
        unit: of the distance, `mm` or `pixels`.
        truth: the pixels that need an answer and those that show it, `[H, W]`, if they are known;
            the share of the weights on the latter is measured.
    """
    choices, rows = attention.run.config.choices, []
    pixel_size = (1.0, 1.0) if case.spacing is None else case.spacing[1:]
    for name, record in attention.records.items():
        weights = attention.weights[name]
        size = (case.shape[1] * pixel_size[0], case.shape[2] * pixel_size[1])
        spread = measure_spread(record, weights, size)
        symmetry = None
        if isinstance(record, AttentionRecord) and weights.kind == "tokens":
            symmetry = measure_symmetry(record)
        looks = None if truth is None else measure_evidence_share(record, *truth)
        learned = {n: float(value) for n, value in recorded_part(record).diagnostics().items()}
        for head in range(record.heads):
            entropy = highest = distance = on_grid = asymmetry = beyond_kv = math.nan
            if spread is not None:
                entropy, highest = float(spread.entropy[head]), float(spread.highest_entropy[head])
                distance = float(spread.distance[head])
                on_grid = float(spread.weight_on_grid[head])
            if symmetry is not None:
                asymmetry = float(symmetry.asymmetry[head])
                beyond_kv = float(symmetry.beyond_kv[head])
            row = {
                "run": attention.run.folder.name,
                "model": choices["model"],
                "attn": choices["attn"],
                "layer": name,
                "head": head + 1,
                "mixes": weights.kind,
                "queries": "{}x{}".format(*record.grid),
                "keys": "{}x{}".format(*record.key_grid),
                "entropy_bits": entropy,
                "highest_entropy_bits": highest,
                f"distance_{unit}": distance,
                "weight_on_grid": on_grid,
                "score_asymmetry": asymmetry,
                "beyond_kv": beyond_kv,
                "unexplained": weights.error,
            }
            if truth is not None:
                row["evidence_share"] = math.nan if looks is None else float(looks.heads[head])
                row["uniform_share"] = math.nan if looks is None else looks.uniform
            rows.append(row | learned)
    return pd.DataFrame(rows)


def print_layers(attention: RunAttention, table: pd.DataFrame, title: str, unit: str) -> None:
    """Print a run's layers with means over heads.

    The table, from `tabulate_layers`, has the rows of all runs; the title is that of the slice.
    """
    own = table[table["run"] == attention.run.folder.name]
    means = own.groupby("layer", sort=False).mean(numeric_only=True)
    printed = Table()
    printed.add_column("layer", no_wrap=True)
    printed.add_column("mixes")
    columns = ["entropy,\nof highest\n(bits)", f"distance\n({unit})"]
    columns.append("Q K^T\nasymmetry,\nbeyond KV")
    has_truth = "evidence_share" in means
    learned = sorted(
        {n for r in attention.records.values() for n in recorded_part(r).diagnostics()}
    )
    for column in [*columns, *learned, *["evidence,\nof uniform"] * has_truth]:
        printed.add_column(column, justify="right")
    for name, row in means.iterrows():
        entropy, highest = row["entropy_bits"], row["highest_entropy_bits"]
        shares = [_format_number(row[key], 2) for key in SHARES if has_truth]
        printed.add_row(
            str(name),
            attention.weights[str(name)].kind,
            "-" if math.isnan(entropy) else f"{entropy:.2f} / {highest:.2f}",
            _format_number(row[f"distance_{unit}"], 1),
            " / ".join(_format_number(row[key], 2) for key in SYMMETRY),
            *(_format_number(row[name], 2) for name in learned),
            *([" / ".join(shares)] if shares else []),
        )
    printed.caption = "means over heads and over the tokens of the slice"
    if means["score_asymmetry"].isna().any():
        printed.caption += (
            "\nno asymmetry where keys are other tokens than queries, or none are scored"
        )
    console, heading = Console(), f"{attention.label}: {title}".replace("\n", ", ")
    console.print(heading, highlight=False, soft_wrap=True)
    console.print(printed)


def _format_number(value: float, digits: int) -> str:
    return "-" if math.isnan(value) else f"{value:.{digits}f}"
