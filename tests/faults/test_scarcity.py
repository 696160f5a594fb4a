"""Limits of a machine that are really there: memory, processes, numbers of files, users by name."""

import multiprocessing
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from attnseg import memory
from attnseg.data.readers.uw_madison import UWMadison
from attnseg.data.store import prepare_cases
from attnseg.errors import ResourceError
from tests.data.uw_tree import Tree
from tests.faults.runs import attempt, run_of
from tests.faults.test_limits import small_disk
from tests.limits import HANG

# A process of its own begins without memory that earlier tests have freed, which no limit counts.
SPAWN = multiprocessing.get_context("spawn")
NOBODY = 61234  # a user without a name
SMOKE = ("experiment=smoke", "trainer.max_epochs=1", "trainer.limit_batches=1")
pytestmark = pytest.mark.full


def allow_memory(more: int) -> None:
    """Allow this process so many bytes of address space beyond those that it has."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    most = pages * resource.getpagesize() + more
    resource.setrlimit(resource.RLIMIT_AS, (most, most))


def run_command(*arguments: str, prefix: tuple[str, ...] = (), **keywords):
    command = [*prefix, sys.executable, "-m", "attnseg", *arguments]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    environment |= keywords.pop("environment", {})
    return subprocess.run(command, env=environment, capture_output=True, text=True, **keywords)


def assert_one_line(text: str, start: str) -> None:
    line = text[text.rindex("error: ") :]
    assert line.startswith(f"error: {start}"), text
    assert line.count("\n") == 1 and "; " in line, text
    assert "Traceback" not in text and "bug of ours" not in text


def test_too_little_memory_to_load_the_libraries(tmp_path):
    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (250 << 20, 250 << 20))

    done = run_command("train", *SMOKE, cwd=tmp_path, preexec_fn=limit)
    assert done.returncode == ResourceError.exit_code, done.stderr
    assert_one_line(done.stderr, "memory: too little to load a library (")
    assert "`ulimit -v`" in done.stderr and "doctor" not in done.stderr
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


@pytest.mark.parametrize(
    ("error", "lacks"),
    [
        (ImportError("x.so: failed to map segment from shared object"), False),  # mounted noexec
        (ImportError("x.so: cannot allocate memory in static TLS block"), False),
        (ImportError("x.so: cannot allocate memory"), True),
        (OSError(12, "Cannot allocate memory"), True),
        (MemoryError(), True),
    ],
)
def test_which_errors_are_for_want_of_memory(error, lacks):
    assert memory.lacks_memory(error) == lacks


def run_alone(target: Callable[..., None], *arguments: object) -> int | None:
    """Return the exit code of a function in a new process."""
    child = SPAWN.Process(target=target, args=arguments)
    child.start()
    child.join(HANG)
    return child.exitcode


def train_with_little_memory(folder: Path) -> None:
    more = ("model=setr", "model.size=base", "seed=1")
    sys.exit(attempt(folder, *SMOKE[1:], *more, fault=lambda: allow_memory(64 << 20)))


def prepare_with_little_memory(root: Path, store: Path) -> None:
    reader = UWMadison(root)
    refs = reader.cases()
    allow_memory(48 << 20)
    try:
        prepare_cases(reader, refs, store)
    except Exception as error:
        os._exit(7 if memory.lacks_memory(error) else 1)


def test_too_little_memory_to_train(tmp_path):
    assert attempt(tmp_path, *SMOKE[1:]) == 0
    before = (run_of(tmp_path) / "checkpoints/last.ckpt").read_bytes()
    assert run_alone(train_with_little_memory, tmp_path) == ResourceError.exit_code
    assert_one_line((tmp_path / "output").read_text(), "memory: ")
    assert (run_of(tmp_path) / "checkpoints/last.ckpt").read_bytes() == before


def test_too_little_memory_to_prepare_leaves_nothing_half_written(tmp_path):
    tree = Tree(tmp_path / "root")
    tree.files = {name: pixels.repeat(900, 0).repeat(900, 1) for name, pixels in tree.files.items()}
    tree.files = {name.replace("_5_4_", "_4500_3600_"): px for name, px in tree.files.items()}
    root = tree.write()
    assert run_alone(prepare_with_little_memory, root, tmp_path / "store") == 7
    left = {path.name for path in (tmp_path / "store").rglob("*")}
    assert not [name for name in left if name.startswith(("case-", ".part"))], left
    reader = UWMadison(root)
    assert len(prepare_cases(reader, reader.cases(), tmp_path / "store")) == 1


def run_as_nobody(folder: Path, *arguments: str, processes: int):
    """Run a command as a user without a name, who may have so many processes and threads.

    The user reads files as root does, since Python itself may lie where others cannot read.
    """
    caps = "+dac_read_search,+dac_override"
    prefix = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"]
    prefix += [f"--inh-caps={caps}", f"--ambient-caps={caps}", "prlimit", f"--nproc={processes}"]
    environment = {"HOME": str(folder), "LOGNAME": "", "USER": ""}
    return run_command(
        *arguments, prefix=tuple(prefix), cwd=folder, environment=environment, timeout=HANG
    )


@pytest.mark.skipif(shutil.which("setpriv") is None, reason="needs setpriv")
def test_a_user_without_a_name_who_may_start_few_processes(commons):
    """As in a container with `--user`; libraries ask for the name as they are imported."""
    done = run_as_nobody(commons, "train", *SMOKE, processes=100)
    assert done.returncode == 0, done.stderr
    assert {path.stat().st_uid for path in commons.rglob("*")} == {NOBODY}
    few = run_as_nobody(commons, "train", *SMOKE, "seed=1", "logger=none", processes=1)
    assert few.returncode == ResourceError.exit_code, few.stderr
    assert_one_line(few.stderr, "processes: no other process or thread may be started (")
    assert "`ulimit -u`" in few.stderr
    prepared = "prepare", "dataset=phantom", "phantom_size=tiny", "paths.data=other"
    few = run_as_nobody(commons, *prepared, processes=1)
    assert few.returncode == ResourceError.exit_code, few.stderr
    assert_one_line(few.stderr, "processes: ")
    assert run_as_nobody(commons, *prepared, processes=100).returncode == 0


def test_a_file_system_that_takes_no_more_files(call, tmp_path, phantom):
    options = (*SMOKE, "dataset=uw_madison", f"dataset.root={phantom}")
    with small_disk(tmp_path / "data", "50m,nr_inodes=16"):
        answer = call(*options)
        assert answer.code == ResourceError.exit_code, answer.err
        assert_one_line(answer.err, "data/prepared/")
        assert "no more files (`df -i`)" in answer.err
        assert not list(tmp_path.glob("data/prepared/*/.part-*"))
        enlarged = ["mount", "-o", "remount,nr_inodes=9999", str(tmp_path / "data")]
        subprocess.run(enlarged, check=True)
        assert call(*options).code == 0


def test_shared_memory_that_is_full(tmp_path):
    """In a mount namespace of the command's own, with a /dev/shm of 64 kB."""
    prefix = ("unshare", "--mount", "sh", "-c")
    prefix += ('mount -t tmpfs -o size=64k tmpfs /dev/shm && exec "$@"', "sh")
    if subprocess.run([*prefix, "true"], capture_output=True).returncode:
        pytest.skip("not allowed to mount")
    options = (*SMOKE, "logger=none", "trainer.num_workers=2")
    done = run_command("train", *options, prefix=prefix, cwd=tmp_path, timeout=HANG)
    assert done.returncode == ResourceError.exit_code, done.stderr
    assert_one_line(done.stderr, "trainer.num_workers: ")
    assert "/dev/shm" in done.stderr
    assert run_command("train", *options, cwd=tmp_path).returncode == 0
