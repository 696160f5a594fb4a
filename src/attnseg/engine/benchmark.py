"""What variants cost: measured one by one, collected in tables and plots."""

import json
import logging
import platform
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import pandas as pd
import torch
from matplotlib.figure import Figure
from torch import nn

from attnseg.api import attention_component
from attnseg.engine import cost
from attnseg.engine.budget import build_model
from attnseg.engine.build import build
from attnseg.engine.schema import Benchmark, Component
from attnseg.errors import ConfigError
from attnseg.files import write_text
from attnseg.models.model import SegmentationModel

log = logging.getLogger(__name__)

ATTENTION_WIDTH, ATTENTION_HEADS = 768, 12  # of the attention measured alone: ViT-B's
MARKERS = "ovDPX^*<>"
COLUMNS = {
    "model": "model",
    "size": "size",
    "attn": "attention",
    "parameters": "parameters",
    "macs": "MACs",
    "attention_macs": "of attention",
    "forward_ms": "forward, ms",
    "step_ms": "training step, ms",
    "forward_mib": "forward, MiB",
    "step_mib": "training step, MiB",
}


def benchmark(config: Benchmark) -> None:
    """Measure, write the record, and renew tables and plots of all records in the folder.

    Raises:
        ConfigError: the device is not there, or an option is wrong.
    """
    if config.device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("device: no GPU found on this machine; use device=cpu")
    device = torch.device(config.device)
    choices = config.choices
    variants = {choices["attn"]: config.attn}
    if config.against is not None:
        variants[config.against] = attention_component(config.against)
    image = (config.in_channels, *config.image_size)
    records: dict[str, dict[str, Any]] = {}
    steps: dict[str, tuple[Callable[[], object], Callable[[], object]]] = {}
    for name, attn in variants.items():
        torch.manual_seed(0)
        model = build_model(
            config.model, attn, config.in_channels, config.num_classes, config.image_size
        )
        closed, counted = cost.attention_macs(model, image)
        records[name] = {
            "model": choices["model"],
            "size": config.model.options.get("size", ""),
            "attn": name,
            "match": config.model.match,
            "image": list(image),
            "batch_size": config.batch_size,
            "repeats": config.repeats,
            "parameters": cost.parameters(model)["total"],
            "macs": cost.macs(model, image),
            "attention_macs": closed,
            "attention_macs_counted": counted,
            "machine": machine(device),
        }
        steps[name] = make_steps(config, model.to(device), device)
    gemm = cost.gemm_rate(device)
    for i, kind in enumerate(("forward", "step")):
        seconds = cost.times([pair[i] for pair in steps.values()], config.repeats)
        for record, taken in zip(records.values(), seconds, strict=True):
            record[f"{kind}_ms"] = 1e3 * median(taken)
            record[f"{kind}_ms_range"] = [1e3 * min(taken), 1e3 * max(taken)]
        for name, pair in steps.items():
            records[name][f"{kind}_mib"] = cost.transient_memory(pair[i]) / 2**20
        if config.against is not None:
            pairs = zip(*seconds, strict=True)
            records[choices["attn"]][f"{kind}_ratio"] = median(a / b for a, b in pairs)
    for name, record in records.items():
        record["gemm_gflops"] = gemm
        record["tokens_ms"] = {
            str(tokens): 1e3 * median(attention_seconds(variants[name], tokens, device, config))
            for tokens in config.tokens
        }
        folder = Path(config.outputs)
        folder.mkdir(parents=True, exist_ok=True)
        match = f"-{config.model.match}" if config.model.match else ""
        path = folder / f"{record['model']}-{record['size']}-{name}{match}.json"
        write_text(path, json.dumps(record, indent=1) + "\n")
        log.info(
            "%s %s, %s: %.2f M parameters, %.2f GMAC, forward %.1f ms, training step %.1f ms "
            "(batch %d; matrix product %.0f GFLOP/s)",
            record["model"],
            record["size"],
            name,
            record["parameters"] / 1e6,
            record["macs"] / 1e9,
            record["forward_ms"],
            record["step_ms"],
            config.batch_size,
            gemm,
        )
    if config.against is not None:
        record, base = records[choices["attn"]], records[config.against]
        log.info(
            "%s against %s, in alternation: forward %.3fx, training step %.3fx, "
            "memory of forward %.3fx, of step %.3fx",
            choices["attn"],
            config.against,
            record["forward_ratio"],
            record["step_ratio"],
            record["forward_mib"] / base["forward_mib"],
            record["step_mib"] / base["step_mib"],
        )
    summarise(Path(config.outputs))


def make_steps(
    config: Benchmark, model: SegmentationModel, device: torch.device
) -> tuple[Callable[[], object], Callable[[], object]]:
    """Return functions that run one forward pass without gradients, and one training step."""
    shape = (config.batch_size, config.in_channels, *config.image_size)
    images = torch.randn(shape, device=device)
    target = torch.randint(config.num_classes, (shape[0], *shape[2:]), device=device)
    loss: nn.Module = build("loss", config.loss, multilabel=False)
    loss.to(device)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4, momentum=0.9)

    def forward() -> None:
        model.eval()
        with torch.inference_mode():
            model(images)

    def step() -> None:
        model.train()
        optimizer.zero_grad()
        sum(loss(output, target) for output in model.training_outputs(images)).backward()
        optimizer.step()

    return forward, step


def attention_seconds(
    attn: Component, tokens: int, device: torch.device, config: Benchmark
) -> list[float]:
    """Time one forward pass of the attention alone on one item."""
    module = build("attn", attn, dim=ATTENTION_WIDTH, num_heads=ATTENTION_HEADS).to(device).eval()
    x = torch.randn(1, tokens, ATTENTION_WIDTH, device=device)
    with torch.inference_mode():
        (taken,) = cost.times([lambda: module(x, (1, tokens))], config.repeats)
    return taken


def machine(device: torch.device) -> dict[str, str | int]:
    """Return what the figures were measured on."""
    gpu = device.type == "cuda"
    return {
        "device": torch.cuda.get_device_name() if gpu else platform.processor() or "CPU",
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def summarise(folder: Path) -> None:
    """Write `benchmark.csv`, `benchmark.md` and plots of every record in a folder."""
    records = [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]
    table = pd.DataFrame(records)
    write_text(folder / "benchmark.csv", table.to_csv(index=False, lineterminator="\n"))
    lines = ["| " + " | ".join(COLUMNS.values()) + " |", "|" + "---|" * len(COLUMNS)]
    for record in records:
        cells = [_cell(key, record) for key in COLUMNS]
        lines.append("| " + " | ".join(cells) + " |")
    first, rates = records[0], [record["gemm_gflops"] for record in records]
    lines.append("")
    lines.append(
        f"Image {'x'.join(map(str, first['image']))}, batch {first['batch_size']}; medians and "
        f"ranges of {first['repeats']}; memory beyond weights; {first['machine']['device']}, "
        f"{first['machine']['threads']} threads, PyTorch {first['machine']['torch']}; a float32 "
        f"matrix product ran at {min(rates):.0f} to {max(rates):.0f} GFLOP/s beside the "
        "measurements."
    )
    write_text(folder / "benchmark.md", "\n".join(lines) + "\n")
    plot_pareto(records, folder / "pareto.png")
    if any(record["tokens_ms"] for record in records):
        plot_tokens(records, folder / "tokens.png")


def _cell(key: str, record: dict[str, Any]) -> str:
    value = record[key]
    if key.endswith("_ms"):
        low, high = record[f"{key}_range"]
        return f"{value:.0f} ({low:.0f} to {high:.0f})"
    if key == "parameters":
        return f"{value:,}"
    if "macs" in key:
        return f"{value / 1e9:.2f} G"
    return f"{value:.1f}" if isinstance(value, float) else str(value)


def plot_pareto(records: list[dict[str, Any]], path: Path) -> None:
    """Draw training step time over parameters: a colour per model, a marker per attention."""
    figure = Figure(figsize=(7.5, 4.5), dpi=100, layout="constrained")
    axis = figure.subplots()
    models = list(dict.fromkeys(record["model"] for record in records))
    attentions = list(dict.fromkeys(record["attn"] for record in records))
    for record in records:
        colour = f"C{models.index(record['model'])}"
        marker = MARKERS[attentions.index(record["attn"]) % len(MARKERS)]
        point = (record["parameters"] / 1e6, record["step_ms"])
        axis.scatter(*point, color=colour, marker=marker, alpha=0.8)
    for i, name in enumerate(models):
        axis.scatter([], [], color=f"C{i}", marker="s", label=name)
    for i, name in enumerate(attentions):
        axis.scatter([], [], color="grey", marker=MARKERS[i % len(MARKERS)], label=name)
    axis.set_xlabel("parameters, millions")
    axis.set_ylabel(f"training step, ms (batch {records[0]['batch_size']})")
    axis.set_yscale("log")
    figure.legend(loc="outside right center", frameon=False)
    figure.savefig(path, metadata={"Software": None})


def plot_tokens(records: list[dict[str, Any]], path: Path) -> None:
    """Draw the attention's latency over the number of tokens."""
    figure = Figure(figsize=(7, 4.5), dpi=100, layout="constrained")
    axis = figure.subplots()
    drawn = set()
    for record in records:
        if record["attn"] in drawn or not record["tokens_ms"]:
            continue
        drawn.add(record["attn"])
        tokens = [int(n) for n in record["tokens_ms"]]
        axis.plot(tokens, list(record["tokens_ms"].values()), marker="o", label=record["attn"])
    axis.set_xscale("log", base=2)
    axis.set_yscale("log")
    axis.set_xlabel("tokens")
    axis.set_ylabel(f"forward, ms (width {ATTENTION_WIDTH}, {ATTENTION_HEADS} heads)")
    axis.legend(frameon=False)
    figure.savefig(path, metadata={"Software": None})
