"""Share of attention on the evidence: a score of attention maps where the truth is known.

A probe's pictures tell which pixels decide the answer. Of the query tokens that need the answer,
it is measured which share of their weights lies on the tokens with such pixels, against the share
that uniform weights would have there.
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from attnseg.explain.jacobian import estimate_jacobians
from attnseg.explain.recording import AnyRecord, MixerRecord
from attnseg.explain.token_weights import weight_columns, weights_of_token

Mask = NDArray[np.bool_]
FOLDER = "evidence"  # beside the masks of a dataset that has this truth


def load_evidence(root: Path, case: str) -> Mask | None:
    """Return the pixels that show a picture's answer, `[H, W]`, if the dataset has them."""
    path = root / FOLDER / f"{case}.png"
    if not path.is_file():
        return None
    with Image.open(path) as image:
        return np.asarray(image) > 0


class EvidenceShare(NamedTuple):
    """The share of attention on the evidence, averaged over query tokens.

    Attributes:
        heads: share of each head's weights that lies on evidence, `[h]`.
        uniform: the share of uniform weights on all keys.
    """

    heads: Tensor
    uniform: float


def measure_evidence_share(
    record: AnyRecord, answers: Mask, evidence: Mask
) -> EvidenceShare | None:
    """Return how much of the weights of the tokens with answers lies on tokens with evidence.

    Weights of prefix tokens are left out. `None` where there are no such tokens, or where channels
    are mixed instead of tokens.

    Args:
        record: of one picture.
        answers: pixels that need the answer, `[H, W]`.
        evidence: pixels that show it, `[H, W]`.
    """
    wanted = _pool(answers, record.grid).flatten()
    rows = record.prefix + wanted.nonzero()[:, 0]
    keys = _find_keys(record, evidence)
    if len(rows) == 0 or not keys.any():
        return None
    if isinstance(record, MixerRecord):
        weights = estimate_jacobians(record, rows)[None]
    else:
        if weights_of_token(record, int(rows[0])).kind != "tokens":
            return None
        blocks = [block[:, rows] for _, block in weight_columns(record)]
        weights = torch.cat(blocks, 2).float().abs().cpu()
    on_grid = weights[..., record.layout.key_prefix :]
    sums = on_grid.sum(2)
    shares = (on_grid * keys.repeat_interleave(len(on_grid) // len(keys), 0)[:, None]).sum(2)
    own = torch.where(sums > 0, shares / sums.clamp_min(torch.finfo(sums.dtype).tiny), torch.nan)
    return EvidenceShare(own.nanmean(1), float(keys.float().mean()))


def _find_keys(record: AnyRecord, evidence: Mask) -> Tensor:
    """Return which keys of the grid hold evidence, `[g, keys]` for g groups of heads."""
    layout = record.layout
    if layout.joined or record.key_grid == record.source:
        return _pool(evidence, record.key_grid).flatten()[None]
    tokens = _pool(evidence, record.source)
    centres = record.key_centres((float(record.source[0]), float(record.source[1]))).floor().long()
    rows, columns = (
        centres[..., axis].clamp(0, side - 1) for axis, side in enumerate(record.source)
    )
    return tokens[rows, columns]


def _pool(mask: Mask, grid: tuple[int, int]) -> Tensor:
    """Return which tokens of a grid hold a pixel of a mask."""
    pixels = torch.from_numpy(np.ascontiguousarray(mask, np.float32))[None, None]
    return F.adaptive_max_pool2d(pixels, grid)[0, 0] > 0
