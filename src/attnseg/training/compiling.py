"""Compiles a model with `torch.compile` for `trainer.compile`.

PyTorch keeps compiled kernels in `TORCHINDUCTOR_CACHE_DIR`, or in the temporary folder if that is
not set, so only the first run of a sweep waits for the compiler.
"""

import importlib.util
import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from attnseg.config.training import Trainer as TrainerOptions
from attnseg.errors import ConfigError
from attnseg.models.model import SegmentationModel

log = logging.getLogger(__name__)


def compile_model(model: SegmentationModel, options: TrainerOptions) -> None:
    """Compile a model in place at its first step; its parameters keep their names."""
    gpu = options.accelerator == "gpu"
    if not gpu and not any(map(shutil.which, (os.environ.get("CXX", "g++"), "clang++"))):
        raise ConfigError(
            "trainer.compile: needs a C++ compiler; install g++ or use trainer.compile=null"
        )
    if gpu and importlib.util.find_spec("triton") is None:
        raise ConfigError("trainer.compile: needs triton; install it or use trainer.compile=null")
    # Triton compiles the calls of its kernels for Python.
    if gpu and not any(map(shutil.which, (os.environ.get("CC", "gcc"), "clang"))):
        raise ConfigError(
            "trainer.compile: needs a C compiler; install gcc or use trainer.compile=null"
        )
    if options.compile == "max-autotune" and options.deterministic:
        log.warning(
            "trainer.compile: max-autotune compares no kernels in deterministic training; set "
            "trainer.deterministic=false, or trainer.compile=default, which starts faster"
        )
    log.info("trainer.compile=%s: the first steps take minutes", options.compile)
    assert options.compile is not None
    model.compile(mode=options.compile)
    # Training calls `training_outputs`, which `Module.compile` leaves uncompiled.
    compiled = torch.compile(model.training_outputs, mode=options.compile)
    setattr(model, "training_outputs", compiled)  # noqa: B010, mypy refuses to assign a method


@contextmanager
def computing_uncompiled(model: SegmentationModel) -> Iterator[None]:
    """Let a model that may be compiled compute as it is within the block.

    Inputs of another size or precision would be compiled anew, which takes minutes.
    """
    compiled, model._compiled_call_impl = model._compiled_call_impl, None
    try:
        yield
    finally:
        model._compiled_call_impl = compiled


def restore_plain_model(model: SegmentationModel) -> None:
    """Let a model that may be compiled compute as it is from now on, and call hooks again."""
    if model._compiled_call_impl is not None:
        model._compiled_call_impl = None
        del model.training_outputs  # the compiled one; that of the class remains
