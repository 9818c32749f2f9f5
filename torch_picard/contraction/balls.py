"""Theorems whose conclusion holds on a ball: Newton-Kantorovich, and
Theorem 3 of the paper with the hypothesis that it needs."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from .formulas import _number


@dataclass(frozen=True)
class Kantorovich:
    r"""What :func:`kantorovich` proves.

    Attributes:
        h: :math:`\beta\,\eta\,K`.
        converges: whether h <= 1/2: Newton's method converges to a
            solution.
        radius: of the closed ball around x_0 that holds all iterates and
            the solution, :math:`t^* = (1-\sqrt{1-2h})/(\beta K)`; NaN where
            nothing is proved.
        uniqueness_radius: there is no other solution nearer to x_0 than
            :math:`(1+\sqrt{1-2h})/(\beta K)`; NaN where nothing is proved.
    """

    h: float
    converges: bool
    radius: float
    uniqueness_radius: float


def kantorovich(beta: Any, eta: Any, K: Any) -> Kantorovich:
    r"""Does Newton's method for F(x) = 0 converge from x_0?

    The theorem asks that K holds on the ball of radius ``radius`` around
    x_0. For a fixed point F(x) = x - P(x), and K is a Lipschitz constant of
    P'. With ``h < 1/2`` the convergence is quadratic.

    Args:
        beta: an upper bound of :math:`|F'(x_0)^{-1}|`, positive.
        eta: an upper bound of the first step :math:`|x_1 - x_0|`.
        K: a Lipschitz constant of F'. 0 is an affine F, which one step
            solves.

    Raises:
        ValueError: an argument is negative, not finite, or beta is 0.

    Source: Kantorovich 1948; Ortega, Amer. Math. Monthly 75, 1968.
    """
    beta, eta, K = (
        _finite(name, value)
        for name, value in (("beta", beta), ("eta", eta), ("K", K))
    )
    if beta == 0:
        raise ValueError("beta must be positive, got 0")
    h = beta * eta * K
    if not h <= 0.5:
        return Kantorovich(h, False, math.nan, math.nan)
    root = math.sqrt(1 - 2 * h)
    # (1 - root)/(beta K), written so that K -> 0 cancels nothing
    radius = 2 * eta / (1 + root)
    slope = beta * K
    unique = (1 + root) / slope if slope > 0 else math.inf
    return Kantorovich(h, True, radius, unique)


@dataclass(frozen=True)
class BallInvariance:
    r"""What :func:`ball_invariance` proves of P = lam*T + f on the closed
    ball of radius R around 0.

    Attributes:
        invariant: whether P maps the ball into itself.
        contracts: whether P contracts between points of the ball.
        constant: :math:`|\lambda| M`, a Lipschitz constant of P on the
            ball; NaN if ``derivative_sup`` was not given.
        slack: :math:`R - |f| - |\lambda|\sup|T|`: by how much f may grow.
            Negative where the ball is not known to be invariant.
    """

    invariant: bool
    contracts: bool
    constant: float
    slack: float

    @property
    def converges(self) -> bool:
        """Both hold: Picard iteration from anywhere in the ball converges
        to the one fixed point in it. So does the smoothed iteration, since
        the ball is convex."""
        return self.invariant and self.contracts


def ball_invariance(
    radius: Any,
    f_norm: Any,
    T_sup: Any,
    lam: Any = 1.0,
    derivative_sup: Any = None,
) -> BallInvariance:
    r"""Theorem 3 of the paper, with what its proof needs.

    A bound of the derivative on a ball makes P = lam*T + f a contraction
    between points of the ball only. That the iterates stay there is a second
    condition, :math:`|f| + |\lambda| \sup_{B_R}|T| \le R`, which the paper
    leaves out, together with f in the iteration and the sign of lam:
    :math:`u = x(1-\lambda/4) + \lambda\int_0^1 x\,t\,u(t)^2\,dt` contracts
    near its solution u = x and diverges from a start beyond the other one.

    Args:
        radius: R of the closed ball around 0, positive.
        f_norm: :math:`|f|`.
        T_sup: an upper bound of :math:`|T(x)|` over the ball.
        lam: :math:`\lambda`, of any sign. (default: :obj:`1.0`)
        derivative_sup: M, an upper bound of :math:`|T'(x)|` over the ball;
            without it nothing is said of contraction. (default: :obj:`None`)

    Raises:
        ValueError: an argument is negative (``lam`` excepted), not finite,
            or the radius is 0.

    Source: Theorem 3 and Lemma 1 of the paper, corrected.
    """
    radius = _finite("radius", radius)
    if radius == 0:
        raise ValueError("radius must be positive, got 0")
    f_norm = _finite("f_norm", f_norm)
    T_sup = _finite("T_sup", T_sup)
    lam = _number("lam", lam)
    if not math.isfinite(lam):
        raise ValueError(f"lam must be finite, got {lam}")
    constant = math.nan
    if derivative_sup is not None:
        constant = abs(lam) * _finite("derivative_sup", derivative_sup)
    image = f_norm + abs(lam) * T_sup
    return BallInvariance(
        invariant=image <= radius,
        contracts=constant < 1,
        constant=constant,
        slack=radius - image,
    )


def _finite(name: str, value: Any) -> float:
    value = _number(name, value)
    if not 0 <= value < math.inf:
        raise ValueError(
            f"{name} must be finite and not negative, got {value}"
        )
    return value
