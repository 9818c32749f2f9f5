"""Smoothed Picard iteration: Algorithm 1 of the paper."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..operator import Evaluator
from ..point import Point
from ..space import Leaves
from .base import Method, check_alpha


@dataclass(frozen=True, eq=False)
class Picard(Method):
    r"""Smoothed Picard iteration.

    .. math::
        x_{k+1} = \alpha x_k + (1-\alpha) P(x_k)

    ``alpha`` weights the OLD state. With :math:`L` the Lipschitz constant of
    P, residuals fall by :math:`q = \alpha + (1-\alpha)L` or better; at
    :math:`L = 1` any :math:`0 < \alpha < 1` still converges in a Hilbert
    space (Krasnoselskii-Mann), :math:`\alpha = 0` need not. For maps that
    are triangular in time (autoregression, diffusion) ``alpha=0`` is exact
    after finitely many steps.

    Args:
        alpha: in [0, 1); a number, or a Tensor that broadcasts to the state
            and may be learned. (default: :obj:`0.5`)

    Source: Zappala et al. 2023, Algorithm 1.
    """

    alpha: float | Tensor = 0.5

    def __post_init__(self):
        check_alpha(self.alpha)

    @property
    def stride(self) -> float:
        return 1.0 if isinstance(self.alpha, Tensor) else 1.0 - self.alpha

    @property
    def smoothing(self) -> float | Tensor:
        return self.alpha

    def init(self, space):
        check_alpha(self.alpha)  # a learnable one moves after construction
        if isinstance(self.alpha, Tensor):
            for shape in space.shapes:
                _check_broadcasts(self.alpha, shape)
        return None

    def step(
        self, evaluate: Evaluator, here: Point, carry: Any, left: int
    ) -> tuple[Leaves, Any]:
        return here.smoothed(self.alpha), carry


def _check_broadcasts(alpha: Tensor, shape: torch.Size) -> None:
    ends = zip(reversed(alpha.shape), reversed(shape))
    if alpha.dim() > len(shape) or any(a not in (1, n) for a, n in ends):
        raise ValueError(
            "alpha must broadcast to the state, got shape "
            f"{list(alpha.shape)} for a state of shape {list(shape)}"
        )
