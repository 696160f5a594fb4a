"""Work on many cases in several processes: as many as cores and memory allow, none left behind."""

import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any, TypeVar

import cv2

from attnseg.data.notices import FileWarning, collecting_warnings, counting_warnings, warn_of_file
from attnseg.errors import DataError, Problems, ResourceError
from attnseg.memory import free_memory
from attnseg.progress import Bar
from attnseg.system import count_usable_cores, die_with_parent

T = TypeVar("T")
Item = TypeVar("Item")
ITEMS_PER_PROCESS = 8  # fewer would not repay its start
MEMORY_PER_PROCESS = 1 << 30  # bytes
_work: Callable[[int], Any] | None = None  # of this process, if it is one of several


def work_in_parallel(
    function: Callable[[Item], T], items: Sequence[Item], label: str, unit: str, place: Path
) -> list[T]:
    """Call a function with each item, in parallel and with a `Bar`; return its results in order.

    Few items are worked on in threads of this process, many in forks of it. Results and errors must
    be picklable. If this process is killed, the forks end, too.

    Args:
        function: called with an item.
        items: all items.
        label: name of the task.
        unit: plural noun for the items.
        place: what the processes work on, for messages.

    Raises:
        ResourceError: a process was killed.
    """
    processes = count_processes(len(items))
    pool: Executor
    if processes > 1:

        def work(number: int) -> T:
            return function(items[number])

        context = multiprocessing.get_context("fork")
        pool = ProcessPoolExecutor(processes, context, _set_up_process, (work, os.getpid()))
        arriving = pool.map(_do_work, range(len(items)))
    else:
        pool = ThreadPoolExecutor(os.cpu_count())
        arriving = pool.map(function, items)
    results = []
    try:
        # The processes exist by now: a fork while the bar's own thread prints could hang.
        with Bar(label, len(items), unit) as bar:
            for result in arriving:
                results.append(result)
                bar.advance()
    except BrokenProcessPool as error:
        raise ResourceError(
            f"{place}: a process that worked on it was killed, perhaps for want of memory; run the "
            "command again"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)
    return results


def work_on_files(
    function: Callable[[Item], T],
    items: Sequence[Item],
    label: str,
    unit: str,
    place: Path,
    problems: Problems,
) -> list[T | None]:
    """Do `work_in_parallel`, but go on after a `DataError`, which is added to the problems.

    Its result is `None`. Warnings about files are counted over all items.
    """

    def attempt(item: Item) -> tuple[T | DataError, list[FileWarning]]:
        with collecting_warnings() as warnings:
            try:
                return function(item), warnings
            except DataError as error:
                return error, warnings

    results: list[T | None] = []
    with counting_warnings():
        for result, warnings in work_in_parallel(attempt, items, label, unit, place):
            for path, text in warnings:
                warn_of_file(path, text)
            if isinstance(result, DataError):
                problems.found.extend(result.problems)
                results.append(None)
            else:
                results.append(result)
    return results


def count_processes(items: int) -> int:
    """Return the number of processes for so many items; 1 for none besides this one."""
    if sys.platform != "linux" or multiprocessing.current_process().daemon:
        return 1  # Elsewhere a fork is not safe, and daemons may have no children.
    cores = count_usable_cores()
    free = free_memory()
    room = cores if free is None else free // MEMORY_PER_PROCESS
    return max(1, min(cores, room, items // ITEMS_PER_PROCESS))


def _set_up_process(work: Callable[[int], Any], parent: int) -> None:
    global _work
    _work = work
    cv2.setNumThreads(0)  # OpenCV's threads do not survive a fork.
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes of a terminal.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    die_with_parent(parent, signal.SIGKILL)


def _do_work(number: int) -> Any:  # noqa: ANN401
    assert _work is not None
    return _work(number)
