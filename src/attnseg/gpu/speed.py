"""Sections of the acceptance run on speed: single steps, compilation, throughput, evaluation."""

import math
import statistics
import time
from collections.abc import Callable, Iterator

import torch
from torch._dynamo.utils import counters

from attnseg.attention.fused import observe_kernels
from attnseg.benchmark.machine import Gemm
from attnseg.benchmark.timing import seconds
from attnseg.config import cost
from attnseg.gpu.settings import Row, Settings
from attnseg.gpu.training_step import PRODUCTS, Shape, TrainingStep, compose_run
from attnseg.runs.run_folder import RunFolder
from attnseg.training.lightning_trainer import deterministic_algorithms
from attnseg.training.precision import autocast
from attnseg.training.train import train

COMPILED = (
    ("setr", "kv_pos"), ("transunet", "kv_pos"), ("cvt", "kv_pos"), ("dae_former", "kv_pos"),
    ("dae_former", "efficient"), ("cvt", "transpose"),
)  # fmt: skip
LOSS_APART = 0.01  # share, compiled and not
DETERMINISM = 1.15  # the most that it may cost


def step_every_pair(settings: Settings) -> Iterator[Row]:
    """Yield loss and attention kernels of every tiny pair's first step, the time of its second."""
    for model, attn in settings.pairs:
        for precision in settings.precisions:
            options = [*settings.options, f"trainer.precision={precision}"]
            config = compose_run(model, attn, "tiny", Shape(), options)
            training = TrainingStep(config, Shape())
            training.move_to(settings.device)
            with observe_kernels() as kernels:
                loss = training.step()
            taken = seconds(training.step)
            row: Row = {"name": f"{model}/{attn}, {precision}", "ms": 1e3 * taken, "loss": loss}
            row["kernels"] = " ".join(kernels) or "none"
            if not math.isfinite(loss) or "math" in kernels:
                row["problem"] = "a loss that is not finite, or attention that keeps all scores"
            yield row


def compile_models(settings: Settings) -> Iterator[Row]:
    """Yield graph breaks, graphs and losses of compiled models, over batches of two sizes."""
    backend = "inductor" if settings.on_gpu else "aot_eager"
    for model, attn in COMPILED if settings.on_gpu else COMPILED[:1]:
        config = compose_run(model, attn, "tiny", Shape(), settings.options)
        torch.compiler.reset()
        counters.clear()
        torch.manual_seed(0)
        training = TrainingStep(config, Shape())
        training.move_to(settings.device)
        net = training.module.model
        torch.manual_seed(1)
        plain = float(training.compute_gradients(autocast(config.trainer)))
        compiled = torch.compile(net.training_outputs, backend=backend)
        setattr(net, "training_outputs", compiled)  # noqa: B010, mypy refuses to assign a method
        torch.manual_seed(1)
        started = time.perf_counter()
        loss = float(training.compute_gradients(autocast(config.trainer)))
        taken = time.perf_counter() - started
        for name in ("image", "mask", "case"):  # a shorter batch at the end
            training.batch[name] = training.batch[name][:1].repeat(
                1, *[1] * (training.batch[name].ndim - 1)
            )
        training.module.eval()
        with torch.no_grad():
            net.training_outputs(training.batch["image"])
        breaks = sum(counters["graph_break"].values())
        graphs = counters["stats"]["unique_graphs"]
        row: Row = {"name": f"{model}/{attn}", "s": taken, "breaks": breaks, "graphs": graphs}
        apart = abs(loss - plain) / plain
        row["difference of losses"] = apart
        # Dropout draws other numbers when it is compiled.
        if breaks or graphs > 3 or not (apart <= LOSS_APART or model == "transunet"):
            row["problem"] = "graphs that break or are compiled too often, or another loss"
        yield row


def measure_throughput(settings: Settings) -> Iterator[Row]:
    """Yield step times of published networks, strict and not, and compiled, and what they use."""
    half = PRODUCTS[settings.precision]
    gemm = Gemm(torch.device(settings.device), [half], None if settings.on_gpu else 256)
    for model, size in settings.models.items():
        options = [*settings.options, f"trainer.precision={settings.precision}"]
        config = compose_run(model, "", size, settings.shape, options)
        times: dict[str, float] = {}
        for mode in ("plain", "strict", "compiled") if settings.on_gpu else ("plain", "strict"):
            training = TrainingStep(config, settings.shape)
            training.move_to(settings.device)
            net = training.module.model
            work = 6 * settings.shape.batch * cost.count_macs(net, settings.shape.image)
            if mode == "compiled":
                setattr(net, "training_outputs", torch.compile(net.training_outputs))  # noqa: B010
            asked = config.trainer.model_copy(update={"deterministic": mode == "strict"})
            with deterministic_algorithms(asked):
                times[mode] = time_step(training.step, settings)
            row: Row = {"name": f"{model}, {mode}", "ms": 1e3 * times[mode]}
            row["images/s"] = settings.shape.batch / times[mode]
            row["share of the product's rate, %"] = work / times[mode] / gemm.rate(half) / 1e7
            if settings.on_gpu:
                row["peak, GiB"] = torch.cuda.max_memory_allocated() / 2**30
                torch.cuda.reset_peak_memory_stats()
            if (
                mode == "strict"
                and times["strict"] > DETERMINISM * times["plain"]
                and settings.on_gpu
            ):
                row["problem"] = f"{times['strict'] / times['plain']:.2f} times as long as without"
            yield row
            del training, net
            if settings.on_gpu:
                torch.cuda.empty_cache()


def time_step(step: Callable[[], float], settings: Settings) -> float:
    """Return the median time of a step after some to warm up, in seconds."""
    for _ in range(3 if settings.on_gpu else 1):
        step()
    return statistics.median(seconds(step) for _ in range(10 if settings.on_gpu else 2))


def measure_evaluation(settings: Settings) -> Iterator[Row]:
    """Yield the time in which a run without training scores its cases."""
    side = 224 if settings.on_gpu else 64
    options = [*settings.options, "experiment=smoke", "trainer.max_epochs=0"]
    config = compose_run("setr", "", "tiny", Shape(4, 1, side), options)
    facts = RunFolder(train(config)).facts
    yield {"name": "validation and test cases", "s": facts.seconds["evaluate"]}
