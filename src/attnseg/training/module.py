"""The LightningModule that trains and validates any model with any loss on any dataset."""

import hashlib
import logging
import math
from collections.abc import Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any, NamedTuple

import pytorch_lightning as pl
import torch
from pytorch_lightning.strategies import ModelParallelStrategy
from torch import Tensor, nn

from attnseg.config.components import Components
from attnseg.conversion.distillation import Distiller
from attnseg.data.device_augment import BatchAugment
from attnseg.data.labels import IGNORE, Labels
from attnseg.data.slices import Sample
from attnseg.errors import ConfigError
from attnseg.layers.norm import sum_with_own_gradient
from attnseg.metrics.running import CaseDice, count_areas
from attnseg.training.compiling import restore_plain_model
from attnseg.training.sharding import shard_model

log = logging.getLogger(__name__)


class PendingLoss(NamedTuple):
    """The loss of a batch, on its way to the CPU, and the batch, to explain a loss that is NaN."""

    value: Tensor
    copied: torch.Event | None  # happens once `value` is there; `None` if it has always been there
    batch: Sample


class SegmentationModule(pl.LightningModule):
    """Trains a segmentation model.

    A loss over the whole batch, such as Dice, is the same in several processes as in one with the
    whole batch: the processes exchange the sums that it is made of or, if it is made of others,
    logits and masks.

    Nothing in a training step waits for the GPU, which would be idle until it gets work again: the
    loss is looked at before the optimizer's step, when the GPU has the backward pass to compute.

    The names of the cases serve messages, the seed dropout and other random choices within a step.
    With FSDP, `blocks` are the names of the modules to shard, from `list_called_blocks`. A
    `distiller` adds the distance from a teacher to the loss.
    """

    def __init__(
        self,
        components: Components,
        labels: Labels,
        train_cases: list[str],
        val_cases: list[str],
        auxiliary_weight: float,
        seed: int,
        blocks: Sequence[str] = (),
        distiller: Distiller | None = None,
    ) -> None:
        super().__init__()
        self.distiller = distiller
        self.model, self.loss = components.model, components.loss
        self.optimizer, self.schedule = components.optimizer, components.schedule
        self.transforms = components.transforms
        self.labels = labels
        self.train_cases, self.val_cases = train_cases, val_cases
        self.auxiliary_weight = auxiliary_weight
        self.seed, self.blocks, self.sharded = seed, blocks, False
        # Where pixels are ignored, each process could have none of a batch, and no sums.
        self.exchanges_sums = getattr(self.loss, "adds_sums", False) and not labels.ignore
        self.val_dice = CaseDice(len(val_cases), len(labels))
        self.nonfinite = torch.zeros(0)  # Per validation case, slices with NaN or infinity.
        self.pending: PendingLoss | None = None
        # Sum and number of this epoch's training losses, which checkpoints keep, and the last one.
        self.loss_sum, self.loss_count, self.last_loss = 0.0, 0, math.nan

    def configure_model(self) -> None:
        """Shard the model over the processes, block by block, if the strategy is FSDP."""
        if not isinstance(self.trainer.strategy, ModelParallelStrategy) or self.sharded:
            return
        assert self.device_mesh is not None
        shard_model(self.model, self.blocks, self.device_mesh["data_parallel"])
        self.sharded = True

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Store the running mean of the epoch's training loss."""
        checkpoint["train_loss"] = (self.loss_sum, self.loss_count)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore the running mean."""
        self.loss_sum, self.loss_count = checkpoint.get("train_loss", (0.0, 0))

    def on_train_epoch_start(self) -> None:
        """Reset the running mean; Lightning does not call this when resuming within an epoch."""
        self.loss_sum, self.loss_count = 0.0, 0

    def on_train_batch_start(self, batch: Sample, batch_idx: int) -> None:
        """Seed dropout from the run's seed and the step alone, so that a resumed run repeats it."""
        text = f"{self.seed}:{self.global_step}:{batch_idx}:{self.global_rank}"
        torch.manual_seed(int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1)

    def on_after_batch_transfer(self, batch: Sample, dataloader_idx: int) -> Sample:
        """Augment a batch of training slices on the device, if the augmentation is of batches."""
        transforms = self.transforms
        if isinstance(transforms, BatchAugment) and "draws" in batch:
            return transforms(batch)
        return batch

    def training_step(self, batch: Sample, batch_idx: int) -> Tensor:
        """Return the loss of one batch."""
        self.check_loss()  # of the batch before, where several make a step
        with nullcontext() if self.distiller is None else self.distiller.recorded():
            main, *auxiliary = self.compute_outputs(batch["image"])
        loss = self.compute_shared_loss(main, batch["mask"])
        for number, output in enumerate(auxiliary, 1):
            weight = self.auxiliary_weight ** (number if self.model.auxiliary_fades else 1)
            loss = loss + weight * self.compute_shared_loss(output, batch["mask"])
        if self.distiller is not None:
            loss = self.distiller.add_distance(loss, batch["image"], main, self.trainer.world_size)
        self.pending = PendingLoss(*copy_to_cpu(loss.detach()), batch)
        # Each process has the gradient of its own slices only, and Lightning averages over
        # processes: the factor turns that mean into the sum.
        return loss * self.trainer.world_size

    def compute_shared_loss(self, logits: Tensor, mask: Tensor) -> Tensor:
        """Return the loss of the batches of all processes, given the logits and masks of this one.

        The gradient is that of this process's logits.
        """
        if self.trainer.world_size == 1:
            return self.compute_loss(logits, mask)
        if not self.exchanges_sums:
            return self.compute_loss(self.gather(logits), self.gather(mask))
        loss: Tensor = self.loss(logits, self.labels.target(mask), sum_with_own_gradient)
        return loss

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Refuse a step by a loss that is not finite, as it ruins the weights."""
        self.check_loss()

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip the norm of the gradients; Lightning refuses to with a fused optimizer."""
        if gradient_clip_val is not None:
            nn.utils.clip_grad_norm_(self.parameters(), gradient_clip_val)

    def compute_loss(self, logits: Tensor, mask: Tensor) -> Tensor:
        """Return the loss of the pixels whose class is known, against label maps `[B, H, W]`."""
        target, known = self.labels.target(mask), mask != IGNORE
        if self.labels.ignore and not bool(known.all()):
            if not bool(known.any()):
                return logits.sum() * 0
            # They become one picture of a single row: [1, K, 1, pixels].
            logits = logits.movedim(1, -1)[known].T[None, :, None]
            rows = target.movedim(1, -1)[known].T if self.labels.overlapping else target[known]
            target = rows[None, ..., None, :]
        loss: Tensor = self.loss(logits, target)
        return loss

    def compute_outputs(self, images: Tensor) -> list[Tensor]:
        """Return the training outputs; refuse a batch of which a normalisation gets one value."""
        try:
            return self.model.training_outputs(images)
        except ValueError as error:
            if "more than 1 value per channel" not in str(error):
                raise
            height, width = images.shape[2:]
            raise ConfigError(
                f"dataset.batch_size: batch normalisation gets a single value from {len(images)} "
                f"slice of {height}x{width}; use at least 2, or a larger dataset.image_size"
            ) from error

    def check_loss(self) -> None:
        """Add the last batch's loss to the epoch's, or raise ConfigError with its cases if NaN."""
        if self.pending is None:
            return
        (loss, copied, batch), self.pending = self.pending, None
        if copied is not None:
            copied.synchronize()
        self.last_loss = loss.item()
        self.loss_sum, self.loss_count = self.loss_sum + self.last_loss, self.loss_count + 1
        if math.isfinite(self.last_loss):
            return
        indices = self.gather(batch["case"]).tolist()
        cases = ", ".join(sorted({self.train_cases[i] for i in indices}))
        layer = self.find_nonfinite_layer(batch["image"])
        raise ConfigError(
            f"training: the loss became {self.last_loss} at step {self.global_step} (cases "
            f"{cases}; first in {layer}); lower optimizer.lr or use trainer.precision=32"
        )

    def gather(self, own: Tensor) -> Tensor:
        """Return the slices of all processes, in the order that one process would have them.

        From `[B, ...]` of this process, which alone carry a gradient, to `[B * processes, ...]`.
        """
        world = self.trainer.world_size
        if world == 1:
            return own
        gathered = own.new_empty(world * own.shape[0], *own.shape[1:])
        torch.distributed.all_gather_into_tensor(gathered, own.detach().contiguous())
        by_rank: Tensor = gathered.unflatten(0, (world, -1))
        if own.requires_grad:
            by_rank[self.trainer.global_rank] = own
        return by_rank.transpose(0, 1).flatten(0, 1)

    @torch.no_grad()
    def find_nonfinite_layer(self, image: Tensor) -> str:
        """Return the name of the first layer whose output for a batch is not finite."""
        names: list[str] = []

        def note_if_nonfinite(name: str, layer: object, inputs: object, output: object) -> None:
            if isinstance(output, Tensor) and not bool(torch.isfinite(output).all()):
                names.append(name)

        handles = [
            layer.register_forward_hook(partial(note_if_nonfinite, name))
            for name, layer in self.model.named_modules()
        ]
        restore_plain_model(self.model)  # Compiled functions do not call these hooks.
        self.model.training_outputs(image)
        for handle in handles:
            handle.remove()
        return (names[0] or "the model's output") if names else "the loss itself"

    def on_validation_start(self) -> None:
        """Count slices whose output is not finite from zero."""
        device = next(self.model.parameters()).device
        self.nonfinite = torch.zeros(len(self.val_cases), dtype=torch.long, device=device)

    def validation_step(self, batch: Sample, batch_idx: int) -> None:
        """Add one batch of validation slices, of all processes, to loss and Dice."""
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        world = self.trainer.world_size
        # The processes take the slices in turn. At the end, the sampler repeats slices to give all
        # of them equally long batches.
        real = len(data.val) - batch_idx * data.batch_size * world
        own = max(0, -((self.trainer.global_rank - real) // world))
        logits, mask, case = self.model(batch["image"]), batch["mask"], batch["case"]
        if self.exchanges_sums:
            loss = self.compute_shared_loss(logits[:own], mask[:own])
        else:
            loss = self.compute_loss(self.gather(logits)[:real], self.gather(mask)[:real])
        self.log("val/loss", loss, batch_size=min(real, world * len(case)))
        logits, mask, case = logits[:own], mask[:own], case[:own]
        finite = torch.isfinite(logits).flatten(1).all(1)
        self.val_dice.update(count_known_areas(logits, mask, self.labels), case)
        self.nonfinite.index_add_(0, case, (~finite).long())

    def on_validation_epoch_end(self) -> None:
        """Log Dice per class and its mean, at the network's resolution, and the training loss."""
        dice = self.val_dice.compute().reshape(-1)  # For a single class, it computes a scalar.
        self.val_dice.reset()
        if self.trainer.world_size > 1:
            torch.distributed.all_reduce(self.nonfinite)
        counts = zip(self.val_cases, self.nonfinite.tolist(), strict=True)
        if cases := [name for name, slices in counts if slices]:
            # Even NaN logits have a largest channel, so a Dice of them would look like a score.
            names = ", ".join(sorted(cases))
            log.warning("The network's output for %s is not finite; this epoch has no Dice", names)
            dice = torch.full_like(dice, torch.nan)
        for name, value in zip(self.labels.names, dice, strict=True):
            self.log(f"val/dice/{name}", value.float())
        self.log("val/dice", dice.nanmean().float())
        self.log("train/loss", self.loss_sum / max(self.loss_count, 1))

    def configure_optimizers(self) -> Any:  # noqa: ANN401
        """Return the optimizer, and the schedule that sets its learning rate after every step."""
        optimizer = self.optimizer(parameter_groups(self.model))
        steps = int(self.trainer.estimated_stepping_batches)
        scheduler = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: self.schedule(step, steps)
        )
        return [optimizer], [{"scheduler": scheduler, "interval": "step"}]


def count_known_areas(logits: Tensor, mask: Tensor, labels: Labels) -> Tensor:
    """Return `count_areas` of the pixels whose class is known, by label maps `[B, H, W]`."""
    if labels.ignore:  # Background in truth and prediction counts for no class.
        ignored, background = mask == IGNORE, torch.full_like(logits[:1], -1)
        background[:, : not labels.overlapping] = 1
        logits = torch.where(ignored[:, None], background, logits)
        mask = mask.masked_fill(ignored, 0)
    return count_areas(logits, labels.target(mask), labels.overlapping)


def copy_to_cpu(value: Tensor) -> tuple[Tensor, torch.Event | None]:
    """Return a tensor on the CPU and, if it comes from a GPU, the event of its arrival there."""
    if value.device.type == "cpu":
        return value, None
    copy = torch.empty_like(value, device="cpu", pin_memory=True)
    copy.copy_(value, non_blocking=True)
    copied = torch.Event(value.device)
    copied.record()
    return copy, copied


def parameter_groups(model: nn.Module) -> list[dict[str, Any]]:
    """Return two parameter groups: matrices and kernels with weight decay, all others without.

    Biases, norms, positional embeddings, class tokens and temperatures are not decayed.
    """
    decayed: list[nn.Parameter] = []
    not_decayed: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        exempt = parameter.ndim < 2 or name.endswith(("pos_embed", "cls_token", "temperature"))
        (not_decayed if exempt else decayed).append(parameter)
    return [{"params": decayed}, {"params": not_decayed, "weight_decay": 0.0}]
