"""Attention whose Lipschitz constant is finite on the whole space."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .residual import Residual


class L2Attention(nn.Module):
    r"""Multi-head self-attention by distances, from the `"The Lipschitz
    Constant of Self-Attention" <https://arxiv.org/abs/2006.04710>`_ paper.

    .. math::
        P^h_{ij} \propto \exp\!\big(-|W_Q^h x_i - W_Q^h x_j|^2 / \sqrt{d_h}
        \big), \qquad
        Y^h = P^h X \frac{W_Q^{h\top} W_Q^h}{\sqrt{d_h}} W_V^{h\top}, \qquad
        Y = [Y^1, \dots, Y^H]\, W_O^\top + b

    with :math:`d_h` features a head; queries and keys share their weight.
    Dot-product attention has no Lipschitz constant on the whole space; this
    one has (Theorem 3.2), for a given number of tokens.

    Args:
        embed_dim: features a token, divisible by ``num_heads``.
        num_heads: H.
        bias: whether to add b.

    Shapes:
        - **input:** ``[*, n, embed_dim]``
        - **output:** ``[*, n, embed_dim]``

    Raises:
        ValueError: a size is not positive, or ``embed_dim`` is not divisible
            by ``num_heads``.
    """

    def __init__(self, embed_dim: int, num_heads: int = 1, bias: bool = True):
        super().__init__()
        if embed_dim < 1 or num_heads < 1 or embed_dim % num_heads:
            raise ValueError(
                "embed_dim must be a positive multiple of num_heads, got "
                f"embed_dim={embed_dim} and num_heads={num_heads}"
            )
        self.embed_dim, self.num_heads = embed_dim, num_heads
        self.head_dim = embed_dim // num_heads
        self.query = nn.Parameter(torch.empty(embed_dim, embed_dim))
        self.value = nn.Parameter(torch.empty(embed_dim, embed_dim))
        self.out = nn.Parameter(torch.empty(embed_dim, embed_dim))
        self.bias = nn.Parameter(torch.empty(embed_dim)) if bias else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Glorot's initialisation, and a bias of zero."""
        for weight in (self.query, self.value, self.out):
            nn.init.xavier_uniform_(weight)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def forward(self, x: Tensor) -> Tensor:
        if x.dim() < 2 or x.size(-1) != self.embed_dim:
            raise ValueError(
                f"x must be of shape [*, n, {self.embed_dim}], got "
                f"{list(x.shape)}"
            )
        heads, size = self.num_heads, self.head_dim
        root = math.sqrt(size)
        query = self.query.view(heads, size, -1)
        u = torch.einsum("...nd,hkd->...hnk", x, query)
        # u W_Q W_V' / sqrt(d_h) as one small matrix a head
        mix = query @ self.value.view(heads, size, -1).mT / root
        # -|u_i - u_j|^2 up to what does not depend on j
        square = u.square().sum(-1, keepdim=True)
        q = torch.cat([2 * u, -torch.ones_like(square)], -1)
        k = torch.cat([u, square], -1)
        y = F.scaled_dot_product_attention(q, k, u @ mix, scale=1 / root)
        y = y.transpose(-3, -2).flatten(-2)
        return F.linear(y, self.out, self.bias)

    def extra_repr(self) -> str:
        return f"{self.embed_dim}, num_heads={self.num_heads}"


class L2TransformerLayer(nn.Sequential):
    r"""A transformer layer that :func:`contractive` can make contract: L2
    attention, then a feed-forward net, each in a weighted residual sum and
    without normalisation.

    Args:
        embed_dim: features a token.
        num_heads: heads.
        hidden: width of the feed-forward net. (default: 4*embed_dim)
        weight: of the branches in the residual sums, see :class:`Residual`.

    Shapes:
        - **input:** ``[*, n, embed_dim]``
        - **output:** ``[*, n, embed_dim]``
    """

    def __init__(
        self,
        embed_dim: int,
        num_heads: int = 1,
        hidden: int | None = None,
        weight: float = 0.5,
    ):
        hidden = 4 * embed_dim if hidden is None else hidden
        feed = nn.Sequential(
            nn.Linear(embed_dim, hidden),
            nn.ReLU(),
            nn.Linear(hidden, embed_dim),
        )
        super().__init__(
            Residual(L2Attention(embed_dim, num_heads), weight),
            Residual(feed, weight),
        )
