"""Cycles and growth within a few passes.

The engine looks for stalls over some twenty evaluations; a fold has no more
than that.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..engine import Status
from ..engine.space import tree_map

LONGEST_CYCLE = 4
#: A structure that is back: nearer to the one a period ago than this share
#: of its last change.
BACK = 0.1
#: Rises in a row, and by how much, before the passes have run out.
RISES, FAR = 5, 1e3
#: The same at their end.
LAST_RISES, GROWN = 3, 4.0


class Verdict:
    """Says, after each pass, whose passes will not converge.

    Args:
        distance: of two outputs, a Tensor of one number a segment.
        tol: what counts as converged.
        passes: allowed in total.

    Attributes:
        output: of the last pass, to be set before each call.
    """

    def __init__(
        self,
        distance: Callable[[Any, Any], Tensor],
        tol: float,
        passes: int,
    ):
        self.distance, self.tol, self.passes = distance, tol, passes
        self.output: Any = None
        self._outputs: deque[Any] = deque(maxlen=LONGEST_CYCLE)
        self._changes: list[Tensor] = []
        self._late: dict[int, Tensor] = {}

    def __call__(self, k: int, change: Tensor) -> Tensor:
        """A :class:`Status` for each segment, or -1; ``change`` [S] is what
        pass k changed."""
        self._changes.append(change.double())
        says = torch.full_like(change, -1, dtype=torch.long)
        says[self._cycles(k)] = int(Status.STAGNATED)
        says[self._grows(k)] = int(Status.DIVERGED)
        self._outputs.append(tree_map(torch.detach, self.output))
        return says

    def _cycles(self, k: int) -> Tensor:
        """Back where it was a period ago, twice in a row, and not by these
        passes' getting shorter: at the observed rate those that are left do
        not reach the tolerance."""
        change = self._changes[-1]
        found = torch.zeros_like(change, dtype=torch.bool)
        for period in range(2, 1 + min(LONGEST_CYCLE, len(self._outputs))):
            rate = (change / self._changes[-1 - period]) ** (1 / period)
            late = ~(change * rate ** (self.passes - 1 - k) <= self.tol)
            if late.any():  # else the distance is not worth its cost
                gap = self.distance(self._outputs[-period], self.output)
                late &= gap.reshape(-1).to(change) <= BACK * change
            found |= late & self._late.get(period, False)
            self._late[period] = late
        return found

    def _grows(self, k: int) -> Tensor:
        history = torch.stack(self._changes)
        best, last = history.amin(0), history[-1]
        rising = self._rising(history, RISES) & (last > FAR * best)
        if k == self.passes - 1:
            window = max(LAST_RISES, len(history) // 2)
            rising |= self._rising(history, window) & (last > GROWN * best)
        return rising

    @staticmethod
    def _rising(history: Tensor, window: int) -> Tensor:
        if len(history) <= window:
            return torch.zeros_like(history[0], dtype=torch.bool)
        return (history[-window - 1 :].diff(dim=0) > 0).all(0)
