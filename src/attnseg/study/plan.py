"""The plan of a comparison: how many patients and seeds its decisions need."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from attnseg.errors import ConfigError, DataError
from attnseg.runs.variants import find_runs, group_by_variant, match_baselines, open_finished_runs
from attnseg.study import statistics
from attnseg.study.checks import check_comparable
from attnseg.study.contrasts import MIN_PATIENTS, pair_values
from attnseg.study.metric import choose_metric
from attnseg.study.power import Variation, power_to_differ, power_to_equal
from attnseg.study.score_sheet import ScoreSheet
from attnseg.study.trainings import average_seeds, deviate_seeds
from attnseg.study.wording import count_text

log = logging.getLogger(__name__)
MOST_PATIENTS = 10_000
Chance = Callable[[int, int], float]  # of patients and seeds


def plan_comparison(
    margin: float,
    *,
    difference: float | None,
    runs: Sequence[str],
    baseline: str,
    by: Sequence[str],
    split: str,
    metric: str | None,
    patient_sd: float | None,
    seed_sd: float | None,
    rest_sd: float,
    loss: float,
    seeds: Sequence[int],
    comparisons: int,
    power: float,
    level: float,
    outputs: str | Path,
) -> dict[str, dict[int, int | None]]:
    """Print how many patients are needed for each number of seeds, and draw the power.

    See `attnseg.commands.plan.Plan` for the options.

    Returns:
        By question and number of seeds; `None` if no number of patients is enough.

    Raises:
        ConfigError: neither runs nor deviations are given.
        DataError: the pilot's runs cannot be compared, or have a single seed.
    """
    if runs:
        variation = estimate_variation(runs, baseline, by, split, metric)
    elif patient_sd is None or seed_sd is None:
        raise ConfigError("runs: none given; give a pilot's runs, or patient_sd and seed_sd")
    else:
        variation = Variation(patient_sd, seed_sd, rest_sd)
    alpha, difference = (1 - level) / comparisons, difference or margin

    questions = _pose_questions(variation, difference, margin, loss, alpha)
    print(
        f"Standard deviations: {variation.patients:.4g} between patients, {variation.seeds:.4g} "
        f"between seeds, {variation.rest:.4g} of their interaction. Power {power:g}, "
        f"{count_text(comparisons, 'comparison')}."
    )
    needed = {text: _print_needs(text, chance, seeds, power) for text, chance in questions.items()}
    folder = Path(outputs)
    folder.mkdir(parents=True, exist_ok=True)
    _draw_power(questions, seeds, needed, power).savefig(folder / "plan.png")
    log.info("Written: %s", folder / "plan.png")
    return needed


def _pose_questions(
    variation: Variation, difference: float, margin: float, loss: float, alpha: float
) -> dict[str, Chance]:
    """Return what a comparison may show, with the power to show it."""

    def differ(patients: int, seeds: int) -> float:
        if statistics.smallest_p(patients) > alpha:
            return 0.0
        return power_to_differ(variation, patients, seeds, difference, alpha)

    def equal(patients: int, seeds: int) -> float:
        if patients < MIN_PATIENTS:
            return 0.0
        return power_to_equal(variation, patients, seeds, margin, loss, alpha)

    return {
        f"a true difference of {difference:g} is shown": differ,
        f"two equal variants are shown to be as good, within {margin:g}": equal,
    }


def _print_needs(
    question: str, chance: Chance, seeds: Sequence[int], power: float
) -> dict[int, int | None]:
    needed = {count: find_patients(chance, count, power) for count in seeds}
    print(f"\nPatients needed so that {question}:")
    for count, patients in needed.items():
        print(f"  {count:2} seeds of each variant: {_patients_text(patients, chance, count)}")
    return needed


def _patients_text(patients: int | None, chance: Chance, seeds: int) -> str:
    if patients is not None:
        return f"{patients}"
    most = chance(MOST_PATIENTS, seeds)
    return f"no number is enough (power {most:.2f} with {MOST_PATIENTS:,}); train more seeds"


def estimate_variation(
    runs: Sequence[str], baseline: str, by: Sequence[str], split: str, metric: str | None
) -> Variation:
    """Estimate the variation of a pilot: the largest one of its variants and their baselines.

    The deviation of the seeds is that of their means, and so not cut at 0 where few patients hide
    it.
    """
    variants = group_by_variant(open_finished_runs(find_runs(runs)), by)
    check_comparable(variants, split)
    sheet = ScoreSheet.of(variants, split, choose_metric(variants[0].runs[0], split, metric))
    found = []
    for variant, base in match_baselines(variants, baseline).items():
        pair = pair_values(sheet, variant, base)
        spread = max(deviate_seeds(average_seeds(table))[0] for table in (pair.own, pair.base))
        found.append(replace(Variation.of(pair.own, pair.base), seeds=spread))
    values = np.array([[v.patients, v.seeds, v.rest] for v in found])
    if not len(values) or np.isnan(values).any():
        raise DataError("runs: a pilot needs two variants with two seeds each; train more of them")
    return Variation(*values.max(0).tolist())


def find_patients(chance: Chance, seeds: int, power: float) -> int | None:
    """Return the smallest number of patients with the given power, `None` if there is none."""
    low, high = 1, 2
    while chance(high, seeds) < power:
        low, high = high, 2 * high
        if low >= MOST_PATIENTS:
            return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if chance(middle, seeds) >= power else (middle, high)
    return high


def _draw_power(
    questions: Mapping[str, Chance],
    seeds: Sequence[int],
    needed: dict[str, dict[int, int | None]],
    power: float,
) -> Figure:
    """Draw the power over the number of patients, a line for each number of seeds."""
    figure = Figure(figsize=(9, 3.6), dpi=120, layout="constrained")
    known = [n for counts in needed.values() for n in counts.values() if n is not None]
    counts = np.unique(np.geomspace(4, 2 * max([*known, 50]), 40).astype(int)).tolist()
    axes = figure.subplots(1, len(questions), sharey=True)
    for panel, (question, chance) in zip(axes, questions.items(), strict=True):
        for count in seeds:
            panel.plot(counts, [chance(n, count) for n in counts], label=f"{count} seeds")
        panel.axhline(power, color="grey", linewidth=0.8, linestyle="--")
        panel.set(xscale="log", ylim=(0, 1.02), xlabel="patients")
        panel.set_title(f"Power: {question}", fontsize=9, loc="left", wrap=True)
    axes[0].set_ylabel("power")
    axes[0].legend(title="of each variant", fontsize=8)
    return figure
