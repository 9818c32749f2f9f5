"""A transformer layer with an exact answer."""

from __future__ import annotations

import torch
from torch import Tensor

from ..engine.methods.base import check_count
from .linear import symmetric_matrix
from .problem import Problem


def uniform_attention(
    tokens: int = 12,
    channels: int = 8,
    rho: float = 0.8,
    seed: int = 0,
    dtype: torch.dtype = torch.float64,
) -> Problem:
    r"""A1: softmax attention with :math:`W_Q = 0`, so that every token
    attends to all alike: :math:`P(X) = F + \frac1n 11^\top X V`, solved by
    :math:`X^* = F + 1\,(\mathrm{mean}\,F)\,V(I-V)^{-1}`.

    The rate is :math:`|V|_2` = ``rho`` (V is symmetric). The operator does
    compute scores and a softmax.
    """
    check_count("tokens", tokens)
    check_count("channels", channels)
    v = symmetric_matrix(channels, rho, seed, torch.float64)[0]
    rng = torch.Generator().manual_seed(seed + 1)
    f = torch.randn(tokens, channels, generator=rng, dtype=torch.float64)
    w_k = torch.randn(channels, channels, generator=rng, dtype=torch.float64)
    eye = torch.eye(channels, dtype=torch.float64)
    mean = f.mean(0, keepdim=True)
    exact = f + torch.linalg.solve(eye - v, mean @ v, left=False)
    v, f, w_k = v.to(dtype), f.to(dtype), w_k.to(dtype)
    w_q = torch.zeros_like(w_k)

    def operator(x: Tensor) -> Tensor:
        scores = (x @ w_q) @ (x @ w_k).T / channels**0.5
        return f + torch.softmax(scores, dim=-1) @ x @ v

    return Problem(
        name="uniform attention",
        operator=operator,
        x0=torch.zeros_like(f),
        solution=exact.to(dtype),
        rate=abs(rho),
    )
