"""One evaluation: an iterate x, its image P(x), and what follows from them."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from .space import Leaves, Space, detach, sub


class Point:
    """x, z = P(x), f = z - x and r = |f|.

    Attributes:
        x, z: leaves in the dtypes of the state.
        residual: r(x) per segment [S], undamped, outside the graph.
        target: the residual that would pass, an array [S]; 0 if none does.
    """

    __slots__ = ("space", "x", "z", "residual", "target", "_f")

    def __init__(self, space: Space, x: Leaves, z: Leaves):
        self.space, self.x, self.z = space, x, z
        self.target: np.ndarray | float = 0.0
        self._f: Leaves | None = None
        # f is not kept: a method that does not ask for it should not hold
        # another state in the cache
        difference = sub(detach(z), detach(x))
        self.residual: Tensor = space.norm(space.lift(difference))

    @property
    def f(self) -> Leaves:
        """P(x) - x in the dtype of the algebra, inside the graph."""
        if self._f is None:
            lift = self.space.lift
            self._f = sub(lift(self.z), lift(self.x))
        return self._f


def secant(
    space: Space, here: Point, previous: Point
) -> tuple[Tensor, Tensor]:
    """|dx| and |dx|/|df| of the last update, each [S].

    df = (J - I) dx for a linear P, so the second is a sample of
    |(I - J)^{-1}|: how many times larger than the residual the error is
    along the direction the iteration moves in.
    """
    with torch.no_grad():
        step = space.norm(sub(here.x, previous.x))
        turn = space.norm(sub(here.f, previous.f))
    return step, step / turn
