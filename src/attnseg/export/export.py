"""The `export` command: ONNX, 8-bit ONNX, torch.export and safetensors files, MONAI bundles."""

import importlib.util
import json
import logging
import math
import shutil
import statistics
import tempfile
import time
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

from attnseg.data.slicing import network_input
from attnseg.errors import AttnsegError, CheckpointError, ConfigError, require
from attnseg.evaluation.evaluate import FinishedRun, build_profiles
from attnseg.evaluation.scoring import score_cases
from attnseg.export.model_card import read_text
from attnseg.export.monai_bundle import (
    BUNDLE,
    Terms,
    bundle_run,
    check_expressible,
    compare_masks,
)
from attnseg.export.options import Export
from attnseg.export.tracing import onnx_bytes, program_bytes, silenced_exporters, trace_model
from attnseg.files import file_digest, write_bytes, write_json, write_text
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
TRACED = {"torch", "monai", "onnx"}  # formats that hold the network as a graph
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
        ConfigError: not a finished run, an operator that cannot be exported, or a text file that
            cannot be read.
        CheckpointError: an exported network computes other logits; its file is not kept.
    """
    if "onnx" in config.formats:
        require("formats", "export", *NEEDED, otherwise="leave onnx out")
    run = RunFolder(config.run)
    spec, model = read_spec(run), load_model(run)
    if "monai" in config.formats:
        check_expressible(spec)
    terms = Terms(read_text("license", config.license), config.authors, config.copyright)
    samples = choose_samples(run, spec, config)
    folder = run.export
    folder.mkdir(exist_ok=True)
    remove_earlier(folder)
    write_text(folder / SPEC, spec.to_json())
    if "safetensors" in config.formats:
        write_safetensors(folder, run, spec, model)
    steps = 1 + len(TRACED & set(config.formats)) + config.int8
    with Bar("Exporting", steps, "steps") as bar:
        networks = write_networks(run, spec, model, samples, config, terms, bar)
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
    if "monai" in config.formats:
        facts["masks"] = check_bundle(folder / BUNDLE, spec, networks["PyTorch"], samples)
    if config.int8:
        (profile,) = build_profiles(config.profile)
        facts["validation"] = score_networks(networks, samples, profile, spec)
    packages = ("attnseg", "torch", *NEEDED)
    installed = [name for name in packages if importlib.util.find_spec(name) is not None]
    facts["versions"] = {name: version(name) for name in installed}
    facts["files"] = {
        path.relative_to(folder).as_posix(): {
            "sha256": file_digest(path),
            "bytes": path.stat().st_size,
        }
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
    print_export(facts, folder, list(networks))
    write_json(folder / FACTS, facts)
    log.info("Written: %s", folder)
    return folder


def remove_earlier(folder: Path) -> None:
    """Remove an earlier export, its facts first, so that they never describe missing files."""
    for name in (FACTS, ONNX, INT8, TORCH, SAFETENSORS, ARGUMENTS):
        (folder / name).unlink(missing_ok=True)
    shutil.rmtree(folder / BUNDLE, ignore_errors=True)


def write_networks(
    run: RunFolder,
    spec: InferenceSpec,
    model: nn.Module,
    samples: Samples,
    config: Export,
    terms: Terms,
    bar: Bar,
) -> dict[str, Network]:
    """Write the network as torch.export and ONNX files and as a bundle; advance the bar.

    Returns:
        Every form of the network by name, PyTorch's own first.
    """
    threads, folder = torch.get_num_threads(), run.export
    networks: dict[str, Network] = {"PyTorch": TorchNetwork(model)}
    if not TRACED & set(config.formats):
        return networks
    program = trace_model(model, (spec.in_channels, *spec.size))
    bar.advance("traced")
    if exported := [key for key in ("torch", "monai") if key in config.formats]:
        networks["torch.export"] = TorchNetwork(program.module())
        check_same_logits(", ".join(exported), networks, "torch.export", samples)
        data = program_bytes(program)
        for key in exported:
            if key == "torch":
                write_bytes(folder / TORCH, data)
            else:
                bundle_run(folder / BUNDLE, run, spec, data, program.state_dict, terms)
            bar.advance(key)
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


def check_bundle(
    folder: Path, spec: InferenceSpec, network: Network, samples: Samples
) -> dict[str, Any]:
    """Compare a bundle's masks of one scan with those of `attnseg predict`.

    The scan is the first validation case, or a made-up one that is larger than the network's input.

    Raises:
        CheckpointError: they differ, or MONAI cannot run the bundle; it is not kept.
    """
    if samples.finished is not None:
        case = samples.finished.data.val[0]
        image, source = np.array(case.image), f"validation case {case.case}"
        affine = np.diag([*(case.spacing or (1.0, 1.0, 1.0))[::-1], 1.0])
        if case.affine is not None:
            affine = np.array(case.affine)
    else:
        size = (spec.size[0] * 5 // 4, spec.size[1] * 5 // 4)
        image = make_images(spec.model_copy(update={"size": size}), SLICES)[:, : spec.channels]
        low, high = spec.window or (0.0, 1000.0)
        image = low + (np.moveaxis(image, 1, -1) + 1) / 2 * np.float32(high - low)
        affine, source = np.diag([1.0, 1.0, 3.0, 1.0]), "a made-up scan"
    try:
        differing, voxels = compare_masks(folder, spec, network, image, affine)
    except CheckpointError:
        shutil.rmtree(folder)
        raise
    return {"compared_on": source, "voxels": voxels, "differing": differing}


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
    if masks := facts.get("masks"):
        console.print(
            f"{folder / BUNDLE}: {masks['differing']} of {masks['voxels']} voxels differ from the "
            f"masks of attnseg predict, {masks['compared_on']}",
            highlight=False,
        )
