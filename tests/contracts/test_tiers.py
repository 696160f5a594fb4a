"""What starts a process, a training or a command is recognised, and the listed exceptions exist."""

import ast
import subprocess
from pathlib import Path

import pytest

from attnseg import cli
from attnseg.processes.fork import run_in_child
from tests.faults.runs import attempt
from tests.tiers import SMOKE, reaches

ROOT = Path(__file__).parents[2]


def a_process():
    subprocess.run(["true"])


def through_a_helper():
    a_process()


class Job:
    def start(self):
        self.function = lambda: run_in_child(print)


def a_class():
    Job().start()


def a_command():
    cli.train()


def a_training():
    attempt(Path())


def harmless():
    return cli.compose_error, Path.read_text, pytest.raises


@pytest.mark.parametrize("test", [a_process, through_a_helper, a_class, a_command, a_training])
def test_what_starts_something_is_found(test):
    assert reaches(test)


def test_what_starts_nothing_is_not():
    assert not reaches(harmless)


def test_the_system_tests_of_the_default_tier_exist():
    for test in SMOKE:
        file, _, name = test.partition("::")
        functions = {
            node.name
            for node in ast.parse((ROOT / file).read_text()).body
            if isinstance(node, ast.FunctionDef)
        }
        assert not name or name in functions, test
