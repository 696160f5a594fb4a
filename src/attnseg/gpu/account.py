"""Notes what every operation on a simulated GPU costs: kernels, bytes, FLOPs, memory and waits."""

import traceback
import weakref
from collections import Counter, defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten
from torch.utils.flop_counter import flop_registry

from attnseg.gpu.published import Card

LAUNCH = 2.5e-6  # seconds, an assumption: no kernel takes less
# Operations without a deterministic kernel on CUDA, by PyTorch 2.13's
# `torch.use_deterministic_algorithms`.
NONDETERMINISTIC = {
    "upsample_bilinear2d_backward", "upsample_bicubic2d_backward", "upsample_linear1d_backward",
    "adaptive_avg_pool2d_backward", "_adaptive_avg_pool2d_backward", "avg_pool3d_backward",
    "adaptive_max_pool2d_backward", "fractional_max_pool2d_backward", "max_unpool2d",
    "reflection_pad2d_backward", "grid_sampler_2d_backward", "histc", "median", "put_",
    "_scaled_dot_product_cudnn_attention_backward",
}  # fmt: skip
# These have one, which is only taken where nothing else is allowed.
STRICT_ONLY = {
    "_scaled_dot_product_flash_attention_backward",
    "_scaled_dot_product_efficient_attention_backward",
}
# With `accumulate`, they sort the indices, and move the values twice.
SORTED = {"index_put", "index_put_", "_unsafe_index_put", "_index_put_impl_"}
# `_unsafe_view` is a view, too, though its schema does not say so.
FREE = {"empty", "empty_strided", "empty_like", "new_empty", "detach", "lift_fresh",
        "_reshape_alias", "_unsafe_view"}  # fmt: skip
WRITERS = ("zeros", "ones", "full", "arange", "fill_", "zero_", "new_ones", "new_zeros", "eye")


class Account(TorchDispatchMode):
    """Sees every operation below autograd while it is active.

    Attributes:
        kernels: number of launches.
        moved: bytes read and written.
        flops: of matrix products, convolutions and attention.
        seconds: sum over the kernels of the longest of the times for FLOPs, bytes and a launch.
        live: bytes that are allocated now.
        peak: the most bytes so far.
        waits: how often the CPU waited for the GPU, by the line of code.
        alerts: operations without deterministic kernel in the present mode.
        by_kind: kernels, bytes and seconds by kind of operation.
    """

    def __init__(self, card: Card) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.card = card
        self.live = self.peak = 0
        self.storages: set[int] = set()
        self.reset()

    def reset(self) -> None:
        """Begin a new account; what is allocated stays so."""
        self.kernels = self.moved = self.flops = 0
        self.seconds = 0.0
        self.peak = self.live
        self.waits: Counter[str] = Counter()
        self.alerts: Counter[str] = Counter()
        self.by_kind: dict[str, list[float]] = defaultdict(lambda: [0, 0, 0.0])

    def __torch_dispatch__(
        self,
        func: Any,  # noqa: ANN401
        types: object,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401
        kwargs = kwargs or {}
        name = func._schema.name.removeprefix("aten::")
        given = [t for t in tree_flatten((args, kwargs))[0] if isinstance(t, Tensor)]
        on_gpu = any(t.is_cuda for t in given)
        if name == "_local_scalar_dense":
            if on_gpu:
                self.waits[find_line()] += 1
            # Numbers with which a step goes on: no overflow for the scaler of float16, which asks
            # the GPU; half a step for an optimizer, which asks the CPU; one class.
            number = (0.0 if on_gpu else 0.5) if given[0].is_floating_point() else 1
            return True if given[0].dtype == torch.bool else number
        if on_gpu and name in ("nonzero", "bincount", "equal", "is_nonzero"):
            self.waits[f"{name}: {find_line()}"] += 1
        out = func(*args, **kwargs)
        made = [t for t in tree_flatten(out)[0] if isinstance(t, Tensor)]
        if not on_gpu and not any(t.is_cuda for t in made):
            return out
        blocking = not (
            kwargs.get("non_blocking") or (name == "copy_" and len(args) > 2 and args[2])
        )
        if name in ("_to_copy", "copy_") and made[0].device.type == "cpu" and blocking:
            self.waits[f"copy to the CPU: {find_line()}"] += 1
        for tensor in made:
            self.keep_account(tensor)
        if not (is_view(func) or name in FREE or name.startswith("prim::")):
            self.note_kernel(func, name, args, kwargs, given, made, out)
            self.note_alert(name, args)
        return out

    def note_kernel(
        self,
        func: Any,  # noqa: ANN401
        name: str,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        given: list[Tensor],
        made: list[Tensor],
        out: object,
    ) -> None:
        """Add one kernel to the account."""
        touched = made if name.startswith(WRITERS) else given + made
        moved = sum(map(count_bytes, touched)) * (2 if name in SORTED else 1)
        counter = flop_registry.get(func._overloadpacket)
        flops = int(counter(*args, **kwargs, out_val=out)) if counter else 0
        if name == "convolution_backward" and args[9] > 1:  # PyTorch's counter forgets the groups.
            weight, wanted = args[2], sum(args[10][:2])
            flops = 2 * wanted * args[0].numel() * weight[0].numel()
        width = min((t.element_size() for t in given if t.is_floating_point()), default=4)
        rate = 1e12 * self.find_rate(width)
        seconds = max(flops / rate, moved / (self.card.bandwidth * 1e12), LAUNCH)
        self.kernels += 1
        self.moved += moved
        self.flops += flops
        self.seconds += seconds
        kind = self.by_kind[kind_of_operation(name, flops)]
        kind[:] = [kind[0] + 1, kind[1] + moved, kind[2] + seconds]

    def find_rate(self, width: int) -> float:
        """Return the TFLOP/s of products of numbers of so many bytes, as PyTorch is set now."""
        if width == 2:
            return self.card.half
        return self.card.tf32 if torch.backends.cuda.matmul.allow_tf32 else self.card.single

    def note_alert(self, name: str, args: tuple[Any, ...]) -> None:
        """Note an operation for which strict determinism would end the run."""
        milder = torch.is_deterministic_algorithms_warn_only_enabled()
        reduced = name == "nll_loss2d_forward" and args[3] != 0
        summed = name == "cumsum" and args[0].is_floating_point()
        if name in NONDETERMINISTIC or (name in STRICT_ONLY and milder) or reduced or summed:
            self.alerts[name] += 1

    def keep_account(self, tensor: Tensor) -> None:
        """Count a tensor's memory until it is freed."""
        storage = tensor.untyped_storage()
        key, count = storage._cdata, storage.nbytes()
        if not tensor.is_cuda or key in self.storages:
            return
        self.storages.add(key)
        self.live += count
        self.peak = max(self.peak, self.live)

        def forget() -> None:
            self.storages.discard(key)
            self.live -= count

        weakref.finalize(storage, forget)


def kind_of_operation(name: str, flops: int) -> str:
    """Return the kind under which an operation is summed."""
    if flops:
        return "matrix products, convolutions, attention"
    if name in SORTED or "index" in name:
        return "sorting and gathering"
    if "norm" in name and not name.startswith("linalg"):
        return "norms"
    if name.startswith(("_foreach", "_fused", "linalg_vector")):
        return "optimizer and clipping"
    if name in ("_to_copy", "clone", "copy_", "cat", "constant_pad_nd"):
        return "copies and casts"
    return "other elementwise operations and sums"


def count_bytes(tensor: Tensor) -> int:
    """Return the bytes that a kernel reads or writes of a tensor, which may be expanded."""
    return min(tensor.numel() * tensor.element_size(), tensor.untyped_storage().nbytes())


def is_view(func: Any) -> bool:  # noqa: ANN401
    """Return whether an operation only gives a tensor another shape."""
    return any(r.alias_info is not None and not r.alias_info.is_write for r in func._schema.returns)


def find_line() -> str:
    """Return the innermost line of this package that is running, as `file:line function`."""
    for frame in reversed(traceback.extract_stack()):
        path = Path(frame.filename)
        if "attnseg" in path.parts and path.parent.name != "gpu":
            return f"{path.parent.name}/{path.name}:{frame.lineno} {frame.name}"
    return "outside this package"
