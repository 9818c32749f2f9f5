"""Which derivative of a solve autograd sees. Declared, never swapped."""

from __future__ import annotations

from dataclasses import dataclass

from .methods.base import (
    Method,
    check_alpha,
    check_count,
    check_number,
    check_positive,
)


class Gradient:
    """One way to differentiate a solve."""


@dataclass(frozen=True)
class Unrolled(Gradient):
    """Differentiate every step that was made.

    The exact derivative of the returned iterate, as a function of x0 and of
    what P depends on. Memory grows with the number of iterations. Few steps,
    as after a warm start, say little of the solution's own derivative; where
    x0 passes as it is, none is made, the derivative is that of x0, and a
    backward pass through it warns. :class:`Implicit` and :class:`Phantom`
    do not depend on the start.

    Args:
        checkpoint: store only the iterates and recompute P in the backward
            pass, with the same random masks. (default: :obj:`False`)
    """

    checkpoint: bool = False

    def __post_init__(self):
        if not isinstance(self.checkpoint, bool):
            raise TypeError(
                f"checkpoint must be True or False, got {self.checkpoint!r}"
            )


@dataclass(frozen=True)
class Implicit(Gradient):
    r"""Differentiate the equation x = P(x), not the way to its solution.

    With :math:`J = P'(x^*)` the cotangent :math:`g` of :math:`x^*` becomes
    :math:`u = (I - J^\top)^{-1} g` and the gradient of a parameter
    :math:`(\partial P/\partial\theta)^\top u`. Memory does not depend on
    the number of iterations. It is exact at a fixed point; how far the
    returned iterate is from one bounds its error, and the gradient of x0 as
    a starting point is 0. Derivatives of any order are supported.

    Args:
        method: :obj:`None` solves for u by GMRES; any method of
            :func:`fixed_point` iterates :math:`u = J^\top u + g` instead.
            (default: :obj:`None`)
        rtol: tolerance relative to :math:`|g|`, per segment; the scale of
            the loss does not matter. A residual at the rounding level of u,
            in the dtype that P is differentiated in, also passes.
            (default: :obj:`1e-6`)
        max_iter: products with :math:`J^\top` allowed.
            (default: :obj:`100`)

    A backward solve that fails is reported as ``on_failure`` says; its
    :class:`Solution` is ``solution.backward``.
    """

    method: Method | None = None
    rtol: float = 1e-6
    max_iter: int = 100

    def __post_init__(self):
        if self.method is not None and not isinstance(self.method, Method):
            raise TypeError(
                "method must be None or a method such as Anderson(), got "
                f"{self.method!r}"
            )
        check_positive("rtol", self.rtol)
        check_count("max_iter", self.max_iter)


@dataclass(frozen=True)
class Phantom(Gradient):
    r"""Differentiate ``steps`` smoothed steps taken from the solution.

    The gradient is a sum of ``steps`` terms of the Neumann series of
    :class:`Implicit`; with :math:`L` the Lipschitz constant of P and
    ``alpha=0`` its cotangent errs by at most :math:`L^{steps}/(1-L)` of
    :math:`|g|`. The value is not changed by these steps.

    Args:
        steps: evaluations of P that are differentiated.
            (default: :obj:`1`)
        alpha: weight of the old state in them. (default: :obj:`0.0`)

    Source: Geng et al., On Training Implicit Models, NeurIPS 2021.
    """

    steps: int = 1
    alpha: float = 0.0

    def __post_init__(self):
        check_count("steps", self.steps)
        check_number("alpha", self.alpha)
        check_alpha(self.alpha)


@dataclass(frozen=True)
class OneStep(Gradient):
    """The gradient of one application of P at the solution: cheapest, and
    off by at most L/(1-L) of the cotangent. ``Phantom(steps=1)``."""
