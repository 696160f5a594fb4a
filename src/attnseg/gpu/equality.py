"""Sections of the acceptance run on equality: formats, devices, repeated and resumed runs."""

import copy
import hashlib
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

import torch
from torch import Tensor, nn

from attnseg.files import file_digest
from attnseg.gpu.settings import Row, Settings
from attnseg.gpu.training_step import Shape, TrainingStep, compose_run
from attnseg.processes.tf32 import tf32_products
from attnseg.runs.run_folder import RunFolder
from attnseg.training.callbacks.history import EndedEarly
from attnseg.training.train import train

# The largest difference of logits in each format, as a share of the largest logit.
FORMATS = {"float32": 1e-4, "TF32": 2e-2, "bfloat16": 1e-1, "float16": 2e-2}
LOGITS, GRADIENTS = 1e-4, 1e-3  # shares that CPU and GPU may differ by in float32
STEPS, APART = 60, 0.03  # of training in each precision


def compare_precisions(settings: Settings) -> Iterator[Row]:
    """Yield how far logits in each format are from those of the CPU in float32.

    The CPU's are compared with those of the published codes by the tests.
    """
    shape, names = settings.shape, ["float32", "bfloat16"]
    if settings.on_gpu:
        names = [name for name in FORMATS if name != "bfloat16" or settings.precision != "16-mixed"]
    for model, size in settings.models.items():
        config = compose_run(model, "", size, shape, settings.options)
        torch.manual_seed(0)
        net = TrainingStep(config, shape).module.model.eval()
        image = torch.randn(1, shape.channels, shape.side, shape.side)
        with torch.inference_mode():
            wanted = net(image)
            net, image = net.to(settings.device), image.to(settings.device)
            for name in names:
                with compute_in(name, settings.device):
                    apart = relative_difference(net(image).float().cpu(), wanted)
                row: Row = {"name": f"{model}, {name}", "difference": apart}
                if not apart <= FORMATS[name]:
                    row["problem"] = f"more than {FORMATS[name]:.0e} of the largest logit"
                yield row


@contextmanager
def compute_in(name: str, device: str) -> Iterator[None]:
    """Compute products in a format within the block."""
    dtype = {"bfloat16": torch.bfloat16, "float16": torch.float16}.get(name)
    with (
        tf32_products(name == "TF32"),
        torch.autocast(device, dtype, enabled=dtype is not None),
    ):
        yield


def compare_devices(settings: Settings) -> Iterator[Row]:
    """Yield how far logits and gradients of both devices differ, for pairs of tiny networks."""
    for model, attn in settings.pairs:
        config = compose_run(model, attn, "tiny", Shape(), settings.options)
        torch.manual_seed(0)
        here = TrainingStep(config, Shape()).module.model.eval()
        there = copy.deepcopy(here).to(settings.device)
        image = torch.randn(2, Shape().channels, Shape().side, Shape().side)
        with compute_in("float32", settings.device):
            wanted, found = here(image), there(image.to(settings.device))
            logits = relative_difference(found.cpu(), wanted)
            wanted.square().mean().backward()
            found.square().mean().backward()
        gradients, worst = compare_gradients(here, there)
        row: Row = {"name": f"{model}/{attn}", "logits": logits, "gradients": gradients}
        if not (logits <= LOGITS and gradients <= GRADIENTS):
            row["problem"] = (
                f"more than {LOGITS:.0e}, or {GRADIENTS:.0e} of the gradient of {worst}"
            )
        yield row


def compare_gradients(here: nn.Module, there: nn.Module) -> tuple[float, str]:
    """Return the largest difference of a gradient, as a share of its norm, and the weight's name.

    Gradients that are nothing but rounding error beside the largest are left out. NaN counts as
    larger than any number.
    """
    theirs: Mapping[str, nn.Parameter] = dict(there.named_parameters())
    own = {name: p.grad for name, p in here.named_parameters() if p.grad is not None}
    least = 1e-5 * max(float(gradient.norm()) for gradient in own.values())
    shares = {}
    for name, gradient in own.items():
        other = theirs[name].grad
        assert other is not None
        norm = float(gradient.norm())
        if not norm <= least:  # NaN included
            shares[name] = float((other.cpu() - gradient).norm()) / norm
    worst = max(shares, key=lambda name: (math.isnan(shares[name]), shares[name]))
    return shares[worst], worst


def repeat_and_resume(settings: Settings) -> Iterator[Row]:
    """Yield digests of the weights of a run, of its repetition, and of one that was resumed."""
    options = ["experiment=smoke", "trainer.ema_decay=0.9", "trainer.accumulate=2"]
    options += ["trainer.limit_batches=4", "dataset.batch_size=2"]
    models = [("setr", "kv"), ("transunet", "qkv")]  # The second has dropout.
    for model, attn in models if settings.on_gpu else models[:1]:
        digests = {}
        for name in ("first", "again", "resumed"):
            own = [*settings.options, *options, f"paths.outputs={settings.folder}/{name}"]
            config = compose_run(model, attn, "tiny", Shape(), own)
            if name == "resumed":
                with suppress(EndedEarly):
                    train(config, on_epoch=stop_training)
            digests[name] = digest_run(RunFolder(train(config)))
        row: Row = {"name": f"{model}/{attn}", **{k: v[:12] for k, v in digests.items()}}
        if len(set(digests.values())) > 1:
            row["problem"] = "the runs differ"
        yield row


def stop_training(rows: object) -> None:
    """End a run after its first epoch."""
    raise EndedEarly("by the acceptance run")


def digest_run(folder: RunFolder) -> str:
    """Return the SHA-256 of a run's last weights, averages and optimizer, and of its scores."""
    state: Any = torch.load(folder.last_checkpoint, map_location="cpu", weights_only=True)
    digest = hashlib.sha256(file_digest(folder.path / "metrics.json").encode())
    for name in ("state_dict", "optimizer_states", "current_model_state"):
        for key, value in walk_tensors(state.get(name, {}), name):
            digest.update(key.encode() + value.contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def walk_tensors(value: Any, key: str) -> Iterator[tuple[str, Tensor]]:  # noqa: ANN401
    """Yield all tensors within containers, with their dotted keys."""
    if isinstance(value, Tensor):
        yield key, value.reshape(-1)
    elif isinstance(value, Mapping):
        for name, item in value.items():
            yield from walk_tensors(item, f"{key}.{name}")
    elif isinstance(value, list | tuple):
        for number, item in enumerate(value):
            yield from walk_tensors(item, f"{key}.{number}")


def train_in_each_precision(settings: Settings) -> Iterator[Row]:
    """Yield the losses of a tiny network that learns one batch, in each precision."""
    losses: dict[str, list[float]] = {}
    shape, steps = Shape(4), STEPS if settings.on_gpu else 10
    for name in ("32", *settings.precisions):
        options = [*settings.options, f"trainer.precision={name}"]
        config = compose_run("setr", "", "tiny", shape, options)
        torch.manual_seed(0)
        training = TrainingStep(config, shape)
        training.move_to(settings.device)
        across = torch.arange(shape.side, device=settings.device)
        mask = (across[:, None] + across) * (shape.classes + 1) // (2 * shape.side)
        training.batch["mask"] = mask.to(torch.uint8).expand(4, -1, -1).contiguous()
        training.batch["image"] = training.batch["mask"][:, None].float() - 1
        losses[name] = []
        for number in range(steps):
            torch.manual_seed(number)
            losses[name] += [training.step()] * (number % 10 == 9)
        row: Row = {"name": name, "losses": " ".join(f"{loss:.3f}" for loss in losses[name])}
        apart = abs(losses[name][-1] - losses["32"][-1]) / losses["32"][-1]
        yield row if apart <= APART else {**row, "problem": f"{apart:.0%} from float32's loss"}


def relative_difference(found: Tensor, wanted: Tensor) -> float:
    """Return the largest difference as a share of the largest wanted value."""
    return float((found - wanted).abs().max() / wanted.abs().max())
