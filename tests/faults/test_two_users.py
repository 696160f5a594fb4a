"""Whole commands of two users who share folders, and on file systems that refuse things."""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from attnseg.errors import DataError, ResourceError
from attnseg.training.module import SegmentationModule
from tests.faults.runs import attempt
from tests.faults.test_shared_machines import shim  # noqa: F401
from tests.limits import HANG

SMOKE = ("experiment=smoke", "trainer.max_epochs=1", "trainer.limit_batches=1", "logger=none")
FIRST, SECOND, GROUP = 61236, 61237, 61300  # ids that no user and no group has
pytestmark = pytest.mark.full
needs_setpriv = pytest.mark.skipif(shutil.which("setpriv") is None, reason="needs setpriv")


def train_as(
    user: int, folder: Path, *options: str, mask: int = 0o022, groups: str = "--clear-groups"
):
    """Train as a user who reads all files, since Python may lie where others cannot read."""
    caps = "+dac_read_search"
    command = ["setpriv", f"--reuid={user}", f"--regid={user}", groups]
    command += [f"--inh-caps={caps}", f"--ambient-caps={caps}"]
    command += [sys.executable, "-m", "attnseg", "train", *SMOKE, *options]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "HOME": str(folder)}
    return subprocess.run(
        command, env=environment, cwd=folder, umask=mask, capture_output=True, text=True,
        timeout=HANG,
    )  # fmt: skip


@needs_setpriv
def test_a_second_user_trains_on_what_the_first_prepared(commons):
    shared = f"paths.data={commons}/data", f"paths.outputs={commons}/outputs"
    first = train_as(FIRST, commons, *shared)
    assert first.returncode == 0, first.stderr
    before = {path: path.stat().st_mtime_ns for path in commons.rglob("*") if path.is_file()}

    own = Path(tempfile.mkdtemp(prefix="own-", dir=commons))
    os.chown(own, SECOND, SECOND)
    second = train_as(SECOND, own, shared[0], f"paths.outputs={own}/outputs", "seed=1")
    assert second.returncode == 0, second.stderr
    denied = train_as(SECOND, own, *shared, "seed=2")
    assert denied.returncode == ResourceError.exit_code, denied.stderr
    assert denied.stderr.count("\n") == 1 and str(commons / "outputs") in denied.stderr
    after = {path: path.stat().st_mtime_ns for path in before}
    assert after == before


@needs_setpriv
def test_a_group_that_shares_all(commons):
    """With umask 002 and a folder with the bit that hands its group on."""
    os.chown(commons, FIRST, GROUP)
    commons.chmod(0o2775)
    shared = f"paths.data={commons}/data", f"paths.outputs={commons}/outputs"
    both = {"mask": 0o002, "groups": f"--groups={GROUP}"}
    first = train_as(FIRST, commons, *shared, **both)
    assert first.returncode == 0, first.stderr
    second = train_as(SECOND, commons, *shared, "seed=1", **both)
    assert second.returncode == 0, second.stderr
    runs = list(commons.glob("outputs/*/*/*/*/run.json"))
    assert {path.stat().st_uid for path in runs} == {FIRST, SECOND}
    assert {path.stat().st_gid for path in commons.rglob("*")} == {GROUP}


@pytest.mark.parametrize("workers", [0, 2])
def test_prepared_cases_that_another_deletes_while_a_run_trains(tmp_path, workers):
    def delete() -> None:
        begin = SegmentationModule.on_validation_epoch_start

        def faulty(self):
            shutil.rmtree(tmp_path / "data")
            begin(self)

        SegmentationModule.on_validation_epoch_start = faulty

    options = (*SMOKE[1:], f"trainer.num_workers={workers}")
    assert attempt(tmp_path, *options, fault=delete) == DataError.exit_code
    output = (tmp_path / "output").read_text()
    line = output[output.rindex("error: ") :]
    assert "deleted or prepared anew while this command used it" in line
    assert line.count("\n") == 1 and "Traceback" not in output
    assert attempt(tmp_path, *options) == 0


@pytest.mark.parametrize("refused", ["lock sync chmod", "rename"])
def test_a_run_on_a_file_system_that_refuses(shim, tmp_path, refused):  # noqa: F811
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-m", "attnseg", "train", *SMOKE],
        env=environment | {"LD_PRELOAD": str(shim), "REFUSED": refused},
        cwd=tmp_path, capture_output=True, text=True, timeout=HANG,
    )  # fmt: skip
    if refused != "rename":
        assert done.returncode == 0, done.stderr
        return
    assert done.returncode == ResourceError.exit_code, done.stderr
    assert done.stderr.count("\n") == 1 and "Operation not permitted" in done.stderr
