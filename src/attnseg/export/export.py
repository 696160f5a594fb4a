"""The `export` command: writes a run as ONNX, 8-bit ONNX, torch.export and safetensors files."""

import contextlib
import importlib.util
import io
import json
import logging
import math
import re
import statistics
import tempfile
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from torch import nn
from torch.export import Dim, ExportedProgram

from attnseg.data.slicing import network_input
from attnseg.errors import AttnsegError, CheckpointError, ConfigError, first_line, require
from attnseg.evaluation.evaluate import FinishedRun, build_profiles
from attnseg.evaluation.scoring import score_cases
from attnseg.export.options import Export
from attnseg.files import file_digest, replacing, write_text
from attnseg.layers.factored import fuse_factors
from attnseg.metrics.profiles.profile import Profile
from attnseg.prediction.exported import FACTS, INT8, ONNX, SPEC
from attnseg.prediction.network import Network
from attnseg.prediction.onnx import OnnxNetwork
from attnseg.prediction.segment import Member, Segmenter
from attnseg.prediction.spec import InferenceSpec
from attnseg.progress import Bar
from attnseg.runs.reopen import TorchNetwork, load_model, read_spec
from attnseg.runs.run_folder import RunFolder

log = logging.getLogger(__name__)

Images = NDArray[np.float32]
TOLERANCE = 1e-4  # largest difference of logits between PyTorch and an export
SLICES = 8  # that the comparison uses
REPEATS = 30  # of each timing
TORCH, SAFETENSORS, ARGUMENTS = "model.pt2", "weights.safetensors", "weights.json"
NEEDED = ("onnx", "onnxscript", "onnxruntime")


@dataclass(frozen=True)
class Samples:
    """The images that exports are compared on.

    Attributes:
        images: `[B, C, H, W]` in [-1, 1].
        source: description of where they are from, for messages.
        finished: the run with its data; `None` if the data are not on this machine.
    """

    images: Images
    source: str
    finished: FinishedRun | None


def export(config: Export) -> Path:
    """Export a run in the configured formats; write `RUN/export/`, print a table.

    Returns:
        The folder.

    Raises:
        ConfigError: not a finished run, or an operator that cannot be exported.
        CheckpointError: an exported network computes other logits; its file is not kept.
    """
    if "onnx" in config.formats:
        require("formats", "export", *NEEDED, otherwise="leave onnx out")
    run = RunFolder(config.run)
    spec, model = read_spec(run), load_model(run)
    samples = choose_samples(run, spec, config)
    folder = run.export
    folder.mkdir(exist_ok=True)
    # An earlier export is removed, its facts first, so that they never describe missing files.
    for name in (FACTS, ONNX, INT8, TORCH, SAFETENSORS, ARGUMENTS):
        (folder / name).unlink(missing_ok=True)
    write_text(folder / SPEC, spec.to_json())
    if "safetensors" in config.formats:
        write_safetensors(folder, run, spec, model)
    steps = 1 + len({"torch", "onnx"} & set(config.formats)) + config.int8
    with Bar("Exporting", steps, "steps") as bar:
        networks = write_networks(folder, spec, model, samples, config, bar)
    facts: dict[str, Any] = {
        "run": spec.run,
        "compared_on": samples.source,
        "tolerance": TOLERANCE,
        "differences": {
            name: largest_difference(networks["PyTorch"], network, samples.images)
            for name, network in networks.items()
            if name != "PyTorch"
        },
        "milliseconds": measure_latencies(networks, samples.images[:1]),
        "threads": torch.get_num_threads(),
    }
    if config.int8:
        (profile,) = build_profiles(config.profile)
        facts["validation"] = score_networks(networks, samples, profile, spec)
    packages = ("attnseg", "torch", *NEEDED)
    installed = [name for name in packages if importlib.util.find_spec(name) is not None]
    facts["versions"] = {name: version(name) for name in installed}
    facts["files"] = {
        path.name: {"sha256": file_digest(path), "bytes": path.stat().st_size}
        for path in sorted(folder.iterdir())
    }
    print_export(facts, folder, list(networks))
    write_text(folder / FACTS, json.dumps(facts, indent=1, allow_nan=False) + "\n")
    log.info("Written: %s", folder)
    return folder


def write_networks(
    folder: Path, spec: InferenceSpec, model: nn.Module, samples: Samples, config: Export, bar: Bar
) -> dict[str, Network]:
    """Write the network as torch.export and ONNX files, as configured; advance the bar.

    Returns:
        Every form of the network by name, PyTorch's own first.
    """
    threads = torch.get_num_threads()
    networks: dict[str, Network] = {"PyTorch": TorchNetwork(model)}
    if not {"torch", "onnx"} & set(config.formats):
        return networks
    program = trace_model(model, (spec.in_channels, *spec.size))
    bar.advance("traced")
    if "torch" in config.formats:
        networks["torch.export"] = TorchNetwork(program.module())
        check_same_logits("torch", networks, "torch.export", samples)
        write_bytes(folder / TORCH, program_bytes(program))
        bar.advance("torch.export")
    if "onnx" in config.formats:
        data = onnx_bytes(program)
        networks["ONNX"] = OnnxNetwork(data, threads, spec, ONNX)
        check_same_logits("onnx", networks, "ONNX", samples)
        write_bytes(folder / ONNX, data)
        bar.advance("ONNX")
        if config.int8:
            write_bytes(folder / INT8, quantise_onnx(folder / ONNX))
            networks["ONNX int8"] = OnnxNetwork(folder / INT8, threads, spec)
            bar.advance("ONNX int8")
    return networks


def choose_samples(run: RunFolder, spec: InferenceSpec, config: Export) -> Samples:
    """Return slices of the validation cases, or made-up images if the data are not here."""
    try:
        finished = FinishedRun(run, config)
    except AttnsegError as error:
        log.warning("The run's data are not here (%s): compared on made-up images", error)
        if config.int8:
            raise ConfigError(
                "int8: the Dice it costs is measured on the validation data, which are not here; "
                "give them as root=DIR, or int8=false"
            ) from error
        return Samples(make_images(spec, SLICES), f"{SLICES} made-up images", None)
    slices = [(case, index) for case in finished.data.val for index in range(case.shape[0])]
    chosen = np.linspace(0, len(slices) - 1, min(SLICES, len(slices))).round().astype(int)
    images = [network_input(spec.view.image(*slices[at])) for at in chosen]
    return Samples(np.stack(images), f"{len(images)} validation slices", finished)


def make_images(spec: InferenceSpec, count: int) -> Images:
    """Return made-up images `[count, C, H, W]` in [-1, 1], the same every time.

    They show soft blobs, so that a network has something to segment.
    """
    rng = np.random.default_rng(0)
    height, width = spec.size
    y, x = np.mgrid[0 : 1 : complex(height), 0 : 1 : complex(width)]
    shape = (count, spec.in_channels, 12, 1, 1)
    centre_y, centre_x, radius, light = (rng.random(shape) for _ in range(4))
    distance = (y - centre_y) ** 2 + (x - centre_x) ** 2
    blobs = (light * np.exp(-distance / (0.02 + 0.1 * radius) ** 2)).sum(2)
    return np.asarray(np.clip(blobs, 0, 1) * 2 - 1, np.float32)


def trace_model(model: nn.Module, image: tuple[int, int, int]) -> ExportedProgram:
    """Trace a model into one graph that takes any number of images; `image` is C, H, W of one.

    Gradients are enabled because KV+Pos then carries its bias as one more channel. Without them its
    bias is a mask, which the exporter would store for every block, tokens times tokens.
    """
    example, model = torch.zeros(2, *image), fuse_factors(model)
    try:
        with torch.enable_grad(), silenced_exporters():
            return torch.export.export(
                model, (example,), dynamic_shapes=({0: Dim("batch")},), strict=False
            )
    except Exception as error:  # The tracer passes on whatever a model raises.
        raise ConfigError(
            f"formats: the model cannot be traced ({first_line(error)[:200]}); use "
            "formats=safetensors"
        ) from error


def onnx_bytes(program: ExportedProgram) -> bytes:
    """Translate a program to ONNX; an operator without a translation is named in the error."""
    try:
        with silenced_exporters():
            translated = torch.onnx.export(
                program,
                (),
                dynamo=True,
                input_names=["images"],
                output_names=["logits"],
                external_data=False,
                verbose=False,
            )
            assert translated is not None
            return bytes(translated.model_proto.SerializeToString())
    except Exception as error:  # Its errors have several base classes.
        match = re.search(
            r"(?:aten|prims|\w+)(?:\.|::)\w+(?:\.\w+)?(?=[\s'\"\],)>])", join_causes(error)
        )
        operator = match[0] if match else first_line(error)[:200]
        raise ConfigError(
            f"formats: onnx cannot express {operator} of this model; leave onnx out of formats"
        ) from error


def join_causes(error: BaseException) -> str:
    """Return the messages of an exception and all its causes, the first cause first."""
    messages: list[str] = []
    cause: BaseException | None = error
    while cause is not None:
        messages.insert(0, str(cause))
        cause = cause.__cause__ or cause.__context__
    return "\n".join(messages)


def program_bytes(program: ExportedProgram) -> bytes:
    """Return a program as `torch.export.load` reads it."""
    buffer = io.BytesIO()
    with silenced_exporters():
        torch.export.save(program, buffer)
    return buffer.getvalue()


@contextlib.contextmanager
def silenced_exporters() -> Iterator[None]:
    """Suppress the exporters' warnings about themselves."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)


def quantise_onnx(path: Path) -> bytes:
    """Return an ONNX model whose matrix products have 8-bit weights and inputs.

    Convolutions stay as they are, because their 8-bit kernels on CPUs are slower.
    """
    from onnxruntime.quantization import QuantType, quantize_dynamic

    temporary = tempfile.TemporaryDirectory(dir=path.parent, prefix=".int8-")
    with temporary as folder, silenced_exporters():
        target = Path(folder, INT8)
        root = logging.getLogger()
        level = root.level
        # It advises a preparation that dynamic quantisation does not need.
        root.setLevel(logging.ERROR)
        try:
            quantize_dynamic(
                path,
                target,
                op_types_to_quantize=["MatMul", "Gemm"],
                per_channel=True,
                reduce_range=True,  # 7 bits: without VNNI, sums of 8-bit products overflow.
                weight_type=QuantType.QInt8,
            )
        finally:
            root.setLevel(level)
        return target.read_bytes()


def write_safetensors(folder: Path, run: RunFolder, spec: InferenceSpec, model: nn.Module) -> None:
    """Write the weights, and to `weights.json` the arguments that the model is built with."""
    arguments = {
        "model": run.raw_config["model"],
        "attn": run.raw_config["attn"],
        "in_channels": spec.in_channels,
        "num_classes": spec.labels.channels,
        "image_size": spec.size,
    }
    state = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    write_bytes(folder / SAFETENSORS, safetensors.torch.save(state))
    write_text(folder / ARGUMENTS, json.dumps(arguments, indent=1) + "\n")


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file atomically."""
    with replacing(path) as file:
        file.write(data)


def largest_difference(first: Network, second: Network, images: Images) -> float:
    """Return the largest difference of two networks' logits, in batches of 1, 2 and the rest."""
    largest = 0.0
    for batch in (images[:1], images[1:3], images[3:]):
        if len(batch):
            apart = float(np.abs(first(batch) - second(batch)).max())
            largest = max(largest, math.inf if math.isnan(apart) else apart)
    return largest


def check_same_logits(key: str, networks: dict[str, Network], name: str, samples: Samples) -> None:
    """Check that a network computes the logits that PyTorch does, up to the tolerance."""
    apart = largest_difference(networks["PyTorch"], networks[name], samples.images)
    if not apart <= TOLERANCE:
        raise CheckpointError(
            f"formats: {key}: logits differ from PyTorch's by {apart:.2g} on {samples.source}, "
            f"more than {TOLERANCE}; nothing was kept, leave {key} out of formats"
        )


def measure_latencies(networks: dict[str, Network], image: Images) -> dict[str, float]:
    """Return the median milliseconds of each network for one image, measured in alternation."""
    spent: dict[str, list[float]] = {name: [] for name in networks}
    for _ in range(REPEATS):
        for name, network in networks.items():
            started = time.perf_counter()
            network(image)
            spent[name].append(1e3 * (time.perf_counter() - started))
    return {name: round(statistics.median(times), 3) for name, times in spent.items()}


def score_networks(
    networks: dict[str, Network], samples: Samples, profile: Profile, spec: InferenceSpec
) -> dict[str, Any]:
    """Return each network's means of the profile's first metric over the validation cases."""
    assert samples.finished is not None  # `choose_samples` has refused int8 without data.
    cases = samples.finished.data.val
    scored: dict[str, Any] = {}
    metric, batch_size = profile.metrics[0], samples.finished.config.dataset.batch_size
    for name in ("PyTorch", "ONNX", "ONNX int8"):
        segmenter = Segmenter(spec.labels, [Member(networks[name], spec.view)], batch_size)
        scores = score_cases(segmenter, cases, [profile], f"val, {name}")
        means = profile.summarise(scores)[metric.name]
        scored[name] = {str(row): round(float(value), 6) for row, value in means.items()}
    return {
        "profile": profile.name,
        "digest": profile.digest,
        "metric": metric.name,
        "patients": len({case.patient for case in cases}),
        "cases": len(cases),
        "means": scored,
    }


def print_export(facts: dict[str, Any], folder: Path, names: list[str]) -> None:
    """Print size, difference from PyTorch and latency of each export."""
    files = {"torch.export": TORCH, "ONNX": ONNX, "ONNX int8": INT8}
    validation = facts.get("validation")
    table = Table()
    table.add_column("", no_wrap=True)
    for title in ("MB", "largest difference", "ms per image"):
        table.add_column(title, justify="right")
    if validation:
        table.add_column(f"val {validation['metric']}", justify="right")
    for name in names:
        size = facts["files"].get(files.get(name, SAFETENSORS), {}).get("bytes")
        apart = facts["differences"].get(name)
        row = [
            "-" if size is None else f"{size / 1e6:.2f}",
            "-" if apart is None else f"{apart:.1e}",
            f"{facts['milliseconds'][name]:.1f}",
        ]
        if validation:
            mean = validation["means"].get(name, {}).get("mean")
            row.append("-" if mean is None else f"{mean:.4f}")
        table.add_row(name, *row)
    console = Console()
    threads = f"{facts['threads']} thread" + ("s" if facts["threads"] > 1 else "")
    console.print(f"{folder}: compared on {facts['compared_on']}, {threads}", highlight=False)
    if validation:
        console.print(
            f"val: {validation['cases']} cases of {validation['patients']} patients, profile "
            f"{validation['profile']} ({validation['digest']})",
            highlight=False,
        )
    console.print(table)
