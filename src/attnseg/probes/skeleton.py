"""The network that a probe tests an attention in, and how it is trained.

Small enough that an attention is probed in seconds on one core of a CPU.
"""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Skeleton:
    """Options of the model and of its training; learned positions begin as sines and cosines.

    Attributes:
        model: options of SETR; the image size is that of the probe.
        steps: optimizer steps, of AdamW without weight decay.
        batch: pictures per step, new ones in each.
        learning_rate: highest rate; it rises over `warmup` steps and falls to 0 along a cosine.
        warmup: steps.
        clip: largest norm of the gradient.
        tested: pictures that are scored.
    """

    model: dict[str, object] = field(
        default_factory=lambda: {
            "size": "tiny",
            "head": "pup",
            "auxiliary": False,
            "class_token": False,
            "dim": 64,
            "depth": 2,
            "num_heads": 4,
            "patch_size": 4,
            "head_channels": 16,
            "mlp_ratio": 2.0,
        }
    )
    steps: int = 400
    batch: int = 16
    learning_rate: float = 4e-3
    warmup: int = 20
    clip: float = 1.0
    tested: int = 256


SKELETON = Skeleton()
