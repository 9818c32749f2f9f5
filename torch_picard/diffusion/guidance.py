"""Classifier-free guidance."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..engine.methods.base import as_float
from .chain import check_callable, check_condition, output_of


class Guided:
    r"""A denoiser (x, t, condition) that goes away from the unconditional
    one:

    .. math::

       D(x, t, \emptyset) + \gamma\, (D(x, t, c) - D(x, t, \emptyset)).

    Both are found in one call, of twice the rows.

    Args:
        denoiser: (x, t, condition) -> [M, ...].
        scale: gamma. 1: the conditional denoiser.
        unconditional: one condition without the dimension of the batch, a
            Tensor, or a tuple, list or dict of these.

    Source: Ho and Salimans 2022.
    """

    def __init__(
        self, denoiser: Callable[..., Any], scale: float, unconditional: Any
    ):
        check_callable("denoiser", denoiser)
        self.denoiser, self.scale = denoiser, as_float("scale", scale)
        if not math.isfinite(self.scale):
            raise ValueError(f"scale must be finite, got {scale!r}")
        self.unconditional = unconditional

    def __call__(self, x: Tensor, t: Tensor, condition: Any) -> Tensor:
        check_condition(condition, len(x))
        both = _beside(self.unconditional, condition, len(x))
        out = output_of(
            self.denoiser(torch.cat([x, x]), torch.cat([t, t]), both)
        )
        without, with_ = out.chunk(2)
        return without + self.scale * (with_ - without)


def _beside(without: Any, given: Any, rows: int) -> Any:
    """Of 2 * rows rows."""
    if isinstance(given, Tensor):
        if not isinstance(without, Tensor) or without.shape != given.shape[1:]:
            found = getattr(without, "shape", type(without).__name__)
            raise ValueError(
                "unconditional must be as one row of the condition, "
                f"{list(given.shape[1:])}, got {found}"
            )
        without = without.to(given).expand(rows, *without.shape)
        return torch.cat([without, given])
    if isinstance(given, dict):
        return {k: _beside(without[k], v, rows) for k, v in given.items()}
    pairs = zip(without, given, strict=True)
    return type(given)(_beside(a, b, rows) for a, b in pairs)
