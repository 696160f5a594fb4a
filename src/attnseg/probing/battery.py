"""Trains every attention on every probe with several seeds, in parallel and resumably.

Three rules save time, and none of them can make a score better:

- A training ends as soon as validation pictures are answered nearly as well as they can be. The
  score is measured on other pictures, so that it may only be a little too low.
- If the first seed has used up all of its steps and is still at chance, the other seeds end at half
  of their steps, unless they are above chance by then. What such a seed would have learned later
  is missed; the chart says how often first seeds did.
- No training starts after the budget. The same command goes on with what is missing.
"""

import hashlib
import json
import logging
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

import attnseg
from attnseg.config.budget import build_model
from attnseg.config.cost import count_macs, count_parameters, find_attentions
from attnseg.config.identity import identity_of, short_digest
from attnseg.files import replacing, write_text
from attnseg.plugins import add_files, list_added_files
from attnseg.probes.probe import find_probe
from attnseg.probes.skeleton import Skeleton
from attnseg.probing.run import AT_CHANCE, Cell, CellResult, Subject, run_cell
from attnseg.progress import Bar
from attnseg.system import count_usable_cores, die_with_parent

log = logging.getLogger(__name__)

# What a result depends on, beside options and plugins; of this room, the training alone.
CODE = ("attention", "layers", "models", "probes", "probing/run.py")
# A fork saves the seconds of an import, but macOS may end a process that forks with threads.
START_METHOD = "fork" if sys.platform == "linux" else "spawn"


@dataclass(frozen=True)
class Traits:
    """Facts of an attention that need no training.

    Attributes:
        name: name of the choice of `attn`.
        about: the first line of its configuration file.
        sees: the declaration at its classes: whether it should solve a probe, by name.
        parameters: number of the network's parameters.
        macs: multiply-accumulates of the network for one picture.
    """

    name: str
    about: str
    sees: Mapping[str, bool]
    parameters: int
    macs: int


def describe_subject(subject: Subject, about: str, side: int) -> Traits:
    """Build a subject's network without memory for it, and return its traits.

    A `ConfigError` names an option that is wrong. The pictures have `side` pixels a side.
    """
    with torch.device("meta"):
        net = build_model(subject.model, subject.attn, 1, 3, (side, side))
    declared = [mixer.predict_sight() for mixer in find_attentions(net).values()]
    names = dict.fromkeys(name for sees in declared for name in sees)
    # One block that sees is enough, if blocks differ.
    sees = {name: any(each.get(name, False) for each in declared) for name in names}
    total = count_parameters(net)["total"]
    return Traits(subject.name, about, sees, total, count_macs(net, (1, side, side)))


class CellStore:
    """The finished trainings, a JSON file each, and their pictures beside them.

    A file's name is a digest of everything that the result depends on: options, code and plugins.

    Args:
        folder: folder of the files; it is created.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def load(self, cell: Cell) -> dict[str, Any] | None:
        """Return the facts of a cell, or `None` if it has not been trained."""
        try:
            facts = json.loads(self._path(cell, "json").read_text())
        except (FileNotFoundError, json.JSONDecodeError):
            return None
        return facts if isinstance(facts, dict) else None

    def load_pictures(self, cell: Cell) -> dict[str, NDArray[Any]]:
        """Return the pictures of a cell, if there are any."""
        try:
            with np.load(self._path(cell, "npz"), allow_pickle=False) as arrays:
                return dict(arrays)
        except FileNotFoundError:
            return {}

    def save(self, cell: Cell, result: CellResult) -> None:
        """Write a result; the facts last, so that a cell with facts is complete."""
        with replacing(self._path(cell, "npz")) as file:
            np.savez_compressed(file, **result.pictures)  # type: ignore[arg-type]
        described = describe_cell(cell)
        write_text(self._path(cell, "json"), json.dumps({**described, **result.facts}, indent=1))

    def _path(self, cell: Cell, ending: str) -> Path:
        return self.folder / f"{short_digest(describe_cell(cell))}.{ending}"


def describe_cell(cell: Cell) -> dict[str, Any]:
    """Return everything that the result of a cell depends on, as plain containers."""
    subject = cell.subject
    attn = None if subject.attn is None else identity_of(subject.attn, "attn")
    return {
        "attention": subject.name,
        "model": identity_of(subject.model, "model"),
        "attn": attn,
        **{key: value for key, value in asdict(cell).items() if key != "subject"},
        "code": digest_code(),
        "torch": torch.__version__,
    }


@cache
def digest_code() -> str:
    """Return a digest of the code that a result depends on."""
    root, digest = Path(attnseg.__file__).parent, hashlib.sha256()
    for place in CODE:
        path = root / place
        for file in sorted(path.rglob("*.py")) if path.is_dir() else [path]:
            digest.update(f"{file.relative_to(root)}\0".encode() + file.read_bytes())
    return digest.hexdigest()[:16]


def plan_cells(
    subjects: Sequence[Subject], probes: Sequence[str], seeds: Sequence[int], common: Cell
) -> list[Cell]:
    """Return all cells, one seed after the other, so that an early end leaves a whole chart."""
    return [
        replace(common, subject=subject, probe=probe, seed=seed)
        for seed in seeds
        for probe in probes
        for subject in subjects
    ]


def allow_to_give_up(cells: Sequence[Cell], store: CellStore) -> list[Cell]:
    """Return cells of further seeds, of which those give up early whose first seed saw nothing.

    The first seed of each is that of the first cell of its attention and probe.
    """
    first = {(cell.subject.name, cell.probe): cell for cell in reversed(cells)}
    allowed = []
    for cell in cells:
        other = first[cell.subject.name, cell.probe]
        facts = None if other is cell else store.load(other)
        hopeless = facts is not None and is_at_chance(cell.probe, facts["score"])
        allowed.append(replace(cell, may_give_up=hopeless))
    return allowed


def is_at_chance(probe: str, score: float) -> bool:
    """Return whether a score is about what no sight of the evidence gives, or less."""
    return score <= find_probe(probe).chance + AT_CHANCE


def run_battery(
    cells: Sequence[Cell], seeds: Sequence[int], store: CellStore, jobs: int, budget: float
) -> list[Cell]:
    """Train the cells that are missing until the budget, in seconds, is used up.

    Returns:
        The cells as they were or would be trained: see `allow_to_give_up`.
    """
    ends = time.monotonic() + budget
    own = [cell for cell in cells if cell.seed == seeds[0]]
    missing = [cell for cell in own if store.load(cell) is None]
    with Bar("Probing", len(cells), "trainings", len(own) - len(missing)) as bar:
        for cell in _train_all(missing, store, jobs, ends):
            bar.advance(f"{cell.subject.name}, {cell.probe}")
        planned = allow_to_give_up(cells, store)
        if all(store.load(cell) is not None for cell in own):
            further = [cell for cell in planned if cell.seed != seeds[0]]
            missing = [cell for cell in further if store.load(cell) is None]
            for _ in range(len(further) - len(missing)):
                bar.advance()
            for cell in _train_all(missing, store, jobs, ends):
                bar.advance(f"{cell.subject.name}, {cell.probe}")
    left = sum(store.load(cell) is None for cell in planned)
    if left:
        log.warning(
            "budget: %d of %d trainings are missing; the same command goes on", left, len(cells)
        )
    return planned


def _train_all(cells: Sequence[Cell], store: CellStore, jobs: int, ends: float) -> Iterator[Cell]:
    """Train cells, in several processes if there are several jobs, and yield each once stored."""
    waiting = iter(cells)
    if jobs == 1:
        for cell in waiting:
            if time.monotonic() > ends:
                return
            store.save(cell, run_cell(cell))
            yield cell
        return
    context = multiprocessing.get_context(START_METHOD)
    known = (os.getpid(), list_added_files())
    pool = ProcessPoolExecutor(min(jobs, len(cells) or 1), context, _start_worker, known)
    running: dict[Future[CellResult], Cell] = {}
    try:
        while True:
            while len(running) < jobs and time.monotonic() <= ends:
                upcoming = next(waiting, None)
                if upcoming is None:
                    break
                running[pool.submit(run_cell, upcoming)] = upcoming
            if not running:
                break
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                cell = running.pop(future)
                store.save(cell, future.result())
                yield cell
    except BaseException:
        for process in multiprocessing.active_children():
            process.terminate()
        raise
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _start_worker(parent: int, plugins: list[str]) -> None:
    """Leave Ctrl-C to the parent, end with it, know its plugins, and use one thread."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    die_with_parent(parent)
    add_files(plugins)
    torch.set_num_threads(1)


def late_learners(cells: Iterable[Cell], seed: int, store: CellStore) -> tuple[int, int]:
    """Return of how many first seeds the second rule of this module would have missed the answer.

    Returns:
        How many trainings with this seed at chance at half of their steps were well above it in the
        end; and how many were at chance at half of their steps.
    """
    late = early = 0
    for cell in cells:
        facts = store.load(cell) if cell.seed == seed else None
        if facts is None:
            continue
        half = [score for step, score in facts["curve"] if 2 * step >= cell.skeleton.steps]
        if half and is_at_chance(cell.probe, half[0]):
            early += 1
            late += not is_at_chance(cell.probe, facts["score"])
    return late, early


def choose_machine(device: str | None, jobs: int | None) -> tuple[str, int]:
    """Return the device, by default a GPU if there is one, and how many trainings may share it."""
    # Otherwise PyTorch would initialise CUDA here, and no forked process could use it.
    os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda":
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        return device, jobs or 1
    return device, jobs or count_usable_cores()


def make_plan(skeleton: Skeleton, steps: int | None) -> Skeleton:
    """Return how networks are trained, with another number of steps if one is given."""
    return skeleton if steps is None else replace(skeleton, steps=steps)
