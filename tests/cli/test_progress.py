"""Progress: bars on terminals, plain lines with the time left in logs and notebooks."""

import io
import sys

import pytest

from attnseg import progress
from attnseg.progress import NOTEBOOKS, format_seconds, loading_note, track


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def show(monkeypatch, output: io.StringIO, steps: int, seconds_per_step: float) -> str:
    """Return what a task prints whose steps take some time."""
    clock = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(sys, "stdout", output)
    with loading_note():
        pass
    for _ in track(range(steps), "Working", "steps"):
        clock[0] += seconds_per_step
    return output.getvalue()


def test_a_log_has_a_line_with_the_time_left_at_each_quarter(monkeypatch):
    shown = show(monkeypatch, io.StringIO(), 8, 100)
    assert shown.splitlines() == [
        "Working: 2/8 steps, 10 min left",
        "Working: 4/8 steps, 7 min left",
        "Working: 6/8 steps, 3 min left",
        "Working: 8/8 steps, 800.0 s",
    ]
    assert show(monkeypatch, io.StringIO(), 8, 0.01) == "Working: 8/8 steps, 0.1 s\n"
    assert format_seconds(90) == "90 s" and format_seconds(91) == "2 min"


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_a_notebook_gets_no_control_characters(monkeypatch, name):
    monkeypatch.setenv("FORCE_COLOR", "1")  # as Jupyter does
    monkeypatch.setenv(name, "1")
    shown = show(monkeypatch, Terminal(), 4, 1)
    assert "\x1b" not in shown and "\r" not in shown and "2/4 steps, 2 s left" in shown


def test_a_terminal_gets_a_bar(monkeypatch):
    for name in NOTEBOOKS:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    shown = show(monkeypatch, Terminal(), 4, 1)
    assert "Loading" in shown and "\x1b[K" in shown and "Working" in shown
