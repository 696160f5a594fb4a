"""Checkpoints: written whole with their SHA-256, read without running anything."""

import hashlib
import os
import pickle
from concurrent.futures import Executor, ThreadPoolExecutor
from pathlib import Path
from typing import IO, Any, BinaryIO, cast

import torch
from pytorch_lightning.plugins.io import TorchCheckpointIO
from torch import nn

from attnseg.errors import CheckpointError, ResourceError, first_line
from attnseg.files import is_whole, replacing, write_text

PARTS = {"epoch": int, "state_dict": dict, "callbacks": dict}  # that must be there
WEIGHTS = "model."  # what the names of a model's weights begin with in a checkpoint


class AtomicCheckpointIO(TorchCheckpointIO):
    """Checkpoints by `replacing`, each with its SHA-256 beside it in `<name>.sha256`."""

    def save_checkpoint(
        self,
        checkpoint: dict[str, Any],
        path: str | os.PathLike[str],
        storage_options: Any | None = None,  # noqa: ANN401
    ) -> None:
        """Write a checkpoint.

        Raises:
            ResourceError: it cannot be written, the disk being full, say; the last one is kept.
        """
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        sidecar = target.with_name(f"{target.name}.sha256")
        line = "{}  " + target.name + "\n"

        def announce() -> None:
            # Both digests, for the moment in which either file may be the one that is there.
            old = sidecar.read_text() if sidecar.exists() else ""
            write_text(sidecar, line.format(hashed.digest) + old)

        try:
            with ThreadPoolExecutor(1) as helper, replacing(target, announce) as file:
                hashed = _Hashed(file, helper)
                torch.save(checkpoint, cast(IO[bytes], hashed))
            write_text(sidecar, line.format(hashed.digest))
        except (OSError, RuntimeError) as error:
            cause: BaseException | None = error
            while cause is not None and not isinstance(cause, OSError):
                cause = cause.__cause__ or cause.__context__  # what PyTorch's writer makes of it
            if cause is None:
                raise
            raise ResourceError(
                f"{target}: cannot be written ({cause.strerror}); the last one is kept: free space "
                "and repeat the command"
            ) from error

    def load_checkpoint(
        self,
        path: str | os.PathLike[str],
        map_location: Any = None,  # noqa: ANN401
        weights_only: bool | None = None,
    ) -> dict[str, Any]:
        """Read a checkpoint, never anything that runs."""
        loaded: dict[str, Any] = torch.load(path, map_location=map_location, weights_only=True)
        return loaded


class _Hashed:
    """A file whose SHA-256 is known once it is written: reading it again would take as long."""

    def __init__(self, file: BinaryIO, helper: Executor) -> None:
        self._file, self._helper, self._sha = file, helper, hashlib.sha256()

    def write(self, data: bytes) -> int:
        """Write and digest what comes next; PyTorch's writer never goes back."""
        digesting = self._helper.submit(self._sha.update, data)
        try:
            return self._file.write(data)
        finally:
            digesting.result()

    def flush(self) -> None:
        """Nothing to do before the end."""

    @property
    def digest(self) -> str:
        """SHA-256 of all that was written."""
        return self._sha.hexdigest()


def load_weights(model: nn.Module, path: Path) -> dict[str, Any]:
    """Load a model's weights from a run's checkpoint.

    Args:
        model: of the same shape as the one that was trained.
        path: of a checkpoint with its SHA-256 beside it.

    Returns:
        The whole checkpoint.

    Raises:
        CheckpointError: the file is missing, damaged or of another model, or would run code.
    """
    if not is_whole(path):
        raise CheckpointError(f"{path}: missing or damaged, unlike its SHA-256; train again")
    checkpoint = read_checkpoint(path)
    found = checkpoint["state_dict"].items()
    own = {name: tensor for name, tensor in found if name.startswith(WEIGHTS)}
    try:
        model.load_state_dict({name.removeprefix(WEIGHTS): own[name] for name in own})
    except (RuntimeError, ValueError) as error:
        # The first line names the class, the second what does not fit.
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise CheckpointError(
            f"{path}: weights of another model, attention or size ({reason}); restore the file or "
            "train again"
        ) from error
    return checkpoint


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Read a run's checkpoint, never anything that runs.

    Raises:
        CheckpointError: it is not one, or would run code.
    """
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path}: holds more than tensors and could run code; delete it and train again"
        ) from error
    except Exception as error:  # made to harm, a file can have a decoder raise anything
        raise CheckpointError(
            f"{path}: cannot be loaded ({first_line(error)}); train again"
        ) from error
    if not isinstance(checkpoint, dict) or not checkpoint.keys() >= PARTS.keys():
        raise CheckpointError(f"{path}: not a checkpoint of a run; train again")
    if not all(isinstance(checkpoint[name], kind) for name, kind in PARTS.items()):
        raise CheckpointError(f"{path}: not a checkpoint of a run; train again")
    return checkpoint
