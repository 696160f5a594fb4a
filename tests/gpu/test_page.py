"""docs/gpu.md names tests that exist."""

from pathlib import Path

from tests.faults.test_table import check_fault, named

PAGE = (Path(__file__).parents[2] / "docs/gpu.md").read_text()
ROWS = [
    line.strip("|").split(" | ")
    for line in PAGE.split("\n## Failures and slow steps that are known\n", 1)[1].splitlines()
    if line.startswith("| ") and not line.startswith("| on a GPU |")
]


def test_all_tests_that_the_page_names_exist():
    problems = [f"{row[0]}: {problem}" for row in ROWS for problem in check_fault(row)]
    assert not problems, "\n".join(problems)
    assert len(ROWS) >= 33
    assert sum(not named(row) for row in ROWS) <= 2
