"""Taking accelerated steps back when they make things worse."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..point import Point
from ..space import Leaves, Space

#: Accelerated steps without a new best residual before a retreat.
_STALE = 20


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


def guard(space: Space) -> Guard:
    """Before the first evaluation."""
    zero = torch.zeros(space.size, dtype=torch.long, device=space.device)
    residual = torch.full_like(zero, torch.inf, dtype=space.dtype)
    return Guard((), (), residual, zero > 0, zero, zero, zero + 1)


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
    now = Guard(
        best_x,
        best_f,
        torch.where(renew, r, last.residual),
        last.accelerated,
        torch.where(renew | rejected, zero, last.stale + 1),
        wait,
        _penalty(last.penalty, rejected, last.accelerated & renew),
    )
    return x, f, rejected, wait > 0, now


def _penalty(penalty: Tensor, rejected: Tensor, earned: Tensor) -> Tensor:
    """Doubled by a retreat, halved by an accelerated step that led on."""
    penalty = torch.where(earned, (penalty // 2).clamp(min=1), penalty)
    return torch.where(rejected, 2 * penalty, penalty)


def _sure(true: Tensor) -> bool:
    """Known to be true without waiting for a device."""
    if true.device.type != "cpu" or torch.compiler.is_compiling():
        return False
    return bool(true)
