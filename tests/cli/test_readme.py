"""The commands of the documentation are ones that can be typed."""

import re
import sys
from pathlib import Path

import pytest

from attnseg import cli

ROOT = Path(__file__).parents[2]
PAGES = ["README.md", "docs/benchmarks.md", "docs/data.md", "docs/metrics.md", "docs/comparison.md"]
PAGES += ["docs/search.md", "docs/tracking.md", "docs/attention_maps.md"]
TEXT = "\n".join((ROOT / page).read_text() for page in PAGES).replace("\\\n", " ")
COMMANDS = re.findall(r"(?m)^    \.venv/bin/python (train\.py|scripts/\w+\.py) +(.+)$", TEXT)
COMMANDS += [
    ("train.py", options) for options in re.findall(r"python train\.py ([^`\n]*=[^`\n]*)`", TEXT)
]


def test_commands_were_found():
    assert len(COMMANDS) >= 12


@pytest.mark.parametrize(("script", "options"), COMMANDS, ids=lambda text: text)
def test_command_composes(monkeypatch, capfd, script, options):
    arguments = [word.strip("'") for word in options.split() if word != "-m"]
    # One value of each sweep: composing a sweep's first job composes them all.
    first = [re.sub(r"^(model|attn|seed)=([^,]*),.*", r"\1=\2", word) for word in arguments]
    monkeypatch.setattr(sys, "argv", [script, "--cfg", "job", *first])
    (name,) = re.findall(r"cli import (\w+)", (ROOT / script).read_text())
    with pytest.raises(SystemExit) as ended:
        getattr(cli, name)()
    out, err = capfd.readouterr()
    assert ended.value.code == 0, err
    assert re.search(r"(?m)^(  _target_|    _target_|_target_|runs?):", out)


def test_make_targets_exist():
    targets = set(re.findall(r"(?m)^(\w+):", (ROOT / "Makefile").read_text()))
    assert set(re.findall(r"(?m)^    make (\w+)", TEXT)) <= targets
