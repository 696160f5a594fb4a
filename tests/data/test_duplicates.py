"""The same picture is found under any name and coding; two pictures are never taken for one."""

import io

import cv2
import numpy as np
import pytest
from PIL import Image

from attnseg.data import duplicates
from attnseg.data.readers.isic2018 import ISIC2018
from attnseg.data.readers.uw_madison import UWMadison
from attnseg.phantoms.isic2018 import make_isic2018
from attnseg.phantoms.situs import make_pair


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    root = tmp_path_factory.mktemp("isic") / "isic"
    make_isic2018(root, "demo")
    reader = ISIC2018(root)
    return [reader.read(ref).image[0] for ref in reader.cases()[:30]]


def jpeg(image, quality):
    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=quality)
    return np.asarray(Image.open(file))


def resized(image, factor):
    return cv2.resize(image, None, fx=factor, fy=factor, interpolation=cv2.INTER_AREA)


RECODED = {
    "JPEG quality 75": lambda image: jpeg(image, 75),
    "JPEG quality 60": lambda image: jpeg(image, 60),
    "twice the size": lambda image: resized(image, 2),
    "0.7 of the size": lambda image: resized(image, 0.7),
    "darker, less contrast": lambda image: (image * 0.6 + 20).astype(np.uint8),
    "grey": lambda image: image.mean(-1, keepdims=True).astype(np.uint8).repeat(3, -1),
    "noisy": lambda image: (
        image + np.random.default_rng(0).normal(0, 2, image.shape)
    ).clip(0, 255).astype(np.uint8),
    "smaller and JPEG": lambda image: jpeg(resized(image, 0.8), 70),
}  # fmt: skip


def test_recoded_pictures_are_found(pictures):
    missed = []
    for number, image in enumerate(pictures):
        for name, change in RECODED.items():
            cases = [duplicates.compute_signatures(each[None]) for each in (image, change(image))]
            pairs = duplicates.find_duplicates(cases, ["a", "b"], ["p", "q"])
            places = [(pair.first, pair.second, pair.slices) for pair in pairs]
            similar = all(pair.similarity > duplicates.MIN_SIMILARITY for pair in pairs)
            if places != [(0, 1, (0, 0))] or not similar:
                missed.append(f"picture {number}, {name}: {pairs}")
    assert missed == []


def test_two_pictures_are_two(pictures):
    cases = [duplicates.compute_signatures(picture[None]) for picture in pictures]
    names = [str(i) for i in range(len(cases))]
    assert duplicates.find_duplicates(cases, names, names) == []
    (nearest, *_) = sorted(
        (p.similarity for p in duplicates.find_duplicates(cases, names, names, 0.0)), reverse=True
    )
    assert nearest < duplicates.MIN_SIMILARITY - 0.1


def test_scans_of_two_patients_share_no_slice_and_those_of_one_are_not_compared(phantom):
    reader = UWMadison(phantom)
    refs = reader.cases()
    cases = [duplicates.compute_signatures(reader.read(ref).image) for ref in refs]
    names = [ref.case for ref in refs]
    assert duplicates.find_duplicates(cases, [ref.patient for ref in refs], names) == []
    assert duplicates.find_duplicates([cases[0], cases[0]], ["a", "a"], ["p", "p"]) == []


def test_one_shared_slice_is_enough_and_is_named(phantom):
    reader = UWMadison(phantom)
    one, two = (reader.read(reader.cases()[i]).image for i in (0, 3))
    mixed = two.copy()
    mixed[5] = cv2.resize(one[2, ..., 0], two.shape[2:0:-1])[..., None] // 2
    (pair,) = duplicates.find_duplicates(
        [duplicates.compute_signatures(c) for c in (one, mixed)], ["a", "b"], ["p", "q"]
    )
    assert pair.slices == (2, 5)


def test_flat_slices_are_like_nothing():
    flat = duplicates.compute_signatures(np.full((3, 20, 30, 1), 7, np.uint16))
    assert not flat.any()
    assert duplicates.find_duplicates([flat, flat], ["a", "b"], ["p", "q"]) == []
    assert duplicates.find_duplicates([], [], []) == []


def test_equal_pixels_are_found_however_small_or_flat():
    small = duplicates.compute_signatures(np.arange(40).reshape(2, 4, 5, 1))
    assert not small.any()
    (pair,) = duplicates.find_duplicates([small] * 3, ["a", "a", "b"], ["p", "q", "q"])
    assert (pair.first, pair.second) == (1, 2)


def test_comparison_in_blocks_finds_the_same(pictures, monkeypatch):
    cases = [duplicates.compute_signatures(picture[None]) for picture in [*pictures, pictures[3]]]
    names = [str(i) for i in range(len(cases))]
    whole = duplicates.find_duplicates(cases, names, names, 0.3)
    assert whole
    monkeypatch.setattr(duplicates, "ROWS", 5)
    found = duplicates.find_duplicates(cases, names, names, 0.3)
    assert [(p.first, p.second) for p in found] == [(p.first, p.second) for p in whole]


MOVES = {
    "shifted": lambda v: np.roll(v, (4, -7), (1, 2)),
    "cut": lambda v: v[:, 5:-5, 6:-6],
    "padded": lambda v: np.pad(v, ((0, 0), (9, 2), (5, 5), (0, 0))),
    "a quarter turn": lambda v: np.rot90(v, 1, (1, 2)),
    "a half turn": lambda v: np.rot90(v, 2, (1, 2)),
    "mirrored": lambda v: v[:, :, ::-1],
    "mirrored and turned": lambda v: np.rot90(v[:, ::-1], 3, (1, 2)),
    "inverted": lambda v: v.max() - v,
    "turned by 12 degrees": lambda v: turned(v, 12),
    "mirrored, inverted, smaller": lambda v: turned(v.max() - v[:, ::-1], 0, 0.8),
}


def turned(volume, degrees, scale=1.0):
    height, width = volume.shape[1:3]
    matrix = cv2.getRotationMatrix2D(((width - 1) / 2, (height - 1) / 2), degrees, scale)
    planes = [
        cv2.warpAffine(s[..., 0].astype(np.float32), matrix, (width, height),
                       borderValue=float(s[0, 0, 0])) for s in volume
    ]  # fmt: skip
    return np.stack(planes)[..., None]


def test_scans_that_were_moved_are_found_and_only_they(phantom):
    reader = UWMadison(phantom)
    refs = reader.cases()
    # The bodies fill the pictures of this phantom, and would be cut with them.
    frame = ((0, 0), (8, 8), (10, 10), (0, 0))
    scans = [np.pad(reader.read(ref).image.astype(np.float32), frame) for ref in refs]
    cases = [duplicates.compute_signatures(scan) for scan in scans]
    names, pixels = [ref.patient for ref in refs], [ref.case for ref in refs]
    missed = []
    for name, move in MOVES.items():
        copy = duplicates.compute_signatures(np.ascontiguousarray(move(scans[1])))
        pairs = duplicates.find_duplicates([*cases, copy], [*names, "new"], [*pixels, "new"])
        own = {i for i, ref in enumerate(refs) if ref.patient == refs[1].patient}
        if not pairs or not all(p.first in own and p.second == len(cases) for p in pairs):
            missed.append((name, pairs))
        elif not (pair := next(p for p in pairs if p.first == 1)).moved and name != "mirrored":
            assert pair.similarity > duplicates.MIN_SIMILARITY
    assert not missed


def test_pictures_that_were_turned_mirrored_padded_or_inverted_are_found(pictures):
    missed = []
    for number, picture in enumerate(pictures[::3]):
        original = duplicates.compute_signatures(picture[None])
        for name in ("padded", "a quarter turn", "a half turn", "mirrored", "inverted"):
            copy = np.ascontiguousarray(MOVES[name](picture[None]))
            cases = [original, duplicates.compute_signatures(copy)]
            if not duplicates.find_duplicates(cases, ["a", "b"], ["p", "q"]):
                missed.append((number, name))
    assert not missed


def test_two_bodies_alike_once_aligned_are_no_copy_by_a_single_slice():
    (one, _), (two, _) = make_pair(0, 216, 128)[0], make_pair(0, 278, 128)[0]
    cases = [duplicates.compute_signatures(picture[None, ..., None]) for picture in (one, two)]
    assert duplicates.find_duplicates(cases, ["a", "b"], ["p", "q"]) == []
    copy = duplicates.compute_signatures(one[None, ::-1, :, None])
    assert duplicates.find_duplicates([cases[0], copy], ["a", "b"], ["p", "q"])


def draw_aligned(count):
    """Draw the aligned signatures of slices that are unlike each other."""
    unit = np.random.default_rng(0).standard_normal((count, 1024))
    return unit / np.linalg.norm(unit, axis=1, keepdims=True)


def only_aligned(aligned):
    """Return the signatures of a scan that is like no other one before it is aligned."""
    return np.concatenate([np.zeros_like(aligned), aligned]).astype(np.float16)


def test_a_few_slices_that_agree_once_aligned_are_no_copy():
    unit = draw_aligned(24)
    one, two = unit[:12].copy(), unit[12:].copy()
    two[0] = -one[0][duplicates.ORIENTATIONS[5]]
    assert (
        duplicates.find_duplicates([only_aligned(one), only_aligned(two)], ["a", "b"], ["p", "q"])
        == []
    )
    two[7] = one[6]
    (pair,) = duplicates.find_duplicates(
        [only_aligned(one), only_aligned(two)], ["a", "b"], ["p", "q"]
    )
    assert pair.moved
    assert pair.slices in ((0, 0), (6, 7))


@pytest.mark.parametrize("swapped", [False, True])
@pytest.mark.parametrize(("copied", "is_copy"), [(20, True), (9, True), (3, False)])
def test_a_moved_part_of_a_scan_is_a_copy_in_either_order(copied, is_copy, swapped):
    slices = draw_aligned(120)
    part = slices[100:].copy()  # a scan of 20 slices, some of them from the one of 100
    part[:copied] = slices[31 : 31 + copied, duplicates.ORIENTATIONS[3]]
    scans = [only_aligned(slices[:100]), only_aligned(part)]
    pairs = duplicates.find_duplicates(scans[::-1] if swapped else scans, ["a", "b"], ["p", "q"])
    assert [(pair.first, pair.second, pair.moved) for pair in pairs] == [(0, 1, True)] * is_copy
