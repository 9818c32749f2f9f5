"""Taking accelerated steps back when they make things worse."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..point import Point
from ..space import Leaves, Space, sub

#: Accelerated steps without a new best residual before a retreat.
_STALE = 20
#: How far secants are trusted at first, in lengths of all plain steps.
_REACH = 10.0


class Guard(NamedTuple):
    """Per-segment record of a safeguarded method.

    ``x``, ``f`` and ``residual`` belong to the point to retreat to: the best
    of the current run of accelerated steps, or the last plain one.
    """

    x: Leaves
    f: Leaves
    residual: Tensor  # [S], infinite before the first evaluation
    accelerated: Tensor  # [S], did the last step accelerate?
    stale: Tensor  # [S], evaluations since the residual was best
    wait: Tensor  # [S], plain steps still to make
    penalty: Tensor  # [S], plain steps after the next retreat
    first: Tensor  # [S], residual of the first evaluation
    path: Tensor  # [S], sum of the residuals: the length of all plain steps
    reach: Tensor  # [S], how far secants are trusted, in lengths of the path
    share: Tensor  # [S], of the last step that was made; 1 if it was not cut


def guard(space: Space, reach: float = _REACH) -> Guard:
    """Before the first evaluation."""
    zero = torch.zeros(space.size, dtype=torch.long, device=space.device)
    residual = torch.full_like(zero, torch.inf, dtype=space.dtype)
    one = torch.ones_like(residual)
    return Guard(
        x=(),
        f=(),
        residual=residual,
        accelerated=zero > 0,
        stale=zero,
        wait=zero,
        penalty=zero + 1,
        first=residual,
        path=torch.zeros_like(residual),
        reach=reach * one,
        share=one,
    )


def retreat(
    here: Point, last: Guard, growth: float
) -> tuple[Leaves, Leaves, Tensor, Tensor, Guard]:
    """Where to step from, and whether to accelerate.

    A point that an accelerated step led to is rejected if its residual
    exceeds ``growth`` times the best of the run, or if the run has gone
    stale. The segment then returns to the best point, whose P(x) is known,
    and makes plain steps: one after the first retreat, two after the second,
    four after the third. So a solve in which acceleration never helps makes
    Picard's steps and a number of others logarithmic in their count.

    Returns:
        x, f of the base in the dtype of the algebra; rejected [S]; plain
        [S], where this step must not accelerate; the new guard, whose
        ``accelerated`` the method fills in.
    """
    space, r = here.space, here.residual
    x, f = space.lift(here.x), here.f
    bad = ~(r <= growth * last.residual) | (last.stale >= _STALE)
    rejected = last.accelerated & bad
    renew = ~last.accelerated | (r < last.residual)
    renew = renew & torch.isfinite(r) | torch.isinf(last.residual)
    best_x, best_f = last.x, last.f
    if not best_x or _sure(renew.all()):
        best_x, best_f = x, f
    else:
        if not _sure(~rejected.any()):
            x = space.where(rejected, best_x, x)
            f = space.where(rejected, best_f, f)
        if not _sure(~renew.any()):
            best_x = space.where(renew, x, best_x)
            best_f = space.where(renew, f, best_f)
    lost = ~torch.isfinite(r) & ~rejected
    if not _sure(~lost.any()):
        # Nothing to go back to: stay, rather than show P a NaN that it could
        # spread to other segments.
        f = space.where(lost, tuple(torch.zeros_like(t) for t in f), f)
    zero = torch.zeros_like(last.wait)
    wait = torch.where(rejected, last.penalty, (last.wait - 1).clamp(min=0))
    finite = torch.isfinite(r)
    now = Guard(
        x=best_x,
        f=best_f,
        residual=torch.where(renew, r, last.residual),
        accelerated=last.accelerated,
        stale=torch.where(renew | rejected, zero, last.stale + 1),
        wait=wait,
        penalty=_penalty(last.penalty, rejected, last.accelerated & renew),
        first=torch.where(torch.isinf(last.first) & finite, r, last.first),
        path=last.path + torch.where(finite, r, torch.zeros_like(r)),
        reach=_reach(r, last),
        share=torch.ones_like(last.share),
    )
    return x, f, rejected, wait > 0, now


def within_reach(
    space: Space, x: Leaves, accelerated: Tensor, now: Guard, h: float
) -> tuple[Leaves, Guard]:
    """``x``, where a step that accelerates leads; or a point on the way there
    on the segments where that is too far from the point to retreat to.

    The secants of x -> .9999x + 1 call for a leap of 10^4 plain steps, to its
    fixed point; those of a drift x + c(x) for one of |c|^2/|dc|, to nowhere.
    So there is a trust region: its radius is in proportion to the length of
    all plain steps seen and to the reduction of the residual, and opens up
    while shortened steps keep what they promise, which those of a drift do
    not once they are longer than c takes to vary.

    Steps are cut by powers of 2: where the iterate has a derivative the cut
    is constant, and the gradient need not know of it. One whose length is
    not finite is replaced by the plain step h*f.
    """
    gained = (now.first / now.residual).clamp(min=1.0)
    radius = now.reach * gained * now.path
    share = radius / space.norm(sub(x, now.x))
    lost = accelerated & ~(share > 0)
    if not _sure(~lost.any()):
        plain = tuple(torch.add(a, b, alpha=h) for a, b in zip(now.x, now.f))
        x = space.where(lost, plain, x)
        accelerated = accelerated & ~lost
    cut = accelerated & (share < 1)
    one = torch.ones_like(share)
    share = torch.where(cut, torch.exp2(share.log2().floor()), one)
    if not _sure(~cut.any()):
        shorter = space.axpy(share, sub(x, now.x), now.x)
        x = space.where(cut, shorter, x)
    return x, now._replace(accelerated=accelerated, share=share)


def _reach(residual: Tensor, last: Guard) -> Tensor:
    """Four times as far after a shortened step that reduced the residual by
    half of its share or more, back to the start after one that did not; a
    share so small that rounding hides its effect has shown nothing."""
    cut = last.share < 1
    kept = residual <= (1 - last.share / 2) * last.residual
    kept = kept & (last.share > 1000 * torch.finfo(residual.dtype).eps)
    reach = torch.where(cut, torch.full_like(last.reach, _REACH), last.reach)
    return torch.where(cut & kept, 4 * last.reach, reach)


def _penalty(penalty: Tensor, rejected: Tensor, earned: Tensor) -> Tensor:
    """Doubled by a retreat, halved by an accelerated step that led on."""
    penalty = torch.where(earned, (penalty // 2).clamp(min=1), penalty)
    return torch.where(rejected, 2 * penalty, penalty)


def _sure(true: Tensor) -> bool:
    """Known to be true without waiting for a device."""
    if true.device.type != "cpu" or torch.compiler.is_compiling():
        return False
    return bool(true)
