"""A CUDA device that only has shapes, for simulations with PyTorch's build for CPUs.

PyTorch's fake tensors propagate devices without a GPU, but autograd asks for a device guard, which
that build lacks. A small shared library, compiled by g++ at first use and kept in the user's cache,
registers a guard and hooks that do nothing. Forward pass, backward pass and optimizer then run as
on `cuda:0`, and an operation between tensors on CPU and GPU raises the error of a real one.

Autograd's thread for the device cannot be joined: a process that has used it ends by `os._exit`.
"""

import contextlib
import ctypes
import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

from attnseg.errors import ConfigError

GUARD = r"""
#include <ATen/detail/CUDAHooksInterface.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
namespace {
using c10::Device; using c10::Stream;
struct Guard final : c10::impl::NoOpDeviceGuardImpl<c10::DeviceType::CUDA> {
  static Device device() { return {c10::DeviceType::CUDA, 0}; }
  static Stream stream() { return Stream(Stream::DEFAULT, device()); }
  Device exchangeDevice(Device) const override { return device(); }
  Device getDevice() const override { return device(); }
  Stream getStream(Device) const noexcept override { return stream(); }
  Stream getNewStream(Device, int) const override { return stream(); }
  Stream exchangeStream(Stream) const noexcept override { return stream(); }
  void record(void**, const Stream&, const c10::DeviceIndex, const c10::EventFlag) const override {}
  void block(void*, const Stream&) const override {}
  bool queryEvent(void*) const override { return true; }
  void synchronizeEvent(void*) const override {}
};
struct Hooks final : at::CUDAHooksInterface {
  explicit Hooks(at::CUDAHooksArgs) {}
  bool isBuilt() const override { return true; }
  bool hasCUDA() const override { return true; }
  bool hasPrimaryContext(at::DeviceIndex) const override { return false; }
  at::DeviceIndex deviceCount() const override { return 1; }
  at::DeviceIndex current_device() const override { return 0; }
  int getNumGPUs() const override { return 1; }
};
}
C10_REGISTER_GUARD_IMPL(CUDA, Guard)
namespace at { C10_REGISTER_TYPED_CLASS(CUDAHooksRegistry, "CUDAHooks", Hooks) }
"""
LIBRARIES = ("libc10.so", "libtorch_cpu.so")


def load_fake_device() -> None:
    """Register the device; call it before torch is imported, which looks for hooks only once.

    Raises:
        ConfigError: torch is imported already, there is no g++, or the library is another user's.
    """
    if "torch" in sys.modules:
        raise ConfigError("simulation: torch is imported already; start it in a process of its own")
    if shutil.which("g++") is None:
        raise ConfigError("simulation: needs a C++ compiler; install g++")
    spec = importlib.util.find_spec("torch")
    assert spec is not None and spec.origin is not None
    home = Path(spec.origin).parent
    with open_cache_folder() as folder:
        built = folder / name_guard(home)
        if not built.exists():
            compile_guard(home, built)
        check_owner(built)
        for name in LIBRARIES:
            ctypes.CDLL(str(home / "lib" / name), mode=ctypes.RTLD_GLOBAL)
        ctypes.CDLL(str(built))


def name_guard(torch_folder: Path) -> str:
    """Return the file name of the guard for an installed PyTorch and its version."""
    text = "\n".join([GUARD, str(torch_folder), version("torch")])
    return f"fake-cuda-{hashlib.sha256(text.encode()).hexdigest()[:12]}.so"


@contextlib.contextmanager
def open_cache_folder() -> Iterator[Path]:
    """Yield the user's own cache folder, or a temporary one if that cannot be written."""
    try:
        folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "attnseg")
        folder.mkdir(parents=True, exist_ok=True)
        usable = os.access(folder, os.W_OK) and folder.stat().st_uid == os.getuid()
        if usable:
            folder.chmod(0o700)
    except (OSError, RuntimeError):  # the latter without a home
        usable = False
    if usable:
        yield folder
    else:
        with tempfile.TemporaryDirectory(prefix="attnseg-") as temporary:
            yield Path(temporary)


def check_owner(library: Path) -> None:
    """Refuse a library of another user, whose code it would run, by a `ConfigError`."""
    if library.stat().st_uid != os.getuid():
        raise ConfigError(f"{library}: belongs to another user; remove it")


def compile_guard(torch_folder: Path, built: Path) -> None:
    """Compile the guard against the headers of an installed PyTorch."""
    with tempfile.TemporaryDirectory() as folder:
        source, library = Path(folder, "guard.cpp"), Path(folder, "guard.so")
        source.write_text(GUARD)
        headers, libraries = f"-I{torch_folder}/include", f"-L{torch_folder}/lib"
        command = ["g++", "-O0", "-std=c++20", "-fPIC", "-shared", headers, str(source)]
        command += ["-o", str(library), libraries, "-lc10", "-ltorch_cpu"]
        subprocess.run(command, check=True)
        shutil.copy(library, built.with_suffix(f".{os.getpid()}"))
        built.with_suffix(f".{os.getpid()}").rename(built)  # Another process may do the same.
