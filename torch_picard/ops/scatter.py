"""The ``scatter`` backend: the sums of reference.py by torch-scatter."""

from __future__ import annotations

import torch
from torch import Tensor

from . import reference
from .arguments import is_transformed
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
    """reduce_{j in row i} value_ij*h_j, [N, F] in the accumulation dtype.

    torch-scatter's own derivatives end at the first order and know neither
    forward mode nor torch.func. Here it computes values and maxima; what is
    differentiated is made of torch's operations.
    """
    if is_transformed(value, h):
        return reference.aggregate(rowptr, col, value, h, reduce)
    dtype = accumulation_dtype(h.dtype)
    message = h.to(dtype).index_select(0, col)
    if value is not None:
        message = message * value.to(dtype)[:, None]
    if message.size(0) == 0:
        return reference.aggregate(rowptr, col, value, h, reduce)
    if reduce == "max":
        return _maximum(rowptr.long(), message)
    out = _Sum.apply(rowptr.long(), message)
    if reduce == "mean":
        out = out / rowptr.diff().clamp(min=1).to(dtype)[:, None]
    return out


class _Sum(torch.autograd.Function):
    """Sums of consecutive rows."""

    @staticmethod
    def forward(ctx, rowptr: Tensor, message: Tensor) -> Tensor:
        from torch_scatter import segment_csr

        ctx.save_for_backward(rowptr)
        return segment_csr(message, rowptr, reduce="sum")

    @staticmethod
    def backward(ctx, g: Tensor):
        (rowptr,) = ctx.saved_tensors
        return None, g.repeat_interleave(rowptr.diff(), dim=0)


def _maximum(rowptr: Tensor, message: Tensor) -> Tensor:
    from torch_scatter import segment_max_csr

    entries = message.size(0)
    detached = message.detach()
    if not bool(torch.isfinite(detached).all()):
        # segment_max_csr passes over NaN and what is below every number.
        row = torch.repeat_interleave(rowptr.diff(), output_size=entries)
        out = message.new_zeros(rowptr.numel() - 1, message.size(1))
        return reference.maximum(out, row, message)
    _, first = segment_max_csr(detached, rowptr)
    found = first < entries
    picked = message.gather(0, first.clamp(max=entries - 1))
    return torch.where(found, picked, torch.zeros_like(picked))
