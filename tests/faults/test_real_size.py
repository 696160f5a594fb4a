"""Datasets of the published size on ordinary limits; long, and by estimate 20 GB of disk."""

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts/real_size.py"


@pytest.mark.slow
@pytest.mark.parametrize("open_files", [1024, 256])
@pytest.mark.parametrize("dataset", ["acdc", "isic2018", "nnunet", "synapse", "uw_madison"])
def test_a_dataset_of_the_published_size(tmp_path, dataset, open_files):
    command = [sys.executable, SCRIPT, "--datasets", dataset, "--open-files", str(open_files)]
    ended = subprocess.run([*command, "--folder", tmp_path], capture_output=True, text=True)
    print(ended.stdout)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_the_script_itself_on_a_tiny_dataset(tmp_path):
    command = [sys.executable, SCRIPT, "--datasets", "nnunet", "--size", "tiny", "--workers", "2"]
    command += ["--folder", tmp_path, "--open-files", "256"]
    ended = subprocess.run(command, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    rows = [line.split() for line in ended.stdout.splitlines() if line.startswith("nnunet ")]
    assert [row[1] for row in rows] == "phantom prepare train train predict compare".split()
    assert all(row[2] == "0" and 0 < int(row[5]) <= 256 for row in rows)
