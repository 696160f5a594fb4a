"""MONAI bundles of finished runs: their weights, and transforms that do what prediction does."""

import json
import logging
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from numpy.typing import NDArray

from attnseg.data.labels import Masks
from attnseg.data.readers.nifti import PLANES, from_slices, to_slices
from attnseg.data.store import PERCENTILES
from attnseg.errors import CheckpointError, ConfigError, first_line
from attnseg.export.model_card import (
    NO_LICENCE,
    build_profile,
    render_model_card,
    render_template,
)
from attnseg.export.options import EXPRESSION
from attnseg.files import replacing, write_bytes, write_text
from attnseg.prediction.images import read_item
from attnseg.prediction.inputs import Item
from attnseg.prediction.network import Network
from attnseg.prediction.scan import Scan
from attnseg.prediction.segment import Member, Segmenter
from attnseg.prediction.spec import InferenceSpec
from attnseg.runs.run_folder import RunFolder

Node = dict[str, Any]
BUNDLE = "monai_bundle"  # folder below the other exports
PROGRAM, WEIGHTS = "models/model.pt2", "models/model.pt"
CONFIG, METADATA = "configs/inference.json", "configs/metadata.json"
RECIPE = "docs/recipe.json"
SCHEMA = (
    "https://github.com/Project-MONAI/MONAI-extra-test-data/releases/download/0.8.1/"
    "meta_schema_20240725.json"
)
VERSION = "1.0.0"
POSTFIX = "mask"
SLICES = 8  # at a time, as `attnseg predict` takes them
# Voxels whose masks may differ from those of `attnseg predict`, by rounding: a share, and a floor.
LARGEST_SHARE, FEWEST = 1e-5, 10
UNSTATED = "not stated; fill it in before you pass the bundle on"


@dataclass(frozen=True)
class Terms:
    """The terms on which a bundle is passed on; `None` for what is not stated.

    Attributes:
        license: text of the licence of the weights.
        authors: who made the network.
        copyright: who holds the rights in it.
    """

    license: str | None = None
    authors: str | None = None
    copyright: str | None = None


def check_expressible(spec: InferenceSpec) -> None:
    """Refuse a run that MONAI would read otherwise.

    Raises:
        ConfigError: the run segments pictures, or a name would be run as code.
    """
    if not spec.volumetric:
        raise ConfigError(
            "formats: monai: the run segments pictures, whose modes and orientation MONAI ignores; "
            "leave monai out and use attnseg capsule"
        )
    for name in spec.classes:
        if name.startswith(EXPRESSION):
            raise ConfigError(
                f"formats: monai: MONAI takes the class name {name!r} for an expression; leave "
                "monai out and use attnseg capsule"
            )


def write_bundle(
    folder: Path,
    program: bytes,
    weights: Mapping[str, torch.Tensor],
    spec: InferenceSpec,
    documents: Mapping[str, str],
    scores: Mapping[str, float],
    terms: Terms,
) -> None:
    """Write a MONAI bundle.

    Args:
        folder: of the bundle; it must not exist.
        program: the traced network, as `torch.export.load` reads it.
        weights: of the program, by name.
        spec: inference spec of the network, which `check_expressible` has accepted.
        documents: further texts, by their paths in the bundle.
        scores: results by name, for the metadata.
        terms: on which it is passed on.
    """
    for name in ("configs", "models", "docs"):
        (folder / name).mkdir(parents=True)
    write_bytes(folder / PROGRAM, program)
    with replacing(folder / WEIGHTS) as file:
        torch.save({name: value.detach().clone() for name, value in weights.items()}, file)
    nodes = {CONFIG: make_inference_config(spec), METADATA: make_metadata(spec, scores, terms)}
    texts = {name: json.dumps(node, indent=1, allow_nan=False) for name, node in nodes.items()}
    texts["docs/README.md"] = render_template("bundle_readme", spec=spec, postfix=POSTFIX)
    texts[RECIPE] = spec.to_json()
    texts["LICENSE"] = terms.license or NO_LICENCE
    for name, text in {**texts, **documents}.items():
        write_text(folder / name, text.rstrip("\n") + "\n")


def bundle_run(
    folder: Path,
    run: RunFolder,
    spec: InferenceSpec,
    program: bytes,
    weights: Mapping[str, torch.Tensor],
    terms: Terms,
) -> None:
    """Write the bundle of a run, with its model card and its mean results; see `write_bundle`."""
    profile, metrics = build_profile(run.raw_config), run.metrics
    split = "test" if "test" in metrics else "val"
    means = metrics.get(split, {}).get("mean", {})
    scores = {
        f"{split}: mean {profile.label(metric)}": means[metric.name]
        for metric in profile.metrics
        if metric.shown and means.get(metric.name) is not None
    }
    card = render_model_card(run, spec, None)
    write_bundle(folder, program, weights, spec, {"docs/MODEL_CARD.md": card}, scores, terms)


def make_inference_config(spec: InferenceSpec) -> Node:
    """Return the content of `configs/inference.json`.

    Its entries have the names that MONAI expects. `run` needs MONAI, PyTorch and nibabel;
    `evaluator` does the same by an engine of pytorch-ignite.
    """
    load = (
        "$torch.export.unflatten(torch.export.passes.move_to_device_pass("
        f"torch.export.load(@bundle_root + '/{PROGRAM}'), str(@device)))"
    )
    segment = (
        "$torch.no_grad()(lambda item: @postprocessing({**item, 'pred': "
        "@inferer(item['image'][None].to(@device), @network)[0]}))"
    )
    return {
        "imports": ["$import glob", "$import torch.export.passes"],
        "bundle_root": ".",
        "dataset_dir": "$@bundle_root + '/images'",
        "output_dir": "$@bundle_root + '/eval'",
        "datalist": "$sorted(glob.glob(@dataset_dir + '/*.nii*'))",
        "device": "$torch.device('cpu')",
        "network_def": load,
        "network": "$@network_def.to(@device).eval()",
        "preprocessing": {"_target_": "Compose", "transforms": make_preprocessing(spec)},
        "dataset": {
            "_target_": "Dataset",
            "data": "$[{'image': file} for file in @datalist]",
            "transform": "@preprocessing",
        },
        "dataloader": {"_target_": "DataLoader", "dataset": "@dataset", "batch_size": 1},
        "inferer": {
            "_target_": "SliceInferer",
            "spatial_dim": 0,
            "roi_size": list(spec.size),
            "sw_batch_size": SLICES,
        },
        "postprocessing": {"_target_": "Compose", "transforms": make_postprocessing(spec)},
        "segment": segment,
        "evaluator": {
            "_target_": "SupervisedEvaluator",
            "device": "@device",
            "val_data_loader": "@dataloader",
            "network": "@network",
            "inferer": "@inferer",
            "postprocessing": "@postprocessing",
        },
        "run": ["$sum(1 for i in range(len(@dataset)) if @segment(@dataset[i]))"],
        "evaluate": ["$@evaluator.run()"],
    }


def make_preprocessing(spec: InferenceSpec) -> list[Node]:
    """Return the transforms that turn a file into slices `[C, S, h, w]` in [-1, 1]."""
    axes = "".join("LPS"[axis] for axis in PLANES[spec.plane])
    transforms = [
        # Percentiles of 32-bit numbers would be of less precision than those of training.
        _transform("LoadImaged", reader="NibabelReader", dtype="$numpy.float64"),
        _transform("EnsureChannelFirstd"),
        _transform("Orientationd", axcodes=axes, labels=None),
    ]
    unit: Node = {"b_min": 0.0, "b_max": 1.0, "clip": True}
    if spec.window is None:
        transforms += [
            _transform(
                "ScaleIntensityRangePercentilesd",
                lower=PERCENTILES[0],
                upper=PERCENTILES[-1],
                channel_wise=True,
                **unit,
            ),
            # Where both percentiles are equal, the transform above does not clip.
            _transform("ScaleIntensityRanged", a_min=0.0, a_max=1.0, **unit),
        ]
    else:
        low, high = (float(np.float32(value)) for value in spec.window)
        transforms.append(_transform("ScaleIntensityRanged", a_min=low, a_max=high, **unit))
    transforms.append(_transform("Resized", spatial_size=[-1, *spec.size], mode="trilinear"))
    if spec.slices > 1:
        reach = spec.slices // 2 * spec.stride
        offsets = list(range(-reach, reach + 1, spec.stride))
        stack = (
            "$lambda image: torch.cat([image[:, torch.arange(offset, offset + image.shape[1])"
            f".clamp(0, image.shape[1] - 1)] for offset in {offsets}])"
        )
        transforms.append(_transform("Lambdad", func=stack))
    full: Node = {"a_min": 0.0, "a_max": 1.0, "b_min": -1.0, "b_max": 1.0}
    transforms.append(_transform("ScaleIntensityRanged", **full))
    return transforms


def make_postprocessing(spec: InferenceSpec) -> list[Node]:
    """Return the transforms that turn logits `[K, S, h, w]` into a file on the image's grid."""
    values = spec.values or tuple(range(1, len(spec.classes) + 1))
    dtype = f"$numpy.{np.min_scalar_type(max(values)).name}"
    invert = _transform(
        "Invertd",
        "pred",
        transform="@preprocessing",
        orig_keys="image",
        nearest_interp=False,
        to_tensor=True,
    )
    decide: Node = {"threshold": 0.0} if spec.multilabel else {"argmax": True}
    transforms = [invert, _transform("AsDiscreted", "pred", **decide)]
    if spec.values is not None:
        transforms.append(
            _transform(
                "MapLabelValued",
                "pred",
                orig_labels=list(range(len(values) + 1)),
                target_labels=[0, *values],
                dtype=dtype,
            )
        )
    save = {
        "output_dir": "@output_dir",
        "output_postfix": POSTFIX,
        "output_dtype": dtype,
        "separate_folder": False,
        "resample": False,
    }
    return [*transforms, _transform("SaveImaged", "pred", **save)]


def _transform(name: str, key: str = "image", **options: object) -> Node:
    return {"_target_": name, "keys": key, **options}


def make_metadata(spec: InferenceSpec, scores: Mapping[str, float], terms: Terms) -> Node:
    """Return the content of `configs/metadata.json`, as MONAI's schema of 25 July 2024 asks."""
    classes = ", ".join(spec.classes)
    shape = {"spatial_shape": list(spec.size), "dtype": "float32", "is_patch_data": False}
    channels = [f"channel {channel + 1}" for channel in range(spec.channels)]
    if spec.slices > 1:
        channels = [f"{name} of slice {n + 1}" for n in range(spec.slices) for name in channels]
    names = spec.classes if spec.multilabel else ("background", *spec.classes)
    inputs = {"type": "image", "format": "magnitude", "modality": "n/a", **shape}
    inputs |= {"num_channels": spec.in_channels, "value_range": [-1, 1]}
    outputs = {"type": "image", "format": "segmentation", "num_channels": len(names), **shape}
    return {
        "schema": SCHEMA,
        "version": VERSION,
        "changelog": {VERSION: f"run {spec.run}, exported by attnseg {version('attnseg')}"},
        "monai_version": version("monai"),
        "pytorch_version": torch.__version__.partition("+")[0],
        "numpy_version": np.__version__,
        "required_packages_version": {"nibabel": version("nibabel")},
        "task": f"Segmentation of {classes} in scans, slice by slice",
        "description": (
            f"{spec.model} with {spec.attn} attention, trained on {spec.dataset}; see "
            "docs/MODEL_CARD.md"
        ),
        "authors": terms.authors or UNSTATED,
        "copyright": terms.copyright or UNSTATED,
        "data_source": spec.dataset,
        "data_type": "nibabel",
        "image_classes": f"{', '.join(channels)}; intensities scaled to [-1, 1]",
        "pred_classes": f"logits of {', '.join(names)}",
        "eval_metrics": dict(scores),
        "intended_use": "research; not a medical device",
        "network_data_format": {
            "inputs": {"image": {**inputs, "channel_def": _numbered(channels)}},
            "outputs": {"pred": {**outputs, "value_range": [], "channel_def": _numbered(names)}},
        },
    }


def _numbered(names: Sequence[str]) -> dict[str, str]:
    return {str(number): name for number, name in enumerate(names)}


def compare_masks(
    folder: Path,
    spec: InferenceSpec,
    network: Network,
    image: NDArray[Any],
    affine: NDArray[np.float64],
) -> tuple[int, int]:
    """Segment a scan by the bundle and as `attnseg predict` does.

    Args:
        folder: of the bundle.
        spec: its inference spec.
        network: what the bundle's network was traced from.
        image: the scan, `[S, H, W, C]`.
        affine: of the NIfTI file that both are given.

    Returns:
        Numbers of voxels whose masks differ, and of all voxels.

    Raises:
        CheckpointError: more than a share of `LARGEST_SHARE`, and more than `FEWEST`, differ; or
            MONAI cannot run it.
    """
    with tempfile.TemporaryDirectory(prefix="attnseg-") as temporary:
        file = Path(temporary, "images", "scan.nii.gz")
        file.parent.mkdir()
        voxels = from_slices(image if spec.channels > 1 else image[..., 0], affine, spec.plane)
        made = nib.Nifti1Image(voxels, affine)
        made.header.set_xyzt_units("mm")
        nib.save(made, file)
        _, scan = read_item(Item("nifti", "scan", (file,)), spec)
        expected = Segmenter(spec.labels, [Member(network, spec.view)], SLICES)(scan).masks
        try:
            run_bundle(folder, file.parent, Path(temporary, "masks"))
            answer = read_bundle_masks(
                Path(temporary, "masks", f"scan_{POSTFIX}.nii.gz"), spec, scan
            )
        except (OSError, MemoryError):
            raise
        except Exception as error:  # MONAI passes on whatever a transform raises.
            raise CheckpointError(
                f"formats: monai: MONAI cannot run the bundle ({first_line(error)[:200]}); the "
                "bundle was not kept, leave monai out of formats"
            ) from error
    differing = int((expected != answer).any(0).sum())
    if differing > max(FEWEST, LARGEST_SHARE * answer[0].size):
        raise CheckpointError(
            f"formats: monai: {differing} of {answer[0].size} voxels differ from the masks of "
            "attnseg predict; the bundle was not kept, leave monai out of formats"
        )
    return differing, answer[0].size


def run_bundle(folder: Path, images: Path, output: Path) -> None:
    """Segment the NIfTI files of a folder as MONAI does when it runs the bundle.

    The configuration is made again rather than read: whatever is in such a file is run.
    """
    from monai.bundle.config_parser import ConfigParser  # imports most of MONAI

    config = make_inference_config(InferenceSpec.from_json((folder / RECIPE).read_text()))
    config |= {"bundle_root": str(folder), "dataset_dir": str(images), "output_dir": str(output)}
    config["postprocessing"]["transforms"][-1]["print_log"] = False
    log = logging.getLogger("monai")
    level = log.level
    log.setLevel(logging.ERROR)  # It names readers of other formats that are not installed.
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            ConfigParser(config).get_parsed_content("run")
    finally:
        log.setLevel(level)


def read_bundle_masks(path: Path, spec: InferenceSpec, scan: Scan) -> Masks:
    """Return a scan's masks `[classes, S, H, W]` from a label map, or from a volume per class."""
    count = len(spec.classes)
    assert scan.affine is not None
    file: Any = nib.load(path)
    voxels = np.asanyarray(file.dataobj)
    if spec.labels.one_per_pixel:
        label_map, _ = to_slices(np.atleast_3d(voxels), scan.affine, spec.plane)
        values = spec.values or range(1, count + 1)
        return np.stack([label_map == value for value in values])
    slices, _ = to_slices(voxels, scan.affine, spec.plane)
    return np.moveaxis(slices, -1, 0) > 0
