"""Run-length encoding of masks, as in the UW-Madison download.

A mask is one line of text with pairs of start and length; starts count from 1 along the rows of the
picture (C order). The competition's page says columns, but the masks fit the images by rows only.
"""

import re

import numpy as np
from numpy.typing import NDArray


def decode(text: str, shape: tuple[int, int]) -> NDArray[np.bool_]:
    """Return the mask `[H, W]` of `start length start length ...`; an empty text is an empty mask.

    Raises:
        ValueError: the text is not pairs of whole numbers, or runs are empty, overlap, are out of
            order or leave the picture.
    """
    tokens = text.split()
    mask = np.zeros(shape[0] * shape[1], bool)
    if len(tokens) % 2:
        raise ValueError(f"{len(tokens)} numbers in the run-length code, which needs pairs")
    for token in tokens:
        if not re.fullmatch(r"[0-9]{1,10}", token):
            raise ValueError(f"{token[:20]!r} in the run-length code is not a whole number")
    end = 0  # last pixel of the previous run, counted from 1
    for start, length in zip(map(int, tokens[::2]), map(int, tokens[1::2]), strict=True):
        if start <= end or length == 0:
            raise ValueError(f"run {start} {length} is empty, overlaps or is out of order")
        end = start + length - 1
        if end > mask.size:
            raise ValueError(
                f"run {start} {length} ends beyond the {mask.size} pixels of the image"
            )
        mask[start - 1 : end] = True
    return mask.reshape(shape)


def encode(mask: NDArray[np.bool_]) -> str:
    """Encode a mask `[H, W]`; the inverse of `decode`."""
    edges = np.flatnonzero(np.diff(np.concatenate(([0], mask.ravel().view(np.int8), [0]))))
    starts, ends = edges[::2], edges[1::2]
    return " ".join(f"{start + 1} {end - start}" for start, end in zip(starts, ends, strict=True))
