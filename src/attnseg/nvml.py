"""NVIDIA's management library (NVML): facts and energy of GPUs, without opening one.

Once a process has opened a GPU by CUDA, it cannot be assigned another one. The library comes with
the driver and is called directly, as PyTorch does to count GPUs.
"""

import ctypes
import functools
from dataclasses import dataclass

_TEXT = 96  # bytes for a name or a version


@dataclass(frozen=True)
class Gpu:
    """A GPU of this machine.

    Attributes:
        name: of the product.
        capability: compute capability, such as (8, 0).
        handle: by which the library knows it.
    """

    name: str
    capability: tuple[int, int]
    handle: ctypes.c_void_p

    def read_joules(self) -> float:
        """Return the energy since the driver was loaded; an `OSError` if this GPU counts none."""
        library, spent = _open_library(), ctypes.c_ulonglong()  # millijoules
        assert library is not None
        failed = library.nvmlDeviceGetTotalEnergyConsumption(self.handle, ctypes.byref(spent))
        if failed:
            raise OSError(f"{self.name} does not count its energy")
        return spent.value / 1000


@dataclass(frozen=True)
class Driver:
    """The driver of the GPUs, and the newest CUDA that it supports, such as (13, 0)."""

    version: str
    cuda: tuple[int, int]


def find_driver() -> Driver | None:
    """Return the driver; `None` without one, or if it does not tell its versions."""
    library = _open_library()
    if library is None:
        return None
    text, number = ctypes.create_string_buffer(_TEXT), ctypes.c_int()
    if library.nvmlSystemGetDriverVersion(text, _TEXT):
        return None
    if library.nvmlSystemGetCudaDriverVersion_v2(ctypes.byref(number)):
        return None
    return Driver(text.value.decode(), (number.value // 1000, number.value % 1000 // 10))


def list_gpus() -> list[Gpu]:
    """Return the GPUs in the order of `nvidia-smi`; none without a driver.

    A GPU that does not tell its name and capability is left out.
    """
    library, count = _open_library(), ctypes.c_uint()
    if library is None or library.nvmlDeviceGetCount_v2(ctypes.byref(count)):
        return []
    gpus = []
    for index in range(count.value):
        handle = ctypes.c_void_p()
        if library.nvmlDeviceGetHandleByIndex_v2(index, ctypes.byref(handle)) == 0:
            gpus.append(_describe(library, handle))
    return [gpu for gpu in gpus if gpu is not None]


def find_gpu(name: str) -> Gpu | None:
    """Return the GPU that CUDA_VISIBLE_DEVICES calls so: by its number or the whole of its UUID."""
    library, handle = _open_library(), ctypes.c_void_p()
    if library is None:
        return None
    if name.isdecimal():
        failed = library.nvmlDeviceGetHandleByIndex_v2(int(name), ctypes.byref(handle))
    else:
        failed = library.nvmlDeviceGetHandleByUUID(name.encode(), ctypes.byref(handle))
    return None if failed else _describe(library, handle)


def _describe(library: ctypes.CDLL, handle: ctypes.c_void_p) -> Gpu | None:
    text, major, minor = ctypes.create_string_buffer(_TEXT), ctypes.c_int(), ctypes.c_int()
    if library.nvmlDeviceGetName(handle, text, _TEXT):
        return None
    if library.nvmlDeviceGetCudaComputeCapability(handle, ctypes.byref(major), ctypes.byref(minor)):
        return None
    return Gpu(text.value.decode(), (major.value, minor.value), handle)


@functools.cache
def _open_library() -> ctypes.CDLL | None:
    try:
        library = ctypes.CDLL("libnvidia-ml.so.1")
    except OSError:
        return None
    return None if library.nvmlInit_v2() else library
