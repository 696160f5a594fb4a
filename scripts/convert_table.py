"""Measures conversions of trained QKV networks: `python scripts/convert_table.py FOLDER`.

Of each seed a QKV network is trained, and converted to each attention by each surgery; the same
attention is trained from scratch for as many multiply-accumulates as its conversion took, rounded
up to whole epochs. On an idle machine, this takes the same seconds; on a busy one, seconds would
change the result. What is done is not done again: the command can be stopped and repeated. The
table has the validation Dice of the parent, after surgery, after each epoch, and from scratch,
averaged over seeds, with the range; the test set stays closed.
"""

import argparse
import json
import math
from pathlib import Path
from typing import Any

import pandas as pd

from attnseg.config.composition import compose, to_raw
from attnseg.config.training import Config, Conversion, parse_config
from attnseg.conversion.composition import derive_config
from attnseg.runs.run_folder import RunFolder
from attnseg.training.train import train

TASKS = {
    "demo": ("experiment=demo_quick", "trainer.max_epochs=4"),
    "situs": (
        "experiment=situs", "dataset.image_size=[64,64]", "model.dim=96", "model.depth=2",
        "model.head_channels=32", "model.auxiliary=false", "optimizer.lr=1e-3", "augment=none",
        "trainer.max_epochs=8",
    ),
}  # fmt: skip
TARGETS = ("kv", "k_v", "single", "kv_pos", "qvv3", "efficient", "window")
TIED = ("kv", "k_v", "single", "kv_pos", "qvv3")  # of which the surgeries differ
ALWAYS = ("trainer.open_test=false", "logger=none")


def composed(folder: Path, *options: str) -> dict[str, Any]:
    """Return the plain configuration of a training in a folder."""
    paths = (f"paths.data={folder}/data", f"paths.outputs={folder}/outputs")
    return to_raw(compose("train", [*options, *ALWAYS, *paths]))


def run(config: Config) -> RunFolder:
    """Train, unless it is done, and return the run."""
    return RunFolder(train(config))


def best_dice(folder: RunFolder) -> float:
    """Return the validation Dice of the epoch whose weights are kept."""
    return float(folder.history["val/dice"].max())


def measure(
    folder: Path,
    task: tuple[str, ...],
    seed: int,
    epochs: int,
    surgeries: list[str],
    names: list[str],
) -> list[dict[str, Any]]:
    """Return a row for each attention and surgery of one seed."""
    own = (*task, f"seed={seed}")
    parent = run(parse_config(composed(folder, *own, "attn=qkv")))
    rows = []
    for name in names:
        raw = composed(folder, *own, f"attn={name}")
        choices = {"attn": raw["choices"]["attn"]}
        share = 0.0  # multiply-accumulates of the new network, as a share of the parent's
        for surgery in surgeries if name in TIED else surgeries[:1]:
            options = Conversion.model_validate({"parent": str(parent), "surgery": surgery})
            changes = {"trainer": {"max_epochs": epochs}}
            converted = run(derive_config(options, raw["attn"], choices, changes))
            report = json.loads(converted.conversion_file.read_text())
            share = report["cost"]["converted"]["macs"] / report["cost"]["parent"]["macs"]
            rows.append(
                {
                    "attention": name,
                    "surgery": surgery if name in TIED else "-",
                    "seed": seed,
                    "parent": report["dice"]["parent"],
                    "after surgery": report["dice"]["surgery"],
                    **{f"epoch {n}": dice for n, dice in enumerate(report["dice"]["epochs"], 1)},
                    "seconds": converted.facts.seconds["fit"],
                    "MACs": share,
                }
            )
        # A step is three forward passes; distillation adds one of the parent.
        length = f"trainer.max_epochs={math.ceil(epochs * (1 + 1 / (3 * share)))}"
        scratch = run(parse_config(composed(folder, *own, f"attn={name}", length)))
        for row in rows:
            if row["attention"] == name:
                row["scratch"] = best_dice(scratch)
                row["scratch epochs"] = len(scratch.history)
                row["scratch seconds"] = scratch.facts.seconds["fit"]
    return rows


def spread(values: pd.Series) -> str:
    """Return the mean, and the range if there are several."""
    if len(values) == 1:
        return f"{values.iloc[0]:.3f}"
    return f"{values.mean():.3f} ({values.min():.3f} to {values.max():.3f})"


def main() -> None:
    """Measure, write `conversions-TASK.csv` into the folder, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--task", choices=TASKS, default="situs")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--surgeries", nargs="+", default=["solve", "average", "key"])
    parser.add_argument("--attentions", nargs="+", choices=TARGETS, default=TARGETS)
    parser.add_argument("--options", nargs="*", default=[], help="of the trainings, KEY=VALUE")
    given = parser.parse_args()
    task = (*TASKS[given.task], *given.options)
    rows = []
    for seed in given.seeds:
        rows += measure(given.folder, task, seed, given.epochs, given.surgeries, given.attentions)
        table = pd.DataFrame(rows)
        table.to_csv(given.folder / f"conversions-{given.task}.csv", index=False)
    columns = [c for c in map(str, table) if c not in ("attention", "surgery", "seed")]
    print(f"| attention | surgery | {' | '.join(columns)} |")
    print("|---" * (len(columns) + 2) + "|")
    for _, group in table.groupby(["attention", "surgery"], sort=False):
        names = [str(group[column].iloc[0]) for column in ("attention", "surgery")]
        print(f"| {' | '.join([*names, *(spread(group[column]) for column in columns)])} |")


if __name__ == "__main__":
    main()
