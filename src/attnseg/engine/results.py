"""The end of a run: tables, files and pictures of how the model did on whole cases."""

import json
import math
from typing import Any

import pandas as pd
import torch
from rich.console import Console
from rich.table import Table

from attnseg.data.store import StoredCase
from attnseg.engine import preview
from attnseg.engine.data import Data
from attnseg.engine.evaluate import predict, score_cases, true_masks
from attnseg.engine.files import write_text
from attnseg.engine.run import Run
from attnseg.engine.schema import Config
from attnseg.metrics.strict import Strict
from attnseg.models.model import SegmentationModel


def report(
    config: Config,
    run: Run,
    data: Data,
    model: SegmentationModel,
    profile: Strict,
) -> None:
    """Score validation and test cases once, and write tables and pictures."""
    reader, dataset = data.reader, config.dataset
    device = torch.device("cuda" if config.trainer.accelerator == "gpu" else "cpu")
    model.to(device).eval()
    frames, tables, metrics = [], {}, {"profile": profile.describe()}
    for split in ("val", "test"):
        frame = score_cases(
            model,
            data.cases[split],
            dataset.image_size,
            reader.classes,
            reader.multilabel,
            dataset.batch_size,
            profile,
            split,
        )
        frames.append(frame)
        tables[split] = profile.summarise(frame)
        metrics[split] = summary(tables[split], data.cases[split])
    cases = pd.concat(frames)
    write_text(run.folder / "cases.csv", cases.to_csv(index=False, lineterminator="\n"))
    write_text(run.folder / "metrics.json", json.dumps(metrics, indent=1, allow_nan=False) + "\n")
    draw_previews(config, run, data, model, cases)
    for split, table in tables.items():
        show(profile, split, table, data.cases[split])


def summary(table: pd.DataFrame, cases: list[StoredCase]) -> dict[str, Any]:
    """Return a table of `Strict.summarise` as plain values; undefined numbers are null."""
    rows = {
        str(name): {
            str(metric): None if math.isnan(value) else float(value)
            for metric, value in row.items()
        }
        for name, row in table.iterrows()
    }
    for row in rows.values():
        row["undefined"] = int(row["undefined"] or 0)
    mean = rows.pop("mean")
    return {
        "patients": len({case.patient for case in cases}),
        "cases": len(cases),
        "mean": mean,
        "classes": rows,
    }


def show(profile: Strict, split: str, table: pd.DataFrame, cases: list[StoredCase]) -> None:
    """Print a table of `Strict.summarise`."""
    patients = len({case.patient for case in cases})
    printed = Table(
        title=f"{split}: {len(cases)} cases of {patients} patients, profile {profile.name} "
        f"({profile.digest})",
        title_justify="left",
    )
    for column in (
        "class",
        "Dice",
        "Jaccard",
        "HD95 (mm)",
        f"NSD ({profile.nsd_tolerance_mm:g} mm)",
    ):
        printed.add_column(column, justify="left" if column == "class" else "right")
    printed.add_column("undefined", justify="right")
    for name, row in table.iterrows():
        numbers = [f"{row['dice']:.4f}", f"{row['jaccard']:.4f}"]
        numbers += [f"{row['hd95_mm']:.2f}", f"{row['nsd']:.4f}", f"{row['undefined']:.0f}"]
        if name == "mean":
            printed.add_section()
        printed.add_row(str(name), *numbers)
    Console().print(printed)


def draw_previews(
    config: Config,
    run: Run,
    data: Data,
    model: SegmentationModel,
    cases: pd.DataFrame,
) -> None:
    """Draw the best, the median and the worst test case by mean Dice."""
    reader = data.reader
    dice = cases[(cases["split"] == "test") & (cases["metric"] == "dice")]
    ranked = (
        dice.groupby("case")["value"].mean().dropna().sort_values(ascending=False, kind="stable")
    )
    if ranked.empty:
        return
    by_name = {case.case: case for case in data.cases["test"]}
    for label, at in (("best", 0), ("median", len(ranked) // 2), ("worst", len(ranked) - 1)):
        case = by_name[str(ranked.index[at])]
        size, batch = config.dataset.image_size, config.dataset.batch_size
        preview.draw(
            run.folder / "previews" / f"{label}.png",
            f"{label} test case {case.case}: mean Dice {ranked.iloc[at]:.3f} (strict)",
            case.image,
            true_masks(case, len(reader.classes), reader.multilabel),
            predict(model, case, size, reader.multilabel, batch),
            reader.classes,
            case.spacing,
        )
