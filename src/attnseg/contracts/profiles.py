"""Promises of every metric profile, on the four states of a class in a case."""

from collections.abc import Callable

import numpy as np
import pandas as pd

from attnseg.contracts.networks import Outcome
from attnseg.metrics.profiles.profile import Profile

SPACINGS = ((3.0, 1.0, 2.0), None)  # mm, and unknown
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
    """Every metric that is declared is scored, whatever is empty and whether spacing is known."""
    declared = {metric.name for metric in profile.metrics if not metric.of_probabilities}
    summarised: set[str] = set()
    for spacing in SPACINGS:
        rows, scored = [], set[str]()
        for case, (truth, prediction) in STATES.items():
            scores = profile.score_case(truth[None], prediction[None], spacing, ["organ"])
            names = {metric for _, metric, _ in scores}
            if missing := sorted(scored - names):
                return Outcome("", f"{case}: {', '.join(missing)} is not scored; give NaN instead")
            scored |= names if case == "both" else set()
            rows += [(case, case, *score) for score in scores]
        columns = ["patient", "case", "class", "metric", "value"]
        summary = profile.summarise(pd.DataFrame(rows, columns=columns))
        summarised |= {str(name) for name in summary.columns if summary[name].notna().any()}
    if unscored := sorted(declared - summarised):
        return Outcome("", f"{', '.join(unscored)} is declared and never scored")
    return Outcome(f"{len(declared)} metrics")


def check_direction(profile: Profile) -> Outcome:
    """The right answer is at least as good as a missed and a spurious one, in every metric."""
    best = {m.name: m.up for m in profile.metrics}
    scores = {state: profile.score(*masks, SPACINGS[0]) for state, masks in STATES.items()}
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
