"""The one LightningModule: steps, optimizer and schedule for any model, loss and dataset."""

import hashlib
import logging
import math
from collections.abc import Callable
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.strategies import ModelParallelStrategy
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

from attnseg.data.labels import Labels
from attnseg.data.slices import Sample
from attnseg.errors import ConfigError
from attnseg.losses.loss import SegmentationLoss
from attnseg.metrics.running import CaseDice, count_areas
from attnseg.models.model import SegmentationModel
from attnseg.schedules.schedule import Schedule

log = logging.getLogger(__name__)


class SegmentationModule(pl.LightningModule):
    """Trains a segmentation model.

    The processes of a distributed run exchange logits and targets, so that a loss over the whole
    batch (Dice, say) is that of one process with the whole batch.

    Args:
        model: what is trained.
        loss: of each of the model's outputs.
        labels: foreground classes.
        train_cases: names of the training cases, for messages.
        val_cases: names of the validation cases.
        optimizer: builds the optimizer from parameter groups.
        schedule: learning rate over the steps.
        auxiliary_weight: weight of the loss of auxiliary outputs.
        seed: of whatever is drawn within a step.
    """

    def __init__(
        self,
        model: SegmentationModel,
        loss: SegmentationLoss,
        labels: Labels,
        train_cases: list[str],
        val_cases: list[str],
        optimizer: Callable[..., torch.optim.Optimizer],
        schedule: Schedule,
        auxiliary_weight: float,
        seed: int,
    ) -> None:
        super().__init__()
        self.model = model
        self.loss = loss
        self.labels = labels
        self.train_cases, self.val_cases = train_cases, val_cases
        self.optimizer = optimizer
        self.schedule = schedule
        self.auxiliary_weight = auxiliary_weight
        self.seed = seed
        # Every process counts the slices of all.
        self.val_dice = CaseDice(len(val_cases), len(labels), sync_on_compute=False)
        self.divided = False
        self.broken: set[int] = set()  # validation cases with logits that are not finite
        self.losses, self.batches = 0.0, 0  # of this epoch so far; kept in checkpoints

    def configure_model(self) -> None:
        """Divide blocks and the rest among the processes, where that is what they are for."""
        if not isinstance(self.trainer.strategy, ModelParallelStrategy) or self.divided:
            return
        assert self.device_mesh is not None
        mesh = self.device_mesh["data_parallel"]
        for layers in [part for part in self.model.modules() if isinstance(part, nn.ModuleList)]:
            for block in layers:
                fully_shard(block, mesh=mesh)
        fully_shard(self.model, mesh=mesh)
        register_fsdp_forward_method(self.model, "training_outputs")
        self.divided = True

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the sum behind the epoch's mean loss."""
        checkpoint["train_loss"] = (self.losses, self.batches)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take the sum up."""
        self.losses, self.batches = checkpoint.get("train_loss", (0.0, 0))

    def on_train_epoch_start(self) -> None:
        """Begin a new mean; not called when training goes on within an epoch."""
        self.losses, self.batches = 0.0, 0

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
        mask = self.of_all(batch["mask"])
        target = self.labels.target(mask)
        loss: Tensor = self.loss(self.of_all(main), target)
        for output in auxiliary:
            loss = loss + self.auxiliary_weight * self.loss(self.of_all(output), target)
        self.losses, self.batches = self.losses + self.check_loss(loss, batch), self.batches + 1
        # Each process has the gradient of its own slices; the mean over processes is taken of it.
        return loss * self.trainer.world_size

    def check_loss(self, loss: Tensor, batch: Sample) -> float:
        """Return the loss as a number, if it is one.

        Raises:
            ConfigError: it is not finite; the message names the cases of the batch.
        """
        value = loss.item()
        if not math.isfinite(value):
            seen = self.of_all(batch["case"]).tolist()
            cases = ", ".join(sorted({self.train_cases[i] for i in seen}))
            raise ConfigError(
                f"training: the loss became {value} at step {self.global_step} (cases {cases}; "
                f"first in {self.first_broken(batch['image'])}); lower optimizer.lr or use "
                "trainer.precision=32"
            )
        return value

    def of_all(self, own: Tensor) -> Tensor:
        """Return the slices of all processes, in the order that one process would have them.

        Args:
            own: `[B, ...]` of this process; of the result, only they have a gradient.

        Returns:
            `[B * processes, ...]`.
        """
        if self.trainer.world_size == 1:
            return own
        parts = [torch.empty_like(own) for _ in range(self.trainer.world_size)]
        torch.distributed.all_gather(parts, own.detach().contiguous())
        parts[self.trainer.global_rank] = own
        return torch.stack(parts, 1).flatten(0, 1)

    @torch.no_grad()
    def first_broken(self, image: Tensor) -> str:
        """Return the first layer whose output for a batch is not finite."""
        found: list[str] = []

        def look(name: str, output: object) -> None:
            if isinstance(output, Tensor) and not bool(torch.isfinite(output).all()):
                found.append(name)

        def hook(name: str) -> Callable[..., None]:
            return lambda module, given, output: look(name, output)

        hooks = [
            layer.register_forward_hook(hook(name)) for name, layer in self.model.named_modules()
        ]
        self.model.training_outputs(image)
        for handle in hooks:
            handle.remove()
        return (found[0] or "the model's output") if found else "the loss itself"

    def validation_step(self, batch: Sample, batch_idx: int) -> None:
        """Count one batch of validation slices, of all processes."""
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        # Behind the last slice come the ones that make all processes' batches equally long.
        real = len(data.val) - batch_idx * data.batch_size * self.trainer.world_size
        logits = self.of_all(self.model(batch["image"]))[:real]
        mask, case = self.of_all(batch["mask"])[:real], self.of_all(batch["case"])[:real]
        target = self.labels.target(mask)
        self.log("val/loss", self.loss(logits, target), batch_size=len(logits))
        self.val_dice.update(count_areas(logits, target, self.labels.overlapping), case)
        finite = torch.isfinite(logits).flatten(1).all(1)
        if not bool(finite.all()):
            self.broken.update(case[~finite].tolist())

    def on_validation_epoch_end(self) -> None:
        """Log Dice per class and its mean, at the network's resolution, and the training loss."""
        dice = self.val_dice.compute().reshape(-1)  # torchmetrics makes one class a scalar
        self.val_dice.reset()
        if self.broken:
            # The largest of logits that are no numbers is a class all the same: no score for that.
            names = ", ".join(sorted(self.val_cases[i] for i in self.broken))
            log.warning("The network's output for %s is not finite; this epoch has no Dice", names)
            dice = torch.full_like(dice, torch.nan)
            self.broken.clear()
        for name, value in zip(self.labels.names, dice, strict=True):
            self.log(f"val/dice/{name}", value.float())
        self.log("val/dice", dice.nanmean().float())
        self.log("train/loss", self.losses / max(self.batches, 1))

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
