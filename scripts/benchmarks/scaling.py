"""Growth of the cost with tokens, with the batch, with cores, and with processes side by side."""

import multiprocessing
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure

from attnseg.api import list_attentions
from attnseg.benchmark.options import Benchmark
from attnseg.benchmark.report import Row
from attnseg.benchmark.timing import Sample, Work, alternate, median_and_range
from attnseg.benchmark.workload import Workload
from attnseg.config.build import build
from attnseg.config.components import attention_component

START = "spawn"  # a fork of a process with busy threads hangs
TOKENS = (196, 784, 3136)
WIDTH, HEADS = 768, 12  # of the attention measured alone: ViT-B's
COLUMNS = {
    "label": "what",
    "axis": "over",
    "at": "at",
    "ms": "ms",
    "images_per_s": "images/s",
}


def measure_scaling(
    config: Benchmark, device: torch.device, precisions: Sequence[str]
) -> list[Row]:
    """Measure each axis, all its points in alternation, in float32."""
    rows = measure_tokens(config, device) + measure_batches(config, device)
    if device.type == "cpu":
        rows += measure_threads(config, device) + measure_processes(config)
    return rows


def measure_tokens(config: Benchmark, device: torch.device) -> list[Row]:
    """Time every attention's forward pass on one item, by its number of tokens."""
    rows: list[Row] = []
    for number in TOKENS:
        x = torch.randn(1, number, WIDTH, device=device)
        works: dict[str, Work] = {}
        for name in list_attentions():
            attn = build("attn", attention_component(name), dim=WIDTH, num_heads=HEADS)
            works[name] = _forward(attn.to(device).eval(), x)
        for name, found in alternate(works, config.repeats).items():
            rows.append(
                {
                    "label": f"attention {name}",
                    "axis": "tokens",
                    "at": number,
                    "ms": median_and_range(1e3 * sample.seconds for sample in found),
                }
            )
    return rows


def _forward(attn: Any, x: torch.Tensor) -> Work:  # noqa: ANN401
    @torch.inference_mode()
    def work() -> None:
        attn(x, (1, x.shape[1]))

    return work


def measure_batches(config: Benchmark, device: torch.device) -> list[Row]:
    """Time a training step by its batch: 1, 2, 4, up to the configured one."""
    sizes = [2**i for i in range(config.batch_size.bit_length())]
    works = {size: Workload(config, device, batch_size=size).step for size in sizes}
    found = alternate(works, config.repeats)
    return [_images(config, "batch", size, size, found[size]) for size in sizes]


def measure_threads(config: Benchmark, device: torch.device) -> list[Row]:
    """Time a training step by PyTorch's threads: 1, 2, 4, up to all."""
    load, before = Workload(config, device), torch.get_num_threads()

    def step(threads: int) -> Work:
        def work() -> None:
            torch.set_num_threads(threads)
            load.step()

        return work

    counts = _powers(before)
    found = alternate({count: step(count) for count in counts}, config.repeats)
    torch.set_num_threads(before)
    return [_images(config, "threads", n, load.batch_size, found[n]) for n in counts]


def _images(
    config: Benchmark, axis: str, at: int, batch_size: int, samples: Sequence[Sample]
) -> Row:
    return {
        "label": f"{config.choices['model']}, training step",
        "axis": axis,
        "at": at,
        "ms": median_and_range(1e3 * sample.seconds for sample in samples),
        "images_per_s": median_and_range(batch_size / sample.seconds for sample in samples),
    }


def measure_processes(config: Benchmark) -> list[Row]:
    """Train in several processes at once, which share the cores: images per second of all."""
    cpus = torch.get_num_threads()
    rates: dict[int, list[float]] = {count: [] for count in _powers(cpus)}
    for count, found in rates.items():
        context = multiprocessing.get_context(START)
        barrier = context.Barrier(count)
        with ProcessPoolExecutor(
            count, context, initializer=_join, initargs=(barrier, max(1, cpus // count))
        ) as pool:
            spans = list(pool.map(_train, [config] * count))
        for begun in zip(*spans, strict=True):
            taken = max(end for _, end in begun) - min(start for start, _ in begun)
            found.append(count * config.batch_size / taken)
    return [
        {
            "label": f"{config.choices['model']}, training step",
            "axis": "processes",
            "at": count,
            "images_per_s": median_and_range(found),
        }
        for count, found in rates.items()
    ]


_barrier: Barrier | None = None  # of the processes that measure together


def _join(barrier: Barrier, threads: int) -> None:
    global _barrier
    _barrier = barrier
    torch.set_num_threads(threads)


def _train(config: Benchmark) -> list[tuple[float, float]]:
    """Train when all are ready; return begin and end of each step."""
    load = Workload(config, torch.device("cpu"))
    load.step()
    spans = []
    for _ in range(config.repeats):
        assert _barrier is not None
        _barrier.wait()
        started = time.monotonic()  # one clock for all processes
        load.step()
        spans.append((started, time.monotonic()))
    return spans


def _powers(most: int) -> list[int]:
    return sorted({*(2**i for i in range(most.bit_length())), most})


def plot_scaling(records: Sequence[Mapping[str, Any]], folder: Path) -> None:
    """Draw latency over tokens, and throughput over batch, threads and processes."""
    rows = [row for record in records for row in record["rows"]]
    axes = [axis for axis in ("tokens", "batch", "threads", "processes") if _any(rows, axis)]
    figure = Figure(figsize=(3.5 * len(axes), 3.5), dpi=100, layout="constrained")
    for panel, axis in zip(figure.subplots(1, len(axes), squeeze=False)[0], axes, strict=True):
        value, unit = ("ms", "forward, ms") if axis == "tokens" else ("images_per_s", "images/s")
        for label in dict.fromkeys(row["label"] for row in rows if row["axis"] == axis):
            points = [row for row in rows if (row["axis"], row["label"]) == (axis, label)]
            panel.plot(
                [row["at"] for row in points],
                [row[value]["median"] for row in points],
                marker="o",
                label=label.removeprefix("attention "),
            )
        panel.set_xscale("log", base=2)
        panel.set_xlabel(axis)
        panel.set_ylabel(unit)
        if axis == "tokens":
            panel.set_yscale("log")
            panel.legend(frameon=False, fontsize="small")
        else:
            panel.set_ylim(0)
    figure.savefig(folder / "scaling.png", metadata={"Software": None})


def _any(rows: Sequence[Mapping[str, Any]], axis: str) -> bool:
    return any(row["axis"] == axis for row in rows)
