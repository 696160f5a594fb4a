"""GPUs of a machine that has none: a management library as the driver's, and PyTorch told of them.

The library answers as NVML does, so the code that asks it runs as it is. CUDA itself cannot be
simulated: a process that opens it calls `opened` and ends.
"""

import ctypes
import multiprocessing
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from attnseg import nvml
from tests.limits import HANG

WATTS = 100  # of each GPU
SOURCE = r"""
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
static int number(const char *name) { return atoi(getenv(name)); }
int nvmlInit_v2() { return 0; }
int nvmlInit() { return 0; }
int nvmlDeviceGetCount_v2(unsigned *count) { *count = number("SIMULATED_GPUS"); return 0; }
int nvmlDeviceGetHandleByIndex_v2(unsigned index, size_t *handle) {
  *handle = index + 1;
  return index >= (unsigned)number("SIMULATED_GPUS");
}
int nvmlDeviceGetHandleByUUID(const char *uuid, size_t *handle) {
  *handle = 1;
  return strncmp(uuid, "GPU-", 4) != 0;
}
int nvmlDeviceGetName(size_t handle, char *name, unsigned length) {
  snprintf(name, length, "Simulated %d", (int)handle - 1);
  return 0;
}
int nvmlDeviceGetCudaComputeCapability(size_t handle, int *major, int *minor) {
  int capability = number(handle == 1 ? "SIMULATED_FIRST" : "SIMULATED_CAPABILITY");
  *major = capability / 10;
  *minor = capability % 10;
  return capability == 0;
}
int nvmlDeviceGetTotalEnergyConsumption(size_t handle, unsigned long long *millijoules) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  *millijoules = number("SIMULATED_WATTS") * (now.tv_sec * 1000ULL + now.tv_nsec / 1000000ULL);
  return number("SIMULATED_WATTS") ? 0 : 3; /* not supported */
}
int nvmlSystemGetDriverVersion(char *version, unsigned length) {
  snprintf(version, length, "550.54.15");
  return 0;
}
int nvmlSystemGetCudaDriverVersion_v2(int *version) {
  *version = number("SIMULATED_CUDA");
  return *version == 0;
}
"""


def build_library(folder: Path) -> Path:
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("g++")
    if compiler is None:
        pytest.skip("needs a C compiler")
    source, library = folder / "nvml.c", folder / "libnvidia-ml.so.1"
    source.write_text(SOURCE)
    named = "-Wl,-soname,libnvidia-ml.so.1"
    options = ["-x", "c", "-shared", "-fPIC", named, "-o", library]
    subprocess.run([compiler, *options[:2], source, *options[2:]], check=True)
    return library


def simulate(
    library: Path,
    gpus: int = 2,
    cuda: int = 13000,
    capability: int = 90,
    first: int | None = None,
    watts: int = WATTS,
    opened: Callable[[], None] = lambda: None,
) -> None:
    """Let this process see GPUs, the first perhaps of another capability.

    For a fork, which ends with the test. The driver does not tell a version or capability of 0.
    """
    numbers = {"GPUS": gpus, "CUDA": cuda, "CAPABILITY": capability, "WATTS": watts}
    numbers["FIRST"] = capability if first is None else first
    os.environ |= {f"SIMULATED_{name}": str(value) for name, value in numbers.items()}
    ctypes.CDLL(str(library))  # Found again by its name.
    nvml._open_library.cache_clear()  # An earlier test may have found no library.

    def open_cuda() -> None:
        opened()
        os._exit(0)

    torch.cuda._is_compiled = lambda: True
    torch.cuda._lazy_init = open_cuda
    torch.version.cuda = "13.0"
    torch._C._cuda_getArchFlags = lambda: "sm_75 sm_80 sm_90 compute_90"


def in_fork(work: Callable[[], object]) -> object:
    """Return what a function returns, or the exception that it raises, in a fork."""
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe()

    def run() -> None:
        try:
            theirs.send(work())
        except Exception as error:
            theirs.send(error)

    child = context.Process(target=run)
    child.start()
    try:
        assert ours.poll(HANG)
        return ours.recv()
    finally:
        child.join(10)
        child.kill()
