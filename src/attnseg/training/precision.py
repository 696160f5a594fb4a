"""Chooses the number format of training for `trainer.precision=auto`.

Matrix products in 16 bits are several times faster where the hardware supports them; where it does
not, they are emulated and slower than 32 bits.
"""

import logging

import torch

from attnseg.config.training import Config, Precision, Trainer
from attnseg.nvml import list_gpus
from attnseg.processes.gpus import find_visible_gpus

BF16_SINCE = (8, 0)  # compute capability of the first GPUs that multiply bfloat16 matrices
# What `torch.autocast` computes in, by `trainer.precision`; 32 bits otherwise.
AUTOCAST_DTYPES = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}
log = logging.getLogger(__name__)


def fastest_precision(accelerator: str) -> tuple[Precision, str]:
    """Return the fastest precision of the `cpu` or `gpu` that trains stably, and the reason."""
    if accelerator == "gpu":
        # A job of a sweep has not reserved a GPU yet. NVML does not know shortened UUIDs.
        if gpus := find_visible_gpus() or list_gpus():
            oldest = min(gpus, key=lambda gpu: gpu.capability)
            name, able = oldest.name, oldest.capability >= BF16_SINCE
        else:
            name = torch.cuda.get_device_name()
            able = torch.cuda.is_bf16_supported(including_emulation=False)
        if able:
            return "bf16-mixed", f"{name} has bfloat16 units"
        return "16-mixed", f"{name} has no bfloat16 units"
    if torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported():
        return "bf16-mixed", "this CPU multiplies bfloat16 matrices (AVX512_BF16 or AMX)"
    return 32, "this CPU has no instructions for bfloat16 matrices, and would only emulate them"


def autocast(options: Trainer) -> torch.autocast:
    """Return the context that computes on the device and in the precision of the options."""
    dtype = AUTOCAST_DTYPES.get(str(options.precision))
    return torch.autocast(options.device_type, dtype, enabled=dtype is not None)


def resolve_precision(config: Config) -> Config:
    """Replace `trainer.precision=auto` by the fastest precision, before the run id is computed."""
    if config.trainer.precision != "auto":
        return config
    precision, reason = fastest_precision(config.trainer.accelerator)
    log.info("trainer.precision=%s, since %s", precision, reason)
    return config.revise("trainer", precision=precision)
