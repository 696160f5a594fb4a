"""Tracks which slice each loader process reads, so that failures and hangs name it in one line."""

import multiprocessing
import os
import re
import signal
from collections.abc import Callable

import cv2
from torch.utils.data import Dataset, get_worker_info

from attnseg.data.slices import Sample, SampleKey, SliceDataset
from attnseg.errors import AttnsegError, DataError, ResourceError, first_line

# PyTorch's message when a loader process has died; the group is the reason.
DIED = re.compile(r"DataLoader worker \(pid(?:\(s\))? [\d, ]+\) (.*?)(?:\. |\.?$)")


def set_up_loader_process(worker: int, then: Callable[[int], None] | None = None) -> None:
    """Set up a new loader process, before it loads any sample; then call `then` with its number."""
    # Loader processes already run in parallel, and OpenCV's own threads do not survive a fork.
    cv2.setNumThreads(0)
    if then is not None:
        then(worker)


class WatchedDataset(Dataset[Sample]):
    """A dataset that records which slice each of its loader processes is reading."""

    def __init__(self, dataset: SliceDataset, workers: int) -> None:
        self.dataset = dataset
        # Shared memory: the id of each loader process, and 1 + the index of the slice it reads.
        self.pids = multiprocessing.RawArray("q", max(workers, 1))
        self.reading = multiprocessing.RawArray("q", max(workers, 1))

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, key: SampleKey) -> Sample:
        """Return a sample; in a loader process, every failure becomes a `DataError`.

        An exception that cannot be pickled would never reach the main process and leave it waiting.
        """
        worker = get_worker_info()
        if worker is None:
            return self.dataset[key]
        self.pids[worker.id], self.reading[worker.id] = os.getpid(), key[1] + 1
        try:
            sample = self.dataset[key]
        except DataError:
            raise
        except Exception as error:
            raise DataError(
                f"{self.name(key[1])}: cannot be loaded ({type(error).__name__}: "
                f"{first_line(error)}); see run.log, or use trainer.num_workers=0"
            ) from error
        self.reading[worker.id] = 0
        return sample

    def name(self, index: int) -> str:
        """Return the name of a slice for messages."""
        case, number = self.dataset.index[index]
        return f"case {self.dataset.cases[case].case}, slice {number}"

    def unfinished(self) -> str:
        """Return the names of the slices that loader processes are still reading."""
        return "; ".join(self.name(at - 1) for at in self.reading if at)

    def kill(self) -> None:
        """Kill the loader processes that hang, which would outlive the main process."""
        for pid, at in zip(self.pids, self.reading, strict=True):
            if at and any(child.pid == pid for child in multiprocessing.active_children()):
                os.kill(pid, signal.SIGKILL)


def explain_loader_error(error: Exception, watched: list[WatchedDataset]) -> AttnsegError | None:
    """Translate an exception raised by a `DataLoader`; return `None` for any other exception."""
    text = str(error)
    names = "; ".join(filter(None, (one.unfinished() for one in watched))) or "nothing"
    if isinstance(error, DataError) and "in DataLoader worker process" in text:
        line = [line for line in text.splitlines() if line.strip()][-1]
        return DataError(re.sub(r"^[\w.]+Error: ", "", line))
    if "unable to allocate shared memory" in text:
        return ResourceError(
            "trainer.num_workers: no room in /dev/shm, through which loader processes pass their "
            "batches; enlarge it (docker run --shm-size=8g) or set trainer.num_workers=0"
        )
    if text.startswith("DataLoader timed out"):
        return ResourceError(
            f"trainer.loader_timeout: no batch came in time; loader processes hang at {names}; "
            "check that disk or raise it"
        )
    # If the process died while the trainer waited for a batch, only the cause gives the reason.
    if reasons := [match[1] for match in map(DIED.match, (text, str(error.__cause__))) if match]:
        return ResourceError(
            f"trainer.num_workers: a loader process {reasons[-1]} while reading {names}; free "
            "memory (and /dev/shm) or use fewer"
        )
    return None
