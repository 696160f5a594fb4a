"""A finished run as what predicts: its spec and its network. The dataset is not needed."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from numpy.typing import NDArray

from attnseg.config.budget import build_model
from attnseg.config.schema import Config, check
from attnseg.errors import CheckpointError, ConfigError
from attnseg.files import file_digest
from attnseg.models.model import SegmentationModel
from attnseg.predict.spec import VERSION, InferenceSpec
from attnseg.processes.malloc import keep_freed_memory
from attnseg.runs.checkpoints import load_weights


def read_run(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the plain configuration and the facts of a finished run.

    Raises:
        ConfigError: the folder holds none, or the run is not finished.
    """
    try:
        plain = yaml.safe_load((folder / "config.yaml").read_text())
        facts = json.loads((folder / "run.json").read_text())
        if not isinstance(plain, dict) or not isinstance(facts, dict):
            raise ValueError("empty")
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise ConfigError(
            f"{folder}: not a run folder; give one that holds config.yaml and run.json"
        ) from error
    if facts.get("status") != "done":
        raise ConfigError(f"{folder}: the run is {facts.get('status')}, not done; train it first")
    return plain, facts


def read_spec(run: Path) -> InferenceSpec:
    """Return the spec of a finished run.

    Raises:
        ConfigError: not a finished run, or one from before runs noted what their data decided.
        CheckpointError: it left no weights.
    """
    return _open(run)[1]


def load_network(run: Path, device: str = "cpu") -> "TorchNetwork":
    """Return the network of a finished run, with its best weights.

    Args:
        run: folder.
        device: to run on.

    Raises:
        ConfigError: as `read_spec`, or there is no such device.
        CheckpointError: the weights are missing, damaged or do not fit.
    """
    return TorchNetwork(load_model(run), device)


def load_model(run: Path) -> SegmentationModel:
    """Return the model of a finished run with its best weights, in evaluation mode.

    Raises:
        ConfigError: as `read_spec`.
        CheckpointError: as `load_network`.
    """
    config, spec = _open(run)
    model = build_model(
        config.model,
        config.attn,
        spec.in_channels,
        spec.labels.channels,
        spec.size,
    )
    load_weights(model, best(run))
    return model.eval()


class TorchNetwork:
    """A `Network` by PyTorch.

    Args:
        model: in evaluation mode.
        device: to run on.

    Raises:
        ConfigError: there is no such device.
    """

    def __init__(self, model: SegmentationModel, device: str = "cpu") -> None:
        if device == "cuda" and not torch.cuda.is_available():
            raise ConfigError("device: no GPU found on this machine; use device=cpu")
        keep_freed_memory()
        self.device = torch.device(device)
        self.model = model.to(self.device)

    @torch.inference_mode()
    def __call__(self, images: NDArray[np.float32]) -> NDArray[np.float32]:
        """Segment a batch of slices; see `Network`."""
        logits: torch.Tensor = self.model(torch.from_numpy(images).to(self.device))
        return np.asarray(logits.float().cpu().numpy())


def best(run: Path) -> Path:
    """Return where a run's best weights are."""
    return run / "checkpoints" / "best.ckpt"


def _open(run: Path) -> tuple[Config, InferenceSpec]:
    plain, facts = read_run(run)
    config = check({**plain, "choices": facts.get("choices")})
    if not isinstance(facts.get("data"), dict):
        raise ConfigError(
            f"{run}: trained before runs noted what their data are; train it again to predict"
        )
    if not best(run).is_file():
        raise CheckpointError(f"{best(run)}: not found; restore it or train again")
    values = {
        **facts["data"],
        "version": VERSION,
        "run": facts.get("id"),
        "model": config.choices["model"],
        "attn": config.choices["attn"],
        "dataset": config.dataset_name,
        "size": config.dataset.image_size,
        "slices": config.dataset.slices,
        "stride": config.dataset.stride,
        "profile": [facts.get("profile", {}).get(key) for key in ("name", "digest")],
        "data_digest": facts.get("data_digest"),
        "split_digest": facts.get("split_digest"),
        "weights_sha256": file_digest(best(run)),
    }
    return config, InferenceSpec.from_json(json.dumps(values), run / "run.json")
