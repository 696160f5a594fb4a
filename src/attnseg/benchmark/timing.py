"""Timing in alternation: a drift of the machine's speed meets all that is compared alike."""

import statistics
import time
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple, TypeVar

import torch

Work = Callable[[], object]
Spread = dict[str, float]  # median, min, max
Key = TypeVar("Key")


class Sample(NamedTuple):
    """One timed call.

    Attributes:
        seconds: that it took.
        gauge: what the machine's gauge showed just before it, by name.
    """

    seconds: float
    gauge: dict[str, float]


def alternate(
    works: Mapping[Key, Work],
    repeats: int,
    gauge: Callable[[], dict[str, float]] = dict,
    warm_up: bool = True,
) -> dict[Key, list[Sample]]:
    """Time works in turn, there and back.

    Args:
        works: by name.
        repeats: of each.
        gauge: read before every call: rates of matrix products, say.
        warm_up: whether to call each work once untimed, to begin with.

    Returns:
        `repeats` samples of each work; those at one position are of one round.
    """
    for work in works.values() if warm_up else ():
        work()
    samples: dict[Key, list[Sample]] = {name: [] for name in works}
    for number in range(repeats):
        for name in list(works) if number % 2 == 0 else reversed(list(works)):
            shown = gauge()
            samples[name].append(Sample(seconds(works[name]), shown))
    return samples


def seconds(work: Work) -> float:
    """Return the time of one call, a GPU's work included."""
    wait()
    started = time.perf_counter()
    work()
    wait()
    return time.perf_counter() - started


def wait() -> None:
    """Wait for what a GPU still has to do."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def median_and_range(values: Iterable[float]) -> Spread:
    """Return median, least and most."""
    found = list(values)
    return {"median": statistics.median(found), "min": min(found), "max": max(found)}
