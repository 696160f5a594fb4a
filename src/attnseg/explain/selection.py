"""Chooses the runs, case, slice, point and layers to explain, with sensible defaults."""

from collections.abc import Sequence
from fnmatch import fnmatchcase
from glob import glob
from pathlib import Path

import numpy as np

from attnseg.config.build import build
from attnseg.config.errors import nearest
from attnseg.data.labels import Masks
from attnseg.data.store import StoredCase
from attnseg.errors import ConfigError, DataError
from attnseg.evaluation.evaluate import FinishedRun
from attnseg.evaluation.summary import rank_cases
from attnseg.explain.options import Explain


def chosen_run_folders(config: Explain) -> list[Path]:
    """Return the run folders that `run` or `runs` name, each once."""
    if config.run is not None:
        return [Path(config.run)]
    matches = (sorted(glob(pattern)) or [pattern] for pattern in config.runs)
    return [Path(name) for name in dict.fromkeys(name for names in matches for name in names)]


def load_same_case(
    runs: Sequence[FinishedRun], case: str | None, split: str, cases: Sequence[list[StoredCase]]
) -> StoredCase:
    """Return the case to explain, which must be the same in all runs.

    Without a name, it is the first run's case with the median score. `cases` holds the cases of the
    split, for each run.
    """
    by_name = [{case.case: case for case in own} for own in cases]
    name = case or find_median_case(runs[0], by_name[0], split)
    for run, own in zip(runs, by_name, strict=True):
        if name not in own:
            raise ConfigError(
                f"case: no {name!r} in that split of {run.folder}; {nearest(name, own)}"
            )
        if own[name].digest != by_name[0][name].digest:
            raise DataError(
                f"{run.folder}: its case {name} is another one; give runs on the same data"
            )
    return by_name[0][name]


def find_median_case(run: FinishedRun, cases: dict[str, StoredCase], split: str) -> str:
    """Return the name of the case with the median score, or the middle case if none has a score."""
    try:
        scores = run.folder.cases
    except DataError as error:
        raise DataError(f"{run.folder.cases_file}: cannot be read; give case=NAME") from error
    ((name, node),) = run.config.profile.items()
    order = rank_cases(build(f"profile.{name}", node), scores[scores["split"] == split])
    ranked = [str(case) for case in order.index if case in cases] or sorted(cases)
    return ranked[len(ranked) // 2]


def choose_slice(case: StoredCase, number: int | None) -> int:
    """Return the index of slice `number` (from 1), or of the slice with the most foreground."""
    if number is None:
        return int(case.counts.sum(1).argmax())
    if number > case.shape[0]:
        raise ConfigError(f"slice: {number} of {case.shape[0]} slices; give 1 to {case.shape[0]}")
    return number - 1


def choose_point(masks: Masks, point: tuple[int, int] | None) -> tuple[int, int]:
    """Return the row and column of a pixel, by default in the middle of the largest organ.

    The default is the organ's pixel nearest to its centre of mass, which may lie outside the organ.
    The masks are those of the slice, `[classes, H, W]`; the point, if any, is the configured one.
    """
    height, width = masks.shape[1:]
    if point is not None:
        if point[0] >= height or point[1] >= width:
            raise ConfigError(
                f"point: {list(point)} is outside the slice of {height}x{width} pixels; give a row "
                f"up to {height - 1} and a column up to {width - 1}"
            )
        return point
    largest = masks[masks.sum((1, 2)).argmax()]
    if not largest.any():
        return height // 2, width // 2
    pixels = np.argwhere(largest)
    row, column = pixels[((pixels - pixels.mean(0)) ** 2).sum(1).argmin()]
    return int(row), int(column)


def choose_layers(names: Sequence[str], patterns: Sequence[str], run: str) -> list[str]:
    """Return the layer names that any shell pattern matches, in order; all without a pattern."""
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in names):
            raise ConfigError(f"layer: no {pattern!r} in {run}; {nearest(pattern, names)}")
    return [n for n in names if not patterns or any(fnmatchcase(n, p) for p in patterns)]
