"""Newton-Kantorovich without matrices: GMRES on I - P'(x)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ..krylov import gmres
from ..operator import Evaluator, refuse_transforms
from ..point import Point
from ..space import Leaves, Space, sub
from .base import (
    Method,
    check_alpha,
    check_count,
    check_number,
    check_positive,
)
from .safeguard import Guard, guard, retreat, within_reach

#: As in the safeguard, but a derivative is known better than secants are, and
#: an equation that is linear should be solved in one step.
_REACH = 1000.0


class _Last(NamedTuple):
    """The step that led to where we are. Tensors [S], float64."""

    step: Leaves
    residual: Tensor  # before the step
    foreseen: Tensor  # residual after it, if P were linear
    cost: Tensor  # evaluations, the one that measured the result included


class _Carry(NamedTuple):
    guard: Guard
    last: _Last | None
    forcing: Tensor  # [S] relative tolerance of the next linear solve
    newton: Tensor  # [S] observed log-reduction an evaluation of Newton ...
    plain: Tensor  # [S] ... and of plain steps
    kantorovich: Tensor  # [3, S] beta, eta, K; NaN until seen


@dataclass(frozen=True)
class NewtonKrylov(Method):
    r"""Newton's method on :math:`F(x) = x - P(x)`, matrix-free.

    .. math::
        x_{k+1} = x_k + s, \quad (I - P'(x_k))\,s = P(x_k) - x_k

    The linear systems, one a segment, are solved by GMRES with Jacobian
    products (forward-mode; two reverse passes where an operation lacks it);
    each counts as an evaluation. How exactly is decided as Eisenstat and
    Walker do: no more exactly than the last step showed P to be linear.

    The first step is Newton's. Afterwards a segment makes the plain smoothed
    step wherever that has been reducing the residual more per evaluation, so
    an operator that contracts fast is not made slower. A Newton step that
    raises the residual beyond ``growth`` times the best is taken back.

    Args:
        restart: GMRES basis size. (default: :obj:`30`)
        forcing: first and largest relative tolerance of the linear solve.
            (default: :obj:`0.1`)
        alpha: weight of the old state in the plain step.
            (default: :obj:`0.0`)
        growth: residual growth beyond which a step is taken back.
            (default: :obj:`2.0`)

    ``Solution.info`` holds what the Newton-Kantorovich theorem asks for, as
    observed in the first step, each [S]: ``beta``, a lower estimate of
    :math:`|F'(x_0)^{-1}|` from GMRES; ``eta`` :math:`= |x_1 - x_0|`; ``K``,
    the change of :math:`F'` along that step, :math:`2|F(x_1) - F(x_0) -
    F'(x_0)s|/|s|^2` (from below, by the norms); and ``h = beta*eta*K``. The
    theorem promises convergence for h <= 1/2 with true bounds; these are
    estimates.

    Source: Kantorovich 1948; Eisenstat and Walker, SIAM J. Sci. Comput. 17,
    1996.
    """

    patience = 1
    lockstep = False

    restart: int = 30
    forcing: float = 0.1
    alpha: float = 0.0
    growth: float = 2.0

    def __post_init__(self):
        check_count("restart", self.restart)
        check_positive("forcing", self.forcing)
        if self.forcing >= 1:
            raise ValueError(f"forcing must be in (0, 1), got {self.forcing}")
        check_number("alpha", self.alpha)
        check_alpha(self.alpha)
        check_positive("growth", self.growth)

    def init(self, space: Space) -> _Carry:
        def full(value: float, *shape: int) -> Tensor:
            return torch.full(
                (*shape, space.size),
                value,
                dtype=torch.float64,
                device=space.device,
            )

        return _Carry(
            guard(space, reach=_REACH),
            None,
            full(self.forcing),
            full(torch.inf),
            full(-torch.inf),
            full(torch.nan, 3),
        )

    def resume(self, carry: _Carry, space: Space) -> _Carry:
        return self.init(space)

    def step(
        self, evaluate: Evaluator, here: Point, carry: _Carry, left: int
    ) -> tuple[Leaves, _Carry]:
        space, h = here.space, 1 - self.alpha
        if carry.last is not None:
            carry = self._learn(here.residual, carry, space)
        x, f, _, plain, now = retreat(here, carry.guard, self.growth)
        plain = plain | (carry.plain > carry.newton)
        before = space.norm(f).double()
        enough = torch.as_tensor(here.target, device=space.device)
        plain = plain | (before <= enough)  # ended: nothing to be solved
        step = tuple(h * t for t in f)
        cost, foreseen = torch.ones_like(before), before
        # one evaluation is kept to measure the result
        if left >= 2 and not bool(plain.all()):
            target = torch.maximum(carry.forcing * before, 0.5 * enough)
            target = torch.where(plain, torch.inf, target)
            newton, foreseen, work, carry = self._solve(
                evaluate, x, f, target, left - 1, carry
            )
            plain = plain | ~torch.isfinite(foreseen)
            step = space.where(plain, step, newton)
            cost = cost + work
        else:
            plain = torch.ones_like(plain)
        x_next = tuple(a + b for a, b in zip(x, step))
        x_next, now = within_reach(space, x_next, ~plain, now, h)
        foreseen = torch.lerp(before, foreseen, now.share.double())
        last = _Last(sub(x_next, x), before, foreseen, cost)
        return space.lower(x_next), carry._replace(guard=now, last=last)

    def _solve(
        self,
        evaluate: Evaluator,
        x: Leaves,
        f: Leaves,
        target: Tensor,
        budget: int,
        carry: _Carry,
    ) -> tuple[Leaves, Tensor, Tensor, _Carry]:
        """s of (I - J) s = f where target is below |f|, |f - (I - J) s|,
        the products it took, and what it taught."""
        space = evaluate.space
        refuse_transforms(f)  # how many products there are is a decision
        jacobian = evaluate.linearize(
            space.lower(x), any(t.requires_grad for t in (*x, *f))
        )
        result = gmres(
            lambda v: sub(v, jacobian(v)),
            f,
            space,
            target.cpu().numpy(),
            max_products=budget,
            restart=self.restart,
        )
        residual, work, beta, contraction = (
            torch.as_tensor(a, dtype=torch.float64, device=space.device)
            for a in (
                result.residual,
                result.work,
                result.inverse_norm,
                result.picard,
            )
        )
        solved = work > 0
        eta = space.norm(result.x).double()
        seen = torch.stack([beta, eta, torch.full_like(beta, torch.nan)])
        seen = torch.where(
            solved & torch.isnan(carry.kantorovich[0]),
            seen,
            carry.kantorovich,
        )
        plain = -(self.alpha + (1 - self.alpha) * contraction).log()
        plain = torch.where(solved, plain, carry.plain)
        carry = carry._replace(kantorovich=seen, plain=plain)
        return result.x, residual, work, carry

    def _learn(self, residual: Tensor, carry: _Carry, space: Space) -> _Carry:
        """From the residual that the last step led to: how much it gained,
        how nonlinear P is, and so how exactly the next system is worth
        solving."""
        last, newton = carry.last, carry.guard.accelerated
        assert last is not None
        r = residual.double()
        r = torch.where(torch.isfinite(r), r, torch.full_like(r, torch.inf))
        gain = (last.residual / r).log() / last.cost
        # what the linear model did not foresee
        surprise = (r - last.foreseen).clamp(min=0)
        forcing = (surprise / last.residual).clamp(1e-10, self.forcing)
        size = space.norm(last.step).double()
        seen = carry.kantorovich.clone()
        first = newton & torch.isnan(seen[2])
        seen[2] = torch.where(first, 2 * surprise / size.square(), seen[2])
        return carry._replace(
            forcing=torch.where(newton, forcing, carry.forcing),
            newton=torch.where(newton, gain, carry.newton),
            plain=torch.where(newton, carry.plain, gain),
            kantorovich=seen,
        )

    def report(self, carry: _Carry, here: Point) -> dict[str, Tensor]:
        if carry.last is not None:
            carry = self._learn(here.residual, carry, here.space)
        beta, eta, k = carry.kantorovich
        return {"beta": beta, "eta": eta, "K": k, "h": beta * eta * k}
