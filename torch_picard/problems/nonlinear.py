"""Nonlinear contractions."""

from __future__ import annotations

import math

import torch

from .problem import Problem

#: The number that cos leaves where it is.
DOTTIE = 0.7390851332151607


def cosine(dtype: torch.dtype = torch.float64) -> Problem:
    r"""S1: :math:`x = \cos x`, x* = .7390851332151607, rate sin x*."""
    return Problem(
        name="cosine",
        operator=torch.cos,
        x0=torch.zeros(1, dtype=dtype),
        solution=torch.full((1,), DOTTIE, dtype=dtype),
        rate=math.sin(DOTTIE),
    )


def tanh_contraction(
    size: int = 40,
    bound: float = 0.95,
    seed: int = 0,
    dtype: torch.dtype = torch.float64,
) -> Problem:
    r"""N1: :math:`x = \tanh(Wx + b)` with a random W of norm ``bound``,
    which is a Lipschitz constant since tanh has slope at most 1. There is no
    closed form, and the rate near x* is smaller than ``bound``."""
    rng = torch.Generator().manual_seed(seed)
    raw = torch.randn(size, size, generator=rng, dtype=torch.float64)
    weight = bound * raw / torch.linalg.matrix_norm(raw, 2)
    b = 0.3 * torch.randn(size, generator=rng, dtype=torch.float64)
    weight, b = weight.to(dtype), b.to(dtype)
    return Problem(
        name="tanh",
        operator=lambda x: torch.tanh(weight @ x + b),
        x0=torch.zeros(size, dtype=dtype),
    )
