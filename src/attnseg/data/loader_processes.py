"""What loader processes are at, so that one that fails, dies or hangs can be told in one line."""

import multiprocessing
import os
import re
import signal

from torch.utils.data import Dataset, get_worker_info

from attnseg.data.slices import Sample, SampleKey, SliceDataset
from attnseg.errors import AttnsegError, DataError, ResourceError, first_line

DIED = re.compile(r"DataLoader worker \(pid(?:\(s\))? [\d, ]+\) (.*?)(?:\. |\.?$)")  # torch's words


class WatchedDataset(Dataset[Sample]):
    """A dataset that notes which slice each loader process reads.

    Args:
        dataset: what is read.
        workers: number of loader processes.
    """

    def __init__(self, dataset: SliceDataset, workers: int) -> None:
        self.dataset = dataset
        # Of each process: its id, and the slice it reads plus one. Shared with all of them.
        self.pids = multiprocessing.RawArray("q", max(workers, 1))
        self.reading = multiprocessing.RawArray("q", max(workers, 1))

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, key: SampleKey) -> Sample:
        """Return a sample.

        Raises:
            DataError: in a loader process, whatever went wrong: not every exception can be sent to
                the main one, and one that cannot would leave it waiting.
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
        """Return what a slice is called in messages."""
        case, number = self.dataset.index[index]
        return f"case {self.dataset.cases[case].case}, slice {number}"

    def unfinished(self) -> str:
        """Return the slices that loader processes were reading last."""
        return "; ".join(self.name(at - 1) for at in self.reading if at)

    def kill(self) -> None:
        """End the loader processes that hang: they would outlive the main one."""
        for pid, at in zip(self.pids, self.reading, strict=True):
            if at and any(child.pid == pid for child in multiprocessing.active_children()):
                os.kill(pid, signal.SIGKILL)


def explain_loader_error(error: Exception, watched: list[WatchedDataset]) -> AttnsegError | None:
    """Return what an exception of a `DataLoader` means; `None` if it is not of one.

    Args:
        error: as it reached the training process.
        watched: what is loaded.
    """
    text = str(error)
    names = "; ".join(filter(None, (one.unfinished() for one in watched))) or "nothing"
    if isinstance(error, DataError) and "in DataLoader worker process" in text:
        line = [line for line in text.splitlines() if line.strip()][-1]
        return DataError(re.sub(r"^[\w.]+Error: ", "", line))
    if text.startswith("DataLoader timed out"):
        return ResourceError(
            f"trainer.loader_timeout: no batch came in time; loader processes hang at {names}; "
            "check that disk or raise it"
        )
    # If it died while a batch was waited for, how is said by the cause only.
    said = [text, str(error.__cause__)]
    if how := [match[1] for match in map(DIED.match, said) if match]:
        return ResourceError(
            f"trainer.num_workers: a loader process {how[-1]} while reading {names}; free memory "
            "(and /dev/shm) or use fewer"
        )
    return None
