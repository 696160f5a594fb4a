"""Detection of pictures that occur twice, also re-encoded, resized, shifted, cut, padded or turned.

Each slice has two signatures: high-pass filtered thumbnails of 32 x 32 pixels, with large values
damped, as vectors of length 1. Their dot product is about 1 for the same picture and about 0 for
different pictures, even of the same organ, because only edges, texture and hairs remain. The
*plain* signature is of the whole slice. The *aligned* one is of the inside of the body, which is
centred, scaled and turned to its main axis first; it is compared in 8 orientations and with either
sign.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations

import cv2
import numpy as np
from numpy.typing import NDArray

from attnseg.data.near_vectors import list_candidates

THUMBNAIL_SIDE = 32
BLUR = 3  # side of the box filter, pixels of the thumbnail
MIN_SIMILARITY = 0.85  # from which two slices count as the same; measured, see docs/data.md
MIN_ALONE = 0.9  # the same for aligned scans of a single slice, which no other slice confirms
ROWS = 2048  # signatures that are compared at once, which bounds memory
COMPARED_WITH_ALL = 50_000  # signatures up to which comparing all is as fast

BODY_SIDE = 128  # longer side, pixels, of the picture in which the body is found
FINE_SIDE = 96  # pixels of the aligned picture before it is shrunk to a thumbnail
HALF_WIDTH = 2.2  # of the aligned picture, in standard deviations of the body's voxels
RIM = 2  # pixels of the thumbnail along the body's outline, which is alike in all patients
MIN_BODY = 100  # pixels
EVERY = 3  # slices of a scan are aligned in steps of 3 if it has many
MANY_SLICES = 8
MIN_SHARE = 1 / 3  # of the slices of the shorter scan that must occur in the other one

Signatures = NDArray[np.float16]
Floats = NDArray[np.float32]
Indices = NDArray[np.intp]

_PIXELS = np.arange(THUMBNAIL_SIDE**2).reshape(THUMBNAIL_SIDE, THUMBNAIL_SIDE)
ORIENTATIONS = [np.rot90(each, k).ravel() for each in (_PIXELS, _PIXELS.T) for k in range(4)]


@dataclass(frozen=True)
class DuplicatePair:
    """Two cases of different patients that share a slice.

    Attributes:
        first: index of one case.
        second: index of the other, larger than `first`.
        slices: index of the shared slice in each of them.
        similarity: dot product of the two signatures.
        moved: whether only the aligned signatures agree.
    """

    first: int
    second: int
    slices: tuple[int, int]
    similarity: float
    moved: bool = False


def compute_signatures(image: NDArray[np.generic]) -> Signatures:
    """Return the signatures `[2 S, 1024]` of a case's slices `[S, H, W, C]`: plain, then aligned.

    A slice that is uniform, or smaller than a thumbnail, gets zeros, which match nothing.
    """
    slices = image.shape[0]
    vectors = np.zeros((2 * slices, THUMBNAIL_SIDE**2), np.float16)
    if min(image.shape[1:3]) < THUMBNAIL_SIDE:
        return vectors
    for index, picture in enumerate(image):
        grey = picture.mean(-1, dtype=np.float32)
        small = cv2.resize(grey, (THUMBNAIL_SIDE, THUMBNAIL_SIDE), interpolation=cv2.INTER_AREA)
        vectors[index] = _damp_detail(small, np.ones_like(small, bool))
        if (aligned := _align_body(grey)) is not None:
            vectors[slices + index] = _damp_detail(*aligned)
    return vectors


def _damp_detail(small: Floats, inside: NDArray[np.bool_]) -> Floats:
    """Return the signature `[1024]` of a thumbnail, zero outside of `inside`."""
    detail = small - cv2.blur(small, (BLUR, BLUR))
    typical = float(np.median(np.abs(detail[inside]))) if inside.any() else 0.0
    if typical <= 0:
        return np.zeros(small.size, np.float32)
    damped = np.where(inside, detail / (np.abs(detail) + typical), 0)
    return np.asarray(damped / np.linalg.norm(damped)).ravel()


def _align_body(grey: Floats) -> tuple[Floats, NDArray[np.bool_]] | None:
    """Return the thumbnail of a slice `[H, W]` in the frame of its body, and the body's inside.

    The frame has its origin in the body's centre, and its first axis along the body's longest; its
    unit is the standard deviation of the body's pixels. `None` if there is no body.
    """
    grey = _trim_margins(grey)
    shrink = min(1.0, BODY_SIDE / max(grey.shape))
    if shrink < 1:
        shrunk = cv2.resize(grey, None, fx=shrink, fy=shrink, interpolation=cv2.INTER_AREA)
        grey = np.asarray(shrunk, np.float32)
    body = _find_body(grey)
    points = np.argwhere(body)[:, ::-1] + 0.5  # x, y
    if len(points) < MIN_BODY:
        return None
    centre = points.mean(0)
    variances, axes = np.linalg.eigh(np.cov(points.T))
    axis = axes[:, 1]
    if (((points - centre) @ axis) ** 3).sum() < 0:
        axis = -axis
    step = 2 * HALF_WIDTH * math.sqrt(variances.sum() / 2) / FINE_SIDE
    turn = step * np.array([[axis[0], -axis[1]], [axis[1], axis[0]]])
    corner = centre + turn @ np.full(2, 0.5 - FINE_SIDE / 2) - 0.5
    matrix = np.hstack([turn, corner[:, None]])

    def view_from_frame(picture: Floats) -> Floats:
        fine = cv2.warpAffine(
            picture,
            matrix,
            (FINE_SIDE, FINE_SIDE),
            flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
            borderMode=cv2.BORDER_REPLICATE,
        )
        side = (THUMBNAIL_SIDE, THUMBNAIL_SIDE)
        return np.asarray(cv2.resize(fine, side, interpolation=cv2.INTER_AREA))

    covered = (view_from_frame(body.astype(np.float32)) > 0.5).astype(np.uint8)
    inside = cv2.erode(covered, np.ones((3, 3), np.uint8), iterations=RIM) > 0
    return view_from_frame(grey), inside


def _trim_margins(grey: Floats) -> Floats:
    """Cut off uniform rows and columns at the border."""
    least = 0.02 * float(np.ptp(grey))
    rows, columns = (np.flatnonzero(np.ptp(grey, axis) > least) for axis in (1, 0))
    if not len(rows) or not len(columns):
        return grey
    return np.ascontiguousarray(grey[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1])


def _find_body(grey: Floats) -> NDArray[np.bool_]:
    """Return the mask of the largest bright or dark area, whichever touches the border less.

    Bright and dark are told apart by Otsu's threshold; holes are filled.
    """
    low, high = np.percentile(grey, (1, 99))
    if high <= low:
        return np.zeros(grey.shape, bool)
    scaled = ((grey - low) / (high - low) * 255).clip(0, 255).astype(np.uint8)
    blurred = cv2.GaussianBlur(scaled, (5, 5), 0)
    mask = cv2.threshold(blurred, 0, 1, cv2.THRESH_BINARY + cv2.THRESH_OTSU)[1]
    border = np.concatenate([mask[0], mask[-1], mask[:, 0], mask[:, -1]])
    if border.mean() > 0.5:
        mask = 1 - mask
    count, areas, facts, _ = cv2.connectedComponentsWithStats(mask, connectivity=4)
    if count < 2:
        return np.zeros(grey.shape, bool)
    largest = areas == 1 + facts[1:, cv2.CC_STAT_AREA].argmax()
    around = np.pad(~largest, 1, constant_values=True).astype(np.uint8)
    outside = cv2.connectedComponents(around, connectivity=4)[1]
    return np.asarray(outside != outside[0, 0])[1:-1, 1:-1]


def find_duplicates(
    cases: Sequence[Signatures],
    patients: Sequence[str],
    pixels: Sequence[str],
    threshold: float = MIN_SIMILARITY,
) -> list[DuplicatePair]:
    """Find the pairs of cases of different patients that share a slice, or all of their pixels.

    The arguments hold the signatures, the patient and the digest of the pixels of each case. By
    their aligned signatures, two scans share a slice only if they share a third of those of the
    shorter one.

    Returns:
        At most one pair for any two cases, with their most similar slices.
    """
    same: dict[str, list[int]] = {}
    for index, digest in enumerate(pixels):
        same.setdefault(digest, []).append(index)
    best = {
        (i, j): DuplicatePair(i, j, (0, 0), 1.0)
        for members in same.values()
        for i, j in combinations(members, 2)
        if patients[i] != patients[j]
    }
    plain = [case[: len(case) // 2] for case in cases]
    for pair in _find_similar_slices(plain, patients, threshold):
        key = (pair.first, pair.second)
        if key not in best or pair.similarity > best[key].similarity:
            best[key] = pair
    aligned = [case[len(case) // 2 :] for case in cases]
    for pair in _find_moved_scans(aligned, patients, threshold):
        best.setdefault((pair.first, pair.second), pair)
    return [best[key] for key in sorted(best)]


def _find_moved_scans(
    cases: Sequence[Signatures], patients: Sequence[str], threshold: float
) -> Iterator[DuplicatePair]:
    """Yield the most similar slices of any two scans that agree once they are aligned.

    A scan may be a part of the other, so that the share of slices is that of the shorter scan. Of
    a single slice more similarity is asked.
    """
    shared: dict[tuple[int, int], tuple[set[int], set[int]]] = {}
    best: dict[tuple[int, int], DuplicatePair] = {}
    for pair in _find_similar_slices(cases, patients, threshold, ORIENTATIONS):
        key = (pair.first, pair.second)
        for numbers, own in zip(shared.setdefault(key, (set(), set())), pair.slices, strict=True):
            numbers.add(own)
        if key not in best or pair.similarity > best[key].similarity:
            best[key] = pair
    for (first, second), slices in shared.items():
        shorter = min(len(cases[first]), len(cases[second]))
        if shorter == 1 and best[first, second].similarity < MIN_ALONE:
            continue
        if min(map(len, slices)) >= MIN_SHARE * shorter / _slice_step(cases[first]):
            yield best[first, second]


def _slice_step(case: Signatures) -> int:
    return EVERY if len(case) >= MANY_SLICES else 1


def _find_similar_slices(
    cases: Sequence[Signatures],
    patients: Sequence[str],
    threshold: float,
    orientations: Sequence[NDArray[np.intp]] = (),
) -> Iterator[DuplicatePair]:
    """Yield every pair of similar slices of different patients.

    With orientations, the slices of the first case are tried in each of them and with either sign;
    of a scan of many slices only every third one, against all slices of the second case.
    """
    if not cases:
        return
    vectors = np.concatenate(cases)
    case = np.repeat(np.arange(len(cases)), [len(c) for c in cases])
    number = np.concatenate([np.arange(len(c)) for c in cases])
    patient = np.unique(np.asarray(patients), return_inverse=True)[1][case]
    steps = np.array([_slice_step(c) if orientations else 1 for c in cases])[case]
    rows = np.flatnonzero(vectors.any(1) & (number % steps == 0))
    compare = _compare_all if len(vectors) <= COMPARED_WITH_ALL else _compare_candidates
    for first, second, similarity in compare(vectors, rows, threshold, orientations):
        other = (patient[first] != patient[second]) & (case[first] < case[second])
        for a, b, value in zip(first[other], second[other], similarity[other], strict=True):
            slices = (int(number[a]), int(number[b]))
            yield DuplicatePair(
                int(case[a]), int(case[b]), slices, float(value), bool(orientations)
            )


def _compare_all(
    vectors: Signatures, rows: Indices, threshold: float, orientations: Sequence[Indices]
) -> Iterator[tuple[Indices, Indices, Floats]]:
    """Yield the similar pairs of one of `rows`, in any orientation, and a later vector."""
    vectors = vectors.astype(np.float32)
    for start in range(0, len(rows), ROWS):
        block = rows[start : start + ROWS]
        others = vectors[block[0] :].T
        similarity = vectors[block] @ others
        for orientation in orientations:
            turned = np.abs(vectors[block][:, orientation] @ others)
            np.maximum(similarity, turned, out=similarity)
        i, j = np.nonzero(similarity >= threshold)
        yield block[i], block[0] + j, similarity[i, j]


def _compare_candidates(
    vectors: Signatures, rows: Indices, threshold: float, orientations: Sequence[Indices]
) -> Iterator[tuple[Indices, Indices, Floats]]:
    """Yield nearly all of what `_compare_all` does, some of it more than once, in less time."""
    for first, second, orientation in list_candidates(vectors, rows, threshold, orientations):
        later = rows[first] < second
        asked, others = rows[first[later]], second[later]
        for start in range(0, len(asked), ROWS):
            a, b = asked[start : start + ROWS], others[start : start + ROWS]
            turned = vectors[a] if orientation is None else vectors[a][:, orientation]
            similarity = (turned.astype(np.float32) * vectors[b]).sum(1)
            if orientation is not None:
                similarity = np.abs(similarity)
            near = similarity >= threshold
            yield a[near], b[near], similarity[near]
