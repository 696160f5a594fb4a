"""Simulates comparisons whose truth is known, and counts wrong verdicts; see docs/comparison.md.

    python scripts/simulate_verdicts.py [STUDIES [SEED]]

A study compares two attentions by the functions that `attnseg compare` uses. Dice of a patient has
a long tail to the left and is the mean over one to three scans; of ten patients, one scores 1 under
every network. A seed moves all patients, and each of them by 0.02 more. The column "failing scans"
gives the share of scans in which a single network fails entirely.
"""

import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from itertools import product, repeat
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy import stats

from attnseg.study.contrasts import Contrast, Decision, PairedValues, contrast_family

RESAMPLES = 1000  # of the bootstrap and of the weightings; the tool takes 10,000
TIES, INTERACTION, LOSS = 0.1, 0.02, 0.8


class Truth(NamedTuple):
    """What is true of a simulated comparison."""

    patients: int
    seeds: int
    seed_sd: float
    shift: float = 0.0  # of all patients that have no tie
    failures: float = 0.01  # share of scans in which a single network fails
    lost: float = 0.0  # share of patients in whom the variant alone loses `LOSS`
    margin: float = 0.01

    @property
    def difference(self) -> float:
        """Return the true mean difference of the attentions."""
        return (1 - TIES) * self.shift * (1 - self.failures) - self.lost * LOSS


class Study(NamedTuple):
    """A simulated study, and the same with the variant moved to the margin."""

    contrast: Contrast
    edge: Contrast
    difference: float  # of the attentions
    of_networks: float  # of the networks


Count = Callable[[Study], bool]


def draw_pair(truth: Truth, rng: np.random.Generator) -> tuple[PairedValues, float]:
    """Draw values of two variants by patient and seed; also return these networks' difference."""
    n, s = truth.patients, truth.seeds
    scans = np.arange(3) < rng.integers(1, 4, (n, 1))
    base = 0.3 + 0.6 / (1 + np.exp(-rng.normal(2.2, 0.8, (n, 1)))) + rng.normal(0, 0.03, (n, 3))
    tied = rng.random((n, 1, 1)) < TIES
    tables, effects = [], []
    for shift in (truth.shift, 0.0):
        effect = rng.normal(0, truth.seed_sd, (1, s, 1))
        effects.append(effect.mean())
        moved = effect + rng.normal(0, INTERACTION, (n, s, 3)) + shift
        scores = np.where(tied, 1.0, base[:, None] + moved)
        scores = np.where(rng.random(scores.shape) < truth.failures, 0, scores)
        tables.append((scores * scans[:, None]).sum(2) / scans.sum(1)[:, None])
    tables[0] -= LOSS * (rng.random((n, 1)) < truth.lost)
    of_networks = (1 - TIES) * (1 - truth.failures) * (effects[0] - effects[1]) + truth.difference
    return PairedValues("own", "base", *map(pd.DataFrame, tables)), float(of_networks)


def simulate(truth: Truth, studies: int, seed: int) -> list[Study]:
    """Compare two variants in many studies."""
    facts = [round(1e6 * abs(x)) for x in truth]
    rng = np.random.default_rng([seed, *facts])
    found = []
    for study in range(studies):
        pair, of_networks = draw_pair(truth, rng)
        edge = replace(pair, own=pair.own - truth.margin - truth.difference)
        decision = Decision(truth.margin, seed=study, resamples=RESAMPLES, detects=False)
        contrast, at_margin = (contrast_family([each], decision)[0] for each in (pair, edge))
        found.append(Study(contrast, at_margin, truth.difference, of_networks))
    return found


def tell_rate(hits: Sequence[bool]) -> str:
    """Return a share in percent with its exact 95 % interval."""
    share = stats.binomtest(sum(hits), len(hits)).proportion_ci()
    return f"{100 * np.mean(hits):.1f} ({100 * share.low:.1f} to {100 * share.high:.1f})"


def describe_row(title: str, truth: Truth, studies: int, seed: int) -> str:
    """Return a row of a table: what is true, and how often each verdict was given."""
    found = simulate(truth, studies, seed)
    counts = [[bool(count(study)) for study in found] for count in TABLES[title].values()]
    lost = f" + {100 * truth.lost:.2f} % of patients" if truth.lost else ""
    facts = [truth.patients, truth.seeds, truth.seed_sd, f"{truth.difference:.4f}", truth.margin]
    facts += [f"{100 * truth.failures:g} %{lost}", *map(tell_rate, counts)]
    return f"| {' | '.join(map(str, facts))} |"


def covers(low: str, high: str) -> Count:
    """Return a count of the intervals of an attention that hold the true difference."""

    def count(study: Study) -> bool:
        claim = study.contrast.attention
        return bool(getattr(claim, low) <= study.difference <= getattr(claim, high))

    return count


COVERAGE: dict[str, Count] = {
    "95 % interval covers": covers("low", "high"),
    "that of the networks": lambda s: (
        s.contrast.networks.low <= s.of_networks <= s.contrast.networks.high
    ),
    "90 % interval covers": covers("low_90", "high_90"),
    "allowing for failures": covers("equivalence_low", "equivalence_high"),
}
EQUIVALENT: dict[str, Count] = {
    "equivalent": lambda s: s.contrast.equivalent,
    "as good": lambda s: s.contrast.attention.noninferior,
}
TABLES: dict[str, dict[str, Count]] = {
    "No difference; for equivalence, one of the margin": {
        "false different": lambda s: s.contrast.different,
        "said of networks": lambda s: s.contrast.networks.different,
        "false equivalent": lambda s: s.edge.equivalent,
        "false as good": lambda s: s.edge.attention.noninferior,
        **COVERAGE,
    },
    "A difference of the margin, by failures that only the variant has": EQUIVALENT | COVERAGE,
    "A difference of 0.02": {"different": lambda s: s.contrast.different, **COVERAGE},
    "No difference": EQUIVALENT,
}
GRID = product((12, 60, 200), (3, 5), (0.0, 0.003, 0.005, 0.01))
TRUTHS = (
    [
        *(Truth(*row) for row in GRID),
        *(Truth(n, s, sd, failures=0.0) for n, s, sd in product((60, 200), (3, 5), (0.005, 0.01))),
    ],
    [
        *(Truth(n, 3, 0.003, lost=0.0125) for n in (12, 60, 200)),
        *(Truth(n, 3, 0.003, failures=0.0, lost=0.0125) for n in (200, 500, 1000)),
        Truth(500, 3, 0.0, -0.005 / 0.9, 0.0, 0.00625),
        *(Truth(n, 3, 0.005, failures=0.0, lost=0.0625, margin=0.05) for n in (60, 200)),
    ],
    [
        *(Truth(60, s, sd, 0.02 / 0.9, 0.0) for s, sd in ((3, 0.005), (5, 0.005), (3, 0.01))),
        Truth(12, 3, 0.005, 0.02 / 0.9, 0.0),
        *(Truth(n, s, 0.005, 0.02 / 0.891) for n, s in ((60, 3), (60, 5), (200, 5))),
    ],
    [
        Truth(n, 3, 0.003, failures=0.0, margin=margin)
        for n, margin in ((60, 0.01), (60, 0.06), (200, 0.02), (500, 0.01))
    ],
)


def main() -> None:
    """Print all tables."""
    studies, seed = (int(word) for word in (*sys.argv[1:], *["400", "0"][len(sys.argv) - 1 :]))
    with ProcessPoolExecutor(2) as pool:
        for (title, counts), truths in zip(TABLES.items(), TRUTHS, strict=True):
            names = ["patients", "seeds", "SD of seeds", "difference", "margin", "failing scans"]
            names += counts
            print(f"\n**{title}**, {studies} studies a row, percent\n\n| {' | '.join(names)} |")
            print(f"|{'---|' * len(names)}")
            rows = [repeat(each) for each in (studies, seed)]
            for row in pool.map(describe_row, repeat(title), truths, *rows):
                print(row, flush=True)


if __name__ == "__main__":
    main()
