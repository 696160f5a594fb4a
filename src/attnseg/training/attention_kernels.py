"""Finds the kernels that compute a model's softmax attention where it is trained."""

from collections import Counter
from contextlib import nullcontext

import torch

from attnseg.attention.fused import AUTO, FLEX, ON_CPU, observe_kernels
from attnseg.attention.mixing import Mixing
from attnseg.config.training import Trainer
from attnseg.errors import ConfigError
from attnseg.models.model import SegmentationModel
from attnseg.training.lightning_trainer import deterministic_algorithms
from attnseg.training.precision import autocast


def find_attention_kernels(
    model: SegmentationModel, image: tuple[int, int, int], options: Trainer
) -> dict[str, int]:
    """Return how often each kernel runs in a forward pass of one image `(C, H, W)`.

    The pass is one of training, with gradients, on the device and in the precision of the options.

    Raises:
        ConfigError: the device has no kernel of the name in `attn.backend`, or the kernel does not
            take this attention.
    """
    device = options.device_type
    mixings = [module for module in model.modules() if isinstance(module, Mixing)]
    asked = {mixing.backend for mixing in mixings} - {AUTO}
    for name in sorted(asked):
        if device == "cpu" and name not in ON_CPU:
            raise ConfigError(
                f"attn.backend: {name} is a kernel of GPUs; use one of {', '.join(ON_CPU)}"
            )
    training, home = model.training, next(model.parameters()).device
    model.to(device).eval()  # Batch normalisation and dropout are left as they are.
    # A compiled function, as FlexAttention is, cannot be observed.
    observed = nullcontext(Counter[str]()) if FLEX in asked else observe_kernels()
    try:
        with deterministic_algorithms(options), autocast(options), observed as counts:
            model(torch.zeros(1, *image, device=device))
    except RuntimeError as error:
        if "No available kernel" not in str(error):
            raise
        advice = ", or trainer.deterministic=false" if "cudnn" in asked else ""
        raise ConfigError(
            f"attn.backend: {' or '.join(sorted(asked))} cannot compute this attention with "
            f"trainer.precision={options.precision} on this device; use auto{advice}"
        ) from error
    finally:
        model.to(home).train(training)
    flexible = sum(mixing.backend == FLEX for mixing in mixings)
    return {**counts, **({FLEX: flexible} if flexible else {})}
