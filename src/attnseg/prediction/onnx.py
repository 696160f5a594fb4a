"""Runs ONNX graphs without torch, after checking that they reach nothing outside themselves."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from attnseg.errors import CheckpointError, ConfigError, first_line
from attnseg.prediction.spec import InferenceSpec

DOMAINS = ("", "ai.onnx")  # operators of ONNX itself, as exports have
ADVICE = "export the run again"


class OnnxNetwork:
    """A `Network` that ONNX Runtime computes on the CPU.

    Args:
        model: file, or its bytes.
        threads: number of threads of one computation; 0 for one per core.
        spec: inference spec that the graph must fit; `None` for any graph.
        name: name of the model in messages; by default its path.

    Attributes:
        channels: of the input, slices stacked.
        size: height and width of the input.
        outputs: channels of the logits.

    Raises:
        CheckpointError: not an ONNX graph, one of another shape, or one that refers to other
            files.
    """

    def __init__(
        self,
        model: Path | bytes,
        threads: int = 0,
        spec: InferenceSpec | None = None,
        name: str | None = None,
    ) -> None:
        import onnxruntime

        self.name = name or (str(model) if isinstance(model, Path) else "model")
        data = model if isinstance(model, bytes) else self._read(model)
        check_graph(data, self.name)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 4  # Faults are reported below, in one line.
        try:
            self._session = onnxruntime.InferenceSession(
                data, options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # It has a dozen error classes for a bad graph.
            raise CheckpointError(
                f"{self.name}: cannot be loaded ({first_line(error)[:200]}); {ADVICE}"
            ) from error
        inputs, outputs = self._session.get_inputs(), self._session.get_outputs()
        if len(inputs) != 1 or len(outputs) != 1:
            raise self._unfit(f"{len(inputs)} inputs and {len(outputs)} outputs, not one of each")
        ends = (inputs[0], outputs[0])
        for end in ends:
            if end.type != "tensor(float)" or len(end.shape) != 4:
                raise self._unfit(f"{end.name} is {end.type} of shape {end.shape}")
            if isinstance(end.shape[0], int) or not all(isinstance(n, int) for n in end.shape[1:]):
                raise self._unfit(f"{end.name} has shape {end.shape}; only the first may vary")
        self._input, self._output = (end.name for end in ends)
        (self.channels, *size), (self.outputs, *size_out) = (end.shape[1:] for end in ends)
        self.size = (size[0], size[1])
        if size != size_out:
            raise self._unfit(f"logits of {size_out}, images of {size}")
        if spec is not None:
            actual = (self.channels, self.size, self.outputs)
            expected = (spec.in_channels, spec.size, spec.labels.channels)
            if actual != expected:
                raise self._unfit(
                    f"channels, size and outputs {actual}, but {expected} in its spec"
                )

    def __call__(self, images: NDArray[np.float32]) -> NDArray[np.float32]:
        """Segment a batch of slices; see `Network`."""
        if images.ndim != 4 or images.shape[1:] != (self.channels, *self.size):
            raise ConfigError(
                f"{self.name}: exported for images of {self.channels}x{self.size[0]}x"
                f"{self.size[1]}, given {'x'.join(map(str, images.shape[1:]))}; give that size, or "
                "export a run that was trained at the other"
            )
        (logits,) = self._session.run([self._output], {self._input: images})
        return np.asarray(logits, np.float32)

    def _read(self, path: Path) -> bytes:
        try:
            return path.read_bytes()
        except OSError as error:
            raise CheckpointError(
                f"{path}: {(error.strerror or 'unreadable').lower()}; give a local file, which "
                "attnseg export makes"
            ) from error

    def _unfit(self, what: str) -> CheckpointError:
        return CheckpointError(f"{self.name}: {what}; {ADVICE}")


def check_graph(data: bytes, name: str) -> None:
    """Refuse a graph that is damaged, reads other files, or uses operators outside ONNX itself."""
    import onnx
    from google.protobuf.message import DecodeError

    try:
        model = onnx.load_model_from_string(data)
    except (DecodeError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"{name}: not an ONNX model; {ADVICE}") from error
    if not model.graph.node:
        raise CheckpointError(f"{name}: an empty ONNX model; {ADVICE}")
    for message in walk_messages(model):
        if isinstance(message, onnx.TensorProto) and (
            message.external_data or message.data_location == onnx.TensorProto.EXTERNAL
        ):
            raise CheckpointError(
                f"{name}: {message.name!r} refers to another file, which is never opened; {ADVICE}"
            )
        if isinstance(message, onnx.NodeProto) and message.domain not in DOMAINS:
            raise CheckpointError(
                f"{name}: an operator {message.op_type!r} of {message.domain!r}, not of ONNX "
                f"itself; {ADVICE}"
            )


def walk_messages(message: Any) -> Iterator[Any]:  # noqa: ANN401
    """Yield a protobuf message and all within it."""
    waiting = [message]
    while waiting:
        current = waiting.pop()
        yield current
        for field, value in current.ListFields():
            if field.message_type is not None:
                waiting.extend([value] if hasattr(value, "ListFields") else value)
