"""Candidates for near vectors, and the search for duplicates among very many slices by them."""

import math

import numpy as np
import pytest

from attnseg.data import duplicates
from attnseg.data.duplicates import MIN_SIMILARITY, ORIENTATIONS, find_duplicates
from attnseg.data.near_vectors import MISSED, count_hashes, list_candidates

SIDE = 1024


def unit(vectors):
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def near(rng, vectors, similarity):
    """Return vectors whose cosine with the given ones is about `similarity`."""
    noise = unit(rng.standard_normal(vectors.shape))
    return similarity * vectors + math.sqrt(1 - similarity**2) * noise


def make_cases(rng, count, slices):
    """Return the signatures of unrelated scans."""
    drawn = unit(rng.standard_normal((count, 2 * slices, SIDE)))
    return list(drawn.astype(np.float16))


def search(cases, monkeypatch, most):
    monkeypatch.setattr(duplicates, "COMPARED_WITH_ALL", most)
    names = [str(index) for index in range(len(cases))]
    return {(pair.first, pair.second, pair.moved) for pair in find_duplicates(cases, names, names)}


def test_the_same_pairs_are_found_as_by_comparing_all(monkeypatch):
    rng = np.random.default_rng(0)
    slices = 6
    cases = make_cases(rng, 60, slices)
    for copy, (original, similarity) in enumerate(
        [(20, 0.99), (21, 0.93), (22, 0.90), (23, 0.88)], 40
    ):  # one slice of each, as it is
        cases[copy][1] = near(rng, cases[original][3].astype(np.float64), similarity)
    for copy, (original, orientation, sign) in enumerate(
        [(30, 1, 1), (31, 5, -1), (32, 7, 1), (33, 0, -1)], 50
    ):  # a whole scan, turned
        aligned = sign * cases[original][slices:][:, ORIENTATIONS[orientation]]
        cases[copy][slices:] = near(rng, aligned.astype(np.float64), 0.92)
    found = search(cases, monkeypatch, 10**9)
    assert {pair[:2] for pair in found} == {
        (20, 40), (21, 41), (22, 42), (23, 43), (30, 50), (31, 51), (32, 52), (33, 53),
    }  # fmt: skip
    assert search(cases, monkeypatch, 0) == found


def test_a_pair_at_the_threshold_is_hardly_ever_missed():
    rng = np.random.default_rng(1)
    originals = unit(rng.standard_normal((400, SIDE)))
    copies = near(rng, originals, MIN_SIMILARITY)
    vectors = np.concatenate([originals, copies]).astype(np.float16)
    met = set()
    for first, second, _ in list_candidates(vectors, np.arange(400), MIN_SIMILARITY):
        met |= set(first[second == first + 400].tolist())
    assert len(met) >= 400 - 3  # 0.4 are expected to be missed
    assert MISSED <= 1e-3


@pytest.mark.full
def test_the_number_of_candidates_grows_far_less_than_that_of_pairs():
    rng = np.random.default_rng(2)
    sizes, counts = (1000, 4000), []
    for size in sizes:
        vectors = unit(rng.standard_normal((size, SIDE))).astype(np.float16)
        listed = list_candidates(vectors, np.arange(size), MIN_SIMILARITY)
        counts.append(sum(len(first) for first, *_ in listed) - size * count_hashes(size, 0.85)[1])
    exponent = math.log(counts[1] / counts[0]) / math.log(sizes[1] / sizes[0])
    assert exponent < 1.6


def test_bits_and_hashes_grow_with_the_number_of_vectors():
    (few, hashes), (many, more) = (count_hashes(n, 0.85) for n in (10**4, 10**6))
    assert (few, many) == (14, 20)
    assert hashes < more < 100 * hashes
    exponent = math.log(10**6 * more / (10**4 * hashes)) / math.log(100)
    assert exponent < 1.35  # of the cost
