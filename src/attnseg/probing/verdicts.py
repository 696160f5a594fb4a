"""The results of attentions on probes: means over seeds, intervals, and verdicts."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd
from scipy import stats

from attnseg.probes.probe import find_probe
from attnseg.probing.battery import CellStore, Traits
from attnseg.probing.run import Cell

SEES = 0.6  # least share of the way from chance to the ceiling, mean over seeds
BLIND = 0.2  # greatest share
LEVEL = 0.95  # of intervals

Verdict = Literal["sees", "partly", "blind"]


@dataclass(frozen=True)
class ChartEntry:
    """The results of an attention on a probe.

    Attributes:
        attention: name of the choice of `attn`.
        probe: name of the probe.
        scores: by seed, of those that are finished.
        levels: scores by level, by seed.
        declared: whether the attention's classes say that it should solve the probe; `None` if
            they do not say.
        share: mean share of attention on the evidence, of the best head; `None` without maps.
        uniform: the same of uniform weights.
        first: the cell of the first finished seed, whose pictures are shown.
    """

    attention: str
    probe: str
    scores: Mapping[int, float]
    levels: Mapping[int, Mapping[str, float]]
    declared: bool | None
    share: float | None
    uniform: float | None
    first: Cell

    @property
    def mean(self) -> float:
        """Mean score over seeds."""
        return float(np.mean([*self.scores.values()]))

    @property
    def margin(self) -> float | None:
        """Half of the 95 % interval of the mean, by Student's t; `None` of a single seed."""
        return interval_margin([*self.scores.values()])

    @property
    def way(self) -> float:
        """Share of the way from chance to the ceiling; below 0 where shapes are missed, too."""
        probe = find_probe(self.probe)
        return (self.mean - probe.chance) / (probe.ceiling - probe.chance)

    @property
    def verdict(self) -> Verdict:
        """What the mean over seeds says."""
        return "sees" if self.way >= SEES else "blind" if self.way <= BLIND else "partly"

    @property
    def surprises(self) -> bool:
        """Whether declaration and verdict disagree; a hard probe may stay unsolved."""
        if self.declared is None:
            return False
        wanted = "sees" if self.declared else "blind"
        excused = self.declared and find_probe(self.probe).hard
        return self.verdict != wanted and not excused


def interval_margin(values: Sequence[float]) -> float | None:
    """Return half of the 95 % interval of a mean by Student's t, if there are several values."""
    if len(values) < 2:
        return None
    factor = float(stats.t.ppf(0.5 + LEVEL / 2, len(values) - 1))
    return factor * float(np.std(values, ddof=1)) / math.sqrt(len(values))


def collect_entries(
    cells: Sequence[Cell], store: CellStore, traits: Mapping[str, Traits]
) -> dict[tuple[str, str], ChartEntry]:
    """Return the results by attention and probe, of those with a finished training."""
    facts: dict[tuple[str, str], list[tuple[Cell, dict[str, Any]]]] = {}
    for cell in cells:
        own = store.load(cell)
        if own is not None:
            facts.setdefault((cell.subject.name, cell.probe), []).append((cell, own))
    entries = {}
    for (attention, probe), finished in facts.items():
        shares = [own["evidence_share"] for _, own in finished]
        uniform = [own["uniform_share"] for _, own in finished]
        mapped = None not in shares
        entries[attention, probe] = ChartEntry(
            attention,
            probe,
            {cell.seed: own["score"] for cell, own in finished},
            {cell.seed: own["levels"] for cell, own in finished},
            traits[attention].sees.get(probe),
            float(np.mean(shares)) if mapped else None,
            float(np.mean(uniform)) if mapped else None,
            finished[0][0],
        )
    return entries


def tabulate_entries(
    entries: Mapping[tuple[str, str], ChartEntry], traits: Mapping[str, Traits], baseline: str
) -> pd.DataFrame:
    """Return a row per attention and probe.

    The difference from the baseline is that of pairs of trainings with the same seed.
    """
    rows = []
    for entry in entries.values():
        probe = find_probe(entry.probe)
        other = entries.get((baseline, entry.probe))
        theirs = {} if other is None else other.scores
        differences = [own - theirs[seed] for seed, own in entry.scores.items() if seed in theirs]
        rows.append(
            {
                "attention": entry.attention,
                "probe": entry.probe,
                "seeds": len(entry.scores),
                "score": entry.mean,
                "margin": entry.margin,
                "scores": " ".join(f"{score:.4f}" for score in entry.scores.values()),
                "chance": probe.chance,
                "ceiling": probe.ceiling,
                "verdict": entry.verdict,
                "declared": {None: "", True: "sees", False: "blind"}[entry.declared],
                "surprise": entry.surprises,
                f"difference_from_{baseline}": np.mean(differences) if differences else None,
                "difference_margin": interval_margin(differences),
                "evidence_share": entry.share,
                "uniform_share": entry.uniform,
                "parameters": traits[entry.attention].parameters,
                "macs": traits[entry.attention].macs,
            }
        )
    return pd.DataFrame(rows)


def tabulate_levels(entries: Mapping[tuple[str, str], ChartEntry]) -> pd.DataFrame:
    """Return a row per attention, probe, level and seed, of the probes that have levels."""
    return pd.DataFrame(
        [
            {
                "attention": entry.attention,
                "probe": entry.probe,
                "level": int(level),
                "seed": seed,
                "score": score,
            }
            for entry in entries.values()
            for seed, levels in entry.levels.items()
            for level, score in levels.items()
        ],
        columns=["attention", "probe", "level", "seed", "score"],
    )
