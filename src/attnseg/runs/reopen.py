"""The network of a finished run, opened again for prediction without its dataset."""

import json
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from attnseg.config.budget import build_model
from attnseg.config.training import Config
from attnseg.data.labels import Masks
from attnseg.errors import CheckpointError, ConfigError
from attnseg.files import file_digest
from attnseg.layers.conv import resize
from attnseg.layers.factored import fuse_factors
from attnseg.models.model import SegmentationModel
from attnseg.prediction.spec import VERSION, InferenceSpec
from attnseg.processes.malloc import keep_freed_memory
from attnseg.processes.tf32 import tf32_products
from attnseg.runs.checkpoints import load_weights

if TYPE_CHECKING:  # which imports this module to build a run's network
    from attnseg.runs.run_folder import RunFolder


def read_spec(run: "RunFolder") -> InferenceSpec:
    """Return the inference spec of a finished run.

    Raises:
        ConfigError: the run is not finished, or is older than the notes on its data in `run.json`.
        CheckpointError: the weights are missing.
    """
    return _open(run)[1]


def load_network(run: "RunFolder", device: str = "cpu") -> "TorchNetwork":
    """Return the network of a finished run, with its best weights.

    Raises:
        ConfigError: as `read_spec`, or there is no such device.
        CheckpointError: the weights are missing, damaged or do not fit.
    """
    return TorchNetwork(fuse_factors(load_model(run)), device)


def load_model(run: "RunFolder") -> SegmentationModel:
    """Return the model of a finished run with its best weights, in evaluation mode.

    Raises:
        ConfigError: as `read_spec`.
        CheckpointError: as `load_network`.
    """
    config, spec = _open(run)
    channels = (spec.in_channels, spec.labels.channels)
    model = build_model(config.model, config.attn, *channels, spec.size)
    load_weights(model, run.best_checkpoint)
    return model.eval()


class TorchNetwork:
    """A `Network` computed by PyTorch.

    Args:
        model: in evaluation mode; takes `[B, C, H, W]` and returns `[B, K, H, W]`.
        device: `cpu` or `cuda`.

    Raises:
        ConfigError: there is no such device.
    """

    def __init__(self, model: nn.Module, device: str = "cpu") -> None:
        if device == "cuda" and not torch.cuda.is_available():
            raise ConfigError("device: no GPU found on this machine; use device=cpu")
        if device == "cpu":
            keep_freed_memory()
        self.device = torch.device(device)
        self.model = model.to(self.device)
        # CPUs resize and decide by OpenCV and NumPy, as without torch.
        self.decide = self.decide_on_device if self.device.type == "cuda" else None

    @tf32_products(False)  # Results are those of full 32-bit floats, also on GPUs.
    @torch.inference_mode()
    def __call__(self, images: NDArray[np.float32]) -> NDArray[np.float32]:
        """Segment a batch of slices; see `Network`."""
        logits: torch.Tensor = self.model(torch.from_numpy(images).to(self.device))
        return np.asarray(logits.float().cpu().numpy())

    @tf32_products(False)
    @torch.inference_mode()
    def decide_on_device(
        self, images: NDArray[np.float32], size: tuple[int, int], overlapping: bool
    ) -> tuple[NDArray[np.float32], Masks]:
        """Return logits and masks of slices; see `Network`."""
        logits = self.model(torch.from_numpy(images).to(self.device)).float()
        resized = resize(logits, size)
        if overlapping:
            masks = resized > 0
        else:
            classes = torch.arange(1, logits.shape[1], device=self.device)[:, None, None]
            masks = resized.max(1).indices[:, None] == classes
        return logits.cpu().numpy(), masks.transpose(0, 1).cpu().numpy()


def _open(run: "RunFolder") -> tuple[Config, InferenceSpec]:
    config, facts = run.require_done().config, run.facts
    if facts.data is None:
        raise ConfigError(
            f"{run}: trained before runs noted what their data are; train it again with "
            "trainer.repeat=true"
        )
    best = run.best_checkpoint
    if not best.is_file():
        raise CheckpointError(
            f"{best}: not found; restore it or train again with trainer.repeat=true"
        )
    values = {
        **facts.data,
        "version": VERSION,
        "run": facts.id,
        "model": config.choices["model"],
        "attn": config.choices["attn"],
        "dataset": config.dataset_name,
        "size": config.dataset.image_size,
        "slices": config.dataset.slices,
        "stride": config.dataset.stride,
        "profile": [facts.profile.get(key) for key in ("name", "digest")],
        "data_digest": facts.data_digest,
        "split_digest": facts.split_digest,
        "weights_sha256": file_digest(best),
    }
    return config, InferenceSpec.from_json(json.dumps(values), run.facts_file)
