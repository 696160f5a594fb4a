r"""Fewer tokens from block to block: merging (ToMe) and pruning (DynamicViT).

Bolya et al., 2023, arXiv 2210.09461; Rao et al., 2021, arXiv 2106.02034. Both were published for
classification. Here every token of the grid gets a value again before the decoder: a merged token
is copied to all of its places, a pruned one keeps its last value.
"""

import torch
from torch import Tensor, nn

from attnseg.layers.encoder import Reduced, TokenReduction
from attnseg.layers.matching import copy_tokens, match_tokens, rank_descending, sum_tokens


class MergeTokens(TokenReduction):
    """Merges the most similar tokens between blocks, a fixed number at a time (ToMe, section 3).

    Tokens that come together are averaged, weighted by how many tokens each stands for. Published
    merging stands within the block, compares the keys of its attention, and gives merged keys more
    weight in the softmax. Any attention may stand here, with or without keys: tokens themselves
    are compared, after the block, and no scores are changed.

    Args:
        dim: C, the width of the tokens.
        depth: number of blocks of the encoder.
        per_block: r, how many tokens are merged into others after each block; at most half of
            those that are left.

    Raises:
        ValueError: `per_block` is below 1.
    """

    def __init__(self, dim: int, depth: int, per_block: int = 8) -> None:
        super().__init__()
        if per_block < 1:
            raise ValueError(f"per_block {per_block} must be 1 or more")
        self.per_block = per_block

    def forward(self, tokens: Tensor, sizes: Tensor, block: int) -> Reduced | None:
        """Reduce tokens; see `TokenReduction.forward`."""
        merged = min(self.per_block, tokens.shape[1] // 2)
        if merged == 0:
            return None
        targets, left = match_tokens(tokens, merged), tokens.shape[1] - merged
        weights = sizes[:, None, :, None].to(tokens)
        sums = sum_tokens(tokens[:, None] * weights, targets, left)
        total = sum_tokens(weights, targets, left)
        return Reduced((sums / total)[:, 0], total[:, 0, :, 0], tokens[:, :0], targets)


class PruneTokens(TokenReduction):
    """Keeps tokens of high scores after a quarter, half and three quarters of the blocks.

    The scores are those of DynamicViT's prediction module (equations 1 to 4): of the token itself
    and of the mean over all that are left. Published training draws the kept tokens at random and
    learns their number; here the highest scores are kept in training, too, and a score learns as a
    factor of its token, by the straight-through estimator. Published losses of distillation are
    left out.

    Args:
        dim: C, the width of the tokens; a multiple of 4.
        depth: number of blocks of the encoder.
        keep: share of the tokens that is kept each time.

    Raises:
        ValueError: `keep` is not between 0 and 1, or the width is no multiple of 4.
    """

    def __init__(self, dim: int, depth: int, keep: float = 0.7) -> None:
        super().__init__()
        if not 0 < keep < 1 or dim % 4:
            raise ValueError(
                f"keep {keep} must be between 0 and 1, and the width {dim} a multiple of 4"
            )
        self.keep = keep
        after = sorted({depth * quarter // 4 for quarter in (1, 2, 3)} - {0})
        self.predictors = nn.ModuleDict({str(i - 1): ScorePredictor(dim) for i in after})

    def forward(self, tokens: Tensor, sizes: Tensor, block: int) -> Reduced | None:
        """Reduce tokens; see `TokenReduction.forward`."""
        kept = max(1, int(self.keep * tokens.shape[1]))
        if str(block) not in self.predictors or kept == tokens.shape[1]:
            return None
        scores = self.predictors[str(block)](tokens)
        place = rank_descending(scores)
        stays = place < kept
        stayed, went = (flags.long().cumsum(1) - 1 for flags in (stays, ~stays))
        targets = torch.where(stays, stayed, kept + went)
        numbers = torch.arange(tokens.shape[1], device=tokens.device).expand_as(targets)
        order = torch.zeros_like(targets).scatter(1, targets, numbers)
        chances = scores.sigmoid()[:, None, :, None]
        moved = copy_tokens(tokens[:, None] * (1 + chances - chances.detach()), order)[:, 0]
        left = sizes.gather(1, order[:, :kept])
        return Reduced(moved[:, :kept], left, moved[:, kept:], targets)


class ScorePredictor(nn.Module):
    """Gives every token a score from itself and from the mean over all (DynamicViT)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.embed = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, dim), nn.GELU())
        self.score = nn.Sequential(
            nn.Linear(dim, dim // 2),
            nn.GELU(),
            nn.Linear(dim // 2, dim // 4),
            nn.GELU(),
            nn.Linear(dim // 4, 1),
        )

    def forward(self, tokens: Tensor) -> Tensor:
        """Score tokens `[B, n, C]`; returns `[B, n]`."""
        own, shared = self.embed(tokens).chunk(2, 2)
        shared = shared.mean(1, keepdim=True).expand_as(own)
        scores: Tensor = self.score(torch.cat((own, shared), 2))[..., 0]
        return scores
