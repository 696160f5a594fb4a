"""Compiles a model with `torch.compile` for `trainer.compile`.

PyTorch keeps compiled kernels in `TORCHINDUCTOR_CACHE_DIR`, or in the temporary folder if that is
not set, so only the first run of a sweep waits for the compiler.
"""

import importlib.util
import logging
import os
import shutil
import sys
import sysconfig
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from attnseg.config.training import Trainer as TrainerOptions
from attnseg.errors import ConfigError
from attnseg.models.model import SegmentationModel
from attnseg.training.recompute import list_blocks

KINDS_OF_BLOCKS = 64
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
    folders = sysconfig.get_path("include"), sysconfig.get_path("include", "posix_prefix")
    if not any(Path(folder, "Python.h").is_file() for folder in folders):
        version = f"{sys.version_info.major}.{sys.version_info.minor}"
        raise ConfigError(
            f"trainer.compile: needs the C headers of Python; install python{version}-dev or use "
            "trainer.compile=null"
        )
    if options.compile == "max-autotune" and options.deterministic:
        log.warning(
            "trainer.compile: max-autotune compares no kernels in deterministic training; set "
            "trainer.deterministic=false, or trainer.compile=default, which starts faster"
        )
    log.info("trainer.compile=%s: the first steps take minutes", options.compile)
    if options.compile == "blocks":
        compile_blocks(model)
        return
    assert options.compile is not None
    model.compile(mode=options.compile)
    # Training calls `training_outputs`, which `Module.compile` leaves uncompiled.
    compiled = torch.compile(model.training_outputs, mode=options.compile)
    setattr(model, "training_outputs", compiled)  # noqa: B010, mypy refuses to assign a method


def compile_blocks(model: SegmentationModel, backend: str = "inductor") -> None:
    """Compile each block of a model in place, and nothing between blocks.

    Blocks of one class and shape are compiled once for all of them.
    """
    blocks = list_blocks(model)
    # By default, the compiler gives up after eight kinds of blocks: stages, training, evaluation.
    dynamo: Any = torch._dynamo.config
    dynamo.recompile_limit = max(dynamo.recompile_limit, KINDS_OF_BLOCKS)
    for block in blocks:
        block.compile(backend=backend)


@contextmanager
def computing_uncompiled(model: SegmentationModel) -> Iterator[None]:
    """Let a model that may be compiled compute as it is within the block.

    Inputs of another size or precision would be compiled anew, which takes minutes.
    """
    compiled = {module: module._compiled_call_impl for module in list_compiled(model)}
    for module in compiled:
        module._compiled_call_impl = None
    try:
        yield
    finally:
        for module, call in compiled.items():
            module._compiled_call_impl = call


def restore_plain_model(model: SegmentationModel) -> None:
    """Let a model that may be compiled compute as it is from now on, and call hooks again."""
    for module in list_compiled(model):
        module._compiled_call_impl = None
    vars(model).pop("training_outputs", None)  # the compiled one; that of the class remains


def list_compiled(model: nn.Module) -> list[nn.Module]:
    """Return the modules that are compiled: the model, its blocks, or none."""
    return [module for module in model.modules() if module._compiled_call_impl is not None]
