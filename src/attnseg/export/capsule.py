"""The `capsule` command: packs a finished run into a capsule."""

import contextlib
import io
import json
import logging
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from attnseg.config.errors import parse_options
from attnseg.errors import AttnsegError, ConfigError
from attnseg.export.export import export, make_images
from attnseg.export.model_card import NO_LICENCE, build_profile, read_text, render_model_card
from attnseg.export.options import Capsule, Export
from attnseg.files import write_bytes
from attnseg.prediction.capsule import (
    GOLDEN_INPUT,
    GOLDEN_OUTPUT,
    MODEL,
    SPEC,
    pack_capsule,
    verify_capsule,
)
from attnseg.prediction.exported import Exported
from attnseg.prediction.spec import InferenceSpec
from attnseg.runs.predictors import build_rules
from attnseg.runs.reopen import read_spec
from attnseg.runs.run_folder import RunFolder

log = logging.getLogger(__name__)

GOLDEN = 2  # images whose logits are stored for verification


def pack_run(config: Capsule) -> Path:
    """Pack a run into a capsule, verify the file, and return its path.

    Raises:
        ConfigError: not a finished run, or a text file that cannot be read.
        CheckpointError: the export does not compute what the run does.
    """
    run, output = RunFolder(config.run), Path(config.output)
    if output.suffix != ".zip":
        raise ConfigError(f"output: {output} is no .zip; name the file that is written")
    if not output.parent.is_dir():
        raise ConfigError(f"output: no folder {output.parent}; make it first")
    licence, use = read_text("license", config.license), read_text("use", config.use)
    if licence is None:
        log.warning("license: none given; the capsule will say that the weights have none")
    spec = read_spec(run)
    build_rules(config.postprocess, spec.classes)  # This refuses names of unknown classes.
    exported = open_export(run, spec)
    network = exported.network()
    images = make_images(spec, GOLDEN)
    parts = {
        MODEL: exported.read(MODEL),
        SPEC: spec.to_json().encode(),
        "postprocessing.json": as_json(config.postprocess.model_dump()),
        "profile.json": as_json(build_profile(run.raw_config).describe()),
        "metrics.json": as_json(run.metrics),
        "MODEL_CARD.md": render_model_card(run, spec, use).encode(),
        "LICENSE": (licence or NO_LICENCE).encode(),
        GOLDEN_INPUT: array_bytes(images),
        GOLDEN_OUTPUT: array_bytes(network(images)),
    }
    made = {"run": spec.run, "made_with": f"attnseg {version('attnseg')}"}
    write_bytes(output, pack_capsule(output, parts, made))
    verify_capsule(output)
    log.info("Written: %s, %.2f MB", output, output.stat().st_size / 1e6)
    return output


def open_export(run: RunFolder, spec: InferenceSpec) -> Exported:
    """Return a run's ONNX export; export the run first unless these weights were exported."""
    with contextlib.suppress(AttnsegError):
        exported = Exported(run.export)
        if exported.spec == spec:
            return exported
    log.info("Exporting to ONNX first")
    plain = {"choices": {}, "profile": {}, "run": str(run), "formats": ["onnx"], "int8": False}
    unset = dict.fromkeys(("license", "authors", "copyright", "root", "data"))
    export(parse_options(Export, {**plain, **unset}))
    return Exported(run.export)


def as_json(values: Mapping[str, Any]) -> bytes:
    """Encode values as JSON."""
    return (json.dumps(values, indent=1, allow_nan=False) + "\n").encode()


def array_bytes(array: NDArray[np.float32]) -> bytes:
    """Encode an array as `numpy.load` reads it."""
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    return buffer.getvalue()
