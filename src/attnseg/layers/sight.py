"""Declarations of what attentions see: predictions of their equations, for probes to test.

They are for a network of two blocks on a grid of 8 x 8 tokens, without a class token.
"""

from collections.abc import Mapping

Sees = Mapping[str, bool]  # whether a probe should be solved, by its name; no entry, no prediction

# A fact is carried from afar to all tokens alike.
FAR = ("far_place", "far_appearance", "reach", "arrow", "boundary")
# Every token needs the content of another place.
SHARP = ("nearest",)


def declare_sight(far: bool, sharp: bool | None = None, **others: bool) -> Sees:
    """Return a declaration for the probes of a kind, and for single probes by their names.

    Args:
        far: whether a fact from afar is seen.
        sharp: whether every token can choose another place to take from; by default as `far`.
        others: for single probes; they replace what the kinds say.
    """
    sharply = far if sharp is None else sharp
    return {**dict.fromkeys(FAR, far), **dict.fromkeys(SHARP, sharply), **others}
