"""Opens the export of a run without torch, and checks its files."""

import hashlib
import json
from pathlib import Path
from typing import Any

from attnseg.errors import CheckpointError, ConfigError
from attnseg.prediction.onnx import OnnxNetwork
from attnseg.prediction.spec import InferenceSpec

ONNX, INT8, SPEC, FACTS = "model.onnx", "model.int8.onnx", "recipe.json", "export.json"


class Exported:
    """An export of a run.

    Args:
        folder: `RUN/export`.

    Attributes:
        facts: content of `export.json`.
        spec: how images become masks.

    Raises:
        ConfigError: nothing was exported, or not as ONNX.
        CheckpointError: a file is not the one that was exported.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        advice = f"run attnseg export run={folder.parent}"
        try:
            self.facts: dict[str, Any] = json.loads((folder / FACTS).read_text())
            self._files = dict(self.facts["files"])
        except OSError as error:
            raise ConfigError(f"{folder}: nothing was exported; {advice}") from error
        except (ValueError, TypeError, KeyError) as error:
            raise CheckpointError(f"{folder / FACTS}: damaged; {advice}") from error
        if ONNX not in self._files:
            raise ConfigError(f"{folder}: not exported as ONNX; {advice}")
        self.spec = InferenceSpec.from_json(self.read(SPEC).decode(), folder / SPEC)

    def read(self, name: str) -> bytes:
        """Return a file's content, which must be the one that was exported."""
        path = self.folder / name
        try:
            data = path.read_bytes()
            expected = self._files[name]["sha256"]
        except (OSError, KeyError, TypeError) as error:
            raise CheckpointError(f"{path}: missing; run attnseg export again") from error
        if hashlib.sha256(data).hexdigest() != expected:
            raise CheckpointError(
                f"{path}: changed since it was exported; run attnseg export again"
            )
        return data

    def network(self, threads: int = 0) -> OnnxNetwork:
        """Load the network; `threads` is as for `OnnxNetwork`."""
        return OnnxNetwork(self.read(ONNX), threads, self.spec, str(self.folder / ONNX))
