"""Spread of attention over the slice, and its scores."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from attnseg.explain.jacobian import estimate_jacobians
from attnseg.explain.recording import AnyRecord, AttentionRecord, MixerRecord, TokenRecord
from attnseg.explain.token_weights import TokenWeights, is_negligible, weight_columns

MAX_QUERIES = 256  # About the most queries averaged over: the time grows with queries x keys^2.
MAX_JACOBIANS = 32  # The same of derivatives, each of which takes several backward passes.


@dataclass(frozen=True)
class AttentionSpread:
    """Spread of attention per head `[h]`, averaged over the query tokens of `sample_queries`.

    NaN where it has no meaning: of tokens that take nothing, of distances without a grid.

    Attributes:
        entropy: entropy of the weights on the grid's keys, or on channels, in bits.
        highest_entropy: entropy of uniform weights on the keys that a query can reach, in bits.
        distance: mean distance of the keys, weighted, in the unit of the slice's size; 0 where no
            other token is reached.
        weight_on_grid: sum of the weights on the grid's keys; the rest is on prefix tokens.
    """

    entropy: Tensor
    highest_entropy: Tensor
    distance: Tensor
    weight_on_grid: Tensor


def measure_spread(
    record: AnyRecord, weights: TokenWeights, size: tuple[float, float]
) -> AttentionSpread | None:
    """Return how far an attention spreads; `None` where tokens and channels are both mixed.

    The weights are of any of its tokens and tell the kind of mixing. The size is the height and
    width of the slice, in mm or pixels.
    """
    if weights.kind == "channels":
        sums = weights.shares.sum(2, keepdim=True)
        shares = weights.shares / sums
        entropy = -torch.xlogy(shares, shares).sum(2).mean(1) / math.log(2)
        highest = shares.count_nonzero(2).float().log2().mean(1)
        total = weights.weights.sum(2).mean(1)
        return AttentionSpread(entropy, highest, torch.zeros_like(entropy), total)
    if isinstance(record, MixerRecord):
        rows = _space_queries(record, MAX_JACOBIANS)
        norms = estimate_jacobians(record, rows)
        shares = norms / norms.sum(1, keepdim=True)
        return _add_up(record, rows, iter([(0, shares[None])]), size)
    if weights.kind == "both":
        return None
    sampled = sample_queries(record)
    rows = _space_queries(record, record.q.shape[2]) if sampled is None else sampled
    columns = weight_columns(record, sampled)
    if sampled is None:
        columns = ((start, block[:, rows]) for start, block in columns)
    return _add_up(record, rows, columns, size)


def _add_up(
    record: TokenRecord,
    rows: Tensor,
    columns: Iterator[tuple[int, Tensor]],
    size: tuple[float, float],
) -> AttentionSpread:
    """Add up weights, entropy and distance over blocks of keys: all weights would not fit.

    Columns are the index of the first key and weights `[h, rows, keys]`.
    """
    places, keys = record.query_centres(size), record.key_centres(size)
    if len(places):
        places = places[rows - record.prefix]
    weight_sum, entropy_sum, distance_sum, reached = torch.zeros(4, record.heads, len(rows))
    for start, block in columns:
        first = max(record.layout.key_prefix - start, 0)
        weights = block[..., first:].float().abs().cpu()
        at = start + first - record.layout.key_prefix
        weight_sum += weights.sum(2)
        entropy_sum -= torch.xlogy(weights, weights).sum(2)
        reached += weights.count_nonzero(2)
        if len(places):
            distances = torch.cdist(places, keys[:, at : at + weights.shape[2]])
            distances = distances.repeat_interleave(record.heads // len(keys), 0)
            distance_sum += (weights * distances).sum(2)
    # Entropy and distance are of the weights' shares of their sum on the grid.
    distance = distance_sum / weight_sum if len(places) else torch.full_like(weight_sum, math.nan)
    entropy = (entropy_sum / weight_sum + weight_sum.log()) / math.log(2)
    reached[reached == 0] = math.nan
    entropy, highest, distance = (x.nanmean(1) for x in (entropy, reached.log2(), distance))
    return AttentionSpread(entropy, highest, distance, weight_sum.mean(1))


def _space_queries(record: TokenRecord, most: int) -> Tensor:
    """Return the indices of about the given number of evenly spaced queries of the grid.

    Prefix tokens count; they are the queries where there is no grid.
    """
    queries = record.grid[0] * record.grid[1]
    if queries == 0:
        return torch.arange(record.prefix)
    step = -(-queries // most)
    # The step is odd: an even one could fall on the same columns of the grid in every row.
    return torch.arange(record.prefix, record.prefix + queries, step | 1 if step > 1 else 1)


@torch.no_grad()
def sample_queries(record: AttentionRecord) -> Tensor | None:
    """Return the indices of evenly spaced queries of the grid, prefix tokens included.

    `None` stands for all queries: there are few, or a query's output depends on the other queries.
    """
    if record.grid[0] * record.grid[1] <= MAX_QUERIES:
        return None
    indices = _space_queries(record, MAX_QUERIES)
    try:
        out = record.mix_values(record.q[:, :, indices], record.v)
    except (RuntimeError, ValueError, IndexError):  # The mixing requires all queries.
        return None
    expected = record.out[:, :, indices]
    same = out.shape == expected.shape and is_negligible(out - expected, expected)
    return indices if same else None


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
