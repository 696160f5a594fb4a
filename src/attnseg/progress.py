"""Progress bars with the remaining time, or a few plain lines where there is no terminal."""

import sys
import time
from collections.abc import Iterator, Sequence
from typing import Self, TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

T = TypeVar("T")
PLAIN_LINES = 4  # printed per bar where there is no terminal


class Bar:
    """A progress bar with a note at its end.

    On a terminal the bar is drawn in place and vanishes at the end. Elsewhere it prints a line at
    each quarter.

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
        # A test or a launcher may have replaced sys.stdout since the import.
        console = Console(file=sys.stdout)
        if console.is_terminal:
            self.live_bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(bar_width=30),
                MofNCompleteColumn(),
                TextColumn(unit),
                TimeRemainingColumn(compact=True),
                TextColumn("{task.fields[note]}"),
                console=console,
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
        if passed > (self.done - 1) * PLAIN_LINES // self.total:
            elapsed = time.monotonic() - self.started
            left = elapsed / (self.done - self.done_at_start) * (self.total - self.done)
            parts = [f"{self.label}: {self.done}/{self.total} {self.unit}", note]
            parts.append(f"{left:.0f} s left" if self.done < self.total else f"{elapsed:.1f} s")
            print(", ".join(part for part in parts if part), flush=True)


def track(items: Sequence[T], label: str, unit: str) -> Iterator[T]:
    """Yield the items and show a `Bar` of their progress."""
    with Bar(label, len(items), unit) as bar:
        for item in items:
            yield item
            bar.advance()
