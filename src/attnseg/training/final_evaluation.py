"""The end of a run: validation and test cases scored once, tables, files and pictures."""

import logging
from typing import Any

import pandas as pd
import torch

from attnseg.config.schema import Config
from attnseg.data.store import StoredCase
from attnseg.drawing import cases as preview
from attnseg.evaluation import summary as results
from attnseg.evaluation.pictures import Pictures
from attnseg.evaluation.pipelines import predict
from attnseg.evaluation.scoring import score_cases
from attnseg.metrics.profiles.profile import Profile
from attnseg.models.model import SegmentationModel
from attnseg.preparation.datasets import PreparedData, slice_view
from attnseg.runs.run_folder import Run

log = logging.getLogger(__name__)


def report(
    config: Config,
    run: Run,
    data: PreparedData,
    model: SegmentationModel,
    profile: Profile,
) -> None:
    """Score the validation cases and, if configured, open and score the test cases, once."""
    reader = data.reader
    device = torch.device("cuda" if config.trainer.accelerator == "gpu" else "cpu")
    model.to(device).eval()
    scored = {} if data.watermark else {"val": data.val}
    if config.trainer.open_test or data.watermark:
        scored["test"] = data.test.open(str(run.folder), "scored after training")
    mark = {"watermark": data.watermark} if data.watermark else {}
    frames, tables = {}, {}
    metrics: dict[str, Any] = {**mark, "profile": profile.describe()}
    shown = list(scored)[-1]
    pictures = None
    if config.trainer.keep_pictures:
        pictures = Pictures(run.folder / "pictures", shown, reader.labels)
    for split, members in scored.items():
        frames[split] = score_cases(
            model,
            members,
            slice_view(config),
            reader.labels,
            config.dataset.batch_size,
            [profile],
            split,
            watch=pictures.add if pictures is not None and split == shown else None,
        )
        tables[split] = profile.summarise(frames[split])
        metrics[split] = results.summary(profile, tables[split], frames[split])
    results.write(run.folder, pd.concat(frames.values()).assign(**mark), metrics)
    if pictures is not None:
        pictures.close()
    draw_previews(config, run, data, model, profile, scored[shown], frames[shown], shown)
    for split, table in tables.items():
        results.show(profile, split, table, frames[split], data.watermark)
    run.save(test_set={"digest": data.test.digest, "openings": data.test.count_openings()})
    if config.trainer.open_test:
        log.info("Openings of these test cases so far: %d", data.test.count_openings())
    else:
        log.info("The test set stays sealed (trainer.open_test=false)")


def draw_previews(
    config: Config,
    run: Run,
    data: PreparedData,
    model: SegmentationModel,
    profile: Profile,
    cases: list[StoredCase],
    scores: pd.DataFrame,
    split: str,
) -> None:
    """Draw the best, the median and the worst case by the mean over their classes."""
    reader = data.reader
    order = results.ranked(profile, scores)
    if order.empty:
        return
    by_name = {case.case: case for case in cases}
    mark = "" if data.watermark is None else f"\n{data.watermark.split(':')[0]}"
    for label, at in (("best", 0), ("median", len(order) // 2), ("worst", len(order) - 1)):
        case = by_name[str(order.index[at])]
        metric = profile.label(profile.metrics[0])
        preview.draw(
            run.folder / "previews" / f"{label}.png",
            f"{label} {split} case {case.case}: mean {metric} {order.iloc[at]:.3f} "
            f"({profile.name}){mark}",
            case,
            reader.labels.split(case.mask),
            predict(model, case, slice_view(config), reader.labels, config.dataset.batch_size),
            reader.classes,
        )
