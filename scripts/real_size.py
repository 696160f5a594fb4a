"""Every dataset at its published size, on ordinary limits: prepare, train, score, predict, compare.

    python scripts/real_size.py [--datasets isic2018 ...] [--open-files 1024] [--workers 8]

Makes the phantom of each dataset, prepares it, trains some batches of a tiny network with loader
processes for two attentions, scores all cases, segments a part of the data and compares. Prints a
table of what each command took: seconds, processor seconds, open files and memory. Ends with exit
code 1 if a command failed or took more memory than `--parent-gib` and `--worker-gib` allow.
Everything lies in a folder of its own, which is removed unless `--keep` is set; by estimate, it
needs up to 20 GB.
"""

import argparse
import csv
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

# The part of each phantom that is segmented.
PREDICTED = {
    "acdc": "testing/patient101",
    "isic2018": "ISIC2018_Task1-2_Validation_Input",
    "nnunet": "imagesTs",
    "synapse": "RawData/Training/img/img0001.nii.gz",
    "uw_madison": "train/case1",
}
BATCHES, BATCH_SIZE = 20, 8
TRAINING = (
    "model=setr", "model.size=tiny", "trainer.max_epochs=1", f"trainer.limit_batches={BATCHES}",
    "dataset.image_size=[64,64]", f"dataset.batch_size={BATCH_SIZE}", "logger=none",
)  # fmt: skip
GIB = 2**30


@dataclass
class Usage:
    """The resources that a command used."""

    name: str
    code: int = 0
    seconds: float = 0.0
    processor: float = 0.0  # seconds of it and all that it started
    open_files: int = 0  # at most, of any of its processes
    parent: int = 0  # bytes of resident memory that are its own, at most
    worker: int = 0  # the same of any process that it started
    processes: set[int] = field(default_factory=set)
    output: str = ""


def list_descendants(pid: int) -> Iterator[int]:
    """Yield a process and all that it started."""
    yield pid
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return
    for child in children:
        yield from list_descendants(int(child))


def own_memory(pid: int) -> int:
    """Return the memory of a process that is not of files, and not shared with its parent."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return 1024 * sum(int(line.split()[1]) for line in lines if line.startswith("Private_Dirty"))


def processor_seconds() -> float:
    """Return the processor time of all commands that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def watch(used: Usage, pid: int, ended: threading.Event) -> None:
    """Note the largest numbers of a command's processes until it ends."""
    while not ended.wait(0.2):
        for each in list_descendants(pid):
            try:
                files, memory = len(os.listdir(f"/proc/{each}/fd")), own_memory(each)
            except OSError:  # It has just ended.
                continue
            used.open_files = max(used.open_files, files)
            if each == pid:
                used.parent = max(used.parent, memory)
            else:
                used.worker = max(used.worker, memory)
                used.processes.add(each)


def run_command(name: str, arguments: Sequence[str], open_files: int, folder: Path) -> Usage:
    """Run a command of attnseg with a limit of open files."""
    used, ended = Usage(name), threading.Event()

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (open_files, open_files))

    started, before = time.monotonic(), processor_seconds()
    with (folder / "output").open("w+") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "attnseg", name, *arguments],
            stdout=output, stderr=subprocess.STDOUT, preexec_fn=limit,
        )  # fmt: skip
        watcher = threading.Thread(target=watch, args=(used, process.pid, ended))
        watcher.start()
        used.code = process.wait()
        used.seconds = time.monotonic() - started
        used.processor = processor_seconds() - before
        ended.set()
        watcher.join()
        output.seek(0)
        used.output = output.read()
    return used


def run_dataset(dataset: str, options: argparse.Namespace, folder: Path) -> Iterator[Usage]:
    """Yield what each command on a dataset took, until one fails."""
    outputs = folder / "outputs"
    common = [
        f"dataset={dataset}", "dataset.root=null", f"phantom_size={options.size}",
        f"paths.data={folder / 'data'}", f"paths.outputs={outputs}",
    ]  # fmt: skip
    training = [*common, *TRAINING, f"trainer.num_workers={options.workers}"]
    commands = [("phantom", common), ("prepare", common)]
    commands += [("train", [*training, f"attn={attn}"]) for attn in ("qkv", "kv")]
    for name, arguments in commands:
        used = run_command(name, arguments, options.open_files, folder)
        yield used
        if used.code:
            return
    first, *_ = sorted(run.parent for run in outputs.glob("*/*/*/*/run.json"))
    print(f"{dataset}: {describe_training(first)}", flush=True)
    (root,) = (folder / "data" / "phantoms").iterdir()
    yield run_command(
        "predict",
        [f"run={first}", f"input={root / PREDICTED[dataset]}", f"output={folder / 'masks'}"],
        options.open_files,
        folder,
    )
    runs = f"runs=[{outputs}/*/*/*/*]"
    yield run_command(
        "compare", [runs, f"outputs={folder / 'comparison'}"], options.open_files, folder
    )


def describe_training(run: Path) -> str:
    """Return speed and times of a run as text."""
    with (run / "history.csv").open() as file:
        row = list(csv.DictReader(file))[-1]
    seconds = json.loads((run / "run.json").read_text())["seconds"]
    speed = BATCHES * BATCH_SIZE / float(row["seconds"])
    return (
        f"{speed:.0f} samples/s with the epoch's start, of which {float(row['waiting']):.1f} s "
        f"waiting for data; fit {seconds['fit']:.1f} s, scoring {seconds['evaluate']:.1f} s"
    )


def main() -> int:
    """Run all datasets; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--datasets", nargs="*", choices=[*PREDICTED], default=[*PREDICTED])
    parser.add_argument("--size", default="published", help="phantom_size")
    parser.add_argument("--open-files", type=int, default=1024)
    parser.add_argument("--workers", type=int, default=8)
    parser.add_argument("--parent-gib", type=float, default=4.0)
    parser.add_argument("--worker-gib", type=float, default=1.0)
    parser.add_argument("--folder", type=Path, help="of everything; a temporary one by default")
    parser.add_argument("--keep", action="store_true")
    options = parser.parse_args()
    failed = False
    print(
        "dataset     command   code  seconds  processor  open files  parent GiB  worker GiB  "
        "processes"
    )
    for dataset in options.datasets:
        folder = Path(tempfile.mkdtemp(prefix=f"{dataset}-", dir=options.folder))
        try:
            for used in run_dataset(dataset, options, folder):
                memory = used.parent / GIB, used.worker / GIB
                print(
                    f"{dataset:10}  {used.name:8}  {used.code:4}  {used.seconds:7.1f}  "
                    f"{used.processor:9.1f}  {used.open_files:10}  {memory[0]:10.2f}  "
                    f"{memory[1]:10.2f}  {len(used.processes):9}",
                    flush=True,
                )
                if used.code:
                    print(used.output[-2000:])
                excess = memory[0] > options.parent_gib or memory[1] > options.worker_gib
                failed = failed or used.code != 0 or excess
        finally:
            if not options.keep:
                shutil.rmtree(folder)
    return int(failed)


if __name__ == "__main__":
    raise SystemExit(main())
