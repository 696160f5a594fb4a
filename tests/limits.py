"""Limits of time that hold on a machine of any speed."""

import resource
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from numpy.random import default_rng

HANG = 600  # seconds after which what should have ended counts as hanging
YARDSTICK = 0.05  # processor seconds of `time_yardstick` on the reference machine


class Clock:
    """A clock in place of the module `time`, which stands still until it is advanced."""

    def __init__(self) -> None:
        self.now = 0.0

    def perf_counter(self) -> float:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += seconds


@contextmanager
def at_most(seconds: float) -> Iterator[None]:
    """Assert that the block takes at most that processor time on the reference machine.

    That is an Intel Xeon with AVX-512. The same work, timed before and after the block, shows how
    much slower this machine is. Child processes that end within the block count, too.
    """
    before = time_yardstick()
    started = read_processor_seconds()
    yield
    used = read_processor_seconds() - started
    limit = seconds * max(1.0, (before + time_yardstick()) / (2 * YARDSTICK))
    assert used <= limit, f"{used:.1f} s used; the limit here is {limit:.1f} s"


def time_yardstick() -> float:
    """Return the processor seconds that a fixed piece of work takes."""
    draws, numbers = default_rng(0), np.empty(10_000)
    started = read_processor_seconds()
    for _ in range(370):  # In place: the time to allocate depends on what the process did before.
        draws.standard_normal(out=numbers)
        numbers.cumsum(out=numbers)
    return read_processor_seconds() - started


def read_processor_seconds() -> float:
    """Return the processor time of this process and of its children that have ended."""
    parts = map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(part.ru_utime + part.ru_stime for part in parts)
