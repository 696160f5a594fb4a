"""Examines the machine: processors, memory, limits, and the folders that commands write to."""

import os
import platform
import re
import resource
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from attnseg.doctor.finding import Finding
from attnseg.errors import ResourceError
from attnseg.memory import CONTROL_GROUP, free_memory
from attnseg.system import count_usable_cores

GB = 1e9
LEAST_MEMORY, ENOUGH_MEMORY = 1.2 * GB, 4 * GB  # The demo takes 1 GB.
LEAST_DISK, ENOUGH_DISK = 0.2 * GB, 5 * GB  # The demo leaves 0.1 GB, SETR-Base 3 GB.
LEAST_FILES, ENOUGH_FILES = 64, 1024  # Training with two loaders was run with 64.
ENOUGH_SHARED = 1 * GB  # Batches pass from loaders to the main process through /dev/shm.
CROWDED = 0.75  # of all cores in use
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")


def examine_machine(folders: Mapping[str, str]) -> Iterator[Finding]:
    """Yield the findings on the machine; `folders` are those written to, by the option."""
    yield from examine_processors()
    yield examine_memory()
    yield from examine_shared_memory()
    yield examine_open_files()
    for option, folder in {**folders, "TMPDIR": tempfile.gettempdir()}.items():
        yield examine_folder(option, folder)


def examine_processors() -> Iterator[Finding]:
    """Yield the findings on processors and the number of threads."""
    cores = count_usable_cores()
    yield Finding("CPU", f"{processor_name()}, {cores} cores")
    yield from examine_load()
    given = {name: os.environ[name] for name in THREADS if os.environ.get(name)}
    low = [name for name, value in given.items() if value.isdigit() and 0 < int(value) < cores]
    quota = container_quota()
    if low:
        text = f"{low[0]}={given[low[0]]} leaves some of {cores} cores idle"
        yield Finding("threads", text, f"unset {low[0]}, unless other programs need them", "note")
    elif quota is not None and quota < cores and not given:
        text = f"one per core, {cores}, but this container may use {quota:g} cores"
        advice = f"export OMP_NUM_THREADS={max(1, int(quota))}; more threads are slower"
        yield Finding("threads", text, advice, "note")
    else:
        settings = ", ".join(f"{name}={value}" for name, value in given.items())
        yield Finding("threads", settings or "one per core")


def examine_load() -> Iterator[Finding]:
    """Yield a note if programs have kept most cores of the machine busy for the last minute."""
    cores, load = os.cpu_count() or 1, os.getloadavg()[0]
    if load > CROWDED * cores and not os.environ.get("OMP_WAIT_POLICY"):
        text = (
            f"{load:.1f} threads were busy on {cores} cores; beside them, those of a training wait"
        )
        advice = "end other programs, or set OMP_WAIT_POLICY=passive while they run"
        yield Finding("load", text, advice, "note")


def container_quota() -> float | None:
    """Return the cores' worth of time that the container may use; `None` if it is not limited."""
    try:
        quota, period = (CONTROL_GROUP / "cpu.max").read_text().split()
        return int(quota) / int(period)
    except (OSError, ValueError):  # There is no control group, or its quota is `max`.
        return None


def processor_name() -> str:
    """Return the name of the processor, or of its architecture if the system does not tell."""
    try:
        name = re.search(r"model name\s*: (.+)", Path("/proc/cpuinfo").read_text())
    except OSError:
        name = None
    return name[1].strip() if name else platform.processor() or platform.machine()


def examine_memory() -> Finding:
    """Return the finding on the free memory."""
    free = free_memory()
    if free is None:
        return Finding("memory", "free memory unknown on this system")
    text = f"{free / GB:.1f} GB free"
    advice = "end other programs; lower dataset.batch_size and dataset.image_size"
    if free < LEAST_MEMORY:
        text += ", and even the demo takes 1 GB"
        return Finding("memory", text, advice, "problem", ResourceError.exit_code)
    if free < ENOUGH_MEMORY:
        return Finding("memory", f"{text}, enough for small networks", advice, "note")
    return Finding("memory", text)


def examine_shared_memory() -> Iterator[Finding]:
    """Yield a note if containers leave too little shared memory for loader processes."""
    if Path("/dev/shm").is_dir() and (size := shutil.disk_usage("/dev/shm").total) < ENOUGH_SHARED:
        text = f"/dev/shm has {size / 1e6:.0f} MB, which loader processes fill"
        advice = "keep trainer.num_workers=0, or start the container with --shm-size=2g"
        yield Finding("loaders", text, advice, "note")


def examine_open_files() -> Finding:
    """Return the finding on the number of files that a process may open."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    unlimited = resource.RLIM_INFINITY
    text = f"at most {soft} in a process"
    if soft == unlimited or soft >= ENOUGH_FILES:
        return Finding("open files", "any number" if soft == unlimited else text)
    advice = f"ulimit -n {ENOUGH_FILES if hard == unlimited else min(hard, ENOUGH_FILES)}"
    if hard == soft:
        advice = "a new shell, an administrator or `docker run --ulimit nofile=4096` can raise it"
    if soft < LEAST_FILES:
        return Finding("open files", text, advice, "problem", ResourceError.exit_code)
    text += ": enough for one training, few for many loaders or for trackers"
    return Finding("open files", text, advice, "note")


def examine_folder(option: str, folder: str) -> Finding:
    """Return the finding on a folder: it can be made and written to, and has room.

    A file without a name is written to it, or to the nearest folder above that exists.
    """
    path = Path(folder).absolute()
    present = next(each for each in (path, *path.parents) if each.exists())
    where = f"{folder} ({option})"
    change = f"choose another folder with {option}=DIR"
    code = ResourceError.exit_code
    try:
        free = shutil.disk_usage(present).free
        with tempfile.TemporaryFile(dir=present) as file:
            file.write(bytes(1 << 16))
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        text = f"{where}: {error.strerror or error}"
        remedy = "free space" if "space" in text or "quota" in text else "correct its permissions"
        return Finding("folder", text, f"{remedy} in {present}, or {change}", "problem", code)
    text = f"{where}: can be written, {free / GB:.1f} GB free"
    if free < LEAST_DISK:
        return Finding("folder", text, f"free space, or {change}", "problem", code)
    if free < ENOUGH_DISK:
        return Finding("folder", text, f"large networks need more: {change}", "note")
    return Finding("folder", text)
