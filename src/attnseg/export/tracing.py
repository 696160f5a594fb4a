"""A network as one graph that takes any number of images, for torch.export and ONNX."""

import contextlib
import io
import logging
import re
import warnings
from collections.abc import Iterator

import torch
from torch import nn
from torch.export import Dim, ExportedProgram

from attnseg.errors import ConfigError, first_line
from attnseg.layers.factored import fuse_factors


def trace_model(model: nn.Module, image: tuple[int, int, int]) -> ExportedProgram:
    """Trace a model into one graph that takes any number of images; `image` is C, H, W of one.

    Gradients are enabled because KV+Pos then carries its bias as one more channel. Without them its
    bias is a mask, which the exporter would store for every block, tokens times tokens.
    """
    example, model = torch.zeros(2, *image), fuse_factors(model)
    try:
        with torch.enable_grad(), silenced_exporters():
            return torch.export.export(
                model, (example,), dynamic_shapes=({0: Dim("batch")},), strict=False
            )
    except Exception as error:  # The tracer passes on whatever a model raises.
        raise ConfigError(
            f"formats: the model cannot be traced ({first_line(error)[:200]}); use "
            "formats=safetensors"
        ) from error


def onnx_bytes(program: ExportedProgram) -> bytes:
    """Translate a program to ONNX; an operator without a translation is named in the error."""
    try:
        with silenced_exporters():
            translated = torch.onnx.export(
                program,
                (),
                dynamo=True,
                input_names=["images"],
                output_names=["logits"],
                external_data=False,
                verbose=False,
            )
            assert translated is not None
            return bytes(translated.model_proto.SerializeToString())
    except Exception as error:  # Its errors have several base classes.
        match = re.search(
            r"(?:aten|prims|\w+)(?:\.|::)\w+(?:\.\w+)?(?=[\s'\"\],)>])", join_causes(error)
        )
        operator = match[0] if match else first_line(error)[:200]
        raise ConfigError(
            f"formats: onnx cannot express {operator} of this model; leave onnx out of formats"
        ) from error


def join_causes(error: BaseException) -> str:
    """Return the messages of an exception and all its causes, the first cause first."""
    messages: list[str] = []
    cause: BaseException | None = error
    while cause is not None:
        messages.insert(0, str(cause))
        cause = cause.__cause__ or cause.__context__
    return "\n".join(messages)


def program_bytes(program: ExportedProgram) -> bytes:
    """Return a program as `torch.export.load` reads it."""
    buffer = io.BytesIO()
    with silenced_exporters():
        torch.export.save(program, buffer)
    return buffer.getvalue()


@contextlib.contextmanager
def silenced_exporters() -> Iterator[None]:
    """Suppress the exporters' warnings about themselves."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
