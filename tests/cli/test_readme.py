"""The commands of the documentation are ones that can be typed."""

import re
import sys
from pathlib import Path

import pytest

from attnseg import cli

ROOT = Path(__file__).parents[2]
PAGES = ["README.md", "docs/benchmarks.md"]
TEXT = "\n".join((ROOT / page).read_text() for page in PAGES).replace("\\\n", " ")
COMMANDS = re.findall(r"(?m)^    \.venv/bin/python (train\.py|scripts/benchmark\.py) +(.+)$", TEXT)
COMMANDS += [
    ("train.py", options) for options in re.findall(r"python train\.py ([^`\n]*=[^`\n]*)`", TEXT)
]


def test_commands_were_found():
    assert len(COMMANDS) >= 6


@pytest.mark.parametrize(("script", "options"), COMMANDS, ids=lambda text: text)
def test_command_composes(monkeypatch, capfd, script, options):
    arguments = [word.strip("'") for word in options.split() if word != "-m"]
    # One value of each sweep: composing a sweep's first job composes them all.
    first = [re.sub(r"^(model|attn)=([^,]*),.*", r"\1=\2", word) for word in arguments]
    monkeypatch.setattr(sys, "argv", [script, "--cfg", "job", *first])
    with pytest.raises(SystemExit) as ended:
        (cli.train if script == "train.py" else cli.benchmark)()
    out, err = capfd.readouterr()
    assert ended.value.code == 0, err
    assert "_target_: attnseg.models." in out


def test_make_targets_exist():
    targets = set(re.findall(r"(?m)^(\w+):", (ROOT / "Makefile").read_text()))
    assert set(re.findall(r"(?m)^    make (\w+)", TEXT)) <= targets
