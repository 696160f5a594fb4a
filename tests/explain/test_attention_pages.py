"""The pages of attentions say what YAML files, docstrings and formulas say now."""

import pytest

from attnseg.config.folder import list_attentions
from scripts import attention_pages as pages


def without_reach(text):
    """A page without the lines whose numbers come from a picture."""
    return [line for line in text.splitlines() if not line.startswith("- Block ")]


@pytest.mark.full
def test_pages_are_up_to_date():
    remedy = "run python scripts/attention_pages.py"
    for name in list_attentions():
        written = (pages.PAGES / f"{name}.md").read_text()
        assert without_reach(written) == without_reach(pages.write_page(name, [])), remedy
        assert written.count("\n- Block ") == 2
    assert (pages.PAGES / "README.md").read_text() == pages.write_index(), remedy
    costs = (pages.DOCS / "benchmarks.md").read_text()
    assert all(f"\n| [`{name}`](attentions/{name}.md) | " in costs for name in list_attentions())


def test_there_is_a_small_picture_of_each_attention_and_no_other_file():
    pictures = list((pages.PAGES / "images").iterdir())
    assert {path.stem for path in pictures} == set(list_attentions())
    assert {path.stem for path in pages.PAGES.glob("*.md")} == {"README", *list_attentions()}
    assert all(path.stat().st_size < 15_000 for path in pictures)
    assert sum(path.stat().st_size for path in pages.PAGES.rglob("*") if path.is_file()) < 600_000


@pytest.mark.slow
def test_the_table_of_costs_is_up_to_date():
    page = (pages.DOCS / "benchmarks.md").read_text()
    assert "\n".join(pages.cost_table({})) in page


def test_reach_of_a_control(tmp_path):
    lines = pages.draw_reach("pool", tmp_path / "pool.png")
    assert lines[0] == "- Block 0 (Jacobian): 9 of 196 keys reached, 6 effectively."
