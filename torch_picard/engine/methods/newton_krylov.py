"""Newton-Kantorovich without matrices: GMRES on I - P'(x)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ..krylov import gmres
from ..operator import Evaluator, refuse_transforms
from ..point import Point
from ..space import Leaves, Space, add, detach, sub
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
#: Evaluations that Newton steps may lose against plain ones, at first; a
#: plain step adds a little, and more where it does not contract.
_CREDIT, _RISK, _EARNED, _IDLE = 4.5, 3.5, 0.04, 0.25
#: Products of the first linear solve. Where a step kept half of what the
#: linear model promised (by the logarithm), the next may use so many times
#: more; where it did not, 1, and once the residual is so much smaller.
_DEPTH, _DEEPER, _CLOSER = 2, 3, 0.1
#: Log-reduction an evaluation that is taken for none.
_SLOW = 1e-3
#: Relative surprise up to which P is taken for linear: then products are not
#: limited by what may be lost.
_LINEAR = 1e-2


class _Last(NamedTuple):
    """The step that led to where we are. Tensors [S], float64."""

    step: Leaves
    residual: Tensor  # before the step
    rest: Leaves  # f after it, if P were linear
    foreseen: Tensor  # its norm
    cost: Tensor  # evaluations, the one that measured the result included


class _Carry(NamedTuple):
    guard: Guard
    last: _Last | None
    forcing: Tensor  # [S] relative tolerance of the next linear solve
    rate: Tensor  # [S] log-reduction by a plain step; NaN until seen
    credit: Tensor  # [S] evaluations that Newton steps may still lose
    depth: Tensor  # [S] products that the next linear solve may use
    below: Tensor  # [S] residual at which Newton is worth trying again
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

    The first linear solve is short. Each step that reduces the residual as
    the linear model promised lets the next solve go further; one that does
    not is followed by plain smoothed steps. What Newton steps lose against
    plain ones is kept account of, and limited: to some 5 evaluations where
    the plain iteration contracts, and one in 25 of its own beyond. A Newton
    step that raises the residual beyond ``growth`` times the best is taken
    back.

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
    F'(x_0)s|/|s|^2`; and ``h = beta*eta*K``. The
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
            full(torch.nan),
            full(_CREDIT),
            full(_DEPTH),
            full(torch.inf),
            full(torch.nan, 3),
        )

    def resume(self, carry: _Carry, space: Space) -> _Carry:
        return self.init(space)

    def step(
        self, evaluate: Evaluator, here: Point, carry: _Carry, left: int
    ) -> tuple[Leaves, _Carry]:
        space, h = here.space, 1 - self.alpha
        if carry.last is not None:
            carry = self._learn(here, carry)
        x, f, _, plain, now = retreat(here, carry.guard, self.growth)
        before = space.norm(f).double()
        enough = torch.as_tensor(here.target, device=space.device)
        risk = (carry.depth + 1).clamp(max=_RISK)
        plain = plain | (carry.credit < risk)
        far = (before >= carry.below) & (carry.credit < _RISK)
        # no Newton step costs less than two evaluations
        near = (before / enough).log() <= 2 * carry.rate
        ended = before <= enough
        plain = plain | far | near | ended
        few = torch.minimum(carry.depth, carry.credit - 1)
        allowed = torch.where(carry.forcing > _LINEAR, few, carry.depth)
        allowed = allowed.clamp(max=left - 1).long()
        step = tuple(h * t for t in f)
        cost, foreseen, rest = torch.ones_like(before), before, f
        # one evaluation is kept to measure the result
        if left >= 2 and not bool(plain.all()):
            target = torch.maximum(carry.forcing * before, 0.5 * enough)
            target = torch.where(plain, torch.inf, target)
            newton, rest, foreseen, work, carry = self._solve(
                evaluate, x, f, target, allowed, carry
            )
            plain = plain | ~torch.isfinite(foreseen)
            step = space.where(plain, step, newton)
            cost = cost + work
        else:
            plain = torch.ones_like(plain)
        x_next = tuple(a + b for a, b in zip(x, step))
        x_next, now = within_reach(space, x_next, ~plain, now, h)
        # of a shortened step
        share = now.share.double()
        foreseen = torch.lerp(before, foreseen, share)
        rest = add(f, space.scale(now.share, sub(rest, f)))
        last = _Last(
            detach(sub(x_next, x)), before, detach(rest), foreseen, cost
        )
        return space.lower(x_next), carry._replace(guard=now, last=last)

    def _solve(
        self,
        evaluate: Evaluator,
        x: Leaves,
        f: Leaves,
        target: Tensor,
        allowed: Tensor,
        carry: _Carry,
    ) -> tuple[Leaves, Leaves, Tensor, Tensor, _Carry]:
        """s of (I - J) s = f where target is below |f|, f - (I - J) s and its
        norm, the products it took, and what it taught."""
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
            max_products=int(allowed.max()),
            restart=self.restart,
            allowed=allowed.cpu().numpy(),
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
        rate = -(self.alpha + (1 - self.alpha) * contraction).log()
        rate = torch.where(solved, rate, carry.rate)
        carry = carry._replace(kantorovich=seen, rate=rate)
        return result.x, result.rest, residual, work, carry

    def _learn(self, here: Point, carry: _Carry) -> _Carry:
        """From the evaluation that the last step led to: how much it gained,
        how nonlinear P is, and so how exactly the next system is worth
        solving."""
        last, newton, space = carry.last, carry.guard.accelerated, here.space
        assert last is not None
        f = detach(here.f)
        gain = (last.residual / _or_inf(space.norm(f).double())).log()
        credit, depth, below = _account(gain, carry)
        # what the linear model did not foresee
        surprise = _or_inf(space.norm(sub(f, last.rest)).double())
        forcing = (surprise / last.residual).clamp(1e-10, self.forcing)
        size = space.norm(last.step).double()
        seen = carry.kantorovich.clone()
        first = newton & torch.isnan(seen[2])
        seen[2] = torch.where(first, 2 * surprise / size.square(), seen[2])
        return carry._replace(
            forcing=torch.where(newton, forcing, carry.forcing),
            rate=torch.where(newton, carry.rate, gain),
            credit=credit,
            depth=depth,
            below=below,
            kantorovich=seen,
        )

    def report(self, carry: _Carry, here: Point) -> dict[str, Tensor]:
        if carry.last is not None:
            carry = self._learn(here, carry)
        beta, eta, k = carry.kantorovich
        return {"beta": beta, "eta": eta, "K": k, "h": beta * eta * k}


def _account(gain: Tensor, carry: _Carry) -> tuple[Tensor, Tensor, Tensor]:
    """credit, depth and below, after a step with this log-reduction.

    What plain steps would have taken for the same is known twice: from their
    rate, and because no polynomial reduces the residual of a linear P more
    than the one that GMRES finds, theirs of as many products included. So a
    step that kept what the linear model promised lost the measuring of its
    result, one evaluation, or less.
    """
    last, newton = carry.last, carry.guard.accelerated
    assert last is not None
    promised = (last.residual / last.foreseen).log()
    share = (gain / promised).nan_to_num(1.0).clamp(0.0, 1.0)
    plain = torch.maximum(
        gain.clamp(min=0) / carry.rate.clamp(min=_SLOW),
        share * (last.cost - 1),
    )
    won = (carry.credit + plain - last.cost).clamp(0.0, _CREDIT)
    waited = carry.credit + torch.where(gain > 0, _EARNED, _IDLE)
    kept = share >= 0.5
    depth = torch.where(kept, _DEEPER * carry.depth, 1.0)
    below = torch.where(kept, torch.inf, _CLOSER * last.residual)
    return (
        torch.where(newton, won, waited),
        torch.where(newton, depth, carry.depth),
        torch.where(newton, below, carry.below),
    )


def _or_inf(t: Tensor) -> Tensor:
    """t, and inf where it is not finite."""
    return torch.where(torch.isfinite(t), t, torch.full_like(t, torch.inf))
