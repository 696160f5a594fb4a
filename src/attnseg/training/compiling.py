"""`torch.compile` for a model, its compiled kernels kept from run to run."""

import importlib.util
import os
import shutil

import torch

from attnseg.errors import ConfigError
from attnseg.models.model import SegmentationModel


def compile_model(model: SegmentationModel, mode: str, gpu: bool) -> None:
    """Have a model compile itself at its first step; its parameters keep their names.

    PyTorch keeps what it compiled in `TORCHINDUCTOR_CACHE_DIR`, below the temporary folder if that
    is not set, so that only the first run of a sweep waits.

    Args:
        model: what is trained.
        mode: of `torch.compile`; `reduce-overhead` replays a step as one CUDA graph.
        gpu: whether it runs on one.

    Raises:
        ConfigError: there is no compiler on this machine.
    """
    if not gpu and not any(map(shutil.which, (os.environ.get("CXX", "g++"), "clang++"))):
        raise ConfigError("trainer.compile: needs a C++ compiler; install g++ or set it to null")
    if gpu and importlib.util.find_spec("triton") is None:
        raise ConfigError("trainer.compile: needs triton; install it or set it to null")
    model.compile(mode=mode)
    outputs = torch.compile(model.training_outputs, mode=mode)
    setattr(model, "training_outputs", outputs)  # noqa: B010, a method for mypy
