"""Anderson's acceleration for triangular maps."""

from __future__ import annotations

import torch
from torch import Tensor

from .trajectory import Window


class TriangularAnderson:
    r"""Corrects the images of a window by what earlier rounds have shown.

    With R the change of a step's image, and :math:`\Delta` the differences of
    this round from the earlier ones, step i of a sample gets

    .. math::

       x_{i+1} + R_i - \sum_k \gamma_{ik} (\Delta_k x_{i+1} + \Delta_k R_i),
       \qquad
       \gamma_i = \arg\min \sum_{j \le i}
       \Bigl| R_j - \sum_k \gamma_{k} \Delta_k R_j \Bigr|^2.

    Only steps up to i speak for i, so the map stays triangular. A step that
    has passed, and the one behind the run of these, keep their plain images,
    which are final. A correction is no longer than ``REACH`` times R: where
    the chain bends or expands, longer ones cost more rounds than they save.

    Args:
        memory: earlier rounds.

    Source: Tang et al. 2024, Algorithm 1.
    """

    RIDGE, REACH = 1e-6, 0.4

    def __init__(self, memory: int):
        self.memory = memory
        self._earlier: list[tuple[Window, Tensor, Tensor]] = []

    def __call__(
        self, old: Tensor, new: Tensor, passed: Tensor, window: Window
    ) -> Tensor:
        """[B, W, ...], from x_{i+1} and its plain image, each [B, W, ...]."""
        x, residual = old.flatten(2), (new - old).flatten(2)
        usable = window.inside & torch.isfinite(residual).all(2)
        residual = torch.where(usable[..., None], residual, 0.0)
        found = [
            _difference(x, residual, usable, window, *one)
            for one in self._earlier
        ]
        self._earlier = [(window, x, residual), *self._earlier]
        self._earlier = self._earlier[: self.memory]
        if not found:
            return new
        dx, dr = (torch.stack(part, 2) for part in zip(*found))
        gamma = self._coefficients(dr, residual)
        change = torch.einsum("bwm,bwmd->bwd", gamma, dx + dr)
        length, allowed = (
            torch.linalg.vector_norm(part, dim=2, keepdim=True)
            for part in (change, residual)
        )
        most = self.REACH * allowed / length.clamp(min=1e-30)
        change = torch.nan_to_num(change) * most.clamp(max=1)
        column = torch.arange(passed.size(1), device=passed.device)
        run = (passed & window.inside).long().cumprod(1).sum(1)
        free = (column > run[:, None]) & usable
        change = torch.where(free[..., None], change, 0.0)
        return new - change.view_as(new)

    def _coefficients(self, dr: Tensor, residual: Tensor) -> Tensor:
        """gamma [B, W, m]."""
        gram = torch.einsum("bwmd,bwnd->bwmn", dr, dr).cumsum(1)
        right = torch.einsum("bwmd,bwd->bwm", dr, residual).cumsum(1)
        size = gram.diagonal(dim1=2, dim2=3)
        ridge = self.RIDGE * size.amax(2, keepdim=True) + (size == 0)
        gram = gram + torch.diag_embed(ridge.clamp(min=1e-30))
        gamma, _ = torch.linalg.solve_ex(gram, right[..., None])
        return torch.nan_to_num(gamma[..., 0])


def _difference(
    x: Tensor,
    residual: Tensor,
    usable: Tensor,
    window: Window,
    then: Window,
    x_then: Tensor,
    residual_then: Tensor,
) -> tuple[Tensor, Tensor]:
    """To an earlier round, at the steps that were in both windows."""
    column = window.index - then.at[:, None]
    last = then.width[:, None]
    both = usable & (column >= 0) & (column < last)
    column = column.clamp(0, x.size(1) - 1)[..., None].expand_as(x)
    both = both[..., None]
    dx = torch.where(both, x - x_then.gather(1, column), 0.0)
    dr = torch.where(both, residual - residual_then.gather(1, column), 0.0)
    return dx, dr
