"""The first answers of the program: alone and with `--help`, at once and without torch."""

import os
import subprocess
import sys

from attnseg.cli.program import COMMANDS as KNOWN

EVERY_HELP = """
import contextlib, io, sys, time
from attnseg.cli import program
for name in program.COMMANDS:
    started, shown = time.process_time(), io.StringIO()
    with contextlib.suppress(SystemExit), contextlib.redirect_stdout(shown):
        program.run_program([name, "--help"])
    print(name, time.process_time() - started, len(shown.getvalue()), "torch" in sys.modules)
"""


def run_python(folder, *arguments: str) -> str:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, *arguments], cwd=folder, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert list(folder.iterdir()) == []
    return done.stdout


def test_alone_the_program_says_where_to_begin(tmp_path):
    shown = run_python(tmp_path, "-m", "attnseg")
    for command in ("demo", "doctor", "train --help", "--help"):
        assert f"attnseg {command} " in shown


def test_help_of_every_command_is_quick_and_free_of_torch(tmp_path):
    rows = [line.split() for line in run_python(tmp_path, "-c", EVERY_HELP).splitlines()]
    assert [name for name, *_ in rows] == list(KNOWN)
    for name, seconds, length, torch in rows:
        # Processor time; less than 1 s on an idle machine.
        assert float(seconds) < 5 and int(length) > 100 and torch == "False", name


def test_explain_and_export_start_without_monai(tmp_path):
    """Importing MONAI, all of which is imported at once, takes more than a second."""
    code = (
        "import sys, attnseg.explain.explain, attnseg.export.export; print('monai' in sys.modules)"
    )
    assert run_python(tmp_path, "-c", code) == "False\n"
