"""Picard iteration whose smoothing follows the observed residuals."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ..operator import Evaluator
from ..point import Point
from ..space import Leaves, Space, sub
from .base import Method, check_alpha


class _Carry(NamedTuple):
    alpha: Tensor
    f: Leaves | None
    residual: Tensor | None


@dataclass(frozen=True)
class Adaptive(Method):
    r"""Smoothed Picard iteration with alpha chosen from the residuals, one
    for each segment.

    Two residuals in a row, :math:`f_{k-1}` and :math:`f_k`, show how P acts
    along :math:`f = f_{k-1}`: :math:`Jf = (f_k - \alpha f)/(1-\alpha)`. With
    :math:`m = \langle Jf, f\rangle/|f|^2` and :math:`\ell = |Jf|/|f|` the
    step that shrinks the residual most is

    .. math::
        1 - \alpha = \frac{1 - m}{1 - 2m + \ell^2}

    the best step of the one-sided Lipschitz bound, with its two constants
    observed instead of proven. A residual that grew doubles the smoothing,
    but not where :math:`m \ge 1`: growth along an eigenvalue beyond 1 leads
    away from an unstable fixed point, and smoothing only delays that.

    Args:
        alpha: the first one. (default: :obj:`0.5`)
        max_alpha: the largest one used. (default: :obj:`0.95`)

    ``Solution.info["alpha"]`` holds the last alpha, [S].
    """

    alpha: float = 0.5
    max_alpha: float = 0.95

    def __post_init__(self):
        for alpha in (self.alpha, self.max_alpha):
            if isinstance(alpha, Tensor):
                raise TypeError(
                    "Adaptive chooses alpha; it takes numbers, not a Tensor"
                )
            check_alpha(alpha)
        if self.alpha > self.max_alpha:
            raise ValueError(
                f"alpha must not exceed max_alpha, got {self.alpha} > "
                f"{self.max_alpha}"
            )

    @property
    def stride(self) -> float:
        return 1.0

    def init(self, space: Space) -> _Carry:
        alpha = torch.full(
            (space.size,), self.alpha, dtype=space.dtype, device=space.device
        )
        return _Carry(alpha, None, None)

    def resume(self, carry: _Carry, space: Space) -> _Carry:
        return carry._replace(f=None, residual=None)

    def step(
        self, evaluate: Evaluator, here: Point, carry: _Carry, left: int
    ) -> tuple[Leaves, _Carry]:
        space, alpha = here.space, carry.alpha
        if carry.f is not None:
            alpha = self._alpha(space, here, carry)
        x = space.axpy(1 - alpha, here.f, space.lift(here.x))
        return space.lower(x), _Carry(alpha, here.f, here.residual)

    def _alpha(self, space: Space, here: Point, carry: _Carry) -> Tensor:
        old, f = carry.alpha, carry.f
        assert f is not None and carry.residual is not None
        # turn = (1-alpha)(J - I)f, so nothing is divided by 1-alpha
        turn = sub(here.f, f)
        square, back = space.dot(turn, turn), -space.dot(turn, f)
        # back > 0 is m < 1: some smoothing shrinks the residual
        known = (square > 0) & torch.isfinite(square) & (back > 0)
        step = (1 - old) * back
        step = step / torch.where(known, square, torch.ones_like(square))
        grew = here.residual > carry.residual
        least = torch.where(grew, (1 + old) / 2, torch.zeros_like(old))
        alpha = torch.maximum(1 - step, least).clamp(0.0, self.max_alpha)
        return torch.where(known, alpha, old)

    def report(self, carry: _Carry, here: Point) -> dict[str, Tensor]:
        return {"alpha": carry.alpha.detach()}
