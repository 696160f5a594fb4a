"""Markers of configuration fields: their role in the identity and the comparison of runs."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Marker:
    """The meaning of a field beyond its value, given as `Annotated[type, marker]`.

    Attributes:
        identity: a different value makes a different run.
        comparison: runs that differ in it must not be compared without saying so.
        rounding: another value may change the last digits of results, and so their course.
    """

    identity: bool = True
    comparison: bool = True
    rounding: bool = False


NotIdentity = Marker(identity=False)
Harmless = Marker(comparison=False)
Technical = Marker(identity=False, comparison=False)
Device = Marker(identity=False, comparison=False, rounding=True)
