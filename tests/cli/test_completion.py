"""Completion: the results for typed words, and real shells in which Tab is pressed."""

import os
import pty
import select
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from attnseg.cli.completion import complete_line
from attnseg.cli.program import COMMANDS as KNOWN
from tests.limits import HANG

RESULTS = {
    "attnseg tr": ["train "],
    "attnseg train model=se": ["model=setr "],
    "attnseg train mod": ["model.", "model="],
    "attnseg train model.siz": ["model.size="],
    "attnseg train attn=qkv,kv_r": ["attn=qkv,kv_relpos "],
    "attnseg train attn@model.channel_attn=kv_r": ["attn@model.channel_attn=kv_relpos "],
    "attnseg train model=transunet model.n_": ["model.n_skip="],
    "attnseg train trainer.deterministic=": [
        f"trainer.deterministic={value} " for value in ("false", "true")
    ],
    "attnseg train trainer.precision=b": ["trainer.precision=bf16-mixed "],
    "attnseg search search.pruner=m": ["search.pruner=median "],
    "attnseg train --c": ["--cfg "],
    "attnseg train --cfg j": ["job "],
    "attnseg demo fu": ["full=true "],
    "attnseg completion f": ["fish "],
    "attnseg predict run=": [],  # A file follows.
    "attnseg nonsense mod": [],
    "attnseg train model=nonsense mod": [],
}


@pytest.mark.parametrize("line", RESULTS)
def test_results(line):
    assert complete_line(line, KNOWN) == RESULTS[line]


def test_every_command_is_offered_and_every_own_choice(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs/model").mkdir(parents=True)
    (tmp_path / "configs/model/mine.yaml").write_text("{}")
    assert {result.strip() for result in complete_line("attnseg ", KNOWN)} == set(KNOWN)
    assert "model=mine " in complete_line("attnseg train model=", KNOWN)


SHELLS = {
    "bash": (["--norc", "-i"], 'eval "$(attnseg completion bash)"'),
    "zsh": (["-f", "-i"], 'eval "$(attnseg completion zsh)"'),
    "fish": (["--no-config", "-i"], "attnseg completion fish | source"),
}
TYPED = {
    "attnseg tr": "attnseg train",
    "attnseg train model=se": "attnseg train model=setr",
    "attnseg train phantom_": "attnseg train phantom_size=",
    "attnseg train trainer.precision=bf": "attnseg train trainer.precision=bf16-mixed",
    "attnseg predict run=som": "attnseg predict run=some_folder",
}


@pytest.mark.parametrize("shell", SHELLS)
def test_tab_in_a_real_shell(shell, tmp_path):
    if shutil.which(shell) is None:
        pytest.skip(f"no {shell} on this machine")
    (tmp_path / "some_folder").mkdir()
    (tmp_path / "bin").mkdir()
    program = tmp_path / "bin/attnseg"
    call = "from attnseg.cli import main; main()"
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -c "{call}" "$@"\n')
    program.chmod(0o755)
    path = f"{program.parent}:{os.environ['PATH']}"
    environment = os.environ | {"PATH": path, "TERM": "xterm", "HOME": str(tmp_path)}
    arguments, install = SHELLS[shell]
    terminal, inside = pty.openpty()
    # A session's leader that opens a terminal is controlled by it, as shells expect.
    opened = f'exec "$@" <>{os.ttyname(inside)} >&0 2>&0'
    process = subprocess.Popen(
        ["sh", "-c", opened, "sh", shell, *arguments],
        cwd=tmp_path, env=environment, start_new_session=True,
    )  # fmt: skip
    try:
        type_into(terminal, f"{install}; echo ready > 0\n", tmp_path / "0")
        for number, (line, wanted) in enumerate(TYPED.items(), 1):
            # Tab; then the line is printed to a file instead of being run: Ctrl-A, Ctrl-E.
            keys = f"{line}\t\x01echo \x05 > {number}\n"
            assert type_into(terminal, keys, tmp_path / str(number)).rstrip("/") == wanted
    finally:
        process.kill()
        process.wait()
        os.close(terminal)
        os.close(inside)


def type_into(terminal: int, keys: str, result: Path) -> str:
    """Type keys, and return the line of a file that they make the shell write."""
    os.write(terminal, keys.encode())
    shown, end = "", time.monotonic() + HANG
    while time.monotonic() < end:
        if select.select([terminal], [], [], 0.1)[0]:
            shown += os.read(terminal, 4096).decode(errors="replace")
        if result.exists() and result.read_text().endswith("\n"):
            return result.read_text().strip()
    raise AssertionError(f"no line in {result} after {shown!r}")
