"""Detection of pictures that occur twice, even re-encoded, resized or with other brightness.

Each slice has a signature: the high-pass filtered 32 x 32 thumbnail, with large values damped, as a
vector of length 1. The dot product of two signatures is about 1 for the same picture and about 0
for different pictures, even of the same organ, because only edges, texture and hairs remain.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations

import cv2
import numpy as np
from numpy.typing import NDArray

THUMBNAIL_SIDE = 32
BLUR = 3  # side of the box filter, pixels of the thumbnail
MIN_SIMILARITY = 0.85  # from which two slices count as the same; measured, see docs/data.md
ROWS = 2048  # signatures that are compared at once, which bounds memory

Signatures = NDArray[np.float16]


@dataclass(frozen=True)
class DuplicatePair:
    """Two cases of different patients that share a slice.

    Attributes:
        first: index of one case.
        second: index of the other, larger than `first`.
        slices: index of the shared slice in each of them.
        similarity: dot product of the two signatures.
    """

    first: int
    second: int
    slices: tuple[int, int]
    similarity: float


def compute_signatures(image: NDArray[np.generic]) -> Signatures:
    """Return the signatures `[S, 1024]` of a case's slices `[S, H, W, C]`.

    A slice that is uniform, or smaller than a thumbnail, gets zeros, which match nothing.
    """
    vectors = np.zeros((image.shape[0], THUMBNAIL_SIDE * THUMBNAIL_SIDE), np.float16)
    if min(image.shape[1:3]) < THUMBNAIL_SIDE:
        return vectors
    for index, picture in enumerate(image):
        grey = picture.mean(-1, dtype=np.float32)
        small = cv2.resize(grey, (THUMBNAIL_SIDE, THUMBNAIL_SIDE), interpolation=cv2.INTER_AREA)
        detail = small - cv2.blur(small, (BLUR, BLUR))
        typical = float(np.median(np.abs(detail)))
        if typical > 0:
            damped = detail / (np.abs(detail) + typical)
            vectors[index] = (damped / np.linalg.norm(damped)).ravel()
    return vectors


def find_duplicates(
    cases: Sequence[Signatures],
    patients: Sequence[str],
    pixels: Sequence[str],
    threshold: float = MIN_SIMILARITY,
) -> list[DuplicatePair]:
    """Find the pairs of cases of different patients that share a slice, or all of their pixels.

    The arguments hold the signatures, the patient and the digest of the pixels of each case.

    Returns:
        At most one pair for any two cases, with their most similar slices.
    """
    best = {
        (i, j): DuplicatePair(i, j, (0, 0), 1.0)
        for i, j in combinations(range(len(cases)), 2)
        if pixels[i] == pixels[j] and patients[i] != patients[j]
    }
    for pair in _similar_slices(cases, patients, threshold):
        key = (pair.first, pair.second)
        if key not in best or pair.similarity > best[key].similarity:
            best[key] = pair
    return [best[key] for key in sorted(best)]


def _similar_slices(
    cases: Sequence[Signatures], patients: Sequence[str], threshold: float
) -> Iterator[DuplicatePair]:
    """Yield every pair of similar slices of different patients."""
    if not cases:
        return
    vectors = np.concatenate(cases).astype(np.float32)
    case = np.repeat(np.arange(len(cases)), [len(c) for c in cases])
    number = np.concatenate([np.arange(len(c)) for c in cases])
    patient = np.unique(np.asarray(patients), return_inverse=True)[1][case]
    for start in range(0, len(vectors), ROWS):
        rows = slice(start, start + ROWS)
        similarity = vectors[rows] @ vectors[start:].T
        near = (similarity >= threshold) & (patient[rows, None] != patient[None, start:])
        for i, j in np.argwhere(near):
            a, b = start + int(i), start + int(j)
            if case[a] < case[b]:
                shared = (int(number[a]), int(number[b]))
                yield DuplicatePair(int(case[a]), int(case[b]), shared, float(similarity[i, j]))
