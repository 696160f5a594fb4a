"""The commands of the documentation are ones that can be typed."""

import re
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
TEXT = "\n".join((ROOT / page).read_text() for page in PAGES).replace("\\\n", " ")
COMMANDS = re.findall(r"(?m)^    (?:python )?(train\.py|attnseg \w+) +(.+)$", TEXT)
COMMANDS += [
    ("train.py", options) for options in re.findall(r"python train\.py ([^`\n]*=[^`\n]*)`", TEXT)
]


def test_commands_were_found():
    assert len(COMMANDS) >= 30
    assert "attnseg.cli" in (ROOT / "train.py").read_text()


@pytest.mark.parametrize(("script", "options"), COMMANDS, ids=lambda text: text)
def test_command_composes(monkeypatch, capfd, script, options):
    arguments = [word.strip("'") for word in options.split() if word != "-m"]
    # One value of each sweep: composing a sweep's first job composes them all.
    first = [re.sub(r"^(model|attn|seed)=([^,]*),.*", r"\1=\2", word) for word in arguments]
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
