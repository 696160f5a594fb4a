r"""Shared projections that keep the scores and values of separate ones, by least squares.

Everything is per head, in float64, and weighted by the covariance S of the tokens that the network
sees. A token is x = mu + y. Queries, keys and values are q = W_q' x + b_q and so on; projections
are written as C x d matrices, so that q = W^T x + b.

*Scores of which only differences matter.* A softmax over j ignores what does not depend on the key.
Of s_ij = q_i . k_j there remains

    y_i^T A y_j + c^T y_j,   A = W_q W_k^T,   c = W_k (W_q^T mu + b_q).

*Queries and keys in one* (`share_query_key`): z = W^T x + b gives y_i^T W W^T y_j + m^T W^T y_j
with m = W^T mu + b. The first term is best, in the mean square over pairs of tokens, if
L^T W W^T L with S = L L^T is the positive semidefinite matrix of rank d that is nearest to
L^T A L: the positive part of its symmetric part. No shared projection can have the antisymmetric
part. The symmetric part has at most d positive eigenvalues, as A = W_q W_k^T is of rank d; they
come from a 2d x 2d matrix. Then m is the least-squares solution of L^T W m = L^T c, and gives b.
W is free up to a rotation within the head: the one nearest to the mean of W_q and W_k is taken.

*Keys and values in one* (`share_key_value`): keys K and values V, both of rank d, are replaced by
Z M_k and Z M_v with a Z of rank d. M_v goes into Z, so that values need no other output projection,
and M_k into the queries. The span of Z minimises the sum of two relative errors, that of the
scores, |(K - Z M_k) G_q^1/2|^2 with the second moments G_q of the queries, and that of the
outputs, |(V - Z M_v) W_o^T|^2: it is that of the first d left singular vectors of both side by
side.

*Values from what is there* (`take_values`): if the projection of the queries and keys gives the
values, too, values are regressed on it, and the coefficients go into the output projection.

Without biases, second moments stand in the place of covariances.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from attnseg.conversion.moments import Moments, SiteMoments

TINY = 1e-10  # share of the largest eigenvalue below which a direction has no tokens


class Heads(NamedTuple):
    """A projection by heads: weights `[h, C, d]`, and biases `[h, d]` or `None`."""

    weight: Tensor
    bias: Tensor | None

    def at(self, tokens: Tensor) -> Tensor:
        """Return the projection `[h, ..., d]` of tokens `[..., C]`."""
        projected = tokens @ self.weight
        return projected if self.bias is None else projected + self.bias[:, None]

    def mean(self, moments: Moments) -> Tensor:
        """Return the mean of the projected tokens, `[h, d]`."""
        return self.at(moments.mean[None])[:, 0]


class _Root:
    """A root L `[C, r]` of a moment matrix L L^T, and its pseudo-inverse."""

    def __init__(self, moments: Moments, centred: bool) -> None:
        matrix = moments.covariance
        if not centred:
            matrix = matrix + torch.outer(moments.mean, moments.mean)
        values, vectors = torch.linalg.eigh(matrix)
        kept = values > TINY * values[-1]
        self.root = vectors[:, kept] * values[kept].sqrt()
        self.inverse = vectors[:, kept] / values[kept].sqrt()  # of L^T
        self.unseen = vectors[:, ~kept] @ vectors[:, ~kept].mT  # projects on what no token has

    def apply(self, weight: Tensor) -> Tensor:
        """Return L^T W, `[h, r, d]`."""
        applied: Tensor = self.root.mT @ weight
        return applied

    def undo(self, applied: Tensor, like: Tensor) -> Tensor:
        """Return the W of L^T W; where no token is, it is as another, `[h, C, d]`."""
        weight: Tensor = self.inverse @ applied + self.unseen @ like
        return weight


def share_query_key(query: Heads, key: Heads, moments: SiteMoments) -> Heads:
    """Return the projection whose products with itself are nearest to the scores."""
    one, other = moments.queries, moments.keys
    both = Moments((one.mean + other.mean) / 2, (one.covariance + other.covariance) / 2)
    root = _Root(both, query.bias is not None)
    mean = (query.weight + key.weight) / 2
    own = torch.cat((root.apply(query.weight), root.apply(key.weight)), 2)  # [h, r, 2d]
    width = query.weight.shape[2]
    basis, triangle = torch.linalg.qr(own)
    product = triangle[:, :, :width] @ triangle[:, :, width:].mT
    values, vectors = torch.linalg.eigh((product + product.mT) / 2)
    values, vectors = values[:, -width:].clamp_min(0), vectors[:, :, -width:]
    shared = basis @ (vectors * values.sqrt()[:, None])
    shared = F.pad(shared, (0, width - shared.shape[2]))  # of fewer directions than a head has
    left, _, right = torch.linalg.svd(shared.mT @ root.apply(mean))
    shared = shared @ (left @ right)
    weight = root.undo(shared, mean)
    if query.bias is None:
        return Heads(weight, None)
    of_key = root.apply(key.weight @ query.mean(moments.queries)[:, :, None])  # L^T c
    middle = torch.linalg.lstsq(shared, of_key, driver="gelsd").solution[:, :, 0]
    return Heads(weight, middle - one.mean @ weight)


def share_key_value(
    query: Heads, key: Heads, value: Heads, out: Tensor, moments: SiteMoments
) -> tuple[Heads, Heads]:
    """Return the projection of queries, and that of keys and values.

    `out` are the weights of the output projection by heads, `[h, C, d]`.
    """
    root = _Root(moments.keys, value.bias is not None)
    keys, values = root.apply(key.weight), root.apply(value.weight)
    covariance = query.weight.mT @ moments.queries.covariance @ query.weight
    middle = query.mean(moments.queries)
    of_queries = _matrix_root(covariance + middle[:, :, None] * middle[:, None])
    scores, outputs = keys @ of_queries, values @ _matrix_root(out.mT @ out)
    sides = [each / _norm(each) for each in (scores, outputs)]
    span = torch.linalg.svd(torch.cat(sides, 2), full_matrices=False)[0][:, :, : keys.shape[2]]
    shared = span @ (span.mT @ values)
    weight = root.undo(shared, value.weight)
    change = torch.linalg.lstsq(shared, keys, driver="gelsd").solution.mT
    bias = None
    if value.bias is not None:
        bias = value.mean(moments.keys) - moments.keys.mean @ weight
    turned = None if query.bias is None else (query.bias[:, None] @ change)[:, 0]
    return Heads(query.weight @ change, turned), Heads(weight, bias)


def take_values(
    shared: Heads, value: Heads, out: Tensor, moments: Moments
) -> tuple[Tensor, Tensor]:
    """Return the output projection `[h, C, d]` for shared values, and what its bias gains, `[C]`.

    Arguments as of `share_key_value`.
    """
    root = _Root(moments, centred=True)
    change = torch.linalg.lstsq(
        root.apply(shared.weight), root.apply(value.weight), driver="gelsd"
    ).solution
    lost = value.mean(moments) - (shared.mean(moments)[:, None] @ change)[:, 0]
    return out @ change.mT, (out @ lost[:, :, None]).sum((0, 2))


def _norm(matrices: Tensor) -> Tensor:
    """Return the Frobenius norm of each matrix, `[h, 1, 1]`; that of none is 1."""
    norm = torch.linalg.matrix_norm(matrices, keepdim=True)
    return torch.where(norm > 0, norm, 1.0)


def _matrix_root(matrices: Tensor) -> Tensor:
    """Return the roots of positive semidefinite matrices `[h, d, d]`."""
    values, vectors = torch.linalg.eigh(matrices)
    root: Tensor = (vectors * values.clamp_min(0).sqrt()[:, None]) @ vectors.mT
    return root
