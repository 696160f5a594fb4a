"""Compiles a model with `torch.compile` for `trainer.compile`.

PyTorch keeps compiled kernels in `TORCHINDUCTOR_CACHE_DIR`, or in the temporary folder if that is
not set, so only the first run of a sweep waits for the compiler.
"""

import importlib.util
import os
import shutil

import torch

from attnseg.errors import ConfigError
from attnseg.models.model import SegmentationModel


def compile_model(model: SegmentationModel, mode: str, gpu: bool) -> None:
    """Compile a model in place at its first step; its parameters keep their names.

    The mode is one of `torch.compile`; `reduce-overhead` replays a step as one CUDA graph.
    """
    if not gpu and not any(map(shutil.which, (os.environ.get("CXX", "g++"), "clang++"))):
        raise ConfigError("trainer.compile: needs a C++ compiler; install g++ or set it to null")
    if gpu and importlib.util.find_spec("triton") is None:
        raise ConfigError("trainer.compile: needs triton; install it or set it to null")
    model.compile(mode=mode)
    # Training calls `training_outputs`, which `Module.compile` leaves uncompiled.
    compiled = torch.compile(model.training_outputs, mode=mode)
    setattr(model, "training_outputs", compiled)  # noqa: B010, mypy refuses to assign a method
