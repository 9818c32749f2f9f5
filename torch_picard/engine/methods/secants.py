"""The last few differences of iterates, and small systems built on them:
what Anderson's and Broyden's methods share."""

from __future__ import annotations

from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from ..space import Leaves, Space, sub
from .base import Method
from .safeguard import Guard, guard


class Secants(NamedTuple):
    """Columns dx_j = x_j - x_{j-1} and df_j = f_j - f_{j-1}, oldest first.

    ``previous`` is x, f and the rounding level of f [S] at the last iterate;
    ``valid`` [S, m] says which columns a segment may use.
    """

    previous: tuple[Leaves, Leaves, Tensor] | None
    dx: tuple[Leaves, ...]
    df: tuple[Leaves, ...]
    valid: Tensor

    @property
    def stored(self) -> int:
        return len(self.dx)

    def push(
        self,
        space: Space,
        x: Leaves,
        f: Leaves,
        rejected: Tensor,
        window: int,
    ) -> Secants:
        """With the newest difference; without the oldest beyond ``window``,
        and without any on the segments that had a step rejected.

        A df at the rounding level of the f it is made of is noise: on a
        drift x + c, whose df is nothing else, it would call for a leap of
        1e15 times c. So it is not valid."""
        level = _rounding_level(space, x, f)
        if self.previous is None:
            return self._replace(previous=(x, f, level))
        before = self.previous
        drop = max(self.stored + 1 - window, 0)
        dx, df = sub(x, before[0]), sub(f, before[1])
        seen = space.norm(df) > torch.maximum(level, before[2])
        valid = torch.cat([self.valid[:, drop:], seen[:, None]], dim=1)
        return Secants(
            (x, f, level),
            (*self.dx[drop:], dx),
            (*self.df[drop:], df),
            valid & ~rejected[:, None],
        )


def _rounding_level(space: Space, x: Leaves, f: Leaves) -> Tensor:
    """What a difference of f may owe to rounding, [S]: P(x) is rounded on
    the scale of x + f. Below 10 rounding units of f itself, a step to where
    the secant sees the residual vanish would have no correct digit."""
    return space.rounding(x) + 10 * space.rounding(f)


class Carry(NamedTuple):
    guard: Guard
    secants: Secants
    tables: tuple[Tensor, ...]  # [S, m, m] each, inner products of columns


class SecantMethod(Method):
    """A safeguarded method that steps along the secants. A subclass defines
    ``step`` and says how many tables it keeps."""

    patience = 1
    tables: ClassVar[int] = 1

    def init(self, space: Space) -> Carry:
        size, device = space.size, space.device
        valid = torch.zeros(size, 0, dtype=torch.bool, device=device)
        none = torch.zeros(size, 0, 0, dtype=torch.float64, device=device)
        secants = Secants(None, (), (), valid)
        return Carry(guard(space), secants, (none,) * self.tables)

    def resume(self, carry: Carry, space: Space) -> Carry:
        secants = carry.secants._replace(previous=None)
        return carry._replace(guard=guard(space), secants=secants)


def dots(space: Space, columns: tuple[Leaves, ...], v: Leaves) -> Tensor:
    """<column_j, v> as float64 [S, m]."""
    found = [space.dot(column, v) for column in columns]
    return torch.stack(found, dim=1).double()


def extend(old: Tensor, row: Tensor, column: Tensor) -> Tensor:
    """An [S, m, m] table with one more row [S, m+1] and column [S, m+1]
    (``row[-1]`` is the corner); rows and columns beyond m, the oldest ones,
    are dropped."""
    keep = row.size(1) - 1
    drop = old.size(1) - keep
    old = old[:, drop:, drop:]
    top = torch.cat([old, column[:, :-1, None]], dim=2)
    return torch.cat([top, row[:, None, :]], dim=1)


def solve(
    matrix: Tensor, rhs: Tensor, gram: Tensor, usable: Tensor, ridge: float
) -> Tensor:
    """Solve the systems [S, m, m] y = rhs after scaling column j to length 1,
    its squared length being ``gram[:, j, j]``; y is 0 where a column is not
    usable, and everywhere on a segment whose system is singular.

    What is not to be used is masked before each operation, not after it: the
    derivative of a root at 0 and of a singular system is infinite, and 0
    times that is NaN.
    """
    unit = torch.eye(rhs.size(1), dtype=torch.bool, device=rhs.device)
    one, zero, eye = torch.ones_like(rhs), torch.zeros_like(rhs), unit.double()
    # Not gram.diagonal(): inductor (torch 2.13) saves a matrix and its view
    # both for the backward pass, there overwrites one, and reads the other.
    square = torch.where(unit, gram, 0.0).sum(2)
    usable = usable & (square > 0) & torch.isfinite(square)
    length = torch.where(usable, square, one).sqrt()
    pairs = usable[:, :, None] & usable[:, None, :]
    matrix = torch.where(pairs, matrix, eye)
    scaled = matrix / (length[:, :, None] * length[:, None, :]) + ridge * eye
    rhs = torch.where(usable, rhs, zero) / length
    if scaled.requires_grad:
        singular = torch.linalg.lu_factor_ex(scaled.detach())[2] > 0
        scaled = torch.where(singular[:, None, None], eye, scaled)
        usable = usable & ~singular[:, None]
    y = torch.linalg.solve_ex(scaled, rhs)[0] / length
    sound = usable & torch.isfinite(y).all(dim=1, keepdim=True)
    return torch.where(sound, y, zero)
