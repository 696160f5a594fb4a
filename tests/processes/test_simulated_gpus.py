"""Facts of GPUs, and which one a job takes, before anything opens CUDA. GPUs are simulated."""

import multiprocessing
import os
import re
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from attnseg.energy import EnergyMeter
from attnseg.errors import ConfigError
from attnseg.processes import gpus
from attnseg.processes.gpus import check_driver
from attnseg.training.precision import fastest_precision
from tests.faults.runs import _run, configured
from tests.limits import HANG
from tests.processes.simulated_gpus import WATTS, build_library, in_fork, simulate


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    return build_library(tmp_path_factory.mktemp("nvml"))


@pytest.mark.parametrize(
    ("options", "wanted"), [({}, "bf16-mixed"), ({"capability": 75}, "16-mixed")]
)
def test_the_precision_is_chosen_without_opening_a_gpu(library, options, wanted):
    def choose():
        simulate(library, **options)
        return fastest_precision("gpu")

    assert in_fork(choose)[0] == wanted


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"cuda": 12040}, "driver 550.54.15 supports CUDA 12.4, and PyTorch .* needs 13.0; install "
         "driver 580 or newer, or PyTorch for CUDA 12"),
        ({"capability": 70}, r"no kernels for Simulated 0 \(compute capability 7.0, 7.5 at"),
        ({"capability": 75}, None),
        ({"capability": 120}, None),  # newer GPUs run compute_90
        ({"cuda": 13020}, None),
        ({"cuda": 0}, None),  # Nothing is refused for what the driver does not tell.
        ({"capability": 0}, None),
    ],
)  # fmt: skip
def test_old_drivers_and_gpus_are_told_at_once(library, options, message):
    def check():
        simulate(library, **options)
        check_driver()

    answer = in_fork(check)
    if message is None:
        assert answer is None
    else:
        assert isinstance(answer, ConfigError)
        assert re.search(message, str(answer)), answer


def test_only_the_gpus_that_a_run_may_use_count(library):
    def choose(visible):
        os.environ[gpus.VISIBLE] = visible
        simulate(library, first=70)
        check_driver()
        return fastest_precision("gpu")

    assert in_fork(lambda: choose("1")) == ("bf16-mixed", "Simulated 1 has bfloat16 units")
    for visible in ("0", "0,1"):
        assert "no kernels for Simulated 0" in str(in_fork(lambda v=visible: choose(v)))


def test_an_open_gpu_is_named_so_that_cuda_and_the_driver_mean_the_same(library):
    def name():
        simulate(library)
        torch.cuda.current_device = lambda: 1
        torch.cuda.get_device_properties = lambda index: SimpleNamespace(uuid=f"b-{index}")
        with EnergyMeter([gpus.name_open_gpu()]) as meter:
            pass
        return meter.source

    assert in_fork(name) == "NVML: GPU GPU-b-1 (Simulated 0)"


def test_two_jobs_take_different_gpus_before_anything_opens_cuda(library, tmp_path):
    """One asks for the largest batch, which needs a GPU before the run has its folder."""
    locks = tmp_path / "locks"
    locks.mkdir()

    def arrange(name: str) -> None:
        def note() -> None:
            (tmp_path / name).write_text(os.environ.get(gpus.VISIBLE, "all"))
            until = time.monotonic() + HANG
            while len(list(tmp_path.glob("job*.gpu"))) < 2 and time.monotonic() < until:
                time.sleep(0.05)

        gpus.tempfile.gettempdir = lambda: str(locks)
        for variable in (gpus.VISIBLE, *gpus.CHOSEN):
            os.environ.pop(variable, None)
        simulate(library, opened=note)

    context = multiprocessing.get_context("fork")
    jobs = []
    for number, options in enumerate((["trainer.auto_batch=true"], [])):
        folder: Path = tmp_path / f"job{number}"
        config = configured(folder, "trainer=gpu", *options)
        assert config.trainer.precision == "auto"
        fault = lambda number=number: arrange(f"job{number}.gpu")  # noqa: E731
        jobs.append(context.Process(target=_run, args=(folder, config, fault, {})))
        jobs[-1].start()
    for job in jobs:
        job.join(HANG)
        job.kill()
    outputs = [(tmp_path / f"job{number}/output").read_text() for number in range(2)]
    assert [job.exitcode for job in jobs] == [0, 0], outputs
    assert sorted((tmp_path / f"job{n}.gpu").read_text() for n in range(2)) == ["0", "1"], outputs


def test_the_energy_of_gpus_is_counted(library):
    def measure():
        simulate(library)
        started = time.monotonic()
        with EnergyMeter(["0", "GPU-a"]) as meter:
            time.sleep(0.3)
        return meter.joules, time.monotonic() - started, meter.source, meter.reason

    joules, seconds, source, reason = in_fork(measure)
    # The counters advance once per millisecond.
    assert 2 * WATTS * 0.299 <= joules <= 2 * WATTS * (seconds + 0.001)
    assert source == "NVML: GPU 0 (Simulated 0), GPU GPU-a (Simulated 0)"
    assert reason is None


def test_energy_that_no_gpu_counts_is_unknown(library):
    def measure(names, **options):
        simulate(library, **options)
        with EnergyMeter(names) as meter:
            pass
        return meter.joules, meter.source, meter.reason

    assert in_fork(lambda: measure(["0"], watts=0)) == (
        None, None, "Simulated 0 does not count its energy",
    )  # fmt: skip
    assert in_fork(lambda: measure(["7"])) == (None, None, "NVML does not know GPU 7")


def test_nothing_is_known_of_gpus_without_a_driver():
    if torch.cuda.is_available():
        pytest.skip("this machine has a driver")
    assert in_fork(check_driver) is None
