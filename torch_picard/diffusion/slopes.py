"""How much of a change of its input a step passes on."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .schedule import Schedule
from .trajectory import Window


class Slopes:
    r"""Of every element of an image, from what the last two rounds have shown
    of the denoiser.

    With :math:`\Delta` the differences of a round from the one before, u what
    the denoiser sees and :math:`\hat x` what it makes of it, a diagonal
    Jacobian of step i is the least-squares solution of

    .. math::

       \Delta\hat x_j \approx a_i \Delta u_j, \qquad j = i-1, i, i+1,

    between 0 and 1, with a small weight on one slope for all elements. Steps
    that are new have that of the last that is not. The step itself is affine
    in x and :math:`\hat x`, so its slope follows.

    This is Anderson's acceleration with a memory of one round, a coefficient
    for every element and step, and the known part of the step taken out of
    it.
    """

    SHARED = 0.1  # weight of the mean over all elements

    def __init__(self, rule: Schedule):
        self.rule = rule
        self._earlier: tuple[Window, Tensor, Tensor] | None = None

    def __call__(self, window: Window, x: Tensor, image: Tensor) -> Tensor:
        """[B, W, ...], of S_i at x_i, from these and the denoised images,
        each [B, W, ...]."""

        def of(table: Tensor) -> Tensor:
            return table[window.index].view(
                *window.index.shape, *[1] * (x.dim() - 2)
            )

        seen = of(self.rule.scale[:-1]) * x
        found = torch.zeros_like(x)
        if self._earlier is not None:
            found = self._fitted(window, seen, image, *self._earlier)
        self._earlier = window, seen, image
        on_x, on_image = (of(part) for part in self.rule.affine())
        return on_x + on_image * of(self.rule.scale[:-1]) * found

    def _fitted(
        self,
        window: Window,
        seen: Tensor,
        image: Tensor,
        then: Window,
        seen_then: Tensor,
        image_then: Tensor,
    ) -> Tensor:
        column, both = window.within(then)
        column = column[..., None].expand(*column.shape, seen[0, 0].numel())
        du, dx = (
            _at(both, new.flatten(2) - old.flatten(2).gather(1, column))
            for new, old in ((seen, seen_then), (image, image_then))
        )
        across, along = _near(du * dx), _near(du * du)
        across = across + self.SHARED * across.mean(2, keepdim=True)
        along = along + self.SHARED * along.mean(2, keepdim=True)
        slope = across / along.clamp(min=torch.finfo(along.dtype).tiny)
        slope = torch.nan_to_num(slope).clamp(0, 1)
        known = (along > 0).any(2)
        place = torch.arange(known.size(1), device=known.device)
        last = torch.where(known, place, 0).cummax(1).values
        rows = torch.arange(len(last), device=last.device)[:, None]
        return slope[rows, last].view_as(seen)


def _at(where: Tensor, values: Tensor) -> Tensor:
    """0 elsewhere, and where values are not finite."""
    values = torch.where(where[..., None], values, 0.0)
    return torch.nan_to_num(values, nan=0.0, posinf=0.0, neginf=0.0)


def _near(values: Tensor) -> Tensor:
    """[B, W, D], with both neighbours in W."""
    padded = F.pad(values, (0, 0, 1, 1))
    return padded[:, :-2] + values + padded[:, 2:]
