"""Promises of every metric profile, on the four states of a class in a case."""

from collections.abc import Callable

import numpy as np
import pandas as pd

from attnseg.contracts.networks import Outcome
from attnseg.metrics.profiles.profile import Metric, Profile

# Voxel sizes, mm, of which the organ is small, medium and large; and unknown.
SPACINGS = ((3.0, 1.0, 2.0), (6.0, 3.0, 4.0), (30.0, 10.0, 20.0), None)
ROUNDING = 1e-9
_EMPTY = np.zeros((4, 10, 12), bool)
_ORGAN = _EMPTY.copy()
_ORGAN[1:3, 2:6, 3:8] = True
STATES = {  # truth and prediction
    "both": (_ORGAN, _ORGAN),
    "missed": (_ORGAN, _EMPTY),
    "spurious": (_EMPTY, _ORGAN),
    "neither": (_EMPTY, _EMPTY),
}


def check_completeness(profile: Profile) -> Outcome:
    """Every metric that is declared is scored, whatever is empty and whether spacing is known.

    So it is where all cases are in one state, and its values are within their bounds or NaN.
    """
    declared = {metric.name: metric for metric in profile.metrics if not metric.of_probabilities}
    summarised: set[str] = set()
    for spacing in SPACINGS:
        rows, scored = [], set[str]()
        for case, (truth, prediction) in STATES.items():
            scores = profile.score_case(truth[None], prediction[None], spacing, ["organ"])
            names = {metric for _, metric, _ in scores}
            if missing := sorted(scored - names):
                return Outcome("", f"{case}: {', '.join(missing)} is not scored; give NaN instead")
            if case != "both" and (surplus := sorted(names - scored)):
                return Outcome("", f"{case}: {', '.join(surplus)} is not scored where both agree")
            scored |= names
            rows.append([(case, case, *score) for score in scores])
            if problem := _check_summary(profile, declared, rows[-1]):
                return Outcome("", f"{case}: {problem}")
        summary = _summarise(profile, [row for case_rows in rows for row in case_rows])
        summarised |= {str(name) for name in summary.columns if summary[name].notna().any()}
    if unscored := sorted(declared.keys() - summarised):
        return Outcome("", f"{', '.join(unscored)} is declared and never scored")
    return Outcome(f"{len(declared)} metrics")


def _summarise(profile: Profile, rows: list[tuple[str, str, str, str, float]]) -> pd.DataFrame:
    columns = ["patient", "case", "class", "metric", "value"]
    return profile.summarise(pd.DataFrame(rows, columns=columns))


def _check_summary(
    profile: Profile,
    declared: dict[str, Metric],
    rows: list[tuple[str, str, str, str, float]],
) -> str:
    """Return a problem of the scores of one case, and of their summary; empty if there is none."""
    summary = _summarise(profile, rows)
    if lacking := sorted(declared.keys() - set(summary.columns)):
        return f"{', '.join(lacking)} is declared and not in the summary; give NaN instead"
    for name, metric in declared.items():
        low, high = metric.bounds
        values = [*summary[name].astype(float), *(row[-1] for row in rows if row[3] == name)]
        known = [value for value in values if not np.isnan(value)]
        if wrong := [v for v in known if not low - ROUNDING <= v <= high + ROUNDING or np.isinf(v)]:
            return f"{name} is {wrong[0]:g}, not from {low:g} to {high:g}; declare its limits"
    return ""


def check_direction(profile: Profile) -> Outcome:
    """The right answer is at least as good as a missed and a spurious one, in every metric."""
    best = {m.name: m.up for m in profile.metrics}
    scores = {
        state: {
            metric: value
            for _, metric, value in profile.score_case(
                truth[None], prediction[None], SPACINGS[0], ["organ"]
            )
        }
        for state, (truth, prediction) in STATES.items()
    }
    for name in best.keys() & scores["both"].keys():
        sign = 1 if best[name] else -1
        right, *wrong = (
            sign * abs(scores[state][name]) for state in ("both", "missed", "spurious")
        )
        if any(value > right for value in wrong):
            return Outcome("", f"{name}: a missed or spurious organ scores above the right answer")
    return Outcome("kept")


CONTRACTS: dict[str, Callable[[Profile], Outcome]] = {
    "completeness": check_completeness,
    "order": check_direction,
}
