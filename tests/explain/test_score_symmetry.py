"""Asymmetry of scores: by definition, blind to what the softmax ignores, and 0 for KV attention."""

import dataclasses

import pytest
import torch

from attnseg.attention.attention import Attention
from attnseg.explain.score_symmetry import measure_symmetry
from tests.explain.test_explain import HEADS, TOKENS, WIDTH, make_mixing, make_record


def measure(q, k):
    """Both measures of queries and keys `[h, n, d]`, which become those of a record."""
    here = make_record(make_mixing("softmax", 1.0))
    found = measure_symmetry(dataclasses.replace(here, q=q[None], k=k[None]))
    return torch.stack((found.asymmetry, found.beyond_kv))


def draw(seed=0):
    torch.manual_seed(seed)
    return torch.randn(2, HEADS, TOKENS, WIDTH, dtype=torch.float64)


def append(x, column):
    """Give each head one more channel: a column `[n]` or a number."""
    column = torch.as_tensor(column, dtype=x.dtype).expand(TOKENS)
    return torch.cat((x, column.expand(HEADS, -1)[..., None]), 2)


def test_scores_of_kv_have_none():
    q, k = draw()
    assert (measure(q, q) < 1e-12).all()
    assert (measure(append(q, 1), append(q, torch.randn(TOKENS))) < 1e-12).all()  # a bias per key
    assert (measure(q, torch.zeros_like(k)) == 0).all()


def test_antisymmetric_scores_have_nothing_else():
    x, y = draw() - draw().mean(2, keepdim=True)
    expected = torch.ones(2, HEADS, dtype=torch.float64)
    torch.testing.assert_close(measure(torch.cat((x, y), 2), torch.cat((-y, x), 2)), expected)
    expected[0] = 0  # Symmetric, but every token scores itself lowest.
    torch.testing.assert_close(measure(x, -x), expected)


def test_a_term_of_the_query_changes_nothing():
    q, k = draw()
    term = 10 * torch.randn(TOKENS)
    weights, shifted = ((a @ b.mT).softmax(2) for a, b in ((q, k), (append(q, term), append(k, 1))))
    torch.testing.assert_close(weights, shifted)
    torch.testing.assert_close(measure(append(q, term), append(k, 1)), measure(q, k))


@pytest.mark.parametrize(("tokens", "width"), [(TOKENS, 3), (5, WIDTH)])
def test_they_are_the_smallest_distances(tokens, width):
    """From the best term and matrix that a search finds, with many tokens or few."""
    q, k = draw()[:, :1, :tokens, :width]
    scores = (q @ k.mT)[0]
    term = torch.zeros(tokens, 1, dtype=scores.dtype, requires_grad=True)
    matrix, root = torch.randn(2, tokens, tokens, dtype=scores.dtype).unbind()
    matrix, root = matrix.clone().requires_grad_(), root.clone().requires_grad_()
    of_zero = search(lambda: (scores + term).norm(), [term])
    symmetric = search(lambda: (scores + term - matrix - matrix.mT).norm(), [term, matrix])
    of_keys = search(lambda: (scores + term - root @ root.mT).norm(), [term, root])
    here = make_record(make_mixing("softmax", 1.0), grid=(1, tokens), prefix=0)
    measured = measure_symmetry(dataclasses.replace(here, q=q[None], k=k[None]))
    assert measured.asymmetry.item() == pytest.approx(symmetric / of_zero, rel=1e-6)
    assert measured.beyond_kv.item() == pytest.approx(of_keys / of_zero, rel=1e-3)
    assert measured.beyond_kv.item() <= of_keys / of_zero + 1e-12


def search(distance, variables):
    """Return the smallest distance that a descent finds."""
    descent = torch.optim.LBFGS(variables, max_iter=2000, line_search_fn="strong_wolfe")

    def step():
        descent.zero_grad()
        loss = distance()
        loss.backward()
        return loss

    descent.step(step)
    return distance().item()


def test_independent_queries_and_keys():
    q, k = torch.randn(2, HEADS, TOKENS, 500, dtype=torch.float64)
    assert measure(q, k)[0].tolist() == pytest.approx([0.5**0.5] * HEADS, abs=0.05)


def test_it_is_that_of_the_weights():
    """Of W_q W_k^T between roots of the tokens' covariance."""
    torch.manual_seed(0)
    attention = Attention(HEADS * WIDTH, HEADS).double()
    x = torch.randn(TOKENS, HEADS * WIDTH, dtype=torch.float64)
    q, k = (attention.project[n].linear(x).unflatten(1, (HEADS, -1)).transpose(0, 1) for n in "qk")
    values, vectors = torch.linalg.eigh(TOKENS * torch.cov(x.T, correction=0))
    root = vectors @ values.clamp_min(0).sqrt().diag() @ vectors.T
    weights = (attention.project[n].linear.weight.unflatten(0, (HEADS, WIDTH)) for n in "qk")
    q_weight, k_weight = weights
    product = root @ q_weight.mT @ k_weight @ root
    odd = ((product - product.mT) / 2).norm(dim=(1, 2))
    shown = (q @ (k - k.mean(1, keepdim=True)).mT).norm(dim=(1, 2))
    torch.testing.assert_close(measure(q, k)[0], odd / shown)
