"""Candidates for pairs of near vectors among very many, by locality-sensitive hashing.

A hash is the signs of a vector's products with a few random directions. Two vectors at an angle `a`
agree in a sign with probability `1 - a / pi` (Goemans and Williamson 1995; Charikar 2002), so near
ones often share a hash and others hardly ever. The bits of a hash grow with the number of vectors,
so that each shares it with about one other by chance, and the number of hashes grows so that a pair
at the threshold is missed with probability `MISSED`. The cost is of order n^1.3 for a cosine of
0.85, instead of the n^2 of comparing all.
"""

import math
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

MISSED = 1e-3  # probability that a pair of vectors exactly at the threshold is missed
LEAST_BITS, MOST_BITS = 8, 30
GROUP = 32  # hashes that are computed at once, which bounds memory
BLOCK = 8192  # vectors that are multiplied at once
PAIRS = 1 << 20  # candidates that are given at once

Indices = NDArray[np.intp]


def count_hashes(vectors: int, threshold: float) -> tuple[int, int]:
    """Return the bits of a hash, and the number of hashes, for so many vectors."""
    bits = min(max(LEAST_BITS, math.ceil(math.log2(max(vectors, 2)))), MOST_BITS)
    agreement = 1 - math.acos(threshold) / math.pi
    return bits, math.ceil(math.log(1 / MISSED) / agreement**bits)


def list_candidates(
    vectors: NDArray[np.float16],
    rows: Indices,
    threshold: float,
    orientations: Sequence[Indices] = (),
) -> Iterator[tuple[Indices, Indices, Indices | None]]:
    """Yield pairs of vectors that may be near, many at a time and some more than once.

    Args:
        vectors: `[n, d]`.
        rows: indices of the vectors that are compared with all others.
        threshold: cosine from which two vectors are near.
        orientations: permutations `[d]` of the first vector that are tried, with either sign; none
            for the vector as it is.

    Yields:
        Indices among `rows` of the first vectors, indices of the second, and the permutation.
    """
    bits, hashes = count_hashes(len(vectors), threshold)
    rng = np.random.default_rng(0)
    for start in range(0, hashes, GROUP):
        count = min(GROUP, hashes - start)
        planes = rng.standard_normal((vectors.shape[1], count * bits), np.float32)
        keys = _compute_keys(vectors, planes, bits)
        tables = [_Table(keys[:, at]) for at in range(count)]
        for orientation in orientations or (None,):
            asked = keys[rows]
            if orientation is not None:
                # Turning the directions back is turning the vectors.
                turned = np.empty_like(planes)
                turned[orientation] = planes
                asked = _compute_keys(vectors, turned, bits, rows)
            signs = (0, (1 << bits) - 1) if orientation is not None else (0,)
            for at, table in enumerate(tables):
                for sign in signs:
                    for first, second in table.find_equal(asked[:, at] ^ np.uint32(sign)):
                        yield first, second, orientation


def _compute_keys(
    vectors: NDArray[np.float16],
    planes: NDArray[np.float32],
    bits: int,
    rows: Indices | None = None,
) -> NDArray[np.uint32]:
    """Return the hashes `[n, count]` of vectors `[n, d]` by directions `[d, count * bits]`."""
    chosen = np.arange(len(vectors)) if rows is None else rows
    weights = np.uint32(1) << np.arange(bits, dtype=np.uint32)
    keys = np.empty((len(chosen), planes.shape[1] // bits), np.uint32)
    for start in range(0, len(chosen), BLOCK):
        block = vectors[chosen[start : start + BLOCK]].astype(np.float32)
        signs = (block @ planes > 0).reshape(len(block), -1, bits)
        keys[start : start + BLOCK] = (signs * weights).sum(-1, dtype=np.uint32)
    return keys


class _Table:
    """The vectors by one hash."""

    def __init__(self, keys: NDArray[np.uint32]) -> None:
        self.order = np.argsort(keys, kind="stable")
        self.sorted = keys[self.order]

    def find_equal(self, asked: NDArray[np.uint32]) -> Iterator[tuple[Indices, Indices]]:
        """Yield the indices of asked hashes, and of vectors that have the same."""
        left = np.searchsorted(self.sorted, asked, "left")
        counts = np.searchsorted(self.sorted, asked, "right") - left
        ends = np.cumsum(counts)
        start = 0
        while start < len(asked):
            done = ends[start - 1] if start else 0
            stop = max(start + 1, int(np.searchsorted(ends, done + PAIRS, "right")))
            part = counts[start:stop]
            first = np.repeat(np.arange(start, stop), part)
            within = np.arange(part.sum()) - np.repeat(np.cumsum(part) - part, part)
            yield first, self.order[np.repeat(left[start:stop], part) + within]
            start = stop
