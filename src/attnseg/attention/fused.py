"""Softmax attention by one of PyTorch's fused kernels, which never store all N x M scores.

`flash`, `efficient`, `cudnn` and `flex` are kernels of GPUs, `flash` is one of CPUs as well, and
`math` computes all scores on any device. `auto` leaves the choice to PyTorch.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

AUTO = "auto"
FLEX = "flex"
KERNELS = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "math": SDPBackend.MATH,
}
BACKENDS = (AUTO, *KERNELS, FLEX)
ON_CPU = (AUTO, "flash", "math")
ALIGNMENT = 8  # channels; the kernels of GPUs take multiples of 16 bytes, in 16 bits per number


def fused_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    scale: float,
    backend: str = AUTO,
    key_bias: Tensor | None = None,
) -> Tensor:
    """Compute `softmax_j(scale * q_i . k_j + bias_j) V`.

    The bias becomes one more channel of the keys, against a constant 1 in the queries, since fused
    kernels give no gradient to a mask, and those of GPUs would copy it to N x M numbers. On GPUs,
    zeros fill the channels up to a multiple of 8; other widths leave only the `math` kernel.

    Args:
        q: queries `[B, h, N, d]`.
        k: keys `[B, h, M, d]`.
        v: values `[B, h, M, e]`.
        scale: factor of the products.
        backend: one of `BACKENDS`; a device that lacks it decides as with `auto`.
        key_bias: added to the scores of each key, `[M]` or `[B, 1 or h, M]`.

    Returns:
        Mixed values `[B, h, N, e]`.
    """
    width = v.shape[3]
    if backend == "flash" and q.shape[3] < width:
        q, k = (F.pad(x, (0, width - x.shape[3])) for x in (q, k))
    extra = None if key_bias is None else key_bias / scale
    q, k, v = widen_heads(q, k, v, extra, ALIGNMENT if q.is_cuda else 1)
    if backend == FLEX and q.is_cuda:
        out = _flex_attention()(q, k, v, scale=scale)
    else:
        with _restrict_kernels(backend, q):
            out = F.scaled_dot_product_attention(q, k, v, scale=scale)
    return out if out.shape[3] == width else out[..., :width]


def widen_heads(
    q: Tensor, k: Tensor, v: Tensor, product: Tensor | None, alignment: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Add channels that change no mixed value, but where a product with each key is given.

    Args:
        q: queries `[B, h, N, d]`.
        k: keys `[B, h, M, d]`.
        v: values `[B, h, M, e]`.
        product: added to the product of each key with every query, `[M]` or `[B, 1 or h, M]`.
        alignment: the widths become multiples of it.

    Returns:
        Queries, keys and values; the latter as wide as keys if they were so before.
    """
    same = q.shape[3] == v.shape[3]
    zeros = -(q.shape[3] + (product is not None)) % alignment
    if product is not None:
        one = F.pad(q.new_ones(1), (0, zeros)).expand(*q.shape[:3], -1)
        column = F.pad(product.to(k.dtype)[..., None], (0, zeros)).expand(*k.shape[:3], -1)
        q, k = torch.cat((q, one), -1), torch.cat((k, column), -1)
    elif zeros:
        q, k = F.pad(q, (0, zeros)), F.pad(k, (0, zeros))
    # The flash kernels want values as wide as keys.
    missing = q.shape[3] - v.shape[3] if same else -v.shape[3] % alignment
    return q, k, F.pad(v, (0, missing)) if missing else v


def _restrict_kernels(backend: str, q: Tensor) -> AbstractContextManager[None]:
    """Allow one kernel only, where the device has it."""
    known = backend in KERNELS and (q.is_cuda or backend in ON_CPU)
    if not known or torch.compiler.is_exporting():
        return nullcontext()
    chosen: AbstractContextManager[None] = sdpa_kernel(KERNELS[backend])
    return chosen


@cache
def _flex_attention() -> Callable[..., Tensor]:
    """Return FlexAttention, which is only fused once compiled."""
    from torch.nn.attention.flex_attention import flex_attention

    compiled: Callable[..., Tensor] = torch.compile(flex_attention, dynamic=False)
    return compiled


@contextmanager
def observe_kernels() -> Iterator[Counter[str]]:
    """Count the calls of each kernel of `F.scaled_dot_product_attention` within the block."""
    counts: Counter[str] = Counter()
    with _CallObserver(counts):
        yield counts


class _CallObserver(TorchFunctionMode):
    """Watches which operations a call of the attention becomes, on any device."""

    def __init__(self, counts: Counter[str]) -> None:
        super().__init__()
        self.counts = counts

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: object,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401
        if func is not F.scaled_dot_product_attention:
            return func(*args, **(kwargs or {}))
        with _OperationObserver() as below:
            out = func(*args, **(kwargs or {}))
        names = [name for name in KERNELS if any(f"_{name}_att" in op for op in below.names)]
        self.counts[names[0] if names else "math"] += 1
        return out


class _OperationObserver(TorchDispatchMode):
    """Notes the names of operations."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.names: list[str] = []

    def __torch_dispatch__(
        self,
        func: Any,  # noqa: ANN401
        types: object,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401
        self.names.append(str(func))
        return func(*args, **(kwargs or {}))
