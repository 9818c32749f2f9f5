"""Krylov spaces, every segment with one of its own."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from ..engine.space import Leaves, Space
from .jacobian import refuse_nonfinite, rounding, unit


class Krylov:
    """An orthonormal basis of a Krylov space per segment, and A projected
    onto it.

    Attributes:
        basis: m vectors, 0 in the segments whose space is smaller.
        projected: V'AV, float64 [S, m, m], 0 beyond the space.
        used: the dimension of the space, [S].
    """

    def __init__(
        self,
        space: Space,
        basis: list[Leaves],
        projected: np.ndarray,
        used: np.ndarray,
    ):
        self.space, self.basis = space, basis
        self.projected, self.used = projected, used

    def largest(self) -> tuple[np.ndarray, np.ndarray]:
        """The largest eigenvalue [S] of a symmetric A on the space, and the
        coefficients [S, m] of its vector."""
        t = 0.5 * (self.projected + self.projected.swapaxes(1, 2))
        outside = np.arange(t.shape[1]) >= self.used[:, None]
        t[outside[:, :, None] | outside[:, None, :]] = 0.0
        # a 0 there would pass for an eigenvalue; this is below all of them
        below = -1.0 - np.abs(t).sum(axis=(1, 2))
        index = np.arange(t.shape[1])
        t[:, index, index] += np.where(outside, below[:, None], 0.0)
        values, vectors = np.linalg.eigh(t)
        top = np.where(self.used > 0, values[:, -1], 0.0)
        return top, vectors[:, :, -1]

    def combine(self, weights: np.ndarray) -> Leaves:
        """The vector with these coefficients [S, m]."""
        space = self.space
        c = torch.from_numpy(weights).to(space.device, space.dtype)
        v = tuple(torch.zeros_like(t) for t in self.basis[0])
        for j, u in enumerate(self.basis):
            v = space.axpy(c[:, j], u, v)
        return v


def arnoldi(
    product: Callable[[Leaves], Leaves],
    start: Leaves,
    space: Space,
    steps: int,
) -> Krylov:
    """The Krylov space of A and ``start``, every segment its own.

    A segment whose space is exhausted (what is left of a product is
    rounding) is closed: its further vectors are 0.

    Args:
        product: v -> Av.
        start: [..] of any length; 0 gives a space of dimension 0.
        steps: vectors wanted, and products made.
    """
    eps = 10 * rounding(space)
    zeros = tuple(torch.zeros_like(t) for t in start)
    live = space.norm(start) > 0
    used = live.long()
    basis = [unit(space, start)]
    columns: list[list[Tensor]] = []
    for j in range(steps):
        w = product(basis[j])
        size = space.norm(w)
        refuse_nonfinite(size)
        column = [torch.zeros_like(size) for _ in basis]
        for _ in range(2):  # once more keeps it orthogonal
            for i, v in enumerate(basis):
                c = space.dot(v, w)
                column[i] = column[i] + c
                w = space.axpy(-c, v, w)
        height = space.norm(w)
        columns.append([*column, height])
        live = live & (height > eps * size)
        if j + 1 == steps or not bool(live.any()):
            break
        used = used + live
        basis.append(space.where(live, unit(space, w), zeros))
    m = len(columns)
    projected = np.zeros((space.size, m, m))
    for j, column in enumerate(columns):
        for i, c in enumerate(column[:m]):
            projected[:, i, j] = c.double().cpu().numpy()
    return Krylov(space, basis, projected, used.cpu().numpy())
