"""Exponential moving average of the weights, for `trainer.ema_decay`."""

import pytorch_lightning as pl
from pytorch_lightning.callbacks import WeightAveraging
from torch.optim.swa_utils import get_ema_multi_avg_fn


class WeightAverage(WeightAveraging):
    """Averages the weights after every step, on the device that trains, all tensors at once.

    Lightning would copy the model before it moves it to a GPU, and keep the average on the CPU:
    every step would then wait for a copy of all weights.
    """

    def __init__(self, decay: float) -> None:
        super().__init__(multi_avg_fn=get_ema_multi_avg_fn(decay))

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Copy the model to the device that trains."""
        self._device = trainer.strategy.root_device
        super().setup(trainer, pl_module, stage)
