"""The formulas in plain torch operations: the ``torch`` backend, the oracle of
the tests, and the source of second derivatives for the others."""

from __future__ import annotations

import torch
from torch import Tensor


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """What sums are taken in: float64 for float64, else float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def smoothed_update(
    x: Tensor,
    z: Tensor,
    alpha: float | Tensor,
    ptr: Tensor | None = None,
    active: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    y, stats = update(x, z, alpha, ptr, active)
    y = y.clone() if y is z else y
    return y, stats[:, 0].to(accumulation_dtype(x.dtype))


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
    z = image(z, x, bias, inject, activation, ptr, active)
    return smoothed_update(x, z, alpha, ptr, active)


def image(
    z: Tensor,
    x: Tensor,
    bias: Tensor | None,
    inject: Tensor | None,
    activation: str,
    ptr: Tensor | None,
    active: Tensor | None,
) -> Tensor:
    """activation(z + bias + inject), in the accumulation dtype."""
    if bias is not None:
        z = z + bias.to(z.dtype)
    if inject is not None:
        z = z + inject.to(z.dtype)
    if active is not None:  # what is not looked at may be NaN
        rows = _rows_of(active, ptr, x)
        z = torch.where(rows, z, torch.zeros_like(z))
    if activation == "relu":
        return torch.relu(z)
    return torch.tanh(z) if activation == "tanh" else z


def aggregate(
    rowptr: Tensor,
    col: Tensor,
    value: Tensor | None,
    h: Tensor,
    reduce: str,
) -> Tensor:
    """reduce_{j in row i} value_ij*h_j, [N, F] in the accumulation dtype."""
    dtype = accumulation_dtype(h.dtype)
    length = rowptr.diff().long()
    row = torch.repeat_interleave(length, output_size=col.numel())
    message = h.to(dtype).index_select(0, col)
    if value is not None:
        message = message * value.to(dtype)[:, None]
    out = message.new_zeros(length.numel(), h.size(1))
    if reduce == "max":
        return maximum(out, row, message)
    out = out.index_add(0, row, message)
    if reduce == "mean":
        out = out / length.clamp(min=1).to(dtype)[:, None]
    return out


def maximum(out: Tensor, row: Tensor, message: Tensor) -> Tensor:
    """Row by row the first entry that has the maximum, or the first NaN."""
    if message.numel() == 0:
        return out.index_add(0, row, message)
    index = row[:, None].expand_as(message)
    with torch.no_grad():
        top = out.scatter_reduce(
            0, index, message.detach(), "amax", include_self=False
        )
        top = top.gather(0, index)
        hit = (message == top) | message.isnan()
        entry = torch.arange(row.numel(), device=row.device)[:, None]
        entry = torch.where(hit, entry, row.numel())
        first = torch.full(
            out.shape, row.numel(), dtype=torch.long, device=row.device
        ).scatter_reduce(0, index, entry, "amin")
        found = first < row.numel()
    picked = message.gather(0, first.clamp(max=row.numel() - 1))
    return torch.where(found, picked, out)


def update(
    x: Tensor,
    z: Tensor,
    alpha: float | Tensor,
    ptr: Tensor | None,
    active: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """y and [S, 2]: |z - x|^2 and |z|^2 of every segment, in float64."""
    dtype = accumulation_dtype(x.dtype)
    old, new = x.to(dtype), z.to(dtype)
    if active is not None:  # nor may it reach the gradient of alpha
        rows = _rows_of(active, ptr, x)
        old, new = torch.where(rows, old, 0.0), torch.where(rows, new, 0.0)
    if isinstance(alpha, Tensor):
        weight = alpha.to(dtype).reshape(())
        # what rounding alpha does to 1 - alpha, which may be small
        lost = (1 - alpha.detach()).to(dtype).reshape(()) - (1 - weight)
        y = weight * old + (1 - weight + lost.detach()) * new
    else:
        y = alpha * old + (1 - alpha) * new if alpha else new
    y = y.to(x.dtype)
    with torch.no_grad():
        squares = [
            _segment_sum(t.detach().double().square(), ptr)
            for t in (new - old, new)
        ]
        stats = torch.stack(squares, dim=1)
    if active is not None:
        y = torch.where(rows, y, x)
        stats = torch.where(active[:, None], stats, 0.0)
    return y, stats


def segment_of_rows(ptr: Tensor, rows: int) -> Tensor:
    """The segment of every row, [N]."""
    return torch.repeat_interleave(ptr.diff(), output_size=rows)


def _segment_sum(t: Tensor, ptr: Tensor | None) -> Tensor:
    if ptr is None:
        return t.sum().reshape(1)
    rows = t.flatten(1).sum(1) if t.dim() > 1 else t
    out = rows.new_zeros(ptr.numel() - 1)
    return out.index_add(0, segment_of_rows(ptr, t.size(0)), rows)


def _rows_of(active: Tensor, ptr: Tensor | None, x: Tensor) -> Tensor:
    """A flag a row, to broadcast against x."""
    if ptr is None:
        return active.reshape(())
    flags = active[segment_of_rows(ptr, x.size(0))]
    return flags.reshape((-1,) + (1,) * (x.dim() - 1))
