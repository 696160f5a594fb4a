"""Trains a small network on a probe and scores it: a cell of the chart."""

import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from attnseg.config.budget import build_model
from attnseg.config.nodes import Component
from attnseg.config.training import Model
from attnseg.explain.attention_pictures import weights_as_image
from attnseg.explain.evidence import measure_evidence_share
from attnseg.explain.jacobian import derive_weights
from attnseg.explain.recording import AnyRecord, AttentionRecord, record_attentions
from attnseg.layers.vit import PatchTokens, set_sine_positions
from attnseg.models.model import SegmentationModel
from attnseg.probes.probe import Pictures, Probe, find_probe
from attnseg.probes.skeleton import Skeleton

SOLVED = 0.94  # share of the way from chance to the ceiling at which a training ends
AT_CHANCE = 0.05  # of a score above chance
CHECK_STEPS = 50  # steps between two scorings of validation pictures
VALIDATED = 128  # pictures of each of them
DRAWN = 8  # batches of pictures drawn at a time
MAPPED = 8  # pictures whose attention maps are held against the evidence
SHOWN_SCORE = 0.9  # least score of a picture that is shown as a success; failures have less


@dataclass(frozen=True)
class Subject:
    """An attention in a model.

    Attributes:
        name: name of the choice of `attn`.
        model: the model, whose `match` is resolved.
        attn: the attention; `None` if the model has none.
    """

    name: str
    model: Model
    attn: Component | None


@dataclass(frozen=True)
class Cell:
    """A training, and everything that its result depends on.

    Attributes:
        subject: attention and model.
        probe: name of the probe.
        seed: of the initial weights and of the training pictures.
        skeleton: how it is trained.
        enlarge: side of the square of pixels that each pixel of the probe becomes.
        may_give_up: whether the training ends at half of its steps if it is still at chance.
        device: `cpu` or `cuda`.
        precision: `32` or `bf16-mixed`.
    """

    subject: Subject
    probe: str
    seed: int
    skeleton: Skeleton
    enlarge: int = 1
    may_give_up: bool = False
    device: str = "cpu"
    precision: str = "32"


@dataclass(frozen=True)
class CellResult:
    """The result of a training.

    Attributes:
        facts: for a JSON file: scores and the like, and, for its readers only, how the training
            ended, the layer that looks most at the evidence, and how far from 1 weights sum.
        pictures: arrays of a failure, and of a success with an attention map.
    """

    facts: dict[str, Any]
    pictures: dict[str, NDArray[Any]]


def run_cell(cell: Cell) -> CellResult:
    """Train and score a cell; the same cell has the same result on the same machine."""
    started = time.monotonic()
    torch.manual_seed(cell.seed)
    probe = find_probe(cell.probe)
    size = (probe.size[0] * cell.enlarge, probe.size[1] * cell.enlarge)
    classes = len(probe.classes) + 1
    net = build_model(cell.subject.model, cell.subject.attn, 1, classes, size).to(cell.device)
    for module in net.modules():
        # From small random numbers, it takes most of the steps to learn to tell places apart.
        if isinstance(module, PatchTokens):
            set_sine_positions(module)
    curve, ending = _train(cell, probe, net)
    net.eval()
    levels: tuple[int | None, ...] = probe.levels or (None,)
    scores, test = {}, {}
    for level in levels:
        test[level] = probe.pictures(cell.skeleton.tested, 0, level, "test")
        predicted = predict_classes(cell, net, test[level].images)
        scores[level] = probe.score(predicted, test[level].labels)
        if level == levels[-1]:
            pictures = _choose_pictures(cell, probe, net, test[level], predicted)
    scored = [scores[level] for level in (probe.scored or levels)]
    share, uniform, layer = _measure_maps(cell, probe, net, test[levels[-1]])
    facts = {
        "score": float(np.mean(scored)),
        "levels": {str(level): score for level, score in scores.items() if level is not None},
        "curve": curve,
        "ending": ending,
        "evidence_share": share,
        "uniform_share": uniform,
        "evidence_layer": layer,
        "unnormalised": _measure_sums(cell, probe, net, test[levels[-1]]),
        "seconds": round(time.monotonic() - started, 2),
    }
    return CellResult(facts, pictures)


def _train(cell: Cell, probe: Probe, net: SegmentationModel) -> tuple[list[tuple[int, float]], str]:
    """Train until the steps are used up, or the answer is clear.

    Returns:
        Validation scores by step; and `solved`, `gave up` or `finished`.
    """
    plan, curve = cell.skeleton, []
    optimizer = torch.optim.AdamW(net.parameters(), plan.learning_rate, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate(step, plan))
    validation = probe.pictures(VALIDATED, 0, None, "val")
    solved = probe.chance + SOLVED * (probe.ceiling - probe.chance)
    for step in range(plan.steps):
        batch = step % DRAWN
        if batch == 0:
            number = cell.seed * 100_000 + step // DRAWN
            drawn = probe.pictures(DRAWN * plan.batch, number, None, "train")
        own = slice(batch * plan.batch, (batch + 1) * plan.batch)
        images = _enlarge(drawn.images[own], cell)
        labels = _enlarge(drawn.labels[own][:, None], cell)[:, 0]
        with torch.autocast(cell.device, torch.bfloat16, cell.precision != "32"):
            outputs = net.train().training_outputs(images)
        progress = step / plan.steps
        losses = [_weighted_loss(output.float(), labels, progress) for output in outputs]
        optimizer.zero_grad()
        torch.stack(losses).sum().backward()
        nn.utils.clip_grad_norm_(net.parameters(), plan.clip)
        optimizer.step()
        schedule.step()
        if (step + 1) % CHECK_STEPS == 0 or step + 1 == plan.steps:
            predicted = predict_classes(cell, net.eval(), validation.images)
            score = probe.score(predicted, validation.labels)
            curve.append((step + 1, score))
            if score >= solved:
                return curve, "solved"
            hopeless = 2 * (step + 1) >= plan.steps and score <= probe.chance + AT_CHANCE
            if cell.may_give_up and hopeless and step + 1 < plan.steps:
                return curve, "gave up"
    return curve, "finished"


def _rate(step: int, plan: Skeleton) -> float:
    rise = min(1.0, (step + 1) / plan.warmup)
    return rise * (0.5 + 0.5 * float(np.cos(np.pi * step / plan.steps)))


def _weighted_loss(logits: Tensor, labels: Tensor, progress: float) -> Tensor:
    """Return the cross-entropy; at first rare classes weigh more, at last all pixels the same.

    The weight of a class is the number of its pixels to the power of -1/2, which rises to 0.
    """
    counts = torch.stack([(labels == k).sum() for k in range(logits.shape[1])]).clamp_min(1)
    weights = counts.float() ** (progress / 2 - 0.5)
    # A weighted mean by hand: that of `cross_entropy` has no deterministic gradient on GPUs.
    chosen = F.one_hot(labels, logits.shape[1]).movedim(3, 1) * weights[:, None, None]
    return -(chosen * logits.log_softmax(1)).sum() / chosen.sum()


def _enlarge(array: NDArray[Any], cell: Cell) -> Tensor:
    """Return pictures or labels `[N, 1, H, W]` as a tensor, each pixel a square of pixels."""
    tensor = torch.from_numpy(np.ascontiguousarray(array)).to(cell.device)
    return tensor.repeat_interleave(cell.enlarge, 2).repeat_interleave(cell.enlarge, 3)


@torch.inference_mode()
def predict_classes(
    cell: Cell, net: SegmentationModel, images: NDArray[np.float32]
) -> NDArray[np.int64]:
    """Return the predicted class of each pixel of a probe's pictures, `[N, H, W]`."""
    predicted = []
    for start in range(0, len(images), 64):
        logits = net(_enlarge(images[start : start + 64], cell))
        middle = cell.enlarge // 2
        predicted.append(logits.argmax(1)[:, middle :: cell.enlarge, middle :: cell.enlarge].cpu())
    return torch.cat(predicted).numpy()


def _choose_pictures(
    cell: Cell,
    probe: Probe,
    net: SegmentationModel,
    test: Pictures,
    predicted: NDArray[np.int64],
) -> dict[str, NDArray[Any]]:
    """Return the worst picture, if it failed, and the best, if it succeeded, with its map."""
    singles = [
        probe.score(predicted[n : n + 1], test.labels[n : n + 1]) for n in range(len(predicted))
    ]
    worst, best = int(np.argmin(singles)), int(np.argmax(singles))
    shown: dict[str, NDArray[Any]] = {}
    for kind, at in (("failure", worst), ("success", best)):
        if (singles[at] >= SHOWN_SCORE * probe.ceiling) == (kind == "success"):
            shown[f"{kind}_image"] = np.asarray((test.images[at, 0] + 1) * 127.5, np.uint8)
            shown[f"{kind}_labels"] = test.labels[at].astype(np.uint8)
            shown[f"{kind}_predicted"] = predicted[at].astype(np.uint8)
    if "success_image" in shown:
        answers = np.isin(test.labels[best], probe.deciding)
        pixels = np.argwhere(answers)
        point = tuple(pixels[((pixels - pixels.mean(0)) ** 2).sum(1).argmin()].tolist())
        shown["success_point"] = np.array(point)
        found = _draw_map(cell, net, test, best, point, answers)
        if found is not None:
            shown["success_map"] = found
    return shown


def _draw_map(
    cell: Cell,
    net: SegmentationModel,
    test: Pictures,
    at: int,
    point: tuple[int, ...],
    answers: NDArray[np.bool_],
) -> NDArray[np.float16] | None:
    """Return the map of a pixel's token in the layer that looks most at the evidence."""
    best, image = -1.0, None
    shape = (answers.shape[0], answers.shape[1])
    for record in _record(cell, net, test, at).values():
        measured = measure_evidence_share(record, answers, test.evidence[at])
        if measured is None or float(measured.heads.max()) <= best:
            continue
        best = float(measured.heads.max())
        weights = derive_weights(record, record.token_at((point[0], point[1]), shape)).shares
        on_grid = weights.float().numpy()[:, record.layout.key_prefix :]
        drawn = weights_as_image(on_grid, record, shape)
        image = np.asarray(drawn / max(float(drawn.max()), 1e-12), np.float16)
    return image


def _measure_maps(
    cell: Cell, probe: Probe, net: SegmentationModel, test: Pictures
) -> tuple[float | None, float | None, str | None]:
    """Return the share of attention on the evidence, of the layer and head with the largest.

    It is averaged over pictures, for each layer and head, before the largest is taken. The share of
    uniform weights and the layer's name follow.
    """
    shares: dict[str, list[NDArray[np.float32]]] = {}
    uniform: dict[str, list[float]] = {}
    for at in range(min(MAPPED, len(test.images))):
        answers = np.isin(test.labels[at], probe.deciding)
        for name, record in _record(cell, net, test, at).items():
            measured = measure_evidence_share(record, answers, test.evidence[at])
            if measured is not None:
                shares.setdefault(name, []).append(measured.heads.numpy())
                uniform.setdefault(name, []).append(measured.uniform)
    means = {name: float(np.nan_to_num(np.mean(heads, 0)).max()) for name, heads in shares.items()}
    if not means:
        return None, None, None
    best = max(means, key=lambda name: means[name] - float(np.mean(uniform[name])))
    return means[best], float(np.mean(uniform[best])), best


def _measure_sums(cell: Cell, probe: Probe, net: SegmentationModel, test: Pictures) -> float | None:
    """Return how far from 1 the weights of a token with an answer sum, where they should be 1."""
    row, column = np.argwhere(np.isin(test.labels[0], probe.deciding))[0]
    apart = []
    for record in _record(cell, net, test, 0).values():
        if isinstance(record, AttentionRecord) and record.mix.averages:
            token = record.token_at((int(row), int(column)), test.labels.shape[1:])
            sums = derive_weights(record, token).weights.sum(1)
            apart.append(float((sums - 1).abs().max()))
    return max(apart, default=None)


def _record(cell: Cell, net: SegmentationModel, test: Pictures, at: int) -> dict[str, AnyRecord]:
    return record_attentions(net, _enlarge(test.images[at : at + 1], cell))
