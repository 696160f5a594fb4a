"""The end of a run: validation and test cases scored once, tables, files and pictures."""

import logging
from typing import Any

import pandas as pd
import torch

from attnseg.config.training import Config
from attnseg.data.labels import Masks
from attnseg.data.store import StoredCase
from attnseg.evaluation import summary as results
from attnseg.evaluation.kept_slices import KeptSlices
from attnseg.evaluation.pictures import Pictures
from attnseg.evaluation.scoring import make_segmenter, score_cases
from attnseg.metrics.profiles.profile import Profile
from attnseg.models.model import SegmentationModel
from attnseg.preparation.datasets import PreparedData, slice_view
from attnseg.runs.active_run import ActiveRun
from attnseg.runs.run_folder import write_scores

log = logging.getLogger(__name__)


def report(
    config: Config,
    run: ActiveRun,
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
    segmenter = make_segmenter(model, reader.labels, slice_view(config), config.dataset.batch_size)
    kept = KeptSlices(reader.labels)
    pictures = None
    if config.trainer.keep_pictures:
        pictures = Pictures(run.folder.pictures, shown, reader.labels)

    def keep(case: StoredCase, truth: Masks, prediction: Masks) -> None:
        kept.add(case, truth, prediction)
        if pictures is not None:
            pictures.add(case, truth, prediction)

    for split, members in scored.items():
        frames[split] = score_cases(
            segmenter, members, [profile], split, on_case=keep if split == shown else None
        )
        tables[split] = profile.summarise(frames[split])
        metrics[split] = results.summary(profile, tables[split], frames[split])
    write_scores(run.folder, pd.concat(frames.values()).assign(**mark), metrics)
    if pictures is not None:
        pictures.close()
    draw_previews(run, data, profile, kept, frames[shown], shown)
    for split, table in tables.items():
        results.show(profile, split, table, frames[split], data.watermark)
    run.save(test_set={"digest": data.test.digest, "openings": data.test.count_openings()})
    if config.trainer.open_test:
        log.info("Openings of these test cases so far: %d", data.test.count_openings())
    else:
        log.info("The test set stays sealed (trainer.open_test=false)")


def draw_previews(
    run: ActiveRun,
    data: PreparedData,
    profile: Profile,
    kept: KeptSlices,
    scores: pd.DataFrame,
    split: str,
) -> None:
    """Draw the best, the median and the worst case by the mean over their classes."""
    order = results.ranked(profile, scores)
    if order.empty:
        return
    mark = "" if data.watermark is None else f"\n{data.watermark.split(':')[0]}"
    metric = profile.label(profile.metrics[0])
    for label, at in (("best", 0), ("median", len(order) // 2), ("worst", len(order) - 1)):
        name = str(order.index[at])
        title = f"{label} {split} case {name}: mean {metric} {order.iloc[at]:.3f} "
        title += f"({profile.name}){mark}"
        kept.draw(run.folder.previews / f"{label}.png", title, name)
