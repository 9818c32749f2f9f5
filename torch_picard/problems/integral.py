"""Fredholm equations u = f + lam*K(u) on [0, 1], their discrete solutions
exact to rounding."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .problem import Problem


def separable_fredholm(
    lam: float = 1.5, panels: int = 16, dtype: torch.dtype = torch.float64
) -> Problem:
    r"""F1: :math:`u(x) = x + \lambda\int_0^1 x\,t\,u(t)\,dt`, solved by
    :math:`u = x/(1-\lambda/3)`, rate :math:`|\lambda|/3`.

    The quadrature is the composite two-point Gauss rule, whose weights are
    equal: the matrix is symmetric and the integral of :math:`t^2` exact, so
    the formula holds on the grid. All iterates from x0 = f are multiples of
    x, and the a-priori bound of Banach's theorem holds with equality.
    """
    left = torch.arange(panels, dtype=torch.float64)[:, None] + 0.5
    offset = torch.tensor([-1.0, 1.0], dtype=torch.float64)
    nodes = (left + offset / (2 * math.sqrt(3))) / panels
    x = nodes.reshape(-1).to(dtype)
    weight = 1 / x.numel()
    return Problem(
        name="separable Fredholm",
        operator=lambda u: x + lam * x * (weight * (x @ u)),
        x0=x,
        solution=x / (1 - lam / 3),
        rate=abs(lam) / 3,
    )


def green_fredholm(
    lam: float = 8.0, size: int = 63, dtype: torch.dtype = torch.float64
) -> Problem:
    r"""F3: the Green's function :math:`\min(x,t)(1-\max(x,t))` of
    :math:`-u''`, with :math:`f = \sin\pi x`; u is a multiple of f.

    On the trapezoid grid with ``size`` interior nodes and step h the
    eigenvalue is :math:`\mu = h^2/(4\sin^2(\pi h/2))` (it tends to
    :math:`1/\pi^2`), so :math:`u = f/(1-\lambda\mu)` and the rate is
    :math:`|\lambda|\mu`, to rounding. For :math:`\lambda = -1.5\pi^2` plain
    Picard diverges and smoothing converges if and only if
    :math:`\alpha > 0.2`. x0 = 0 excites only this mode.

    The kernel is applied without a matrix, by two cumulative sums.
    """
    h = 1 / (size + 1)
    x = h * torch.arange(1, size + 1, dtype=torch.float64)
    f = torch.sin(math.pi * x).to(dtype)
    mu = h**2 / (4 * math.sin(math.pi * h / 2) ** 2)
    x = x.to(dtype)

    def kernel(u: Tensor) -> Tensor:
        below = torch.cumsum(x * u, 0)
        right = (1 - x) * u
        above = right.sum() - torch.cumsum(right, 0)
        return h * ((1 - x) * below + x * above)

    return Problem(
        name="Green's function",
        operator=lambda u: f + lam * kernel(u),
        x0=torch.zeros_like(f),
        solution=f / (1 - lam * mu),
        rate=abs(lam) * mu,
    )
