"""Learning rate over training, as a factor of the first one."""

import math


class Schedule:
    """Linear warm-up, then whatever `decay` says.

    Args:
        warmup: share of the steps, in [0, 1).
        final: factor at the end, in [0, 1].

    Raises:
        ValueError: one of the two is out of its range.
    """

    def __init__(self, warmup: float = 0.0, final: float = 0.0) -> None:
        if not 0 <= warmup < 1 or not 0 <= final <= 1:
            raise ValueError(f"warmup {warmup} must be in [0, 1) and final {final} in [0, 1]")
        self.warmup = warmup
        self.final = final

    def __call__(self, step: int, steps: int) -> float:
        """Return the factor of step `step` (from 0) of `steps`."""
        warm = self.warmup * steps
        if step < warm:
            return (step + 1) / (warm + 1)
        progress = min(1.0, (step - warm) / max(1.0, steps - warm))
        return self.final + (1 - self.final) * self.decay(progress)

    def decay(self, progress: float) -> float:
        """Return 1 at progress 0 and what is left of it at progress 1."""
        raise NotImplementedError


class Cosine(Schedule):
    """Half a cosine. Loshchilov and Hutter, 2017, arXiv 1608.03983, without restarts."""

    def decay(self, progress: float) -> float:
        """Return the share left."""
        return (1 + math.cos(math.pi * progress)) / 2


class Poly(Schedule):
    """`(1 - progress) ** power`, as SETR, TransUNet and DAE-Former train."""

    def __init__(self, warmup: float = 0.0, final: float = 0.0, power: float = 0.9) -> None:
        super().__init__(warmup, final)
        if power <= 0:
            raise ValueError(f"power {power} must be greater than 0")
        self.power = power

    def decay(self, progress: float) -> float:
        """Return the share left."""
        return float((1 - progress) ** self.power)


class Constant(Schedule):
    """No decay."""

    def __init__(self, warmup: float = 0.0) -> None:
        super().__init__(warmup)

    def decay(self, progress: float) -> float:
        """Return 1."""
        return 1.0
