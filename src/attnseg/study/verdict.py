"""Sentences that state the outcome of a comparison."""

import math
from collections.abc import Sequence

from attnseg.study.contrasts import ATTENTION, MIN_PATIENTS, NETWORKS, Claim, Contrast
from attnseg.study.metric import ComparedMetric
from attnseg.study.null_control import caution_of_null_controls
from attnseg.study.wording import count_text, difference_text, interval_text

MAX_NAMED = 4  # more variants are counted in the headline instead of named
ABOUT = {ATTENTION: "this attention, other trainings", NETWORKS: "these networks, other patients"}


def write_headline(
    contrasts: Sequence[Contrast],
    baseline: str,
    metric: ComparedMetric,
    margin: float | None,
    controls: Sequence[str] = (),
    splits: int = 1,
) -> str:
    """Return all verdicts against a baseline in one sentence: sizes, patients, trainings and unit.

    The verdicts are about attentions; about these networks alone where there is a single seed. A
    null control (see `null_control`) within the margin of its baseline adds a caution.
    """
    sentences = []
    several = [c for c in contrasts if min(c.seeds) > 1]
    single = [c for c in contrasts if min(c.seeds) < 2]
    for group, prefix, of in (
        (several, "", "attention"),
        (
            single,
            "Of these networks alone (one seed gives no verdict on an attention): ",
            "networks",
        ),
    ):
        if group:
            clauses = _join_verdicts(group, of, baseline, metric, margin)
            sentences.append(f"{prefix}{_sample_text(group, splits)}: {clauses}.")
    if caution := caution_of_null_controls(contrasts, controls, metric, margin):
        sentences.append(f"Caution: {caution}.")
    return " ".join(sentences)


def _sample_text(contrasts: Sequence[Contrast], splits: int) -> str:
    """Return the numbers of patients, splits and trainings of some comparisons."""
    patients = _count_range([c.patients for c in contrasts])
    trainings = _count_range([count for c in contrasts for count in c.seeds])
    division = "one split" if splits == 1 else f"{splits} splits"
    text = f"on {patients} patient{'' if patients == '1' else 's'} of {division}"
    seeds = f", {trainings} seeds each" if trainings != "1" else ""
    return f"O{text[1:]}{seeds}" if seeds else text


def _count_range(counts: Sequence[int]) -> str:
    low, high = min(counts), max(counts)
    return f"{low}" if low == high else f"{low} to {high}"


def _join_verdicts(
    contrasts: Sequence[Contrast],
    of: str,
    baseline: str,
    metric: ComparedMetric,
    margin: float | None,
) -> str:
    """Return a clause for each verdict, with the variants that share it and their differences."""
    within = "" if margin is None else f"within {margin:g} {metric.unit}"
    groups: dict[str, list[Contrast]] = {}
    for c in contrasts:
        claim: Claim = getattr(c, of)
        if claim.different:
            statement = f"{{}} {claim.verdict} than {baseline} by {{by}}"
            statement += f", though {within}" if claim.equivalent else ""
        elif claim.equivalent:
            statement = f"{{}} equivalent to {baseline} {within} (difference {{difference}})"
        elif claim.noninferior:
            statement = f"{{}} as good as {baseline} {within} (difference {{difference}})"
        else:
            statement = f"no difference from {baseline} is shown for {{}} ({{difference}})"
        groups.setdefault(statement, []).append(c)
    clauses = []
    for statement, own in groups.items():
        subject = _join_names([c.variant for c in own])
        if statement.startswith("{}"):
            subject += " is" if len(own) == 1 else " are"
        sizes = _join_sizes([abs(c.difference) for c in own], metric)
        differences = _join_sizes([c.difference for c in own], metric)
        by = f"{sizes} {metric.unit}"
        # Names may contain braces, so that `str.format` is not for them.
        clause = statement.replace("{by}", by).replace("{difference}", differences)
        clauses.append(clause.replace("{}", subject))
    return "; ".join(clauses)


def _join_sizes(sizes: Sequence[float], metric: ComparedMetric) -> str:
    if len(sizes) > MAX_NAMED:
        return " to ".join(difference_text(end, metric) for end in (min(sizes), max(sizes)))
    return _join_names([difference_text(size, metric) for size in sizes])


def _join_names(names: Sequence[str]) -> str:
    if len(names) > MAX_NAMED:
        return f"{len(names)} variants"
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def write_verdict(contrast: Contrast, metric: ComparedMetric) -> str:
    """Return one sentence about the attention and one about these networks."""
    attention, networks = (
        write_claim(contrast, claim, metric) for claim in (contrast.attention, contrast.networks)
    )
    return f"{attention}. Of these networks alone, on other patients: {networks}"


def write_claim(c: Contrast, claim: Claim, metric: ComparedMetric) -> str:
    """Return a clause about one claim, which says no more than was shown."""
    if claim.of == ATTENTION and min(c.seeds) < 2:
        single = [name for name, n in zip((c.variant, c.baseline), c.seeds, strict=True) if n < 2]
        return (
            f"Nothing is shown about the attentions {c.variant} and {c.baseline}: one seed of "
            f"{' and of '.join(single)} does not tell what other trainings give"
        )
    within = "" if c.margin is None else f"within {c.margin:g} {metric.unit}"
    numbers = f"difference {difference_text(c.difference, metric)}{_interval(c, claim, metric)}"
    numbers += f"; {_draws_text(c, claim)}"
    if claim.different:
        size = f"{metric.text(abs(c.difference))} {metric.unit}"
        text = f"{c.variant} is {claim.verdict} than {c.baseline} by {size} ({numbers})"
        return text + (
            f", which is {within}, the margin of equivalence" if claim.equivalent else ""
        )
    if claim.equivalent:
        return f"{c.variant} is equivalent to {c.baseline} {within} ({numbers})"
    text = f"no difference between {c.variant} and {c.baseline} is shown ({numbers})"
    if claim.noninferior:
        text = (
            f"{c.variant} is as good as {c.baseline} {within} ({numbers}); no difference is shown"
        )
    remarks = [text, *explain_claim(c, claim, metric)]
    return "; ".join(remarks)


def explain_claim(c: Contrast, claim: Claim, metric: ComparedMetric) -> list[str]:
    """Return clauses on why a claim shows no difference and no equivalence."""
    clauses = []
    if claim.simultaneous_low > 0 or claim.simultaneous_high < 0:
        clauses.append(
            f"the interval excludes 0, but the test by sign flips does not (p = {claim.p_holm:.3f})"
        )
    if c.margin is not None and not claim.noninferior:
        if max(-claim.low_90, claim.high_90) >= c.margin:
            pass  # The interval itself says so.
        elif c.patients < MIN_PATIENTS:
            clauses.append(f"equivalence is not judged below {MIN_PATIENTS} patients")
        else:
            clauses.append(f"not equivalent: {failure_text(c, metric)}")
    if math.isinf(claim.detectable):
        return [*clauses, "with 80 % power, this comparison detects no difference, however large"]
    size = f"{metric.text(claim.detectable)} {metric.unit}"
    return [*clauses, f"with 80 % power, this comparison detects a difference of {size} or more"]


def failure_text(c: Contrast, metric: ComparedMetric) -> str:
    """Return how many patients fail under the variant alone, at most, and what that changes."""
    f = c.failures
    seen = "none" if f.seen == 0 else str(f.seen)
    share = f"{100 * f.upper:.1f} %"
    return (
        f"{seen} of {count_text(f.patients, 'patient')} failed under {c.variant} alone; at most "
        f"{share} of all patients do (95 % limit), which would {'lower' if metric.up else 'raise'} "
        f"the mean by {metric.text(f.effect)} {metric.unit}"
    )


def _interval(c: Contrast, claim: Claim, metric: ComparedMetric) -> str:
    if math.isnan(claim.low):
        return ""
    level = f", {100 * (1 - c.alpha):g} % interval"
    if c.family == 1:
        return f"{level} {interval_text(claim.low, claim.high, metric)}"
    ends = interval_text(claim.simultaneous_low, claim.simultaneous_high, metric)
    return f"{level} {ends}, corrected for {c.family} comparisons"


def _draws_text(c: Contrast, claim: Claim) -> str:
    patients = count_text(c.patients, "patient")
    if claim.of == NETWORKS:
        return patients
    own, base = c.seeds
    return f"{patients}, {own} seeds each" if own == base else f"{patients}, {own} and {base} seeds"
