"""The one LightningModule: steps, optimizer and schedule for any model, loss and dataset."""

import hashlib
import math
from collections.abc import Callable
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from attnseg.data.slices import Sample
from attnseg.engine.schedules import Schedule
from attnseg.errors import ConfigError
from attnseg.losses.loss import SegmentationLoss
from attnseg.metrics.masks import predicted_masks, target_masks
from attnseg.metrics.running import CaseDice
from attnseg.models.model import SegmentationModel


class SegmentationModule(pl.LightningModule):
    """Trains a segmentation model.

    Args:
        model: what is trained.
        loss: of each of the model's outputs.
        classes: foreground classes.
        multilabel: whether they overlap.
        train_cases: names of the training cases, for messages.
        val_cases: number of validation cases.
        optimizer: builds the optimizer from parameter groups.
        schedule: learning rate over the steps.
        auxiliary_weight: weight of the loss of auxiliary outputs.
        seed: of whatever is drawn within a step.
    """

    def __init__(
        self,
        model: SegmentationModel,
        loss: SegmentationLoss,
        classes: tuple[str, ...],
        multilabel: bool,
        train_cases: list[str],
        val_cases: int,
        optimizer: Callable[..., torch.optim.Optimizer],
        schedule: Schedule,
        auxiliary_weight: float,
        seed: int,
    ) -> None:
        super().__init__()
        self.model = model
        self.loss = loss
        self.classes = classes
        self.multilabel = multilabel
        self.train_cases = train_cases
        self.optimizer = optimizer
        self.schedule = schedule
        self.auxiliary_weight = auxiliary_weight
        self.seed = seed
        self.val_dice = CaseDice(val_cases, len(classes))

    def on_train_batch_start(self, batch: Sample, batch_idx: int) -> None:
        """Draw dropout and the like from seed and step alone."""
        text = f"{self.seed}:{self.global_step}:{batch_idx}:{self.global_rank}"
        torch.manual_seed(int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1)

    def training_step(self, batch: Sample, batch_idx: int) -> Tensor:
        """Return the loss of one batch.

        Raises:
            ConfigError: the loss is not finite; training on would ruin the weights.
        """
        main, *auxiliary = self.model.training_outputs(batch["image"])
        loss: Tensor = self.loss(main, batch["target"])
        for output in auxiliary:
            loss = loss + self.auxiliary_weight * self.loss(output, batch["target"])
        if not math.isfinite(loss.item()):
            cases = sorted({self.train_cases[i] for i in batch["case"].tolist()})
            raise ConfigError(
                f"training: the loss became {loss.item()} at step {self.global_step} "
                f"(cases {', '.join(cases)}); lower optimizer.lr or use trainer.precision=32"
            )
        self.log("train/loss", loss, on_step=False, on_epoch=True, batch_size=len(batch["image"]))
        return loss

    def validation_step(self, batch: Sample, batch_idx: int) -> None:
        """Count one batch of validation slices."""
        logits = self.model(batch["image"])
        size = len(batch["image"])
        self.log("val/loss", self.loss(logits, batch["target"]), batch_size=size, sync_dist=True)
        predicted = predicted_masks(logits, self.multilabel)
        target = target_masks(batch["target"], self.multilabel, len(self.classes))
        self.val_dice.update(predicted, target, batch["case"])

    def on_validation_epoch_end(self) -> None:
        """Log Dice per class and its mean, at the network's resolution."""
        dice = self.val_dice.compute()
        self.val_dice.reset()
        for name, value in zip(self.classes, dice, strict=True):
            self.log(f"val/dice/{name}", value.float())
        self.log("val/dice", dice.nanmean().float())

    def configure_optimizers(self) -> Any:  # noqa: ANN401
        """Return the optimizer and its schedule by step."""
        optimizer = self.optimizer(parameter_groups(self.model))
        steps = int(self.trainer.estimated_stepping_batches)

        def factor(step: int) -> float:
            return self.schedule(step, steps)

        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": scheduler, "interval": "step"},
        }


def parameter_groups(model: nn.Module) -> list[dict[str, Any]]:
    """Return two groups: matrices and kernels, and all else, which weight decay would only harm."""
    decayed: list[nn.Parameter] = []
    rest: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        free = parameter.ndim < 2 or name.endswith(("pos_embed", "cls_token", "temperature"))
        (rest if free else decayed).append(parameter)
    return [{"params": decayed}, {"params": rest, "weight_decay": 0.0}]
