r"""Distance of an attention's scores from those that KV attention can have.

The softmax over the keys j ignores a term a_i of the query: the scores S and S + a 1^T give the
same weights. A distance of scores is therefore taken to be the smallest one over all a. Let H be
I - 1 1^T / n, which subtracts a mean, and let norms be Frobenius norms. Then

    min over a    of |S + a 1^T|      =  |S H|,
    min over a, M of |S + a 1^T - M|  =  |(H S H - (H S H)^T) / 2|   with M symmetric,

since H a 1^T H = 0, and since a term of the key, 1 b^T, is symmetric together with the term b 1^T
that the softmax ignores: a bias per key does not count. The scores M = K K^T of KV attention have
no negative eigenvalues either, so that those of the symmetric part of H S H add to the distance
(nearest positive semidefinite matrix: Higham, 1988, Linear Algebra and its Applications 103). The
quotients of these distances and |S H| are measures of our own.

H Q and H K are queries and keys less their means over the tokens, without the biases of their
projections. With weights W_q and W_k and tokens of covariance C, n C^(1/2) W_q W_k^T C^(1/2) has
the same distances as H S H: the asymmetry of the scores is that of the weights.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from attnseg.explain.recording import AttentionRecord


@dataclass(frozen=True)
class ScoreSymmetry:
    """Shares of the scores, 0 to 1, per head `[h]`.

    Attributes:
        asymmetry: distance from the nearest symmetric scores over the norm |S H|; 0 in KV
            attention, about 0.71 with independent queries and keys.
        beyond_kv: the same from the nearest scores K K^T, of any keys of the same width.
    """

    asymmetry: Tensor
    beyond_kv: Tensor


@torch.no_grad()
def measure_symmetry(record: AttentionRecord) -> ScoreSymmetry | None:
    """Return how far the scores S = Q K^T of all tokens are from symmetric ones, and from KV's.

    It takes time linear in the tokens. `None` where queries and keys are not the same tokens.
    """
    if not record.same_tokens:
        return None
    q, k = (tokens[0].double().cpu() for tokens in (record.q, record.k))
    queries, width = q.shape[1:]
    mean, k = q.mean(1, keepdim=True), k - k.mean(1, keepdim=True)
    # With [H Q, H K] = B R, B having orthonormal columns, H S H = B scores B^T.
    factor = torch.linalg.qr(torch.cat((q - mean, k), 2), mode="r").R
    scores = factor[..., :width] @ factor[..., width:].mT
    of_keys = queries * (k @ mean.mT).square().sum((1, 2))
    whole = scores.square().sum((1, 2)) + of_keys
    odd = ((scores - scores.mT) / 2).square().sum((1, 2))
    eigenvalues = torch.linalg.eigvalsh((scores + scores.mT) / 2)
    negative = eigenvalues.clamp_max(0).square().sum(1)
    shares = torch.stack((odd, odd + negative)) / whole.clamp_min(torch.finfo(whole.dtype).tiny)
    return ScoreSymmetry(*shares.sqrt())
