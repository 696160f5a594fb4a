"""Training runs in forks of the test's process: torch is imported once, and any may be killed."""

import multiprocessing
import os
import signal
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NoReturn

import pandas as pd
import torch

from attnseg.cli.failures import report_error, send_log_to_terminal
from attnseg.config.composition import compose, to_raw
from attnseg.config.training import Config, parse_config
from attnseg.runs.checkpoints import AtomicCheckpointIO
from attnseg.training.callbacks.checkpoints import LastCheckpoint
from attnseg.training.module import SegmentationModule
from attnseg.training.train import train
from tests.limits import HANG

SMOKE = ("experiment=smoke", "attn=kv", "trainer.save_minutes=null")


def configured(folder: Path, *options: str) -> Config:
    """Compose a small run with all its files in `folder`."""
    folder.mkdir(exist_ok=True)
    paths = [f"paths.data={folder}/data", f"paths.outputs={folder}/outputs"]
    return parse_config(to_raw(compose("train", [*SMOKE, *options, *paths])))


def attempt(folder: Path, *options: str, fault: Callable[[], None] = lambda: None) -> int:
    """Run once in a fork, its output in `folder/output`; return its exit code.

    Args:
        folder: of all files.
        options: beside those of a small run.
        fault: called in the fork before the run, to arrange for what shall go wrong.
    """
    (code,) = attempts(1, folder, *options, faults=[fault])
    return code


def attempts(
    processes: int,
    folder: Path,
    *options: str,
    faults: Sequence[Callable[[], None]] = (),
) -> list[int]:
    """Run once in several processes, as `torchrun` starts them; return their exit codes.

    As `torchrun` does, this process serves the store through which they find each other.
    """
    config = configured(folder, *options)
    store = None
    if processes > 1:
        store = torch.distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    children = []
    for rank in range(processes):
        environment = {} if store is None else {
            "TORCHELASTIC_RUN_ID": "test", "RANK": rank, "LOCAL_RANK": rank,
            "WORLD_SIZE": processes, "LOCAL_WORLD_SIZE": processes, "GROUP_RANK": 0,
            "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": store.port,
            "TORCHELASTIC_USE_AGENT_STORE": True, "TORCHELASTIC_RESTART_COUNT": 0,
        }  # fmt: skip
        fault = faults[rank] if faults else lambda: None
        arguments = (folder, config, fault, environment)
        children.append(multiprocessing.get_context("fork").Process(target=_run, args=arguments))
        children[-1].start()
    for child in children:
        child.join(HANG)
    hanging = [child for child in children if child.is_alive()]
    for child in hanging:
        child.kill()
        child.join()
    assert not hanging, f"the run hangs: {(folder / 'output').read_text()}"
    return [child.exitcode for child in children]


def attempt_command(
    folder: Path,
    command: Callable[[], NoReturn],
    *arguments: str,
    fault: Callable[[], None] = lambda: None,
) -> int:
    """Call a command in a fork, from `folder`, its output in `folder/output`; see `attempt`."""

    def called() -> None:
        os.chdir(folder)
        sys.argv = ["attnseg", *arguments]
        command()

    child = multiprocessing.get_context("fork").Process(target=_work, args=(folder, called, fault))
    child.start()
    child.join(HANG)
    hangs = child.is_alive()
    child.kill()
    child.join()
    assert not hangs, f"the command hangs: {(folder / 'output').read_text()}"
    assert child.exitcode is not None
    return child.exitcode


def _run(
    folder: Path,
    config: Config,
    fault: Callable[[], None],
    environment: Mapping[str, object],
) -> None:
    os.environ.update({name: str(value) for name, value in environment.items()})
    _work(folder, lambda: train(config), fault)


def _work(folder: Path, work: Callable[[], object], fault: Callable[[], None]) -> NoReturn:
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # the tests may run under nohup
    LastCheckpoint.share = 1.0  # keep one as often as asked
    output = open(folder / "output", "a")
    os.dup2(output.fileno(), 1)
    os.dup2(output.fileno(), 2)
    sys.stdout = sys.stderr = output
    send_log_to_terminal()
    code = 0
    try:
        fault()
        work()
    except KeyboardInterrupt:
        code = 130
    except SystemExit as ended:
        code = ended.code or 0
    except Exception as error:
        code = report_error(error)
        if code == 1:
            traceback.print_exc()
    output.flush()
    os._exit(code)


def run_of(folder: Path) -> Path:
    (run,) = [path.parent for path in folder.glob("outputs/*/*/*/*/run.json")]
    return run


def send_at(place: str, count: int, number: int) -> Callable[[], None]:
    """Return a fault: a signal to itself at the `count`th time (from 1) that training is there.

    Args:
        place: `step` (before a batch), `backward` (amid one), `validation` or `save`.
        count: which time.
        number: of the signal.
    """
    owner, method = {
        "step": (SegmentationModule, "on_train_batch_start"),
        "backward": (SegmentationModule, "on_before_zero_grad"),
        "validation": (SegmentationModule, "validation_step"),
        "scores": (SegmentationModule, "on_validation_epoch_end"),
        "save": (AtomicCheckpointIO, "save_checkpoint"),
    }[place]

    def arrange() -> None:
        times = 0
        original = getattr(owner, method)

        def counted(*arguments, **named):
            nonlocal times
            times += 1
            if times == count:
                os.kill(os.getpid(), number)
            return original(*arguments, **named)

        setattr(owner, method, counted)

    return arrange


def equal(a: object, b: object) -> bool:
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(equal, a, b))
    return bool(a == b)


def assert_same_end(first: Path, other: Path) -> None:
    """Compare two finished run folders to the bit, less their times."""
    for name in ("cases.csv", "metrics.json", "split.csv"):
        assert (first / name).read_bytes() == (other / name).read_bytes(), name
    for name in ("last.ckpt", "best.ckpt"):
        a, b = (torch.load(r / "checkpoints" / name, weights_only=True) for r in (first, other))
        for part in (
            "epoch", "global_step", "position", "train_loss", "state_dict", "optimizer_states",
            "lr_schedulers",
        ):  # fmt: skip
            assert equal(a[part], b[part]), (name, part)
        for part in ("current_model_state", "averaging_state"):
            assert equal(a.get(part, {}), b.get(part, {})), (name, part)
    a, b = (
        pd.read_csv(run / "history.csv").drop(columns=["seconds", "waiting"])
        for run in (first, other)
    )
    pd.testing.assert_frame_equal(a, b, check_exact=True)
