"""Anderson acceleration, type II: a small least-squares problem a segment."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ..operator import Evaluator
from ..point import Point
from ..space import Leaves
from .base import check_alpha, check_count, check_number, check_positive
from .safeguard import retreat, within_reach
from .secants import Carry, SecantMethod, dots, extend, solve


@dataclass(frozen=True)
class Anderson(SecantMethod):
    r"""Anderson acceleration (type II), safeguarded.

    With :math:`f_k = P(x_k) - x_k` and differences over the last ``window``
    iterates

    .. math::
        x_{k+1} = x_k + (1-\alpha) f_k
            - (\Delta X + (1-\alpha)\Delta F)\,\gamma, \quad
        \gamma = \arg\min_\gamma |f_k - \Delta F\,\gamma|_2

    with coefficients of its own for each segment. On a linear problem with
    a full window this is GMRES. Columns are scaled to length 1 before the
    Gram matrix is regularised, so the ridge is relative: neither the scale
    of the problem nor the progress of the solve changes its meaning.

    An accelerated point whose residual exceeds ``growth`` times the best one
    is taken back: the solve goes on from the best point by plain steps, 1, 2,
    4, ... of them, and the history of that segment starts anew.

    Args:
        window: differences kept. (default: :obj:`5`)
        alpha: weight of the old state in the plain step.
            (default: :obj:`0.0`)
        regularization: relative ridge; :obj:`None` is 10 times the rounding
            unit of the algebra. (default: :obj:`None`)
        growth: residual growth beyond which a step is taken back.
            (default: :obj:`2.0`)

    Source: Anderson 1965; Walker and Ni, SIAM J. Numer. Anal. 49, 2011.
    """

    window: int = 5
    alpha: float = 0.0
    regularization: float | None = None
    growth: float = 2.0

    def __post_init__(self):
        check_count("window", self.window)
        check_number("alpha", self.alpha)
        check_alpha(self.alpha)
        if self.regularization is not None:
            check_positive("regularization", self.regularization)
        check_positive("growth", self.growth)

    def step(
        self, evaluate: Evaluator, here: Point, carry: Carry, left: int
    ) -> tuple[Leaves, Carry]:
        space, h = here.space, 1 - self.alpha
        x, f, rejected, plain, now = retreat(here, carry.guard, self.growth)
        secants = carry.secants.push(space, x, f, rejected, self.window)
        (gram,) = carry.tables  # of df with df
        x_next = tuple(torch.add(a, b, alpha=h) for a, b in zip(x, f))
        if secants.stored:
            if carry.secants.previous is not None:
                row = dots(space, secants.df, secants.df[-1])
                gram = extend(gram, row, row)
            usable = secants.valid & ~plain[:, None]
            gamma = solve(
                gram,
                dots(space, secants.df, f),
                gram,
                usable,
                self.regularization or 10 * torch.finfo(space.dtype).eps,
            ).to(space.dtype)
            for j, (dx, df) in enumerate(zip(secants.dx, secants.df)):
                x_next = space.axpy(-gamma[:, j], dx, x_next)
                x_next = space.axpy(-h * gamma[:, j], df, x_next)
            x_next, now = within_reach(space, x_next, usable.any(1), now, h)
        return space.lower(x_next), Carry(now, secants, (gram,))
