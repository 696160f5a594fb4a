"""A training step on one batch, as training runs do it, without Lightning's loop and data."""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from functools import partial
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import torch

from attnseg.config.budget import build_model
from attnseg.config.build import build
from attnseg.config.components import Components, optimizer_factory
from attnseg.config.composition import compose, to_raw
from attnseg.config.training import Config, parse_config
from attnseg.data.device_augment import BatchAugment
from attnseg.data.labels import Labels
from attnseg.training.module import SegmentationModule
from attnseg.training.precision import autocast, resolve_precision

PRODUCTS = {"bf16-mixed": "bf16", "16-mixed": "float16"}  # as `Gemm` names them


class Shape(NamedTuple):
    """The shape of a batch, and the number of classes without the background."""

    batch: int = 2
    channels: int = 1
    side: int = 64
    classes: int = 3

    @property
    def image(self) -> tuple[int, int, int]:
        """Channels, height and width."""
        return self.channels, self.side, self.side


def compose_run(
    model: str, attn: str, size: str, shape: Shape, options: Sequence[str] = ()
) -> Config:
    """Return the configuration of a training run on a GPU, with further options `KEY=VALUE`.

    An empty `attn` is the model's own. The precision `auto` is replaced by the device's fastest.
    """
    sides = f"dataset.image_size=[{shape.side},{shape.side}]"
    overrides = [f"model={model}", f"model.size={size}", "trainer=gpu", sides, *options]
    composed = compose("train", [*overrides, *[f"attn={attn}"] * bool(attn)])
    return resolve_precision(parse_config(to_raw(composed)))


class TrainingStep:
    """The module that Lightning would train, with one batch and a stand-in for its Trainer.

    Args:
        config: of a training run.
        shape: of the batch.
    """

    def __init__(self, config: Config, shape: Shape) -> None:
        labels = Labels(tuple(f"class {i}" for i in range(shape.classes)))
        size = (shape.side, shape.side)
        components = Components(
            model=build_model(config.model, config.attn, shape.channels, labels.channels, size),
            loss=build("loss", config.loss, overlapping=False),
            optimizer=optimizer_factory(config),
            schedule=build("scheduler", config.scheduler),
            transforms=build("augment", config.augment),
            profile=None,  # type: ignore[arg-type]
            loaded=None,
        )
        self.shape = shape
        self.options = config.trainer
        self.module = SegmentationModule(components, labels, ["a"], ["a"], 0.4, 0)
        trainer = SimpleNamespace(
            world_size=1,
            global_rank=0,
            global_step=0,
            estimated_stepping_batches=10,
            strategy=None,
            accumulate_grad_batches=1,
            datamodule=SimpleNamespace(val=range(1000), batch_size=shape.batch),
        )
        # The properties of a LightningModule ask its Trainer, and refuse any other object.
        replaced = {"trainer": trainer, "global_step": 0, "global_rank": 0}
        members = {
            name: property(partial(_return_value, value)) for name, value in replaced.items()
        }
        self.module.__class__ = type("LoneModule", (SegmentationModule,), members)
        self.module.log = lambda *arguments, **more: None  # type: ignore[method-assign]

    def move_to(self, device: str) -> None:
        """Put the weights on a device, make the optimizer, and make a batch of empty slices."""
        batch, channels, side, _ = self.shape
        self.module.to(device)
        ((self.optimizer,), _) = self.module.configure_optimizers()
        self.scaler = torch.amp.GradScaler(device, enabled=self.options.precision == "16-mixed")
        self.batch: Any = {
            "image": torch.zeros(batch, channels, side, side, device=device),
            "mask": torch.zeros(batch, side, side, dtype=torch.uint8, device=device),
            "case": torch.zeros(batch, dtype=torch.long, device=device),
        }
        if isinstance(transforms := self.module.transforms, BatchAugment):
            draws = torch.from_numpy(transforms.draw(np.random.default_rng(0)))
            self.batch["draws"] = draws.expand(batch, -1).to(device)

    def fill_optimizer(self) -> None:
        """Make the optimizer's state by a step without gradients."""
        for parameter in self.module.model.parameters():
            parameter.grad = torch.zeros_like(parameter)
        self.optimizer.step()
        self.optimizer.zero_grad()

    def step(self) -> float:
        """Train on the batch once, and return the loss."""
        loss = self.compute_gradients(autocast(self.options))
        self.update_weights()
        return float(loss)

    def compute_gradients(self, context: AbstractContextManager[Any]) -> torch.Tensor:
        """Run both passes, the forward one in a context, and return the loss before its scaling."""
        self.module.train()
        batch = self.module.on_after_batch_transfer(self.batch, 0)
        with context:
            loss = self.module.training_step(batch, 0)
        self.optimizer.zero_grad()
        self.scaler.scale(loss).backward()
        return loss.detach()

    def update_weights(self) -> None:
        """Check the loss, clip the gradients and step, in the order of Lightning."""
        self.scaler.unscale_(self.optimizer)
        self.module.on_before_optimizer_step(self.optimizer)
        self.module.configure_gradient_clipping(self.optimizer, self.options.gradient_clip, "norm")
        self.scaler.step(self.optimizer)
        self.scaler.update()

    def validate(self, context: AbstractContextManager[Any]) -> None:
        """Validate the batch in a context."""
        self.module.eval()
        self.module.on_validation_start()
        with torch.no_grad(), context:
            self.module.validation_step(self.batch, 0)

    def list_weights_without_gradient(self) -> list[str]:
        """Return the names of the weights that the loss does not depend on."""
        return [name for name, p in self.module.model.named_parameters() if p.grad is None]


def _return_value(value: object, module: SegmentationModule) -> object:
    """Return the value of a property of the module."""
    return value
