"""Progress bars with the remaining time, or a few plain lines where there is no terminal."""

import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Self, TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

T = TypeVar("T")
PLAIN_LINES = 4  # printed per bar where there is no terminal
PATIENCE = 1.0  # seconds before the first of them, unless the task is done
# Set for the programs that a notebook's cells start, in Jupyter, Colab and Kaggle. Cells show the
# control characters of a terminal as they are.
NOTEBOOKS = ("JPY_PARENT_PID", "COLAB_RELEASE_TAG", "KAGGLE_KERNEL_RUN_TYPE")


class Bar:
    """A progress bar with a note at its end.

    On a terminal the bar is drawn in place and vanishes at the end. Elsewhere, as in logs and
    notebooks, it prints a line at each quarter.

    Args:
        label: name of the task.
        total: number of steps.
        unit: plural noun for the steps.
        done: steps that are done when the bar starts, for example by an interrupted run.
    """

    def __init__(self, label: str, total: int, unit: str, done: int = 0) -> None:
        self.label, self.total, self.unit = label, total, unit
        self.done = self.done_at_start = done
        self.started = time.monotonic()
        self.live_bar: Progress | None = None
        if can_redraw():
            self.live_bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(bar_width=30),
                MofNCompleteColumn(),
                TextColumn(unit),
                TimeRemainingColumn(compact=True),
                TextColumn("{task.fields[note]}"),
                console=Console(file=sys.stdout),
                transient=True,
            )
            self.task = self.live_bar.add_task(label, total=total, completed=done, note="")

    def __enter__(self) -> Self:
        if self.live_bar:
            self.live_bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.live_bar:
            self.live_bar.stop()

    def advance(self, note: str = "") -> None:
        """Count one step and show `note`, such as the loss."""
        self.done += 1
        if self.live_bar:
            self.live_bar.update(self.task, completed=self.done, note=note)
            return
        # Each quarter that this step completes is one line.
        passed = self.done * PLAIN_LINES // self.total
        elapsed = time.monotonic() - self.started
        is_due = passed > (self.done - 1) * PLAIN_LINES // self.total and elapsed > PATIENCE
        if is_due or self.done == self.total:
            left = format_seconds(
                elapsed / (self.done - self.done_at_start) * (self.total - self.done)
            )
            parts = [f"{self.label}: {self.done}/{self.total} {self.unit}", note]
            parts.append(f"{left} left" if self.done < self.total else f"{elapsed:.1f} s")
            print(", ".join(part for part in parts if part), flush=True)


def can_redraw() -> bool:
    """Return whether standard output is a terminal, where lines can be replaced."""
    # A test or a launcher may have replaced sys.stdout since the import.
    return sys.stdout.isatty() and not any(name in os.environ for name in NOTEBOOKS)


def format_seconds(seconds: float) -> str:
    """Return a duration in seconds, or in minutes if it is long."""
    return f"{seconds / 60:.0f} min" if seconds > 90 else f"{seconds:.0f} s"


@contextmanager
def loading_note() -> Iterator[None]:
    """Tell a terminal that libraries are being imported, which takes seconds, within the block."""
    if not can_redraw():
        yield
        return
    print("Loading PyTorch and other libraries ...", end="", flush=True)
    try:
        yield
    finally:
        print("\r\x1b[K", end="", flush=True)


def track(items: Sequence[T], label: str, unit: str) -> Iterator[T]:
    """Yield the items and show a `Bar` of their progress."""
    with Bar(label, len(items), unit) as bar:
        for item in items:
            yield item
            bar.advance()
