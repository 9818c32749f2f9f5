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


def sines(
    size: int = 60, rho: float = 0.9, dtype: torch.dtype = torch.float64
) -> Problem:
    r"""One equation :math:`x_i = \rho \sin x_i + b_i` for each unknown.

    :math:`b` is made from x*, which is spread over :math:`[-3, 3]`: the
    derivative has as many eigenvalues as there are unknowns, and at the start
    all of them are :math:`\rho`.
    """
    solution = torch.linspace(-3.0, 3.0, size, dtype=dtype)
    b = solution - rho * torch.sin(solution)
    return Problem(
        name="sines",
        operator=lambda x: rho * torch.sin(x) + b,
        x0=torch.zeros(size, dtype=dtype),
        solution=solution,
        rate=rho * torch.cos(solution).abs().max().item(),
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
