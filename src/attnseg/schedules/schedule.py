"""Learning-rate schedules: a linear warm-up and a decay, as factors of the base learning rate."""

import math


class Schedule:
    """A linear warm-up followed by the decay that a subclass defines.

    Args:
        warmup: fraction of all steps that is spent on warming up, in [0, 1).
        final: factor at the last step, in [0, 1].

    Raises:
        ValueError: an argument is out of its range.
    """

    def __init__(self, warmup: float = 0.0, final: float = 0.0) -> None:
        if not 0 <= warmup < 1 or not 0 <= final <= 1:
            raise ValueError(f"warmup {warmup} must be in [0, 1) and final {final} in [0, 1]")
        self.warmup, self.final = warmup, final

    def __call__(self, step: int, steps: int) -> float:
        """Return the factor for step `step`, counted from 0, of a training run of `steps` steps."""
        warmup_steps = self.warmup * steps
        if step < warmup_steps:
            return (step + 1) / (warmup_steps + 1)  # above 0, and 1 after the warm-up
        progress = min(1.0, (step - warmup_steps) / max(1.0, steps - warmup_steps))
        return self.final + (1 - self.final) * self.decay(progress)

    def decay(self, progress: float) -> float:
        """Return a value that is 1 at progress 0 and never rises until progress 1."""
        raise NotImplementedError


class Cosine(Schedule):
    """Half a cosine. Loshchilov and Hutter, 2017, arXiv 1608.03983, without restarts."""

    def decay(self, progress: float) -> float:
        """Return the cosine scaled to [0, 1]."""
        return (1 + math.cos(math.pi * progress)) / 2


class Poly(Schedule):
    """`(1 - progress) ** power`, the schedule that SETR, TransUNet and DAE-Former are trained with.

    Args:
        warmup, final: as in `Schedule`.
        power: the exponent.

    Raises:
        ValueError: `power` is not positive, or another argument is out of its range.
    """

    def __init__(self, warmup: float = 0.0, final: float = 0.0, power: float = 0.9) -> None:
        super().__init__(warmup, final)
        if power <= 0:
            raise ValueError(f"power {power} must be greater than 0")
        self.power = power

    def decay(self, progress: float) -> float:
        """Return the remaining fraction of training to the power `power`."""
        return float((1 - progress) ** self.power)


class Constant(Schedule):
    """No decay after the warm-up."""

    def __init__(self, warmup: float = 0.0) -> None:
        super().__init__(warmup)

    def decay(self, progress: float) -> float:
        """Return 1."""
        return 1.0
