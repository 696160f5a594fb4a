"""Measures of attention: how far it spreads over the slice, and how symmetric its scores are."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from attnseg.explain.recording import AttentionRecord
from attnseg.explain.token_weights import TokenWeights, is_negligible, weight_columns

MAX_QUERIES = 256  # About the most queries averaged over: the time grows with queries x keys^2.


@dataclass(frozen=True)
class AttentionSpread:
    """Spread of attention per head `[h]`, averaged over the query tokens of `sample_queries`.

    Attributes:
        entropy: entropy of the weights on the grid's keys, or on channels, in bits.
        highest_entropy: entropy of uniform weights, in bits.
        distance: mean distance of the keys, weighted, in the unit of the cell; 0 where no other
            token is reached.
        weight_on_grid: sum of the weights on the grid's keys; the rest is on prefix tokens.
    """

    entropy: Tensor
    highest_entropy: float
    distance: Tensor
    weight_on_grid: Tensor


def measure_spread(
    record: AttentionRecord, weights: TokenWeights, cell: tuple[float, float]
) -> AttentionSpread | None:
    """Return how far an attention spreads; `None` where tokens and channels are both mixed.

    The weights are of any of its tokens and tell the kind of mixing. The cell is the height and
    width of a query token, in mm or pixels.
    """
    if weights.kind == "both":
        return None
    if weights.kind == "channels":
        shares = weights.weights.abs() / weights.weights.abs().sum(2, keepdim=True)
        entropy = -torch.xlogy(shares, shares).sum(2).mean(1) / math.log(2)
        total = weights.weights.sum(2).mean(1)
        highest = math.log2(weights.weights.shape[2])
        return AttentionSpread(entropy, highest, torch.zeros_like(entropy), total)
    return _token_spread(record, cell)


def _token_spread(record: AttentionRecord, cell: tuple[float, float]) -> AttentionSpread:
    """Add up weights, entropy and distance over blocks of keys: all weights would not fit."""
    sampled = sample_queries(record)
    rows = torch.arange(record.prefix, record.q.shape[2]) if sampled is None else sampled
    queries = record.centres(cell, of_keys=False)[rows - record.prefix]
    keys = record.centres(cell, of_keys=True)
    shape = (record.q.shape[1], len(queries))
    weight_sum, entropy_sum, distance_sum = torch.zeros(3, *shape)
    for start, columns in weight_columns(record, sampled):
        first = max(record.prefix - start, 0)
        weights = (columns[:, rows] if sampled is None else columns)[..., first:]
        weights = weights.float().abs().cpu()
        at = start + first - record.prefix
        weight_sum += weights.sum(2)
        entropy_sum -= torch.xlogy(weights, weights).sum(2)
        distance_sum += (weights * torch.cdist(queries, keys[at : at + weights.shape[2]])).sum(2)
    # Entropy and distance are of the weights' shares of their sum on the grid.
    entropy = (entropy_sum / weight_sum + weight_sum.log()) / math.log(2)
    distance, highest = distance_sum / weight_sum, math.log2(len(keys))
    return AttentionSpread(entropy.mean(1), highest, distance.mean(1), weight_sum.mean(1))


@torch.no_grad()
def sample_queries(record: AttentionRecord) -> Tensor | None:
    """Return the indices of evenly spaced queries of the grid, prefix tokens included.

    `None` stands for all queries: there are few, or a query's output depends on the other queries.
    """
    step = -(-record.grid[0] * record.grid[1] // MAX_QUERIES)
    if step <= 1:
        return None
    # The step is odd: an even one could fall on the same columns of the grid in every row.
    indices = torch.arange(record.prefix, record.q.shape[2], step | 1)
    try:
        out = record.mix_values(record.q[:, :, indices], record.v)
    except (RuntimeError, ValueError):  # The mixing requires all queries.
        return None
    expected = record.out[:, :, indices]
    same = out.shape == expected.shape and is_negligible(out - expected, expected)
    return indices if same else None


def score_asymmetry(record: AttentionRecord) -> Tensor | None:
    """Return how far from symmetric the scores S = Q K^T of the grid's tokens are, per head `[h]`.

    It is the norm of (S - S^T) / 2 over that of S, in time linear in the tokens. 0 is symmetric, as
    in KV attention, where S = K K^T; independent queries and keys have 0.71. `None` where queries
    and keys stand on different grids.
    """
    if not record.same_tokens:
        return None
    q, k = (tokens[0, :, record.prefix :].double() for tokens in (record.q, record.k))
    squares = ((q.mT @ q) * (k.mT @ k)).sum((1, 2))
    product = k.mT @ q
    with_own_transpose = (product * product.mT).sum((1, 2))
    return ((1 - with_own_transpose / squares) / 2).clamp_min(0).sqrt().cpu()


def mean_scores(record: AttentionRecord, max_tokens: int) -> Tensor | None:
    """Return the scores Q K^T of the grid's tokens, averaged over heads: `[n, n]`.

    Of more than about `max_tokens` tokens, every second, third, ... is taken. `None` where queries
    and keys stand on different grids.
    """
    if not record.same_tokens:
        return None
    step = -(-(record.q.shape[2] - record.prefix) // max_tokens)
    q, k = (tokens[0, :, record.prefix :: step] for tokens in (record.q, record.k))
    return (q @ k.mT).mean(0).cpu()
