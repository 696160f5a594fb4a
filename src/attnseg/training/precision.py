"""The precision that a machine computes fastest in without losing the loss: `trainer.precision`."""

import logging

import torch

from attnseg.config.schema import Config, Precision

log = logging.getLogger(__name__)


def choose(accelerator: str) -> tuple[Precision, str]:
    """Return a precision for this machine, and why.

    Args:
        accelerator: `cpu` or `gpu`.
    """
    if accelerator == "gpu":
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return "bf16-mixed", f"{torch.cuda.get_device_name()} has bfloat16 units"
        return "16-mixed", f"{torch.cuda.get_device_name()} has no bfloat16 units"
    if torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported():
        return "bf16-mixed", "this CPU multiplies bfloat16 matrices (AVX512_BF16 or AMX)"
    return 32, "this CPU has no instructions for bfloat16 matrices, and would only emulate them"


def resolve(config: Config) -> Config:
    """Replace `trainer.precision=auto` by the chosen precision, before the run id is computed."""
    if config.trainer.precision != "auto":
        return config
    precision, why = choose(config.trainer.accelerator)
    log.info("trainer.precision=%s, since %s", precision, why)
    return config.revise("trainer", precision=precision)
