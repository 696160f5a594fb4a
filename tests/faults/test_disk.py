"""A disk that is full when a checkpoint is kept: the last one stays, and one line says it."""

import json
import os
import resource
import signal
import subprocess

import pytest

from attnseg.files import is_whole
from tests.faults.runs import assert_same_end, attempt, run_of


def no_file_larger_than(megabytes: float, epoch: int):
    """Return a fault: from an epoch on, the system refuses to write more to any file."""

    def arrange() -> None:
        from attnseg.training.module import SegmentationModule

        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # an error instead

        def limit(self):
            if self.current_epoch == epoch:
                most = int(megabytes * 2**20)
                resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))

        SegmentationModule.on_validation_epoch_start = limit

    return arrange


@pytest.mark.parametrize("megabytes", [0.02, 1, 15])
def test_a_checkpoint_that_cannot_be_written(tmp_path, megabytes):
    fault = no_file_larger_than(megabytes, 1)
    assert attempt(tmp_path, "trainer.max_epochs=3", fault=fault) == 5
    output = (tmp_path / "output").read_text()
    line = output[output.rindex("error: ") :]
    assert line.count("\n") == 1

    assert "best.ckpt: cannot be written (File too large); the last one is kept" in line
    run = run_of(tmp_path)
    assert is_whole(run / "checkpoints/last.ckpt") and is_whole(run / "checkpoints/best.ckpt")
    assert not list(run.glob("checkpoints/.*"))


@pytest.mark.slow
def test_a_full_file_system(tmp_path):
    """Needs the right to mount one of 90 MB."""
    small, roomy = tmp_path / "small", tmp_path / "roomy"
    small.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=90m", "tmpfs", small])
    if mounted.returncode:
        pytest.skip("not allowed to mount")
    try:
        options = ("trainer.max_epochs=3",)
        filler = small / "filler"

        def fill() -> None:  # once training has begun: before, too little space is refused
            from attnseg.training.module import SegmentationModule

            def take(self):
                free = os.statvfs(small)
                filler.write_bytes(bytes(free.f_bavail * free.f_bsize - 5 * 2**20))

            SegmentationModule.on_validation_epoch_start = take

        assert attempt(small, *options, fault=fill) == 5
        output = (small / "output").read_text()
        assert "cannot be written (No space left on device)" in output[output.rindex("error: ") :]
        filler.unlink()
        assert attempt(small, *options) == 0
        assert attempt(roomy, *options) == 0
        assert_same_end(run_of(roomy), run_of(small))
        assert json.loads((run_of(small) / "run.json").read_text())["status"] == "done"
    finally:
        subprocess.run(["umount", small], check=True)
