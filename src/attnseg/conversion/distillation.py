"""Lets a network learn from another one: from its logits, and from its attention outputs.

Logits: the Kullback-Leibler divergence of the softened probabilities, times the temperature
squared. Hinton et al., 2015, arXiv 1503.02531. Where classes overlap, that of each class alone.

Attention outputs: the mean square of the difference, as a share of the mean square of the
teacher's, averaged over the attentions, whose outputs are of different size.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attnseg.config.cost import find_attentions
from attnseg.config.training import Conversion
from attnseg.models.model import SegmentationModel


class Distiller:
    """Adds the distance between a network and its teacher to the loss of the task.

    It is no module, so that the teacher is neither trained nor kept in checkpoints.

    Args:
        student: whose attention outputs are recorded from now on, if they have a weight.
        teacher: in evaluation mode; it follows the images to their device.
        options: the weights and the temperature.
        overlapping: whether a pixel may belong to several classes.
    """

    def __init__(
        self,
        student: SegmentationModel,
        teacher: SegmentationModel,
        options: Conversion,
        overlapping: bool,
    ) -> None:
        self.teacher, self.options, self.overlapping = teacher, options, overlapping
        self.recording = False
        self.outputs: dict[str, dict[str, Tensor]] = {"student": {}, "teacher": {}}
        for who, model in (("student", student), ("teacher", teacher)):
            for name, mixer in find_attentions(model).items() if options.features else ():
                mixer.register_forward_hook(partial(self._note, who, name))

    @contextmanager
    def recorded(self) -> Iterator[None]:
        """Record the attention outputs of passes within the block."""
        self.recording = True
        try:
            yield
        finally:
            self.recording = False

    def add_distance(self, loss: Tensor, images: Tensor, logits: Tensor, processes: int) -> Tensor:
        """Return the weighted sum of the task's loss and of the distances from the teacher.

        Args:
            loss: of the task.
            images: `[B, C, H, W]`.
            logits: `[B, K, H, W]`, of the last pass that was recorded.
            processes: which add up their losses, each of its own images.
        """
        options = self.options
        with torch.no_grad(), self.recorded():
            taught = self.teacher.to(images.device)(images)
        total = options.task * loss
        if options.logits:
            divergence = compare_logits(logits, taught, options.temperature, self.overlapping)
            total = total + options.logits * divergence / processes
        if options.features:
            student, teacher = (self.outputs[who] for who in ("student", "teacher"))
            distances = [compare_outputs(student[name], teacher[name]) for name in teacher]
            if distances:
                total = total + options.features * torch.stack(distances).mean() / processes
            student.clear()
            teacher.clear()
        return total

    def _note(self, who: str, name: str, mixer: nn.Module, args: object, out: Tensor) -> None:
        if self.recording:
            self.outputs[who][name] = out


def compare_logits(logits: Tensor, taught: Tensor, temperature: float, overlapping: bool) -> Tensor:
    """Return the mean divergence of predictions `[B, K, H, W]` from those taught, a scalar."""
    logits, taught = (each.float() / temperature for each in (logits, taught))
    if overlapping:  # Each class is present or absent: two logits, of which one is 0.
        logits, taught = (
            torch.stack((each, torch.zeros_like(each)), 1) for each in (logits, taught)
        )
    own, other = (F.log_softmax(each, 1) for each in (logits, taught))
    divergence: Tensor = (other.exp() * (other - own)).sum(1).mean()
    return divergence * temperature**2


def compare_outputs(own: Tensor, taught: Tensor) -> Tensor:
    """Return the mean square of the difference as a share of that of the teacher's, a scalar."""
    own, taught = own.float(), taught.float()
    return (own - taught).square().mean() / taught.square().mean().clamp_min(1e-12)
