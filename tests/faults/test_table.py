"""docs/faults.md names tests that exist, and counts what it lists."""

import ast
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/faults.md").read_text()
FAULTS = [
    line.strip("|").split(" | ")
    for line in PAGE.split("\n## ", 1)[1].splitlines()
    if line.startswith("| ") and not line.startswith("| fault |")
]
NAMED = re.compile(r"`([\w/]+\.py)::(\w+)`((?: `\[[^`]*\]`)*)")


def named(fault: list[str]) -> list[tuple[str, str, list[str]]]:
    """Return file, function and cases of each test that a line names."""
    found = NAMED.findall(fault[2])
    return [(file, name, re.findall(r"`\[([^`]*)\]`", cases)) for file, name, cases in found]


@cache
def functions_and_texts(file: str) -> tuple[set[str], set[str]]:
    """Return the test functions of a file, and all texts in it, cases among them."""
    nodes = list(ast.walk(ast.parse((ROOT / "tests" / file).read_text())))
    functions = {node.name for node in nodes if isinstance(node, ast.FunctionDef)}
    values = [node.value for node in nodes if isinstance(node, ast.Constant)]
    return functions, {value for value in values if isinstance(value, str)}


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault[0].strip())
def test_its_tests_exist(fault):
    assert len(fault) == 3
    tests = named(fault)
    assert tests or fault[2].strip() == "none"
    for file, name, cases in tests:
        functions, texts = functions_and_texts(file)
        assert name in functions
        for case in cases:  # of a command line, each word
            assert case in texts or set(case.split()) <= texts, case


def test_the_counts_are_right():
    without = sum(not named(fault) for fault in FAULTS)
    functions = {test[:2] for fault in FAULTS for test in named(fault)}
    text = " ".join(PAGE.split())
    assert (
        f"{len(FAULTS)} faults are listed here; {len(FAULTS) - without} have a test, {without} "
        f"have none. The tests named are {len(functions)} functions" in text
    )
    assert len(FAULTS) > 120


def test_every_test_of_these_folders_is_of_a_fault():
    """Of the files that hold nothing else."""
    used = {(file, name) for fault in FAULTS for file, name, _ in named(fault)}
    missing = []
    for path in (ROOT / "tests/faults").glob("test_*.py"):
        file = f"faults/{path.name}"
        if path.stem in ("test_dataset_files", "test_images", "test_masks", "test_places"):
            functions, _ = functions_and_texts(file)
            missing += [n for n in functions if n.startswith("test_") and (file, n) not in used]
    assert not missing
