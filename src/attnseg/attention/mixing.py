"""Base class of the mixings: modules that combine values according to queries and keys.

Notation: B batch, N query tokens, M key tokens, C width, h heads, d = C / h head width.
"""

from torch import Tensor, nn


class Mixing(nn.Module):
    """Combines values according to queries and keys: `forward(q, k, v)`.

    A subclass in the file `attention/some_name.py` is called `SomeName` and is selected by
    `mixing="some_name"`. Its constructor takes the three arguments below, then its own options.

    Args:
        head_dim: d, the width of one head.
        num_heads: h.
        scale: factor of the scores; mixings without scores ignore it.

    Attributes:
        equal_tokens: whether there must be as many query as key tokens.
    """

    equal_tokens = False

    def __init__(self, head_dim: int, num_heads: int, scale: float) -> None:
        super().__init__()
        self.head_dim = head_dim
        self.num_heads = num_heads
        self.scale = scale

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Mix values.

        Args:
            q: queries `[B, h, N, d]`.
            k: keys `[B, h, M, d]`.
            v: values `[B, h, M, d]`.

        Returns:
            Mixed values `[B, h, N, d]`.
        """
        raise NotImplementedError

    def macs(self, queries: int, keys: int) -> int:
        """Return the multiply-accumulates of `forward` for one item of N queries and M keys.

        Only matrix products count, as in PyTorch's FLOP counter. The default is that of a mixing
        that computes N x M scores and applies them to the values.
        """
        return 2 * self.num_heads * queries * keys * self.head_dim

    def absorbed(
        self, q: Tensor, k: Tensor, tokens: Tensor, value: nn.Linear, out: nn.Linear
    ) -> Tensor:
        """Compute `out(forward(q, k, value(tokens)))` with the weights multiplied first.

        The value projection, the mixing and the output projection are all linear in the tokens
        `[B, M, C]`, so a mixing that forms no N x M scores may multiply them in the cheapest order.
        It is only called where `absorbed_macs` is above 0, and returns `[B, N, C]`.
        """
        raise NotImplementedError

    def absorbed_macs(self, queries: int, keys: int, value: nn.Linear) -> int:
        """Return how many multiply-accumulates `absorbed` saves for one item; 0 by default."""
        return 0
