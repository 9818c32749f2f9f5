"""Broyden's method with limited memory, in compact form."""

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
class Broyden(SecantMethod):
    r"""Good Broyden method with limited memory, safeguarded.

    Solves :math:`f(x) = P(x) - x = 0` by :math:`x_{k+1} = x_k + H_k f_k`,
    where :math:`H \approx (I - P')^{-1}` is what Broyden's rank-one updates
    make of :math:`H_0 = hI`, :math:`h = 1-\alpha` (the plain step), over the
    last ``memory`` differences :math:`S = \Delta X`, :math:`Y = -\Delta F`:

    .. math::
        H = hI + (S - hY)\,(h S^\top Y - L)^{-1} h S^\top

    with :math:`L` the strictly lower triangle of :math:`S^\top S`. The
    oldest difference can then be dropped without spoiling the others. Each
    segment has its own H. Steps are taken back as in :class:`Anderson`.

    Args:
        memory: differences kept, two states each. (default: :obj:`40`)
        alpha: weight of the old state in the plain step.
            (default: :obj:`0.0`)
        growth: residual growth beyond which a step is taken back.
            (default: :obj:`10.0`)

    Source: Broyden, Math. Comp. 19, 1965; compact form: Byrd, Nocedal and
    Schnabel, Math. Program. 63, 1994.
    """

    tables = 2

    memory: int = 40
    alpha: float = 0.0
    growth: float = 10.0

    def __post_init__(self):
        check_count("memory", self.memory)
        check_number("alpha", self.alpha)
        check_alpha(self.alpha)
        check_positive("growth", self.growth)

    def step(
        self, evaluate: Evaluator, here: Point, carry: Carry, left: int
    ) -> tuple[Leaves, Carry]:
        space, h = here.space, 1 - self.alpha
        x, f, rejected, plain, now = retreat(here, carry.guard, self.growth)
        secants = carry.secants.push(space, x, f, rejected, self.memory)
        ss, sf = carry.tables  # of dx with dx, and with df
        x_next = tuple(torch.add(a, b, alpha=h) for a, b in zip(x, f))
        if secants.stored:
            s, df = secants.dx, secants.df
            if carry.secants.previous is not None:
                row = dots(space, s, s[-1])
                ss = extend(ss, row, row)
                sf = extend(sf, dots(space, df, s[-1]), dots(space, s, df[-1]))
            usable = secants.valid & ~plain[:, None]
            c = solve(
                -h * sf - ss.tril(-1),
                h * dots(space, s, f),
                ss,
                usable,
                0.0,
            ).to(space.dtype)
            for j in range(secants.stored):
                x_next = space.axpy(c[:, j], s[j], x_next)
                x_next = space.axpy(h * c[:, j], df[j], x_next)
            x_next, now = within_reach(space, x_next, usable.any(1), now, h)
        return space.lower(x_next), Carry(now, secants, (ss, sf))
