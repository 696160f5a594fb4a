"""docs/faults.md names tests that exist, and counts what it lists."""

import ast
import re
from functools import cache
from pathlib import Path

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


def check_fault(fault: list[str]) -> list[str]:
    """Return what is wrong with a row of the page."""
    if len(fault) != 3:
        return ["a row has three cells"]
    tests = named(fault)
    if not tests and fault[2].strip() != "none":
        return ["names no test"]
    problems = []
    for file, name, cases in tests:
        if not (ROOT / "tests" / file).is_file():
            problems.append(f"no file {file} with {name}")
            continue
        functions, texts = functions_and_texts(file)
        if name not in functions:
            problems.append(f"no {name} in {file}")
        for case in cases:  # Of a command line, each word may stand alone.
            if case not in texts and not set(case.split()) <= texts:
                problems.append(f"no case [{case}] in {file}")
    return problems


def test_all_tests_that_the_page_names_exist():
    problems = [f"{fault[0]}: {what}" for fault in FAULTS for what in check_fault(fault)]
    assert not problems, "\n".join(problems)


def test_the_counts_are_right():
    without = sum(not named(fault) for fault in FAULTS)
    functions = {test[:2] for fault in FAULTS for test in named(fault)}
    text = " ".join(PAGE.split())
    assert (
        f"{len(FAULTS)} faults are listed here; {len(FAULTS) - without} have a test, {without} "
        f"have none. The table names {len(functions)} functions" in text
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
