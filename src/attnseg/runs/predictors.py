"""Opens the networks that predict: runs by PyTorch or ONNX Runtime, or a capsule.

Torch is imported only if it runs the networks.
"""

import importlib.util
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

from attnseg.config.errors import nearest, parse_options
from attnseg.config.prediction import Postprocess, Predict
from attnseg.errors import ConfigError, DataError, require
from attnseg.prediction.folder import OutputOptions, check_specs_agree, segment_folder
from attnseg.prediction.network import Network
from attnseg.prediction.postprocess import Rule
from attnseg.prediction.segment import Member, Segmenter
from attnseg.prediction.spec import InferenceSpec
from attnseg.runs.run_folder import RunFolder, list_run_folders

log = logging.getLogger(__name__)

Number = TypeVar("Number", int, float)


def predict_as_configured(config: Predict) -> None:
    """Segment images with the networks that the options name.

    Raises:
        AttnsegError: what the person at the terminal can mend.
    """
    options = config.postprocess
    if config.capsule is not None:
        spec, network, postprocessing = open_capsule(config.capsule, config.threads)
        specs, networks = [spec], [network]
        if options == Postprocess():  # No option was given.
            options = parse_options(Postprocess, postprocessing)
    else:
        runs = list_voting_runs(config)
        if config.backend == "onnx":
            specs, networks = open_onnx_networks(runs, config.threads)
        else:
            specs, networks = open_torch_networks(runs, config.threads, config.device)
    spec = check_specs_agree(specs)
    rules = build_rules(options, spec.classes)
    members = [Member(network, own.view) for network, own in zip(networks, specs, strict=True)]
    segmenter = Segmenter(spec.labels, members, config.batch_size, config.flips, config.tiles)
    outputs = OutputOptions(
        rules, config.probabilities, config.uncertainty, config.overlays, config.output_type
    )
    backend = "onnx" if config.capsule is not None else config.backend
    gpus = None
    if backend == "torch" and config.device == "cuda":
        from attnseg.processes.gpus import name_open_gpu  # imports torch

        gpus = [name_open_gpu()]
    source, output = Path(config.input), Path(config.output)
    segment_folder(segmenter, specs, outputs, source, output, backend, gpus)


def list_voting_runs(config: Predict) -> list[RunFolder]:
    """Return the runs whose networks vote.

    Raises:
        ConfigError: a study without finished runs, or of several variants.
    """
    if config.study is None:
        runs = [config.run] if isinstance(config.run, str) else list(config.run or ())
        if len(set(runs)) < len(runs):
            raise ConfigError("run: the same folder twice; name each once")
        return [RunFolder(run) for run in runs]
    done, unfinished = [], 0
    for run in list_run_folders(Path(config.study)):
        try:
            variant = "{model} with {attn}".format(**run.facts.choices)
        except (DataError, KeyError) as error:
            raise ConfigError(
                f"{run.facts_file}: not readable; restore it or remove its folder"
            ) from error
        if run.facts.status == "done":
            done.append((variant, run))
        else:
            unfinished += 1
    if not done:
        raise ConfigError(f"study: no finished run below {config.study}; train some first")
    for variant, run in done:
        if variant != done[0][0]:
            raise ConfigError(
                f"study: {done[0][1]} is {done[0][0]} and {run} is {variant}; give the folder of "
                "one variant"
            )
    if unfinished:
        log.warning("%d runs below %s are not finished and left out", unfinished, config.study)
    log.info("%d runs vote", len(done))
    return [run for _, run in done]


def open_torch_networks(
    runs: Sequence[RunFolder], threads: int | None, device: str
) -> tuple[list[InferenceSpec], list[Network]]:
    """Return specs and PyTorch networks of runs.

    Raises:
        ConfigError: torch is not installed, or the runs do not fit each other.
        CheckpointError: weights are missing, damaged or do not fit.
    """
    if importlib.util.find_spec("torch") is None:
        raise ConfigError("backend: torch is not installed; use backend=onnx or install it")
    import torch

    from attnseg.runs.reopen import load_network, read_spec

    if threads is not None:
        torch.set_num_threads(threads)
    specs = [read_spec(run) for run in runs]
    check_specs_agree(specs)  # This comes before the weights are read.
    return specs, [load_network(run, device) for run in runs]


def open_onnx_networks(
    runs: Sequence[RunFolder], threads: int | None
) -> tuple[list[InferenceSpec], list[Network]]:
    """Return specs and ONNX networks of exported runs.

    Raises:
        ConfigError: ONNX Runtime is not installed, or a run was not exported.
        CheckpointError: a file is not the one that was exported.
    """
    require("backend", "predict", "onnx", "onnxruntime")
    from attnseg.prediction.exported import Exported

    exported = [Exported(run.export) for run in runs]
    specs = [export.spec for export in exported]
    return specs, [export.network(threads or 0) for export in exported]


def open_capsule(place: str, threads: int | None) -> tuple[InferenceSpec, Network, dict[str, Any]]:
    """Return a capsule's spec, its network, and its postprocessing options.

    Raises:
        ConfigError: ONNX Runtime is not installed.
        CheckpointError: not a capsule, damaged, or made to harm.
    """
    require("backend", "predict", "onnx", "onnxruntime")
    from attnseg.prediction.capsule import Capsule
    from attnseg.prediction.hub import fetch_capsule

    capsule = Capsule(fetch_capsule(place))
    network = capsule.network(threads or 0)
    return capsule.spec, network, capsule.values("postprocessing.json")


def build_rules(options: Postprocess, classes: Sequence[str]) -> dict[str, Rule]:
    """Return the postprocessing of each class.

    Raises:
        ConfigError: an option names a class that does not exist.
    """
    largest = options.largest_component
    named = largest if isinstance(largest, list) else list(classes) if largest else []
    for key in ("largest_component", "min_ml", "min_pixels"):
        names = getattr(options, key)
        for name in names if isinstance(names, list | dict) else ():
            if name not in classes:
                raise ConfigError(f"postprocess.{key}: no class {name!r}; {nearest(name, classes)}")
    return {
        name: Rule(
            name in named,
            _value_for(options.min_ml, name, 0.0),
            _value_for(options.min_pixels, name, 0),
        )
        for name in classes
    }


def _value_for(value: Number | dict[str, Number] | None, name: str, default: Number) -> Number:
    """Return a class's own value, or the one for all classes."""
    if isinstance(value, dict):
        return value.get(name, default)
    return default if value is None else value
