"""Markers at the fields of a configuration: what a value means for identity and comparison."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Marker:
    """The meaning of a field beyond its value, given as `Annotated[type, marker]`.

    Attributes:
        identity: another value makes another run.
        comparison: runs that differ in it must not be compared without saying so.
    """

    identity: bool = True
    comparison: bool = True


NotIdentity = Marker(identity=False)
Harmless = Marker(comparison=False)
Technical = Marker(identity=False, comparison=False)
