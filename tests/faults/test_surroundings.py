"""Shells that are poorer than usual."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.limits import HANG

ROOT = Path(__file__).parents[2]
SMOKE = ("experiment=smoke", "trainer.max_epochs=1", "trainer.limit_batches=1")


def start(folder, *options, variables=(), **keywords):
    environment = {"PATH": os.environ["PATH"], "LANG": "C", "OMP_NUM_THREADS": "1"}
    environment.update(variables)
    return subprocess.Popen(
        [sys.executable, ROOT / "train.py", *SMOKE, *options],
        cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **keywords,
    )  # fmt: skip


def test_without_home_and_without_unicode(tmp_path):
    with start(tmp_path) as process:
        out, err = process.communicate(timeout=HANG)
    assert (process.returncode, err) == (0, b"")
    assert b"Done in" in out


def test_nobody_reads_the_output(tmp_path):
    """As with `| head -1`."""
    with start(tmp_path) as process:
        process.stdout.readline()
        process.stdout.close()
        err = process.stderr.read().decode()
    assert process.wait(timeout=HANG) == 141
    assert err == "error: stopped by SIGPIPE; the same command goes on\n"


def test_a_compiler_that_fails(tmp_path):
    """Its many lines of messages become one, in the terminal and in the run's record."""
    compiler = tmp_path / "c++"
    compiler.write_text('#!/bin/sh\n[ "$1" = --version ] && exec g++ --version\nexit 1\n')
    compiler.chmod(0o755)
    variables = {"CXX": str(compiler), "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "kernels")}
    with start(tmp_path, "trainer.compile=blocks", variables=variables) as process:
        _, err = process.communicate(timeout=HANG)
    (line,) = err.decode().splitlines()
    assert line.startswith("error: trainer.compile: PyTorch cannot compile this network here (")
    assert process.returncode == 2
    assert line.endswith("); use trainer.compile=null and attn.backend=auto")
    (facts,) = tmp_path.rglob("run.json")
    assert "\n" not in json.loads(facts.read_text())["reason"]


@pytest.mark.parametrize("argument", ["", "--help"])
def test_a_list_of_commands_into_a_closed_pipe(argument):
    command = f"set -o pipefail; {sys.executable} -m attnseg {argument} | true"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) in [(141, ""), (0, "")]  # 0: read before it was closed
