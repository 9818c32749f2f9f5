"""What a problem is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ..engine import Solution, fixed_point


@dataclass(frozen=True, eq=False)
class Problem:
    """x = P(x), with what is known about it.

    Attributes:
        name: short and unique in :func:`bank`.
        operator: x -> P(x).
        x0: a start, in which no error mode is hidden unless the constructor
            says so.
        solution: x* in closed form or by a direct solve; :obj:`None` where
            there is neither.
        rate: the exact factor by which plain Picard steps shrink the error
            near x*, which is the spectral radius of P'(x*). The linear
            operators here have symmetric or orthogonal matrices, so it is
            their Lipschitz constant in l2 as well. :obj:`None` if unknown.
        segments: as :func:`torch_picard.fixed_point` takes it.
    """

    name: str
    operator: Callable[[Any], Any]
    x0: Any
    solution: Any = None
    rate: float | None = None
    segments: Any = None

    def solve(self, **options: Any) -> Solution:
        """:func:`torch_picard.fixed_point` of this problem."""
        options.setdefault("segments", self.segments)
        return fixed_point(self.operator, self.x0, **options)

    def error(self, x: Tensor) -> float:
        """``|x - x*|`` in l2 over the whole state.

        Raises:
            ValueError: the problem has no exact solution.
        """
        if self.solution is None:
            raise ValueError(f"{self.name} has no exact solution")
        return (x - self.solution).norm().item()
