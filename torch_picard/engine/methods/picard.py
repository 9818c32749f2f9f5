"""Smoothed Picard iteration: Algorithm 1 of the paper."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from ..operator import Evaluator
from ..point import Point
from ..space import Leaves, Space
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
            and may be learned; or one for each leaf, in the structure of the
            state. (default: :obj:`0.5`)

    Source: Zappala et al. 2023, Algorithm 1.
    """

    alpha: Any = 0.5

    def __post_init__(self):
        for alpha in self._each:
            check_alpha(alpha)

    @property
    def _each(self) -> list[float | Tensor]:
        """One for all leaves, or one for each."""
        if isinstance(self.alpha, (dict, list, tuple)):
            return pytree.tree_leaves(self.alpha)
        return [self.alpha]

    @property
    def stride(self) -> float:
        return max(
            1.0 if isinstance(alpha, Tensor) else 1.0 - alpha
            for alpha in self._each
        )

    @property
    def smoothing(self) -> float | Tensor | None:
        return self._each[0] if len(self._each) == 1 else None

    def init(self, space: Space) -> tuple[float | Tensor, ...]:
        """One alpha a leaf."""
        self.__post_init__()  # a learnable one moves after construction
        each = self._each * len(space.shapes)
        if isinstance(self.alpha, (dict, list, tuple)):
            each = _matched(self.alpha, space)
        for alpha, shape in zip(each, space.shapes):
            if isinstance(alpha, Tensor):
                _check_broadcasts(alpha, shape)
        return tuple(each)

    def resume(self, carry: Any, space: Space) -> tuple[float | Tensor, ...]:
        return self.init(space)

    def step(
        self, evaluate: Evaluator, here: Point, carry: Any, left: int
    ) -> tuple[Leaves, Any]:
        return here.smoothed(*carry), carry


def _matched(alpha: Any, space: Space) -> list[Any]:
    try:
        if space.spec is None:
            raise ValueError("the state is a single Tensor")
        return space.spec.flatten_up_to(alpha)
    except (ValueError, TypeError) as error:
        raise ValueError(
            "alpha must be a number, a Tensor, or a structure of these that "
            f"matches the state, but: {error}"
        ) from None


def _check_broadcasts(alpha: Tensor, shape: torch.Size) -> None:
    ends = zip(reversed(alpha.shape), reversed(shape))
    if alpha.dim() > len(shape) or any(a not in (1, n) for a, n in ends):
        raise ValueError(
            "alpha must broadcast to the state, got shape "
            f"{list(alpha.shape)} for a state of shape {list(shape)}"
        )
