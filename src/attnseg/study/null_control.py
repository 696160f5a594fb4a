"""The null control: a variant without token mixing, which shows if the data need attention."""

from collections.abc import Mapping, Sequence

from attnseg.runs.run_folder import RunFolder
from attnseg.runs.variants import Variant
from attnseg.study.contrasts import Contrast
from attnseg.study.metric import ComparedMetric

IDENTITY = "identity"  # the choice of `attn` that mixes no tokens


def lacks_token_mixing(run: RunFolder) -> bool:
    """Return whether a run's network has the identity in the place of its attention.

    A model without attention is another network, whose convolutions see far; it is no control.
    """
    attn = run.raw_config.get("attn")
    target = str(attn.get("_target_", "")) if isinstance(attn, Mapping) else ""
    return run.facts.choices.get("attn") == IDENTITY or target.endswith(".identity.Identity")


def find_null_controls(variants: Sequence[Variant]) -> list[str]:
    """Return the names of the variants without token mixing."""
    return [v.name for v in variants if all(map(lacks_token_mixing, v.runs))]


def caution_of_null_controls(
    contrasts: Sequence[Contrast],
    controls: Sequence[str],
    metric: ComparedMetric,
    margin: float | None,
) -> str:
    """Return a caution if a null control is not worse than an attention by the margin, else "".

    It is a sentence such as "identity, which mixes no tokens, is 0.0021 Dice better than qkv: these
    data cannot tell attentions apart". Differences that are shown all the same are excepted.
    """
    near, differences = [], 0
    for c in contrasts:
        claim = c.networks if min(c.seeds) < 2 else c.attention
        # The control may be the baseline itself; then each variant is held against it.
        of_control = c.variant in controls
        gain = c.difference if of_control == metric.up else -c.difference
        if of_control == (c.baseline in controls) or gain < -(margin or 0.0):
            differences += claim.different and not of_control
            continue
        control, other = (c.variant, c.baseline)[:: 1 if of_control else -1]
        by = f"{metric.text(abs(gain))} {metric.unit}"
        if gain > 0:
            relation = f"is {by} better than {other}"
        else:
            limit = "" if margin is None else f" (margin {margin:g})"
            relation = f"is only {by} worse than {other}{limit}"
        near.append(f"{control}, which mixes no tokens, {relation}")
    if not near:
        return ""
    beyond = f"beyond the difference{'' if differences == 1 else 's'} shown, "
    return (
        f"{'; '.join(near)}: {beyond if differences else ''}these data cannot tell attentions apart"
    )


def doubt_attentions(
    variants: Sequence[Variant],
    contrasts: Sequence[Contrast],
    controls: Sequence[str],
    metric: ComparedMetric,
    margin: float | None,
) -> list[str]:
    """Return reasons to doubt that the data can tell attentions apart."""
    if not controls:
        attentions = {run.facts.choices.get("attn") for v in variants for run in v.runs}
        missing = (
            "no variant without token mixing is compared: whether these data need attention at "
            "all stays open; train one with attn=identity"
        )
        return [missing] if len(attentions) > 1 else []
    if caution := caution_of_null_controls(contrasts, controls, metric, margin):
        return [caution]
    return [
        f"{c.variant}, which mixes no tokens, is not shown to be worse than {c.baseline}"
        for c in contrasts
        if c.variant in controls and not c.networks.different
    ]
