"""The commands of the documentation are ones that can be typed."""

import re
import shlex
import sys
from pathlib import Path

import pytest

from attnseg import cli

ROOT = Path(__file__).parents[2]
PAGES = ["README.md", "docs/benchmarks.md", "docs/data.md", "docs/metrics.md", "docs/comparison.md"]
PAGES += [
    "docs/deployment.md",
    "docs/prediction.md",
    "docs/search.md",
    "docs/tracking.md",
    "docs/attention_maps.md",
]


def read_pages(pages):
    return "\n".join((ROOT / page).read_text() for page in pages).replace("\\\n", " ")


def list_commands(text):
    """Names and options of command lines, without the comments beside them."""
    lines = re.findall(r"(?m)^ {4,8}(?:python )?(train\.py|attnseg \w+) +(.+)$", text)
    lines += [("train.py", own) for own in re.findall(r"python train\.py ([^`\n]*=[^`\n]*)`", text)]
    return [(script, re.split(r"(?:^| +)#", options)[0]) for script, options in lines]


TEXT = read_pages(PAGES)
COMMANDS = list_commands(TEXT)


def test_commands_were_found():
    assert len(COMMANDS) >= 30
    assert "attnseg.cli" in (ROOT / "train.py").read_text()


@pytest.mark.parametrize(("script", "options"), COMMANDS, ids=lambda text: text)
def test_command_composes(monkeypatch, capfd, script, options):
    compose_command(monkeypatch, capfd, script, options)


def compose_command(monkeypatch, capfd, script, options):
    """Let a command show its configuration, which checks the options."""
    arguments = [word for word in shlex.split(options) if word != "-m"]
    # One value of each sweep: composing a sweep's first job composes them all.
    swept = r"[\w.]+" if "-m" in options.split() else "model|attn|seed"
    first = [re.sub(rf"^({swept})=([^,[{{]*),.*", r"\1=\2", word) for word in arguments]
    name = script.removeprefix("attnseg ").removesuffix(".py")
    monkeypatch.setattr(sys, "argv", ["attnseg", name, "--cfg", "job", *first])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    out, err = capfd.readouterr()
    assert ended.value.code == 0, err
    assert re.search(r"(?m)^(  _target_|    _target_|_target_|runs?|capsule):", out)


def test_make_targets_exist():
    targets = set(re.findall(r"(?m)^(\w+):", (ROOT / "Makefile").read_text()))
    assert set(re.findall(r"(?m)^    make (\w+)", TEXT)) <= targets
