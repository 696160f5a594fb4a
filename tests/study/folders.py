"""Run folders made up in a moment, with the files and keys of real ones."""

import json
import math

import numpy as np
import pandas as pd
import yaml
from PIL import Image

from attnseg.study.contrasts import PairedValues

PROFILE = {"name": "strict", "digest": "94e58393", "nsd_tolerance_mm": 3.0}
COST = {
    "qkv": 4_000_000,
    "kv": 3_000_000,
    "kv_pos": 3_200_000,
    "efficient": 3_900_000,
    "identity": 2_000_000,
}


def make_run(root, attn, values, *, seed=0, classes=("organ",), **changes):
    """Write a run folder and return its path.

    Args:
        root: parent of all runs.
        attn: the variant.
        values: Dice by (patient, case, class), or by patient for one case of one class.
        seed: of the training.
        classes: of the cases, where values are by patient.
        changes: `split`, `fold`, `folds`, `test_set`, `data`, `profile`, `status`, `watermark`,
            `config`, `metric`, `name`, `model`, `openings`, `declared`, `voxels` (true and
            predicted, by cell).
    """
    get = changes.get
    rows = {
        key if isinstance(key, tuple) else (key, f"{key}_day0", classes[0]): value
        for key, value in values.items()
    }
    name = get("name", f"{seed}")
    folder = root / attn / name
    folder.mkdir(parents=True)
    split = get("split", "test")
    metric = get("metric", "dice")
    profile = get("profile", PROFILE)
    mark = {"watermark": get("watermark")} if get("watermark") else {}
    facts = {
        "status": get("status", "done"),
        "choices": {"model": get("model", "setr"), "attn": attn, "dataset": "phantom"},
        "seed": seed,
        "parameters": {"total": COST[attn] // 2},
        "macs": COST[attn],
        "seconds": {"fit": COST[attn] / 1e5},
        "peak_memory_bytes": COST[attn] * 100,
        "machine": {"device": "cpu", "threads": 2},
        "data_digest": get("data", "d"),
        "split_digest": f"split {get('fold', 0)}",
        "started": "2026-01-02T03:04:05+00:00",
        "best_epoch": 2,
        "git": {"commit": "c0ffee" * 6, "modified": False},
        "versions": {"attnseg": "0.1.0"},
        "command": ["train.py", f"attn={attn}"],
        "test_set": {"digest": get("test_set", "t"), "openings": get("openings", 3)},
        **({"declared": get("declared")} if get("declared") else {}),
        **mark,
    }
    division = {"folds": get("folds"), "fold": get("fold", 0), "seed": 0}
    config = {"seed": seed, "dataset": {"split": division}, "model": {"size": "tiny"}}
    config |= {"attn": {"name": attn}, "optimizer": {"lr": 0.001}, **get("config", {})}
    (folder / "run.json").write_text(json.dumps(facts))
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    metrics = {"profile": profile, split: {"mean": {metric: 0.5}}, **mark}
    (folder / "metrics.json").write_text(json.dumps(metrics))
    lines = ["split,patient,case,class,metric,value,profile"]
    for (patient, case, class_), value in rows.items():
        text = "" if math.isnan(value) else repr(float(value))
        key = f"{split},{patient},{case},{class_}"
        lines.append(f"{key},{metric},{text},{profile['name']}")
        # An undefined value is of a class that is absent; one of 0 is of a missed class.
        present, predicted = (0, 0) if math.isnan(value) else (100, 100 * (value != 0))
        present, predicted = get("voxels", {}).get((patient, case, class_), (present, predicted))
        lines.append(f"{key},truth_voxels,{float(present)},{profile['name']}")
        lines.append(f"{key},predicted_voxels,{float(predicted)},{profile['name']}")
    (folder / "cases.csv").write_text("\n".join(lines) + "\n")
    return folder


def make_pair(variant, differences, baseline="qkv", seeds=3, level=0.8):
    """Return values of two variants with given differences by patient, the same for every seed."""
    base = pd.DataFrame(np.full((len(differences), seeds), level))
    return PairedValues(variant, baseline, base.add(differences, axis=0), base)


def add_pictures(folder, shift=0, *, overlapping=True, split="test", size=(48, 64)):
    """Add to a run folder what real ones have beside scores: pictures of its cases and a history.

    Args:
        folder: of a run.
        shift: pixels by which predictions miss the truth.
        overlapping: whether masks hold bits or indices.
        split: of the pictures.
        size: height and width.
    """
    rows = [line.split(",") for line in (folder / "cases.csv").read_text().splitlines()[1:]]
    cases = {row[2]: row[1] for row in rows}
    classes = list(dict.fromkeys(row[3] for row in rows))
    pictures = folder / "pictures"
    pictures.mkdir()
    entries = []
    for number, (case, patient) in enumerate(cases.items()):
        slices = []
        for at in (1, 4):
            name = f"{number:04}-{at:04}"
            image = np.random.default_rng(number + at).integers(0, 255, size, np.uint8)
            Image.fromarray(image).save(pictures / f"{name}-image.jpg")
            for what, moved in (("truth", 0), ("prediction", shift)):
                Image.fromarray(disc_masks(size, classes, number, moved, overlapping)).save(
                    pictures / f"{name}-{what}.png"
                )
            slices.append({"slice": at + 1, "name": name})
        entries.append({"case": case, "patient": patient, "of": 9, "slices": slices})
    index = {"split": split, "classes": classes, "overlapping": overlapping, "cases": entries}
    (pictures / "index.json").write_text(json.dumps(index))
    epochs = [f"{e},{0.9 - 0.2 * e},{0.3 + 0.1 * e}" for e in (1, 2, 3)]
    (folder / "history.csv").write_text("\n".join(["epoch,train/loss,val/dice", *epochs]) + "\n")


def disc_masks(size, classes, number, shift, overlapping):
    """Return a mask with a disc of each class."""
    y, x = np.mgrid[: size[0], : size[1]]
    mask = np.zeros(size, np.uint8)
    for k in range(len(classes)):
        disc = (y - 20 - 2 * k) ** 2 + (x - 20 - 8 * k - shift - number) ** 2 < 100
        mask[disc] = mask[disc] | (1 << k) if overlapping else k + 1
    return mask
