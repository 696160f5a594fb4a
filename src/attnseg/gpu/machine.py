"""Sections of the acceptance run on the machine: rates, the largest batch, loaders."""

import gc
import os
import platform
import time
from collections.abc import Iterator

import torch

from attnseg.benchmark.machine import COPIED, Gemm
from attnseg.benchmark.timing import seconds
from attnseg.config.training import Config
from attnseg.errors import first_line
from attnseg.gpu.published import CARDS, find_card
from attnseg.gpu.settings import Row, Settings
from attnseg.gpu.training_step import PRODUCTS, Shape, TrainingStep, compose_run
from attnseg.nvml import find_driver
from attnseg.training.setup import set_up_training

LEAST_SHARE = 0.6  # of the data sheet's rate
LAUNCHES = 10_000
LOADING = 3.0  # seconds for each number of loader processes
LARGEST_SHARE = 0.95  # of a GPU's memory


def measure_rates(settings: Settings) -> Iterator[Row]:
    """Yield the device and its versions, and its rates of products, copies and launches."""
    versions = {"torch": torch.__version__, "python": platform.python_version()}
    if not settings.on_gpu:
        yield {"name": platform.processor() or "CPU", **versions}
    else:
        gpu = describe_gpu() | versions
        yield gpu
        if gpu.get("problem"):
            return
    device, gemm_size = torch.device(settings.device), None if settings.on_gpu else 256
    half = PRODUCTS[settings.precision]
    gemm = Gemm(device, [half], gemm_size)
    rates = {f"{name}, TFLOP/s": rate / 1e3 for name, rate in gemm.rates().items()}
    if settings.on_gpu:
        torch.backends.cuda.matmul.allow_tf32 = True
        rates["TF32, TFLOP/s"] = gemm.rate("float32") / 1e3
        torch.backends.cuda.matmul.allow_tf32 = False
    row: Row = {"name": "matrix products", **rates}
    card = find_card(torch.cuda.get_device_name()) if settings.on_gpu else None
    if card and rates[f"{half}, TFLOP/s"] < LEAST_SHARE * CARDS[card].half:
        row["problem"] = (
            f"below {LEAST_SHARE:.0%} of the {CARDS[card].half} of a {card}'s data sheet"
        )
    yield row
    source = torch.ones(
        COPIED if settings.on_gpu else COPIED >> 4, dtype=torch.uint8, device=device
    )
    target = torch.zeros_like(source)
    copy = min(seconds(lambda: target.copy_(source)) for _ in range(5))
    one = torch.ones((), device=device)

    def launch() -> None:
        for _ in range(LAUNCHES):
            one.add_(1)

    copied = 2e-9 * len(source) / copy
    yield {"name": "memory", "GB/s": copied, "launch, us": 1e6 * seconds(launch) / LAUNCHES}


def describe_gpu() -> Row:
    """Return the GPU, its driver, and what PyTorch is built for, with a problem if it fails."""
    driver = find_driver()
    row: Row = {"name": "GPU", "driver": driver.version if driver else "unknown"}
    row |= {"CUDA": torch.version.cuda or "none", "built for": " ".join(torch.cuda.get_arch_list())}
    try:
        torch.zeros(1, device="cuda").item()
    except RuntimeError as error:
        return {**row, "problem": first_line(error)}
    properties = torch.cuda.get_device_properties(0)
    row["name"] = properties.name
    row["capability"] = f"{properties.major}.{properties.minor}"
    row["memory, GiB"] = properties.total_memory / 2**30
    row["cuDNN"] = torch.backends.cudnn.version()
    return row


def measure_largest_batch(settings: Settings) -> Iterator[Row]:
    """Yield the largest batch in steps of a half, and its peak of memory."""
    for model, size in settings.models.items():
        config = compose_run(model, "", size, settings.shape, settings.options)
        limit = torch.cuda.get_device_properties(0).total_memory if settings.on_gpu else 1 << 30
        largest, peak, batch = 0, 0.0, settings.shape.batch
        while batch <= (1024 if settings.on_gpu else 4):
            try:
                peak_now = find_peak(config, Shape(batch, *settings.shape[1:]), settings)
            except torch.OutOfMemoryError:
                break
            if peak_now > LARGEST_SHARE * limit:
                break
            largest, peak, batch = batch, peak_now, batch * 3 // 2
        row = {"name": model, "largest batch": largest, "peak, GiB": peak / 2**30}
        yield row if largest else {**row, "problem": "the usual batch does not fit"}


def find_peak(config: Config, shape: Shape, settings: Settings) -> float:
    """Return the peak of memory of the second step, bytes; 0 on a CPU."""
    gc.collect()
    if settings.on_gpu:  # A step that ran out of memory has left its peak and its blocks.
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    training = TrainingStep(config, shape)
    training.move_to(settings.device)
    for _ in range(2):
        training.step()
    return float(torch.cuda.max_memory_allocated()) if settings.on_gpu else 0.0


def measure_loaders(settings: Settings) -> Iterator[Row]:
    """Yield the training slices per second that loader processes deliver."""
    side = 224 if settings.on_gpu else 64
    cores = os.cpu_count() or 1
    workers = sorted({min(cores, count) for count in (4, 8, 16)}) if settings.on_gpu else [1]
    for augment in ("light", "strong"):
        for count in workers:
            options = [*settings.options, f"augment={augment}", f"trainer.num_workers={count}"]
            options += ["experiment=smoke", f"dataset.image_size=[{side},{side}]"]
            config = compose_run("setr", "", "tiny", Shape(4, 1, side), options)
            loader = set_up_training(config).loaders.train_dataloader()
            sum(len(batch["image"]) for batch in loader)  # The processes start.
            read, started = 0, time.perf_counter()
            while (taken := time.perf_counter() - started) < LOADING:
                read += sum(len(batch["image"]) for batch in loader)
            yield {"name": f"{augment}, {count} processes", "slices/s": read / taken}
