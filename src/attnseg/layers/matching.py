"""Selection and matching of tokens by operations that any exporter and device can repeat.

Sorting is replaced by counting: ONNX has no stable sort, without which equal scores would be in
another order on another device. On CUDA `scatter_add` and the gradient of `gather` are
deterministic if PyTorch is told to be.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def rank_descending(scores: Tensor) -> Tensor:
    """Return the place of each score `[B, n]` in the order from the highest, from 0.

    Of equal scores the first comes first; one that is not a number counts as 0.
    """
    scores = scores.detach().nan_to_num()
    own, others = scores[:, :, None], scores[:, None]
    at = torch.arange(scores.shape[1], device=scores.device)
    before = (others > own) | ((others == own) & (at < at[:, None]))
    return before.long().sum(2)


def match_tokens(features: Tensor, merged: int) -> Tensor:
    """Return the number `[B, n]` of the token that each of n tokens becomes (ToMe).

    The tokens are assigned in turn to two sets, A (first, third, ...) and B. Every token of A
    proposes the most similar token of B; the `merged` most similar proposals are accepted, of equal
    ones the first. The tokens of A that are left come first, then those of B, both in their former
    order.

    Bolya et al., 2023, arXiv 2210.09461, section 3 and appendix D.

    Args:
        features: tokens that are compared by their cosine, `[B, n, d]`.
        merged: how many tokens of A are merged into tokens of B; at most half of n.
    """
    # Autocast leaves float64 alone; in bfloat16 most similarities would be equal.
    features = F.normalize(features.detach().double(), dim=-1)
    a, b = features[:, ::2], features[:, 1::2]
    best, partner = (a @ b.mT).max(2)
    accepted = rank_descending(best) < merged
    left = a.shape[1] - merged
    moved = torch.where(accepted, partner + left, (~accepted).long().cumsum(1) - 1)
    kept = torch.arange(b.shape[1], device=b.device).expand(b.shape[0], -1) + left
    if a.shape[1] > b.shape[1]:
        kept = F.pad(kept, (0, 1))
    return torch.stack((moved, kept), 2).flatten(1)[:, : features.shape[1]]


def sum_tokens(tokens: Tensor, targets: Tensor, count: int) -> Tensor:
    """Return the sums `[B, h, count, d]` of the tokens that become one.

    Args:
        tokens: any tokens, `[B, h, n, d]`.
        targets: number of the token that each becomes, `[B, n]`.
        count: how many there are.
    """
    sums = tokens.new_zeros(tokens.shape[0], tokens.shape[1], count, tokens.shape[3])
    return sums.scatter_add(2, _index(targets, tokens), tokens)


def copy_tokens(tokens: Tensor, targets: Tensor) -> Tensor:
    """Return the tokens `[B, h, n, d]` that have the numbers `[B, n]` among `[B, h, m, d]`."""
    return tokens.gather(2, _index(targets, tokens))


def _index(targets: Tensor, tokens: Tensor) -> Tensor:
    return targets[:, None, :, None].expand(-1, tokens.shape[1], -1, tokens.shape[3])
