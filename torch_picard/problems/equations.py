"""Integral and integro-differential equations with exact solutions, to be
solved by any quadrature rule."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..anie import NIDE, IntegralEquation
from ..anie.quadrature import Quadrature
from ..contraction import Ball


@dataclass(frozen=True, eq=False)
class ExactEquation:
    r"""u = f + lam * integral of K(x, t, u(t)), and what is known about it.

    Attributes:
        name: short and unique in :func:`integral_equations`.
        kernel, free, domain, volterra, lam: as in
            :class:`~torch_picard.anie.IntegralEquation`.
        exact: x [N, 1] -> u [N, 1], for this ``lam``; so is ``rate``. Who
            replaces one has to replace the others.
        rate: the factor by which plain Picard steps shrink the error near u,
            before discretisation; 0 for Volterra equations, whose error
            falls faster than any power. :obj:`None` if unknown.
        radius: how far from u a :class:`~torch_picard.contraction.Ball`
            may reach on which the operator is known to contract in the
            largest norm; :obj:`None` if it contracts nowhere, infinite if
            everywhere.
        nodes: of Gauss and Legendre, that solve it to 1e-10.
    """

    name: str
    kernel: Callable[[Tensor, Tensor, Tensor], Tensor]
    free: Callable[[Tensor], Tensor]
    exact: Callable[[Tensor], Tensor]
    domain: Any = (0.0, 1.0)
    volterra: bool = False
    lam: float = 1.0
    rate: float | None = None
    radius: float | None = math.inf
    nodes: int = 16

    def equation(self, quadrature: Quadrature) -> IntegralEquation:
        """The equation at the nodes of a rule."""
        return IntegralEquation(
            self.kernel,
            self.free,
            quadrature,
            self.domain,
            volterra=self.volterra,
            lam=self.lam,
        )

    def region(self, equation: IntegralEquation) -> Ball | None:
        """The ball around u, at the nodes, on which it contracts; None if
        that is everywhere, or nowhere."""
        if self.radius is None or self.radius == math.inf:
            return None
        return Ball(self.radius, self.exact(equation.nodes))


def integral_equations() -> list[ExactEquation]:
    """Fredholm, Volterra, Hammerstein and Urysohn equations.

    - F1: separable; F2: exponential; F3: the Green's function of -u'',
      whose kink limits every rule to second order;
    - V1: exponential; V2: sine; V3: tangent; V4: a solution that blows up
      at 1, on half of the way;
    - H1, H2: Hammerstein equations of second and third degree, with a second
      solution; U1: Urysohn.
    """
    pi, e = math.pi, math.e
    other = (20 - math.sqrt(391)) / 3
    return [
        ExactEquation(
            "F1",
            lambda x, t, u: x * t * u,
            lambda x: x,
            lambda x: x / (1 - 0.8 / 3),
            lam=0.8,
            rate=0.8 / 3,
        ),
        ExactEquation(
            "F2",
            lambda x, t, u: torch.exp(x + t) * u,
            lambda x: x.exp() * (1 - 0.1 * (e**2 - 1)),
            torch.exp,
            lam=0.2,
            rate=0.1 * (e**2 - 1),
        ),
        ExactEquation(
            "F3",
            lambda x, t, u: (
                torch.minimum(x, t) * (1 - torch.maximum(x, t)) * u
            ),
            lambda x: torch.sin(pi * x),
            lambda x: torch.sin(pi * x) / (1 - 4 / pi**2),
            lam=4.0,
            rate=4 / pi**2,
            nodes=0,
        ),
        ExactEquation(
            "V1",
            lambda x, t, u: u,
            torch.ones_like,
            lambda x: torch.exp(2 * x),
            volterra=True,
            lam=2.0,
            rate=0.0,
            radius=None,
        ),
        ExactEquation(
            "V2",
            lambda x, t, u: (t - x) * u,
            lambda x: x,
            torch.sin,
            volterra=True,
            rate=0.0,
        ),
        ExactEquation(
            "V3",
            lambda x, t, u: 1 + u**2,
            torch.zeros_like,
            torch.tan,
            volterra=True,
            rate=0.0,
            radius=None,
            nodes=32,
        ),
        ExactEquation(
            "V4",
            lambda x, t, u: u**2,
            torch.ones_like,
            lambda x: 1 / (1 - x),
            domain=(0.0, 0.5),
            volterra=True,
            rate=0.0,
            radius=None,
        ),
        ExactEquation(
            "H1",
            lambda x, t, u: x * t * u**2,
            lambda x: x * 0.75,
            lambda x: x,
            rate=0.5,
            radius=0.3,
        ),
        ExactEquation(
            "H2",
            lambda x, t, u: torch.cos(pi * x) * torch.sin(pi * t) * u**3,
            lambda x: torch.sin(pi * x),
            lambda x: torch.sin(pi * x) + other * torch.cos(pi * x),
            lam=0.2,
            rate=3 * other / 20,
            radius=0.3,
        ),
        ExactEquation(
            "U1",
            lambda x, t, u: 1 / (x + t + u),
            lambda x: 1 - ((x + 2) / (x + 1)).log(),
            torch.ones_like,
            radius=0.3,
        ),
    ]


@dataclass(frozen=True, eq=False)
class ExactIntegroDifferential:
    """y' = F(t, y) + integral of G(t, s, y(s)), y(0) = y0, on [0, 1].

    Attributes:
        name: short and unique in :func:`integro_differential_equations`.
        derivative, kernel, volterra: as in :class:`~torch_picard.anie.NIDE`.
        start: y(0).
        exact: t -> y(t).
    """

    name: str
    derivative: Callable[[Tensor, Tensor], Tensor]
    kernel: Callable[[Tensor, Tensor, Tensor], Tensor]
    exact: Callable[[Tensor], Tensor]
    start: float = 0.0
    volterra: bool = False

    def module(self, **options: Any) -> NIDE:
        """The solver; options as :class:`~torch_picard.anie.NIDE` has
        them."""
        return NIDE(
            1,
            derivative=self.derivative,
            kernel=self.kernel,
            volterra=self.volterra,
            **options,
        )


def integro_differential_equations() -> list[ExactIntegroDifferential]:
    """One with a logarithm, a nonlinear one, and a Volterra equation."""
    log2 = math.log(2)
    return [
        ExactIntegroDifferential(
            "logarithm",
            lambda t, y: y - t / 2 + 1 / (1 + t) - torch.log(1 + t),
            lambda t, s, y: t / (1 + s) * y / log2**2,
            torch.log1p,
        ),
        ExactIntegroDifferential(
            "square",
            lambda t, y: 1 - 29 * t / 60 + 0 * y,
            lambda t, s, y: t * s * y**2,
            lambda t: 1 + t + t**2,
            start=1.0,
        ),
        ExactIntegroDifferential(
            "sine",
            lambda t, y: 1 + 0 * y,
            lambda t, s, y: -y,
            torch.sin,
            volterra=True,
        ),
    ]
