"""The end of a run: scores validation and test cases once and writes tables and pictures."""

import logging
from typing import Any

import monai.metrics.utils  # noqa: F401 - Scoring needs it; each forked job would import it again.
import pandas as pd

from attnseg.data.labels import Masks
from attnseg.data.store import StoredCase
from attnseg.evaluation.kept_slices import KeptSlices
from attnseg.evaluation.pictures import Pictures
from attnseg.evaluation.scoring import make_segmenter, score_cases
from attnseg.evaluation.summary import convert_summary, print_summary, rank_cases
from attnseg.models.model import SegmentationModel
from attnseg.preparation.datasets import slice_view
from attnseg.runs.active_run import ActiveRun
from attnseg.runs.run_folder import write_scores
from attnseg.training.setup import TrainingSetup

log = logging.getLogger(__name__)


def evaluate_run(run: ActiveRun, setup: TrainingSetup, model: SegmentationModel) -> None:
    """Score the validation cases and, if `trainer.open_test` is set, the test cases, once.

    The model has its best weights and is moved to the run's device.
    """
    config, data, profile = setup.config, setup.data, setup.components.profile
    model.to(config.trainer.device_type).eval()
    cases_by_split = {} if data.watermark else {"val": data.val}
    if (config.trainer.open_test and len(data.test)) or data.watermark:
        cases_by_split["test"] = data.test.open(str(run.folder), "scored after training")
    drawn_split = list(cases_by_split)[-1]
    labels = data.reader.labels
    segmenter = make_segmenter(model, labels, slice_view(config), config.dataset.batch_size)
    kept, pictures = KeptSlices(labels), None
    if config.trainer.keep_pictures:
        pictures = Pictures(run.folder.pictures, drawn_split, labels)

    def keep_slices(case: StoredCase, truth: Masks, prediction: Masks) -> None:
        kept.add(case, truth, prediction)
        if pictures is not None:
            pictures.add(case, truth, prediction)

    # A watermark warns that the test set was watched during training; every result carries it.
    mark = {"watermark": data.watermark} if data.watermark else {}
    metrics: dict[str, Any] = {**mark, "profile": profile.describe()}
    scores, tables = {}, {}
    for split, cases in cases_by_split.items():
        on_case = keep_slices if split == drawn_split else None
        scores[split] = score_cases(segmenter, cases, [profile], split, on_case=on_case)
        tables[split] = profile.summarise(scores[split])
        metrics[split] = convert_summary(profile, tables[split], scores[split])
    write_scores(run.folder, pd.concat(scores.values()).assign(**mark), metrics)
    if pictures is not None:
        pictures.close()
    draw_previews(run, setup, kept, scores[drawn_split], drawn_split)
    for split, table in tables.items():
        print_summary(profile, split, table, scores[split], data.watermark)
    openings = data.test.count_openings()
    run.save(
        test_set={
            "digest": data.test.digest,
            "openings": openings,
            "ledger": str(data.test.ledger.resolve()),
        },
        results=run.folder.digest_results(),
    )
    if not len(data.test):
        return
    if config.trainer.open_test:
        log.info("Openings of these test cases so far: %d", openings)
    else:
        log.info("The test set stays closed (trainer.open_test=false)")


def draw_previews(
    run: ActiveRun, setup: TrainingSetup, kept: KeptSlices, scores: pd.DataFrame, split: str
) -> None:
    """Draw the best, the median and the worst case of a split by their mean over classes."""
    profile, watermark = setup.components.profile, setup.data.watermark
    order = rank_cases(profile, scores)
    if order.empty:
        return
    mark = "" if watermark is None else f"\n{watermark.split(':')[0]}"
    metric = profile.label(profile.metrics[0])
    for rank, at in (("best", 0), ("median", len(order) // 2), ("worst", len(order) - 1)):
        name = str(order.index[at])
        title = f"{rank} {split} case {name}: mean {metric} {order.iloc[at]:.3f} "
        title += f"({profile.name}){mark}"
        kept.draw(run.folder.previews / f"{rank}.png", title, name)
