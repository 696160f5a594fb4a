"""Timing in alternation, so that a drift of the machine's speed affects all works alike."""

import statistics
import time
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple, TypeVar

import torch

Work = Callable[[], object]
Spread = dict[str, float]  # median, min, max
Key = TypeVar("Key")


class Sample(NamedTuple):
    """Time of one call, and the reading of a gauge of the machine's speed just before it."""

    seconds: float
    gauge: dict[str, float]


def alternate(
    works: Mapping[Key, Work],
    repeats: int,
    gauge: Callable[[], dict[str, float]] = dict,
    warm_up: bool = True,
) -> dict[Key, list[Sample]]:
    """Time works by turns, in reverse order every second round.

    Args:
        works: calls to time, by name.
        repeats: number of rounds.
        gauge: read before every call, such as the rates of matrix products.
        warm_up: whether to call each work once untimed, to begin with.

    Returns:
        The samples of each work, one per round.
    """
    for work in works.values() if warm_up else ():
        work()
    samples: dict[Key, list[Sample]] = {name: [] for name in works}
    for number in range(repeats):
        for name in list(works) if number % 2 == 0 else reversed(list(works)):
            reading = gauge()
            samples[name].append(Sample(seconds(works[name]), reading))
    return samples


def seconds(work: Work) -> float:
    """Return the time of one call, including its work on a GPU."""
    wait()
    started = time.perf_counter()
    work()
    wait()
    return time.perf_counter() - started


def wait() -> None:
    """Wait until a GPU has done all its work."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def median_and_range(values: Iterable[float]) -> Spread:
    """Return median, least and most."""
    values = sorted(values)
    return {"median": statistics.median(values), "min": values[0], "max": values[-1]}
