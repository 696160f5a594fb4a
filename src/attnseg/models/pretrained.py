"""Loads weights, published or of an own run: reads them without executing code, and fits them.

Files: `.npz` of the Flax ViT and R50+ViT models, `.pth`, `.pt`, `.pkl`, `.bin` and `.ckpt` state
dicts (read with `weights_only`, never otherwise), `.safetensors`, and run folders.
"""

import contextlib
import math
import pickle
import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import Tensor

from attnseg.errors import CheckpointError, first_line, join_names
from attnseg.layers.factored import fuse_factors, load_fused
from attnseg.layers.vit import PatchTokens, resize_positions
from attnseg.models.model import PublishedModule

PREFIX = re.compile(r"(module\.)?(_orig_mod\.)?")  # Left by data parallelism and torch.compile.
OWN_PREFIX = "model."  # of the network's weights in a run's checkpoint
OWN_CHECKPOINT = Path("checkpoints/best.ckpt")  # in a run folder
SHARED = re.compile(r"(.*\.project\.)([qkv]{2,3})(\..*)")  # a projection that roles share
WRAPPERS = ("state_dict", "model", "model_state_dict", "network_weights")
MAX_PACKING = 20  # Factor by which an archive may grow when unpacked.


@dataclass
class LoadReport:
    """Outcome of loading weights, tensor by tensor."""

    # Our names that received weights, and those resized before, with both shapes.
    loaded: list[str] = field(default_factory=list)
    resized: dict[str, str] = field(default_factory=dict)
    # Names in the file without a counterpart here, with the reason.
    dropped: dict[str, str] = field(default_factory=dict)
    # Our names that keep their initialisation.
    fresh: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        """Return one line per outcome; long lists are shortened."""
        lines = [f"loaded {len(self.loaded)} tensors"]
        lines += [f"resized {name}: {how}" for name, how in self.resized.items()]
        reasons: dict[str, list[str]] = {}
        for name, reason in self.dropped.items():
            reasons.setdefault(reason, []).append(name)
        lines += [f"dropped {join_names(names, 3)}: {reason}" for reason, names in reasons.items()]
        lines += [f"left fresh {join_names(self.fresh, 3)}"] if self.fresh else []
        return "\n".join(lines)


def load_file_into(model: PublishedModule, path: str | Path) -> LoadReport:
    """Load a file of weights, or those of a run folder's best epoch, into `model`.

    Raises:
        CheckpointError: the file is missing, broken, of an unknown kind, or of another network.
    """
    try:
        return load_tensors(model, read_weights(find_weights(path)))
    except ValueError as error:
        raise CheckpointError(f"{path}: {error}") from error


def find_weights(path: str | Path) -> Path:
    """Return the file of the weights: the path itself, or the best checkpoint of a run folder.

    Raises:
        CheckpointError: a folder without that checkpoint.
    """
    path = Path(path)
    if not path.is_dir():
        return path
    if not (path / OWN_CHECKPOINT).is_file():
        raise CheckpointError(
            f"{path}: a folder without {OWN_CHECKPOINT}; give a finished run or a file of weights"
        )
    return path / OWN_CHECKPOINT


def read_weights(path: Path) -> dict[str, Tensor]:
    """Read the tensors of a file, by the names in it.

    Raises:
        CheckpointError: see `load_file_into`.
    """
    if "://" in str(path) or str(path).startswith(("http:/", "https:/")):
        raise CheckpointError(f"{path}: not a local file; download it and give its path")
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file; give the path of the downloaded weights")
    head = path.read_bytes()[:200] if path.stat().st_size < 1 << 20 else b""
    if head.lstrip().lower().startswith((b"<!doctype", b"<html", b"version https://git-lfs")):
        raise CheckpointError(
            f"{path}: a web page or a pointer, not weights; download the file itself"
        )
    try:
        check_packing(path)
        if path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as arrays:
                return from_flax({name: arrays[name] for name in arrays.files})
        if path.suffix == ".safetensors":
            return dict(load_file(path))
        loaded: Any = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path}: holds more than tensors, or is broken; not loaded, since it could run code"
        ) from error
    except Exception as error:  # A malicious file can make a decoder raise anything.
        raise CheckpointError(
            f"{path}: broken ({first_line(error)[:100]}); download it again"
        ) from error
    if isinstance(loaded, dict) and {"state_dict", "callbacks", "loops"} <= loaded.keys():
        state = loaded["state_dict"]
        if not isinstance(state, dict) or not any(str(n).startswith(OWN_PREFIX) for n in state):
            raise CheckpointError(
                f"{path}: a checkpoint of a training run, not published weights; give the file as "
                "published"
            )
        loaded = {str(n).removeprefix(OWN_PREFIX): v for n, v in state.items()}
    for wrapper in WRAPPERS:
        if isinstance(loaded, dict) and isinstance(loaded.get(wrapper), dict):
            loaded = loaded[wrapper]
    if not isinstance(loaded, dict) or not all(isinstance(v, Tensor) for v in loaded.values()):
        raise CheckpointError(f"{path}: not a state dict of tensors; export one")
    for name, value in loaded.items():
        if value.layout != torch.strided or value.untyped_storage().nbytes() < value.nbytes:
            raise CheckpointError(
                f"{path}: {str(name)[:80]} is sparse or larger than what is stored of it; export "
                "plain tensors"
            )
    return {PREFIX.sub("", str(name), count=1): value for name, value in loaded.items()}


def check_packing(path: Path) -> None:
    """Refuse a damaged archive, and one that unpacks to far more than its own size.

    Weights hardly compress, so a small archive of large tensors was made to exhaust memory.
    `torch.load` does not verify check sums.

    Raises:
        ValueError: the archive is damaged or grows too much.
    """
    if not zipfile.is_zipfile(path):
        return
    with zipfile.ZipFile(path) as archive:
        unpacked = sum(member.file_size for member in archive.infolist())
        if unpacked > MAX_PACKING * path.stat().st_size:
            raise ValueError(f"unpacks to {unpacked / 1e9:.1f} GB")
        if damaged := archive.testzip():
            raise ValueError(f"wrong check sum of {damaged}")


def load_tensors(
    model: PublishedModule, state_dict: Mapping[str, Tensor | NDArray[Any]]
) -> LoadReport:
    """Copy weights into `model`, named as in the published implementation or as in the model.

    Where the attention differs, all weights that still apply are loaded: a projection shared by
    several roles takes the weights of the last of them (K of Q and K, V of K and V), and gives its
    own to each of them; of two factors, the last one takes the weights of the matrix for which they
    stand, and the first becomes the identity. Learned positions, taken to be those of a square
    grid, are interpolated to the model's grid. The first convolution's channels are summed for
    images of one channel, and repeated and scaled for more. A classifier of another number of
    classes keeps its initialisation.

    Raises:
        ValueError: any other tensor does not fit, values are not finite, or the tensors are not
            those of this model.
    """
    plain = fuse_factors(model)
    if plain is not model and not any(name.endswith(".first.weight") for name in state_dict):
        report = load_tensors(plain, state_dict)
        load_fused(model, plain)
        return report
    report = LoadReport()
    own = {n: t for n, t in model.state_dict().items() if not n.endswith("num_batches_tracked")}
    grids = {
        f"{name}.pos_embed": module.grid
        for name, module in model.named_modules()
        if isinstance(module, PatchTokens)
    }
    fitted: dict[str, Tensor] = {}
    for name, part, target in _place_tensors(model, own, state_dict):
        if target is None:
            report.dropped[name] = model.explain_unused(name)
            continue
        shape = tuple(own[target].shape)
        if part.shape != shape:
            resized = _fit_shape(target, part, shape, grids.get(target))
            if resized is None:
                report.dropped[name] = f"shape {tuple(part.shape)} instead of {shape}"
                continue
            report.resized[target] = f"{tuple(part.shape)} to {shape}"
            part = resized
        if not part.isfinite().all():
            raise ValueError(f"{name} has values that are not finite; take another file")
        fitted[target] = part
    with torch.no_grad():
        for target, part in fitted.items():
            own[target].copy_(part)
    report.loaded = list(fitted)
    report.fresh = [name for name in own if name not in fitted]
    return report


def _place_tensors(
    model: PublishedModule,
    own: Mapping[str, Tensor],
    state_dict: Mapping[str, Tensor | NDArray[Any]],
) -> list[tuple[str, Tensor, str | None]]:
    """Return name, value and place in the model of each tensor that a file holds.

    The names are the model's own if that gives more of them a place than the published ones do.

    Raises:
        ValueError: no tensor has a place, or under the model's own names hardly any has.
    """
    # The name without other roles: project.qk. becomes project.k., project.kv. project.v.
    by_last_role = {re.sub(r"\.project\.\w*(\w)\.", r".project.\1.", name): name for name in own}
    as_ours: list[tuple[str, Tensor, str | None]] = []
    as_published: list[tuple[str, Tensor, str | None]] = []
    for name, value in state_dict.items():
        if name.endswith("num_batches_tracked"):
            continue
        tensor = torch.as_tensor(value)
        shared = None if name in own else SHARED.fullmatch(name)
        names = [f"{shared[1]}{role}{shared[3]}" for role in shared[2]] if shared else [name]
        as_ours += [(n, tensor, n if n in own else by_last_role.get(n)) for n in names]
        with contextlib.suppress(NotImplementedError):  # A model may have no published weights.
            for n, part in model.official_split(name, tensor).items():
                as_published.append((n, part, by_last_role.get(model.official_name(n) or "")))
    placed = [sum(target is not None for *_, target in each) for each in (as_ours, as_published)]
    if not any(placed):
        raise ValueError(f"no tensor of {type(model).__name__} in it; give weights of this model")
    if placed[0] <= placed[1]:
        return as_published
    if 2 * placed[0] < min(len(own), len(as_ours)):
        raise ValueError(
            f"only {placed[0]} of {len(as_ours)} tensors are those of {type(model).__name__}; give "
            "weights of this model"
        )
    return as_ours


def _fit_shape(
    target: str, value: Tensor, shape: tuple[int, ...], grid: tuple[int, int] | None
) -> Tensor | None:
    """Return `value` in another shape; `None` for a classifier, which keeps its initialisation.

    Raises:
        ValueError: this kind of tensor cannot be resized.
    """
    if "classify" in target:
        return None
    if grid is not None and value.ndim == 3 and value.shape[2] == shape[2]:
        side = math.isqrt(value.shape[1])  # Published grids are square.
        published, prefix = value.shape[1] - side * side, shape[1] - grid[0] * grid[1]
        if prefix <= published <= 1:  # The class token is dropped if the model has none.
            return resize_positions(value[:, published - prefix :], (side, side), grid)
    if value.ndim == 4 and (value.shape[0], *value.shape[2:]) == (shape[0], *shape[2:]):
        if shape[1] == 1:
            return value.sum(1, keepdim=True)
        repeats = -(-shape[1] // value.shape[1])
        return value.repeat(1, repeats, 1, 1)[:, : shape[1]] * value.shape[1] / shape[1]
    raise ValueError(
        f"shape {tuple(value.shape)} does not fit {target} {shape}; "
        "give weights of this model and size"
    )


def from_flax(arrays: Mapping[str, NDArray[Any]]) -> dict[str, Tensor]:
    """Rename and transpose the arrays of a Flax ViT or R50+ViT file as TransUNet's code does.

    Flax kernels are (height, width, in, out); those of attention have an axis for the heads.
    """
    out: dict[str, Tensor] = {}
    for name, array in arrays.items():
        value = torch.from_numpy(np.ascontiguousarray(array)).float()
        for pattern, ours in FLAX_NAMES:
            if match := re.fullmatch(pattern, name):
                out[match.expand(ours)] = _to_torch_layout(name, value)
                break
        else:
            out[name] = value
    return out


def _to_torch_layout(name: str, value: Tensor) -> Tensor:
    if "MultiHeadDotProductAttention" in name:
        if not name.endswith("kernel"):
            return value.flatten()
        return (value.flatten(0, 1) if "/out/" in name else value.flatten(1)).T.contiguous()
    if name.endswith("kernel"):
        return value.permute(3, 2, 0, 1).contiguous() if value.ndim == 4 else value.T.contiguous()
    if re.search(r"(^|/)gn\w*/", name):
        return value.flatten()
    return value


_LAYER, _LAYER_OURS = r"Transformer/encoderblock_(\d+)/", r"transformer.encoder.layer.\1."
_UNIT, _BODY = r"block(\d)/unit(\d+)/", "transformer.embeddings.hybrid_model."
# Modules with a weight (`kernel` or `scale`) and perhaps a bias.
_FLAX_MODULES = (
    (r"embedding", "transformer.embeddings.patch_embeddings"),
    (_LAYER + r"MultiHeadDotProductAttention_1/(query|key|value|out)", _LAYER_OURS + r"attn.\2"),
    (_LAYER + r"LayerNorm_0", _LAYER_OURS + "attention_norm"),
    (_LAYER + r"LayerNorm_2", _LAYER_OURS + "ffn_norm"),
    (_LAYER + r"MlpBlock_3/Dense_0", _LAYER_OURS + "ffn.fc1"),
    (_LAYER + r"MlpBlock_3/Dense_1", _LAYER_OURS + "ffn.fc2"),
    (r"Transformer/encoder_norm", "transformer.encoder.encoder_norm"),
    (r"conv_root", _BODY + "root.conv"),
    (r"gn_root", _BODY + "root.gn"),
    (_UNIT + r"conv_proj", _BODY + r"body.block\1.unit\2.downsample"),
    (_UNIT + r"(\w+)", _BODY + r"body.block\1.unit\2.\3"),
)
FLAX_NAMES = (
    *((f"{module}/(?:kernel|scale)", f"{ours}.weight") for module, ours in _FLAX_MODULES),
    *((f"{module}/bias", f"{ours}.bias") for module, ours in _FLAX_MODULES),
    (r"cls", "transformer.cls_token"),
    (r"Transformer/posembed_input/pos_embedding", "transformer.embeddings.position_embeddings"),
)
