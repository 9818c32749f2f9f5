"""Integral equations u = f + lam*K(u) on [0, 1], their discrete solutions
exact to rounding."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..engine.methods.base import check_count
from .problem import Problem


def gauss_nodes(panels: int) -> Tensor:
    """Nodes [2 * panels] on [0, 1] of the composite two-point Gauss rule,
    which is exact for cubic polynomials; the weights are all equal."""
    check_count("panels", panels)
    left = torch.arange(panels, dtype=torch.float64)[:, None] + 0.5
    offset = torch.tensor([-1.0, 1.0], dtype=torch.float64)
    return ((left + offset / (2 * math.sqrt(3))) / panels).reshape(-1)


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
    x = gauss_nodes(panels).to(dtype)
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
    check_count("size", size)
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


def exponential_fredholm(
    lam: float = 0.25, panels: int = 16, dtype: torch.dtype = torch.float64
) -> Problem:
    r"""F2: :math:`u(x) = e^x(1 - \lambda s) + \lambda\int_0^1
    e^{x+t}u(t)\,dt`, solved by :math:`u = e^x`, rate :math:`|\lambda| s`.

    s is the integral of :math:`e^{2t}`, which is :math:`(e^2-1)/2`, by the
    rule that the operator uses, so that the formula holds on the grid.
    """
    e = torch.exp(gauss_nodes(panels)).to(dtype)
    weight = 1 / e.numel()
    s = weight * (e @ e).item()
    return Problem(
        name="exponential Fredholm",
        operator=lambda u: (1 - lam * s) * e + lam * e * (weight * (e @ u)),
        x0=torch.zeros_like(e),
        solution=e,
        rate=abs(lam) * s,
    )


def hammerstein(
    lam: float = 1.0, panels: int = 16, dtype: torch.dtype = torch.float64
) -> Problem:
    r"""H1: :math:`u(x) = x(1-\lambda/4) + \lambda\int_0^1 x\,t\,u(t)^2\,dt`,
    solved by :math:`u = x`, and by :math:`u = (4-\lambda)x/\lambda` as well.

    All iterates are multiples of x: from u = cx follows
    :math:`1 - \lambda/4 + \lambda c^2/4` times x. So for :math:`0 < \lambda
    < 2` the iteration converges to x at the rate :math:`\lambda/2` from
    every :math:`|c| < (4-\lambda)/\lambda`, and diverges from beyond. The
    linearisation is not symmetric, so ``rate`` is not given.
    """
    x = gauss_nodes(panels).to(dtype)
    weight = 1 / x.numel()
    return Problem(
        name="Hammerstein",
        operator=lambda u: (
            (1 - lam / 4) * x + lam * x * (weight * (x @ u.square()))
        ),
        x0=torch.zeros_like(x),
        solution=x,
    )


def volterra(
    lam: float = 3.0, degree: int = 30, dtype: torch.dtype = torch.float64
) -> Problem:
    r"""V1: :math:`u(x) = 1 + \lambda\int_0^x u(t)\,dt`, solved by
    :math:`e^{\lambda x}`.

    The state holds the coefficients of a polynomial up to ``degree``, on
    which the integral is exact. From x0 = 1 the k-th Picard iterate *is* the
    Taylor polynomial of degree k, so plain Picard ends exactly after
    ``degree`` steps whatever :math:`\lambda` is: the operator is nilpotent,
    of spectral radius 0, and its norm is no use. ``rate`` is not given.
    """
    k = torch.arange(1, degree + 1, dtype=torch.float64)
    exact = torch.cat([k.new_ones(1), torch.cumprod(lam / k, 0)])
    k, exact = k.to(dtype), exact.to(dtype)
    one = torch.zeros_like(exact)
    one[0] = 1.0
    return Problem(
        name="Volterra",
        operator=lambda u: torch.cat([one[:1], lam * u[:-1] / k]),
        x0=one,
        solution=exact,
    )
