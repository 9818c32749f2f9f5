"""x = Mx + b with normal M: every mode converges at a rate of its own."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .problem import Problem


def symmetric_matrix(
    size: int, rho: float, seed: int, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    """A random symmetric matrix with eigenvalues evenly spread over
    [-rho, rho]; and its eigenvalues [size] and eigenvectors [size, size]."""
    rng = torch.Generator().manual_seed(seed)
    raw = torch.randn(size, size, generator=rng, dtype=torch.float64)
    vectors = torch.linalg.qr(raw)[0]
    values = torch.linspace(-rho, rho, size, dtype=torch.float64)
    if size == 1:
        values = torch.full((1,), rho, dtype=torch.float64)
    matrix = (vectors * values) @ vectors.T
    return matrix.to(dtype), values.to(dtype), vectors.to(dtype)


def symmetric_linear(
    size: int = 50,
    rho: float = 0.9,
    seed: int = 0,
    dtype: torch.dtype = torch.float64,
) -> Problem:
    r"""L1: :math:`x = Mx + b`, M symmetric with spectral radius ``rho``.

    After k smoothed steps the error in the direction of an eigenvector with
    eigenvalue :math:`\mu` is :math:`(\alpha + (1-\alpha)\mu)^k` times what
    it was at x0 = 0. The eigenvalues are evenly spread over [-rho, rho] and
    b excites all of them.
    """
    matrix, values, vectors = symmetric_matrix(size, rho, seed, dtype)
    rng = torch.Generator().manual_seed(seed + 1)
    b = torch.randn(size, generator=rng, dtype=torch.float64).to(dtype)
    return Problem(
        name=f"linear rho={rho:g}",
        operator=lambda x: matrix @ x + b,
        x0=torch.zeros(size, dtype=dtype),
        solution=vectors @ ((vectors.T @ b) / (1 - values)),
        rate=abs(rho),
    )


def rotation(
    theta: float = math.pi / 3, dtype: torch.dtype = torch.float64
) -> Problem:
    r"""L3: rotation of the plane by ``theta`` about the point (1, -1).

    Plain Picard circles for ever. Smoothed, the error shrinks at every step
    by exactly :math:`\sqrt{\alpha^2 + (1-\alpha)^2
    + 2\alpha(1-\alpha)\cos\theta}`.
    """
    c, s = math.cos(theta), math.sin(theta)
    matrix = torch.tensor([[c, -s], [s, c]], dtype=dtype)
    centre = torch.tensor([1.0, -1.0], dtype=dtype)
    return Problem(
        name="rotation",
        operator=lambda x: matrix @ (x - centre) + centre,
        x0=torch.zeros(2, dtype=dtype),
        solution=centre,
        rate=1.0,
    )


def reflection(size: int = 5, dtype: torch.dtype = torch.float64) -> Problem:
    r"""L4: :math:`P(x) = -x + 2b`, a cycle of length 2 for plain Picard;
    :math:`\alpha = 1/2` gives x* = b in one step."""
    b = torch.arange(1, size + 1, dtype=dtype)
    return Problem(
        name="reflection",
        operator=lambda x: -x + 2 * b,
        x0=torch.zeros(size, dtype=dtype),
        solution=b,
        rate=1.0,
    )
