"""The notebooks run from the first cell to the last, in an empty folder, and hold no output."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.full
ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


def test_there_are_two():
    assert [path.stem for path in NOTEBOOKS] == ["compare", "own_attention"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_runs(path, tmp_path):
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in code)
    script = tmp_path / "notebook.py"
    script.write_text("\n\n".join("".join(cell["source"]) for cell in code), encoding="utf-8")
    # The tree that is tested, also in the commands that the notebook calls.
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src")}
    done = subprocess.run(
        [sys.executable, script], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    if path.stem == "compare":
        assert "On 20 patients of one split, 2 seeds each" in done.stdout
        assert "detectable" in done.stdout and "- the data of isic2018 are generated" in done.stdout
        assert (tmp_path / "comparison" / "comparison.html").is_file()
    else:
        assert "slope" in done.stdout and list(tmp_path.glob("outputs/**/attention/maps.png"))
