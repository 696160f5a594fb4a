"""The `evaluate` command: scores a finished run, or two folders of masks, under metric profiles."""

import copy
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pytorch_lightning as pl
import torch

from attnseg.config.build import build
from attnseg.config.components import build_components
from attnseg.config.nodes import Component
from attnseg.config.training import Config, parse_config
from attnseg.data.guard import suggest_patient_pattern
from attnseg.data.store import StoredCase
from attnseg.errors import ConfigError, DataError
from attnseg.evaluation.kept_slices import KeptSlices
from attnseg.evaluation.mask_folders import score_folders
from attnseg.evaluation.options import Evaluate, Reopen
from attnseg.evaluation.pipelines import DESCRIBED
from attnseg.evaluation.reliability import write_reliability
from attnseg.evaluation.scoring import OnCase, make_segmenter, score_cases
from attnseg.evaluation.summary import convert_summary, print_summary, rank_cases
from attnseg.metrics.calibration import Calibration
from attnseg.metrics.profiles.profile import Profile
from attnseg.models.model import SegmentationModel
from attnseg.prediction.segment import Segmenter
from attnseg.preparation.datasets import PreparedData, load_dataset, open_reader, slice_view
from attnseg.processes.malloc import keep_freed_memory
from attnseg.runs.checkpoints import load_weights
from attnseg.runs.run_folder import RunFolder, write_scores

log = logging.getLogger(__name__)


def evaluate(config: Evaluate) -> pd.DataFrame:
    """Score a run or two folders of masks; print tables, write files.

    Returns:
        The rows that `cases.csv` holds.

    Raises:
        AttnsegError: what the person at the terminal can mend.
    """
    profiles = build_profiles(config.profile)
    if config.pred is not None and config.truth is not None:
        source = f"{config.pred} against {config.truth}"
        folders = Path(config.pred), Path(config.truth)
        scores = score_folders(
            *folders,
            profiles,
            config.classes,
            config.patient,
            config.ignore_label,
            Path(config.data or "data"),
        )
        if config.patient is None and (visits := suggest_patient_pattern(set(scores["case"]))):
            log.warning(
                "%s look like visits of one patient, and are counted as several; set patient='%s'",
                ", ".join(visits[1][:3]),
                visits[0],
            )
        folder = Path(config.outputs or "outputs/evaluation")
        write_evaluation(folder, source, scores, profiles, {}, None)
        return scores
    finished = FinishedRun(RunFolder(config.run or ""), config)
    cases = finished.cases(config, f"evaluate {' '.join(config.profile)}")
    labels = finished.data.reader.labels
    kept = None if config.pipeline == "network_size" else KeptSlices(labels)
    pooled = Calibration(len(labels)) if config.pipeline == "native" else None
    scores = finished.score(config, cases, profiles, None if kept is None else kept.add, pooled)
    folder = Path(config.outputs or finished.folder.evaluation) / config.split
    pipeline = f"{config.pipeline}: {DESCRIBED[config.pipeline]}"
    facts = {"run": finished.folder.name, "pipeline": pipeline}
    write_evaluation(folder, config.split, scores, profiles, facts, finished.data.watermark)
    if kept is not None:  # Other sizes than the image's own cannot be drawn on it.
        draw_worst(kept, config, folder, profiles[0], scores)
    if pooled is not None:
        mark = f"\n{finished.data.watermark.split(':')[0]}" if finished.data.watermark else ""
        write_reliability(folder, pooled, labels.names, f"{config.split}, {len(cases)} cases{mark}")
    log.info("Written: %s", folder)
    return scores


def build_profiles(profiles: Mapping[str, Component]) -> list[Profile]:
    """Build the configured profiles."""
    return [build(f"profile.{name}", node) for name, node in profiles.items()]


def write_evaluation(
    folder: Path,
    source: str,
    scores: pd.DataFrame,
    profiles: Sequence[Profile],
    facts: dict[str, Any],
    watermark: str | None,
) -> None:
    """Print a table per profile, and write `cases.csv` and `metrics.json`."""
    mark = {} if watermark is None else {"watermark": watermark}
    metrics: dict[str, Any] = {**mark, **facts, "profiles": {}}
    for profile in profiles:
        own = scores[scores["profile"] == profile.name]
        table = profile.summarise(own)
        print_summary(profile, source, table, own, watermark)
        summary = convert_summary(profile, table, own)
        metrics["profiles"][profile.name] = {"profile": profile.describe(), **summary}
    write_scores(folder, scores.assign(**mark), metrics)


class FinishedRun:
    """A reopened run: its data, checked to be those of the training, and its best weights.

    Args:
        folder: the run folder.
        options: the data's folders, if they have moved, and the device.

    Raises:
        ConfigError: not a finished run folder, or no GPU.
        DataError: the data or the split are not those of the run.
        CheckpointError: the weights do not fit.
    """

    def __init__(self, folder: RunFolder, options: Reopen) -> None:
        if options.device == "cuda" and not torch.cuda.is_available():
            raise ConfigError("device: no GPU found on this machine; use device=cpu")
        if options.device == "cpu":
            keep_freed_memory()
        self.folder = folder
        self.config = read_config(folder, options)
        facts = folder.facts
        reader = open_reader(self.config)
        facts.check_classes(folder, reader.classes, reader.values)
        self.data: PreparedData = load_dataset(self.config, reader)
        for what, now, then in (
            ("data", self.data.digest, facts.data_digest),
            ("split", self.data.split_digest, facts.split_digest),
        ):
            if now != then:
                raise DataError(
                    f"{folder}: the {what} is not that of the run any more; give the dataset "
                    "it was trained on as root=DIR"
                )
        # The model starts from the same weights as in training.
        pl.seed_everything(self.config.seed, workers=True, verbose=False)
        # Without training, runs of earlier versions kept no weights: the initial ones were scored.
        kept = self.config.trainer.max_epochs > 0 or folder.best_checkpoint.exists()
        config = self.config.revise("model", pretrained=None) if kept else self.config
        self.model: SegmentationModel = build_components(config, reader).model
        if kept:
            load_weights(self.model, folder.best_checkpoint)
        self.model.to(torch.device(options.device)).eval()

    def cases(self, options: Reopen, purpose: str) -> list[StoredCase]:
        """Return the cases of a split; an opening of the test set is recorded."""
        if options.split == "val":
            return self.data.val
        if not len(self.data.test):
            raise DataError(f"{self.folder}: the split has no test cases; use split=val")
        cases = self.data.test.open(str(self.folder), purpose)
        log.info("Openings of these test cases so far: %d", self.data.test.count_openings())
        return cases

    def score(
        self,
        options: Evaluate,
        cases: Sequence[StoredCase],
        profiles: Sequence[Profile],
        on_case: OnCase | None = None,
        pooled: Calibration | None = None,
    ) -> pd.DataFrame:
        """Segment and score cases; see `score_cases`."""
        return score_cases(
            self.segmenter(), cases, profiles, options.split, options.pipeline, on_case, pooled
        )

    def segmenter(self) -> Segmenter:
        """Return the segmenter of the run's network."""
        labels, batch_size = self.data.reader.labels, self.config.dataset.batch_size
        return make_segmenter(self.model, labels, slice_view(self.config), batch_size)


def draw_worst(
    kept: KeptSlices, options: Evaluate, folder: Path, profile: Profile, scores: pd.DataFrame
) -> None:
    """Draw the cases with the worst scores, `worst-1.png` the worst of all."""
    order = rank_cases(profile, scores)
    for place, name in enumerate(reversed(order.index[-options.worst :]), 1):
        title = f"{options.split} case {name}: mean {profile.label(profile.metrics[0])} "
        title += f"{order[name]:.3f} ({profile.name})"
        kept.draw(folder / f"worst-{place}.png", title, str(name))


def read_config(folder: RunFolder, options: Reopen) -> Config:
    """Return the configuration of a finished run.

    Raises:
        ConfigError: the folder holds none, or the run is not finished.
    """
    plain: Any = copy.deepcopy(folder.require_done().raw_config)
    if options.root is not None:
        plain["dataset"]["root"] = options.root
    if options.data is not None:
        plain["paths"]["data"] = options.data
    plain["paths"]["outputs"] = str(folder.outputs)  # where the openings are noted
    return parse_config({**plain, "choices": folder.facts.choices})
