"""The ``scatter`` backend: the sums of reference.py by torch-scatter."""

from __future__ import annotations

import torch
from torch import Tensor

from . import reference
from .reference import accumulation_dtype


def smoothed_update(
    x: Tensor,
    z: Tensor,
    alpha: float | Tensor,
    ptr: Tensor | None = None,
    active: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    return reference.smoothed_update(x, z, alpha, ptr, active)


def smoothed_propagate(
    rowptr: Tensor,
    col: Tensor,
    value: Tensor | None,
    h: Tensor,
    x: Tensor,
    alpha: float | Tensor,
    bias: Tensor | None = None,
    inject: Tensor | None = None,
    activation: str = "none",
    reduce: str = "sum",
    ptr: Tensor | None = None,
    active: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    z = aggregate(rowptr, col, value, h, reduce)
    z = reference.image(z, x, bias, inject, activation, ptr, active)
    return smoothed_update(x, z, alpha, ptr, active)


def aggregate(
    rowptr: Tensor,
    col: Tensor,
    value: Tensor | None,
    h: Tensor,
    reduce: str,
) -> Tensor:
    from torch_scatter import segment_csr

    dtype = accumulation_dtype(h.dtype)
    message = h.to(dtype).index_select(0, col)
    if value is not None:
        message = message * value.to(dtype)[:, None]
    if message.size(0) == 0:
        return message.new_zeros(rowptr.numel() - 1, h.size(1))
    if reduce == "max" and bool(torch.isnan(message.detach()).any()):
        # segment_csr passes over NaN; here it must not vanish.
        return reference.aggregate(rowptr, col, value, h, reduce)
    return segment_csr(message, rowptr.long(), reduce=reduce)
