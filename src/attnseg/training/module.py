"""The LightningModule that trains and validates any model with any loss on any dataset."""

import hashlib
import logging
import math
from functools import partial
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.strategies import ModelParallelStrategy
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

from attnseg.config.components import Components
from attnseg.data.labels import IGNORE, Labels
from attnseg.data.slices import Sample
from attnseg.errors import ConfigError
from attnseg.metrics.running import CaseDice, count_areas

log = logging.getLogger(__name__)


class SegmentationModule(pl.LightningModule):
    """Trains a segmentation model.

    The processes of a distributed run exchange logits and targets. A loss over the whole batch,
    such as Dice, is therefore the same as in one process with the whole batch.

    The names of the cases serve messages, the seed dropout and other random choices within a step.
    """

    def __init__(
        self,
        components: Components,
        labels: Labels,
        train_cases: list[str],
        val_cases: list[str],
        auxiliary_weight: float,
        seed: int,
    ) -> None:
        super().__init__()
        self.model, self.loss = components.model, components.loss
        self.optimizer, self.schedule = components.optimizer, components.schedule
        self.labels = labels
        self.train_cases, self.val_cases = train_cases, val_cases
        self.auxiliary_weight = auxiliary_weight
        self.seed = seed
        # Every process already sees the slices of all processes, so nothing is left to sync.
        self.val_dice = CaseDice(len(val_cases), len(labels), sync_on_compute=False)
        self.sharded = False
        self.nonfinite_cases: set[int] = set()  # Validation cases with NaN or infinite logits.
        # Sum and number of this epoch's training losses; checkpoints keep both.
        self.loss_sum, self.loss_count = 0.0, 0

    def configure_model(self) -> None:
        """Shard the model over the processes, block by block, if the strategy is FSDP."""
        if not isinstance(self.trainer.strategy, ModelParallelStrategy) or self.sharded:
            return
        assert self.device_mesh is not None
        mesh = self.device_mesh["data_parallel"]
        for layers in [m for m in self.model.modules() if isinstance(m, nn.ModuleList)]:
            for block in layers:
                fully_shard(block, mesh=mesh)
        fully_shard(self.model, mesh=mesh)
        register_fsdp_forward_method(self.model, "training_outputs")
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

    def training_step(self, batch: Sample, batch_idx: int) -> Tensor:
        """Return the loss of one batch; one that is not finite raises, as it ruins the weights."""
        main, *auxiliary = self.compute_outputs(batch["image"])
        mask = self.gather(batch["mask"])
        loss = self.compute_loss(self.gather(main), mask)
        for number, output in enumerate(auxiliary, 1):
            weight = self.auxiliary_weight ** (number if self.model.auxiliary_fades else 1)
            loss = loss + weight * self.compute_loss(self.gather(output), mask)
        self.loss_sum += self.check_loss(loss, batch)
        self.loss_count += 1
        # Each process has the gradient of its own slices only, and Lightning averages over
        # processes: the factor turns that mean into the sum.
        return loss * self.trainer.world_size

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

    def check_loss(self, loss: Tensor, batch: Sample) -> float:
        """Return the loss as a number, or raise ConfigError with its cases if not finite."""
        value = loss.item()
        if not math.isfinite(value):
            indices = self.gather(batch["case"]).tolist()
            cases = ", ".join(sorted({self.train_cases[i] for i in indices}))
            layer = self.find_nonfinite_layer(batch["image"])
            raise ConfigError(
                f"training: the loss became {value} at step {self.global_step} (cases {cases}; "
                f"first in {layer}); lower optimizer.lr or use trainer.precision=32"
            )
        return value

    def gather(self, own: Tensor) -> Tensor:
        """Return the slices of all processes, in the order that one process would have them.

        From `[B, ...]` of this process, which alone carry a gradient, to `[B * processes, ...]`.
        """
        if self.trainer.world_size == 1:
            return own
        by_rank = [torch.empty_like(own) for _ in range(self.trainer.world_size)]
        torch.distributed.all_gather(by_rank, own.detach().contiguous())
        by_rank[self.trainer.global_rank] = own
        return torch.stack(by_rank, 1).flatten(0, 1)

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
        self.model.training_outputs(image)
        for handle in handles:
            handle.remove()
        return (names[0] or "the model's output") if names else "the loss itself"

    def validation_step(self, batch: Sample, batch_idx: int) -> None:
        """Add one batch of validation slices, of all processes, to loss and Dice."""
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        # The sampler repeats slices at the end to give all processes equally long batches.
        real = len(data.val) - batch_idx * data.batch_size * self.trainer.world_size
        logits = self.gather(self.model(batch["image"]))[:real]
        mask, case = self.gather(batch["mask"])[:real], self.gather(batch["case"])[:real]
        self.log("val/loss", self.compute_loss(logits, mask), batch_size=len(logits))
        finite = torch.isfinite(logits).flatten(1).all(1)
        if self.labels.ignore:  # Background in truth and prediction counts for no class.
            ignored, background = mask == IGNORE, torch.full_like(logits[:1], -1)
            background[:, : not self.labels.overlapping] = 1
            logits = torch.where(ignored[:, None], background, logits)
            mask = mask.masked_fill(ignored, 0)
        target = self.labels.target(mask)
        self.val_dice.update(count_areas(logits, target, self.labels.overlapping), case)
        if not bool(finite.all()):
            self.nonfinite_cases.update(case[~finite].tolist())

    def on_validation_epoch_end(self) -> None:
        """Log Dice per class and its mean, at the network's resolution, and the training loss."""
        dice = self.val_dice.compute().reshape(-1)  # For a single class, it computes a scalar.
        self.val_dice.reset()
        if self.nonfinite_cases:
            # Even NaN logits have a largest channel, so a Dice of them would look like a score.
            names = ", ".join(sorted(self.val_cases[i] for i in self.nonfinite_cases))
            log.warning("The network's output for %s is not finite; this epoch has no Dice", names)
            dice = torch.full_like(dice, torch.nan)
            self.nonfinite_cases.clear()
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
