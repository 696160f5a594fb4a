"""Jacobian maps of mixers that have no values: the norm of an output's derivative by each token.

Pooling, focal modulation and the like have no weights to show. Their map of query token i is

    m_ij = |d out_i / d x_j|_F / sqrt(C),

the norm of the derivative of the whole mixer, projections included, by its input token x_j (by the
token of the context, if there is one). It is |a| where that derivative is a times the identity.

For one token the map is exact: C backward passes, one per channel of out_i. For means over many
tokens, `PROBES` random signs z estimate it, since E |J^T z|^2 = |J|_F^2. Both send copies of the
tokens through the mixer as one batch, each with a vector of its own to differentiate along.
"""

import copy
from collections.abc import Iterator

import torch
from torch import Tensor

from attnseg.explain.recording import AnyRecord, MixerRecord
from attnseg.explain.token_weights import TokenWeights, weights_of_token

PROBES = 16
BATCH_NUMBERS = 2**22  # About the most numbers in a batch of copies of the tokens.
STEP = 1e-5  # of the difference quotient, in float64


def derive_weights(record: AnyRecord, token: int) -> TokenWeights:
    """Return the map of a query token of any record; the index counts prefix tokens."""
    if isinstance(record, MixerRecord):
        return jacobian_of_token(record, token)
    return weights_of_token(record, token)


@torch.no_grad()
def jacobian_of_token(record: MixerRecord, token: int) -> TokenWeights:
    """Return the exact map of an output token, whose index counts prefix tokens.

    Its error is that of the derivative along a random direction against a difference quotient in
    float64, as a share of the largest entry.
    """
    width = record.tokens.shape[2]
    generator = torch.Generator().manual_seed(0)
    direction = torch.randn(record.tokens.shape[1:], generator=generator).to(record.tokens)
    units = torch.eye(width).to(record.tokens)
    squares, along = torch.zeros(record.tokens.shape[1]).to(record.tokens), []
    for rows in _pull_back(record, torch.full((width,), token), units):
        squares += rows.square().sum((0, 2))
        along.append((rows * direction).sum((1, 2)))
    quotient = _difference_quotient(record, token, direction)
    largest = quotient.abs().max().clamp_min(torch.finfo(quotient.dtype).tiny)
    error = float((torch.cat(along).double() - quotient).abs().max() / largest)
    return TokenWeights("jacobian", (squares / width).sqrt()[None].cpu(), error)


@torch.no_grad()
def estimate_jacobians(record: MixerRecord, queries: Tensor) -> Tensor:
    """Return the maps of several output tokens, given by index, estimated: `[queries, M]`."""
    width = record.tokens.shape[2]
    generator = torch.Generator().manual_seed(0)
    signs = torch.randint(2, (len(queries) * PROBES, width), generator=generator) * 2 - 1
    rows = _pull_back(record, queries.repeat_interleave(PROBES), signs.to(record.tokens))
    squares = torch.cat([some.square().sum(2) for some in rows])
    norms: Tensor = (squares.unflatten(0, (-1, PROBES)).mean(1) / width).sqrt()
    return norms


def _pull_back(record: MixerRecord, queries: Tensor, vectors: Tensor) -> Iterator[Tensor]:
    """Yield, some at a time, J^T z for each query and its vector z `[C]`: `[some, M, C]`."""
    tokens = record.tokens.detach()
    size = max(1, BATCH_NUMBERS // max(tokens.numel(), record.x.numel()))
    for some, along in zip(queries.split(size), vectors.split(size), strict=True):
        with torch.enable_grad():
            copies = tokens.expand(len(some), -1, -1).clone().requires_grad_()
            out = record.mix_tokens(record.mixer, copies)
            chosen = out[torch.arange(len(some)), some.to(out.device)]
            yield torch.autograd.grad(chosen, copies, along, materialize_grads=True)[0]


def _difference_quotient(record: MixerRecord, token: int, direction: Tensor) -> Tensor:
    mixer = copy.deepcopy(record.mixer).double()
    tokens, step = record.tokens.double(), STEP * direction.double()
    ahead, behind = (record.mix_tokens(mixer, tokens + way * step)[0, token] for way in (1, -1))
    return (ahead - behind) / (2 * STEP)
