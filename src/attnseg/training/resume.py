"""Finds the step from which an interrupted training resumes."""

import logging
from dataclasses import dataclass
from pathlib import Path

from attnseg.files import is_whole
from attnseg.runs.checkpoints import read_checkpoint

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ResumePoint:
    """The position of a checkpoint in its training.

    Attributes:
        epoch: number of epochs that are done.
        batch: number of batches of the next epoch that are done.
        over: whether training had ended: by its length, or by early stopping.
    """

    epoch: int
    batch: int
    over: bool


def find_resume_point(checkpoint_file: Path, max_epochs: int) -> ResumePoint | None:
    """Return the position of an earlier process's `last.ckpt`; `None` if training starts over.

    Raises:
        CheckpointError: the file matches its SHA-256 but is no checkpoint of a run.
    """
    if not is_whole(checkpoint_file):
        if checkpoint_file.exists():
            log.warning("%s: damaged, unlike its SHA-256; training starts over", checkpoint_file)
        return None
    log.info("Going on from %s", checkpoint_file)
    checkpoint = read_checkpoint(checkpoint_file)
    # Lightning's own entry counts epochs from 0.
    epoch, batch = checkpoint.get("position", (checkpoint["epoch"] + 1, 0))
    stopped_early = any(
        state["wait_count"] >= state["patience"]
        for state in checkpoint["callbacks"].values()
        if "wait_count" in state
    )
    return ResumePoint(int(epoch), int(batch), stopped_early or int(epoch) >= max_epochs)
