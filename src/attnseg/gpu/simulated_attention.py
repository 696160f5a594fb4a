"""The kernel of softmax attention that PyTorch chooses on a GPU, for tensors of shapes only."""

from collections import Counter

import torch
import torch.nn.functional as F
from torch import Tensor

aten = torch.ops.aten


class SimulatedAttention:
    """Stands in for `F.scaled_dot_product_attention` and chooses as PyTorch 2.13 does on a GPU.

    The rules are those of `sdp_utils.cpp`, with cuDNN 9.20.

    Args:
        capability: of the card.

    Attributes:
        chosen: how often each kernel was taken.
    """

    def __init__(self, capability: int) -> None:
        self.capability = capability
        self.chosen: Counter[str] = Counter()
        self.original = F.scaled_dot_product_attention

    def choose_kernel(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> str:
        """Return `cudnn`, `flash`, `efficient` or `math`."""
        half = q.dtype in (torch.float16, torch.bfloat16)
        half = half and not (self.capability < 80 and q.dtype == torch.bfloat16)
        modern, d, dv = self.capability >= 80, q.shape[-1], v.shape[-1]
        dense = all(t.stride(-1) == 1 for t in (q, k, v))
        strict = torch.are_deterministic_algorithms_enabled()
        strict = strict and not torch.is_deterministic_algorithms_warn_only_enabled()
        small = 86 <= self.capability <= 89 or self.capability >= 120
        multiple = 8 if half else 4 if modern else 1
        aligned = not modern or all(t.storage_offset() % multiple == 0 for t in (q, k, v))
        able = {
            "cudnn": half and modern and dense and not strict and k.shape[2] > 1
            and d % 8 == dv % 8 == 0 and max(d, dv) <= 128,
            "flash": half and modern and dense and mask is None and d == dv <= 256
            and not (_needs_gradient(q, k, v) and small and 192 < d <= 224),
            "efficient": (half or q.dtype == torch.float32) and aligned
            and d % multiple == dv % multiple == 0,
        }  # fmt: skip
        enabled = {
            "cudnn": torch.backends.cuda.cudnn_sdp_enabled(),
            "flash": torch.backends.cuda.flash_sdp_enabled(),
            "efficient": torch.backends.cuda.mem_efficient_sdp_enabled(),
        }
        order = ["flash", "efficient"]
        if self.capability in (90, 100):
            order.insert(0, "cudnn")
        return next((name for name in order if able[name] and enabled[name]), "math")

    def __call__(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> Tensor:
        """Compute the attention; arguments as of the original."""
        if not query.is_cuda:
            return self.original(query, key, value, attn_mask, dropout_p, is_causal, scale=scale)
        q, k, v = query, key, value
        if torch.is_autocast_enabled("cuda"):
            q, k, v = (t.to(torch.get_autocast_dtype("cuda")) for t in (q, k, v))
        kernel = self.choose_kernel(q, k, v, attn_mask)
        self.chosen[kernel] += 1
        grad = _needs_gradient(q, k, v)
        out: Tensor
        if kernel == "flash":
            d = q.shape[-1]
            q, k, v = (F.pad(t, (0, -d % 8)) if d % 8 else t for t in (q, k, v))
            flash = aten._scaled_dot_product_flash_attention
            out = flash(q, k, v, 0.0, False, scale=scale)[0][..., :d]
        elif kernel == "cudnn":
            cudnn = aten._scaled_dot_product_cudnn_attention
            out = cudnn(q, k, v, attn_mask, grad, 0.0, False, False, scale=scale)[0]
        elif kernel == "efficient":
            efficient = aten._scaled_dot_product_efficient_attention
            out = efficient(q, k, v, attn_mask, grad, 0.0, False, scale=scale)[0]
        else:
            plain = aten._scaled_dot_product_attention_math
            out = plain(q, k, v, attn_mask, 0.0, False, scale=scale)[0]
        return out


def _needs_gradient(*tensors: Tensor) -> bool:
    return torch.is_grad_enabled() and any(t.requires_grad for t in tensors)
