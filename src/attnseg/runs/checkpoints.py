"""Checkpoints: written atomically with their SHA-256, and read without executing code."""

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

REQUIRED_PARTS = {"epoch": int, "state_dict": dict, "callbacks": dict}
WEIGHTS = "model."  # Prefix of the model's weights in a checkpoint.
SHORT = 65536  # bytes; fewer are digested sooner than another thread could start


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes checkpoints atomically, each with its SHA-256 in `<name>.sha256` beside it."""

    def save_checkpoint(
        self,
        checkpoint: dict[str, Any],
        path: str | os.PathLike[str],
        storage_options: Any | None = None,  # noqa: ANN401
    ) -> None:
        """Write a checkpoint.

        Raises:
            ResourceError: it cannot be written, for example because the disk is full; the last
                checkpoint is kept.
        """
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        sidecar = target.with_name(f"{target.name}.sha256")
        line = "{}  " + target.name + "\n"

        def announce() -> None:
            # Both digests stand in the file while either checkpoint may be in place.
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
                cause = cause.__cause__ or cause.__context__  # PyTorch's writer wraps the cause.
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
        """Read a checkpoint of tensors and plain values; never execute code in it."""
        loaded: dict[str, Any] = torch.load(path, map_location=map_location, weights_only=True)
        return loaded


class _Hashed:
    """Computes the SHA-256 of a file while it is written; reading it again would take as long."""

    def __init__(self, file: BinaryIO, helper: Executor) -> None:
        self._file, self._helper, self._sha = file, helper, hashlib.sha256()

    def write(self, data: bytes) -> int:
        """Write and digest the next bytes; PyTorch's writer never seeks."""
        if len(data) < SHORT:
            self._sha.update(data)
            return self._file.write(data)
        digesting = self._helper.submit(self._sha.update, data)
        try:
            return self._file.write(data)
        finally:
            digesting.result()

    def flush(self) -> None:
        """Do nothing; the file is flushed at its end."""

    @property
    def digest(self) -> str:
        """SHA-256 of all bytes so far."""
        return self._sha.hexdigest()


def save_weights(model: nn.Module, path: Path) -> None:
    """Write the weights of a model that no epoch has trained, for `load_weights`.

    Raises:
        ResourceError: they cannot be written.
    """
    weights = {f"{WEIGHTS}{name}": tensor.cpu() for name, tensor in model.state_dict().items()}
    checkpoint = {"epoch": -1, "state_dict": weights, "callbacks": {}}
    AtomicCheckpointIO().save_checkpoint(checkpoint, path)


def load_weights(model: nn.Module, path: Path) -> dict[str, Any]:
    """Load a model's weights from a run's checkpoint, and return the whole checkpoint.

    Raises:
        CheckpointError: the file is missing, damaged, of another model, or contains code.
    """
    if not is_whole(path):
        raise CheckpointError(
            f"{path}: missing or damaged, unlike its SHA-256; train again with trainer.repeat=true"
        )
    checkpoint = read_checkpoint(path)
    weights = {
        name.removeprefix(WEIGHTS): tensor
        for name, tensor in checkpoint["state_dict"].items()
        if name.startswith(WEIGHTS)
    }
    try:
        model.load_state_dict(weights)
    except (RuntimeError, ValueError) as error:
        # The first line names the class, the second the mismatch.
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise CheckpointError(
            f"{path}: weights of another model, attention or size ({reason}); restore the file or "
            "train again with trainer.repeat=true"
        ) from error
    return checkpoint


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Read a run's checkpoint; never execute code in it.

    Raises:
        CheckpointError: the file is not a checkpoint, or contains code.
    """
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path}: holds more than tensors and could run code; delete it and train again with "
            "trainer.repeat=true"
        ) from error
    except Exception as error:  # A malicious file can make a decoder raise any error.
        raise CheckpointError(
            f"{path}: cannot be loaded ({first_line(error)}); train again with trainer.repeat=true"
        ) from error
    if not isinstance(checkpoint, dict) or not all(
        isinstance(checkpoint.get(name), kind) for name, kind in REQUIRED_PARTS.items()
    ):
        raise CheckpointError(
            f"{path}: not a checkpoint of a run; train again with trainer.repeat=true"
        )
    return checkpoint
