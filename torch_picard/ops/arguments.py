"""What the operators' functions share: their options by number, and what is
done to arguments before the kernels see them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from .reference import accumulation_dtype

ACTIVATIONS = ("none", "relu", "tanh")
REDUCTIONS = ("sum", "mean", "max")
_is_wrapped = torch._C._functorch.is_functorch_wrapped_tensor
NONE, MAX = ACTIVATIONS.index("none"), REDUCTIONS.index("max")
MEAN = REDUCTIONS.index("mean")


def is_transformed(*inputs: Any) -> bool:
    """Forward-mode derivatives and torch.func transforms take the formulas:
    their operators know those rules."""
    if forward_ad._current_level >= 0:
        return True
    for t in inputs:
        if isinstance(t, Tensor) and _is_wrapped(t):
            return True
    return False


def needs_grad(inputs: tuple) -> bool:
    return torch.is_grad_enabled() and any(
        isinstance(t, Tensor) and t.requires_grad for t in inputs
    )


def to_keep(
    activation: int, reduce: int, alpha: float | Tensor
) -> tuple[bool, bool]:
    """Whether the gradient needs z, and the entries of the maxima."""
    learned = isinstance(alpha, Tensor) and alpha.requires_grad
    return activation != NONE or learned, reduce == MAX


def as_tensor(alpha: float | Tensor) -> Tensor:
    if isinstance(alpha, Tensor):
        return alpha
    return torch.full((), alpha, dtype=torch.float64)


def plain(t: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    return None if t is None else t.to(dtype).contiguous()


def segments_of(
    ptr: Tensor | None, active: Tensor | None
) -> tuple[Tensor | None, Tensor | None]:
    return (
        None if ptr is None else ptr.contiguous(),
        None if active is None else active.contiguous(),
    )


def or_empty(
    t: Tensor | None, like: Tensor, dtype: torch.dtype | None = None
) -> Tensor:
    return like.new_empty(0, dtype=dtype) if t is None else t


def residual_of(stats: Tensor, x: Tensor) -> Tensor:
    """residual_sq [S] out of the sums [S, 2] that the kernels return."""
    return stats[:, 0].to(accumulation_dtype(x.dtype))
