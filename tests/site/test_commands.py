"""The commands of the pages that `tests/cli/test_readme.py` leaves out can be typed, too."""

import pytest

from tests.cli.test_readme import COMMANDS, PAGES, ROOT, compose_command, list_commands, read_pages

pytestmark = pytest.mark.full
OTHERS = {str(path.relative_to(ROOT)) for path in (ROOT / "docs").rglob("*.md")} - {*PAGES}
FURTHER = [
    each
    for each in dict.fromkeys(list_commands(read_pages(sorted(OTHERS))))
    # A file is needed for plugins, whose tests write it; the others may stand on the pages above.
    if each not in COMMANDS and "plugins=" not in each[1] and "my_" not in each[1]
]


def test_commands_were_listed():
    assert len(FURTHER) >= 15


@pytest.mark.parametrize(("script", "options"), FURTHER, ids=lambda text: text)
def test_command_composes(monkeypatch, capfd, script, options):
    compose_command(monkeypatch, capfd, script, options)
