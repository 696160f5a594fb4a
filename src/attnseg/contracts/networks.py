"""Promises of every model with every attention, each measured on a small network."""

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from attnseg.config.cost import count_attention_macs, find_attentions
from attnseg.explain.jacobian import derive_weights
from attnseg.explain.recording import AttentionRecord, record_attentions
from attnseg.export.export import TOLERANCE
from attnseg.export.tracing import onnx_bytes, trace_model
from attnseg.models.model import SegmentationModel

IMAGE = (1, 32, 48)  # C, H, W
CLASSES = 3
OTHER_SIZES = ((32, 48), (64, 32), (48, 80))
ROUNDING = 1e-5  # largest difference of logits that the order of operations may cause
AVERAGE_ROUNDING = 1e-4  # of sums that should be 1
COARSE = (0.1, 0.02)  # of bfloat16: share of the largest logit, and absolute
TRAINING_STEPS = 10


@dataclass(frozen=True)
class Outcome:
    """The outcome of holding a part to one promise.

    Attributes:
        measured: what was measured, as text for a table.
        problem: what is wrong; empty if the promise is kept.
    """

    measured: str
    problem: str = ""


class MakeNetwork(Protocol):
    """Builds a network anew, with the same initial weights for the same arguments."""

    def __call__(self, channels: int = IMAGE[0], classes: int = CLASSES) -> SegmentationModel:
        """Return the network, built for images of `IMAGE`."""
        ...


def check_gradients(make: MakeNetwork) -> Outcome:
    """Every parameter gets a finite gradient other than zero.

    Parameters that are zero at the start are set to small numbers first: the norm that ends a
    residual branch, say, would hide all that it multiplies.
    """
    net = make().train()
    with torch.no_grad():
        for parameter in net.parameters():
            if not parameter.any():
                parameter.normal_(std=0.1)
    outputs = net.training_outputs(_noise(2))
    # Squares: a sum would not see what a softmax or a norm after it cancels.
    torch.stack([output.square().mean() for output in outputs]).sum().backward()
    parameters = dict(net.named_parameters())
    if not any(mixer.mixes_prefix for mixer in find_attentions(net).values()):
        parameters = {n: p for n, p in parameters.items() if not n.endswith("cls_token")}
    for name, parameter in parameters.items():
        if parameter.grad is None:
            return Outcome("", f"{name} gets no gradient; use it or leave it out")
        if not parameter.grad.isfinite().all():
            return Outcome("", f"the gradient of {name} is not finite")
        if parameter.grad.abs().max() == 0:
            return Outcome("", f"the gradient of {name} is zero; no output depends on it")
    return Outcome(f"{len(parameters)} alive")


def check_training(make: MakeNetwork) -> Outcome:
    """A few steps of AdamW on one batch lower the loss."""
    net = make().train()
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-3)
    images = _noise(4)
    target = (images[:, 0] > 0).long()
    losses = []
    for _ in range(TRAINING_STEPS):
        optimizer.zero_grad()
        outputs = [nn.functional.cross_entropy(o, target) for o in net.training_outputs(images)]
        loss = torch.stack(outputs).sum()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    measured = f"loss {losses[0]:.2f} to {losses[-1]:.2f}"
    return Outcome(measured, "" if losses[-1] < losses[0] else "the loss does not fall")


@torch.inference_mode()
def check_independence(make: MakeNetwork) -> Outcome:
    """An item's logits are the same alone and in a batch, and depend on its image."""
    net, images = make().eval(), _noise(3)
    together = net(images)
    expected = (3, CLASSES, *IMAGE[1:])
    if together.shape != expected:
        return Outcome("", f"logits {list(together.shape)}, not {list(expected)}")
    if not torch.equal(together, net(images)):
        return Outcome("", "the same images give other logits when called again")
    if (together[0] - together[1]).abs().max() < 1e-3:
        return Outcome("", "two images give the same logits")
    alone = torch.cat([net(image[None]) for image in images])
    return _difference(together, alone, ROUNDING)


@torch.inference_mode()
def check_sizes(make: MakeNetwork) -> Outcome:
    """Other sizes of the image, channels and classes give finite logits of that size."""
    for channels, classes in ((3, 1), (5, 9)):
        net = make(channels, classes).eval()
        for size in OTHER_SIZES:
            logits = net(torch.randn(1, channels, *size))
            if logits.shape != (1, classes, *size) or not logits.isfinite().all():
                return Outcome(
                    "", f"image {size[0]}x{size[1]}: logits of another shape, or not finite"
                )
    return Outcome(f"{len(OTHER_SIZES)} sizes")


@torch.inference_mode()
def check_bfloat16(make: MakeNetwork) -> Outcome:
    """The logits stay close under bfloat16 autocast."""
    net, image = make().eval(), _noise(1)
    exact = net(image)
    with torch.autocast("cpu", torch.bfloat16):
        coarse = net(image).float()
    return _difference(coarse, exact, COARSE[0] * float(exact.abs().max()) + COARSE[1])


def check_macs(make: MakeNetwork) -> Outcome:
    """The closed form of the attentions' operations is what PyTorch counts."""
    closed, counted = count_attention_macs(make(), IMAGE)
    problem = "" if closed == counted else f"the closed form says {closed:,}, PyTorch {counted:,}"
    return Outcome(f"{counted:,}", problem)


def check_maps(make: MakeNetwork) -> Outcome:
    """The attention map of a token, applied to the values, gives the token's output.

    The map of a mixer without values agrees with a difference quotient. The weights of a mixing
    that averages sum to 1.
    """
    net = make().eval()
    worst = 0.0
    for name, record in record_attentions(net, _noise(1)).items():
        token = record.token_at((IMAGE[1] // 2, IMAGE[2] // 2), IMAGE[1:])
        derived = derive_weights(record, token)
        error = derived.error
        if error > ROUNDING:
            return Outcome(f"{error:.0e}", f"{name}: the map does not explain the output")
        if isinstance(record, AttentionRecord) and record.mix.averages:
            apart = float((derived.weights.sum(1) - 1).abs().max())
            if apart > AVERAGE_ROUNDING:
                return Outcome("", f"{name}: weights sum to 1 within {apart:.0e} only")
        worst = max(worst, error)
    return Outcome(f"{worst:.0e}")


def check_export(make: MakeNetwork) -> Outcome:
    """The network exports as one graph, and compiles as one, with the same logits."""
    net, image = make().eval(), _noise(2)
    torch.compiler.reset()  # The compiler gives up after eight networks in a process.
    compiled = torch.compile(net, fullgraph=True, backend="eager")
    exported = torch.export.export(net, (image,)).module()
    with torch.inference_mode():
        wanted = net(image)
        finding = _difference(exported(image), wanted, ROUNDING)
        return finding if finding.problem else _difference(compiled(image), wanted, ROUNDING)


def check_onnx(make: MakeNetwork) -> Outcome:
    """ONNX Runtime computes the same logits."""
    if importlib.util.find_spec("onnxruntime") is None:
        return Outcome("not installed")
    from attnseg.prediction.onnx import OnnxNetwork

    net, image = make().eval(), _noise(2)
    network = OnnxNetwork(onnx_bytes(trace_model(net, IMAGE)), 1)
    with torch.inference_mode():
        wanted = net(image)
    if wanted.abs().max() < 100 * TOLERANCE:
        return Outcome("", "all logits are near zero, so that nothing can be compared")
    return _difference(torch.from_numpy(network(image.numpy())), wanted, TOLERANCE)


CONTRACTS: dict[str, Callable[[MakeNetwork], Outcome]] = {
    "gradients": check_gradients,
    "training": check_training,
    "independence": check_independence,
    "sizes": check_sizes,
    "bfloat16": check_bfloat16,
    "MACs": check_macs,
    "maps": check_maps,
    "graph": check_export,
    "ONNX": check_onnx,
}


def _noise(items: int) -> Tensor:
    return torch.randn(items, *IMAGE, generator=torch.Generator().manual_seed(0))


def _difference(ours: Tensor, wanted: Tensor, limit: float) -> Outcome:
    apart = float((ours - wanted).abs().max())
    problem = "" if apart <= limit else f"logits differ by {apart:.1e}, more than {limit:.0e}"
    return Outcome(f"{apart:.0e}", problem)
