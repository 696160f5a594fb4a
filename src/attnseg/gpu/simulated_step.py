"""One simulated training step and validation batch of a model on a GPU that only has shapes.

The process must have called `load_fake_device` before it imported this module.
"""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.cuda.amp import common as amp_common
from torch.optim import optimizer as optimizers
from torch.utils import _foreach_utils as foreach_utils

from attnseg.config.training import Config
from attnseg.gpu.account import Account
from attnseg.gpu.published import CARDS
from attnseg.gpu.simulated_attention import SimulatedAttention
from attnseg.gpu.training_step import Shape, TrainingStep
from attnseg.processes.tf32 import tf32_products
from attnseg.training.precision import AUTOCAST_DTYPES

# On fake tensors, autocast within checkpoints and kernels for many tensors would be refused.
amp_common.amp_definitely_not_available = lambda: False
torch.cuda.is_bf16_supported = lambda *a, **k: True
for supported in (foreach_utils._foreach_supported_types, optimizers._foreach_supported_types):
    supported.extend([FakeTensor, torch.nn.Parameter])  # type: ignore[list-item]


def simulate_step(config: Config, shape: Shape, card: str, deterministic: str) -> dict[str, Any]:
    """Simulate a step of a training, with the optimizer's state, and a validation.

    Args:
        config: of a training run on a GPU.
        shape: of the batch.
        card: name of the GPU, one of `CARDS`.
        deterministic: `strict`, `warn` or `off`.

    Returns:
        The costs, waits and alerts of the step, and those of the validation, which computes in
        float32 as the evaluation of a run does.

    Raises:
        RuntimeError: an operation mixes tensors on the CPU and on the GPU, as on a real one.
    """
    account, attention = Account(CARDS[card]), SimulatedAttention(CARDS[card].capability)
    dtype = AUTOCAST_DTYPES.get(str(config.trainer.precision))
    original = F.scaled_dot_product_attention
    F.scaled_dot_product_attention = attention
    training = TrainingStep(config, shape)
    try:
        with FakeTensorMode(allow_non_fake_inputs=True), account, determinism(deterministic):
            training.move_to("cuda")
            training.fill_optimizer()
            account.reset()
            with tf32_products(config.trainer.precision == "tf32"):
                training.compute_gradients(autocast_fake_tensors(dtype))
            before = account.kernels
            training.update_weights()
            record = {"optimizer_kernels": account.kernels - before, **read_account(account)}
            record["attention"] = dict(attention.chosen)
            record["without_gradient"] = training.list_weights_without_gradient()
            account.reset()
            attention.chosen.clear()
            with tf32_products(False):
                training.validate(autocast_fake_tensors(None))
            record["validation"] = {**read_account(account), "attention": dict(attention.chosen)}
    finally:
        F.scaled_dot_product_attention = original
    return {"model": config.choices["model"], "attn": config.choices["attn"], **record}


def read_account(account: Account) -> dict[str, Any]:
    """Return the account as plain containers."""
    return {
        "kernels": account.kernels,
        "moved": account.moved,
        "flops": account.flops,
        "seconds": account.seconds,
        "peak": account.peak,
        "waits": dict(account.waits),
        "alerts": dict(account.alerts),
        "by_kind": dict(account.by_kind),
    }


@contextlib.contextmanager
def autocast_fake_tensors(dtype: torch.dtype | None) -> Iterator[None]:
    """Autocast as Lightning does; `torch.autocast` refuses without a GPU."""
    if dtype is None:
        yield
        return
    before = torch.get_autocast_dtype("cuda")
    cached = torch.is_autocast_cache_enabled()
    torch.set_autocast_enabled("cuda", True)
    torch.set_autocast_dtype("cuda", dtype)
    torch.set_autocast_cache_enabled(False)
    torch.autocast_increment_nesting()
    try:
        yield
    finally:
        if torch.autocast_decrement_nesting() == 0:
            torch.clear_autocast_cache()
        torch.set_autocast_enabled("cuda", False)
        torch.set_autocast_dtype("cuda", before)
        torch.set_autocast_cache_enabled(cached)


@contextlib.contextmanager
def determinism(mode: str) -> Iterator[None]:
    """Ask PyTorch for deterministic algorithms: `strict`, `warn` or `off`."""
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    # `torch.use_deterministic_algorithms` would import the compiler as well.
    torch._C._set_deterministic_algorithms(mode != "off", warn_only=mode == "warn")
    try:
        yield
    finally:
        torch._C._set_deterministic_algorithms(False)
