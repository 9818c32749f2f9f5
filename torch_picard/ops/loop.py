"""Whole iterations in one call: no Python between the steps."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .arguments import NONE, is_transformed, needs_grad, plain
from .library import is_compiled
from .reference import accumulation_dtype
from .workspace import Workspace

_OPS = torch.ops.torch_picard


def runs_whole(x: Tensor, *inputs: Any) -> bool:
    """Whether :func:`steps` can take over: there is a compiled loop, and no
    derivative is wanted."""
    if x.device.type != "cpu" or not is_compiled(x.device):
        return False
    return not (needs_grad((x, *inputs)) or is_transformed(x, *inputs))


def steps(
    rowptr: Tensor,
    col: Tensor,
    value: Tensor | None,
    weight: Tensor | None,
    x: Tensor,
    alpha: float,
    bias: Tensor | None,
    inject: Tensor | None,
    activation: int,
    reduce: int,
    ptr: Tensor | None,
    count: int,
    low: torch.dtype | None,
    work: Workspace,
) -> tuple[Tensor, Tensor]:
    """``count`` times ``linear_propagate`` of the state itself, without coming
    back to Python: x_count and the stats [count, S, 2]. Only where
    :func:`runs_whole` says so."""
    x = x.contiguous()
    size = 1 if ptr is None else ptr.numel() - 1
    stats = torch.empty(count, size, 2, dtype=torch.float64)
    y = torch.empty_like(x)
    _loop(
        rowptr, col, value, weight, x, alpha, bias, inject, activation,
        reduce, ptr, count, low, work, y, stats,
    )  # fmt: skip
    return y, stats


def hops(
    rowptr: Tensor,
    col: Tensor,
    value: Tensor | None,
    x: Tensor,
    inject: Tensor | None,
    reduce: int,
    count: int,
    work: Workspace,
) -> Tensor:
    """``count`` propagations with nothing but ``inject`` added, as
    :func:`steps` without smoothing and residuals. What comes back is memory
    of ``work``."""
    x = x.contiguous()
    y = work.empty("hop", x.shape, x)
    _loop(
        rowptr, col, value, None, x, 0.0, None, inject, NONE, reduce, None,
        count, None, work, y, None,
    )  # fmt: skip
    return y


def _loop(
    rowptr, col, value, weight, x, alpha, bias, inject, activation, reduce,
    ptr, count, low, work, y, stats,
):  # fmt: skip
    other = work.empty("other", x.shape, x) if count > 1 else None
    h = None
    if weight is not None or low is not None:
        h = work.empty("h", x.shape, x, low)
    exact = accumulation_dtype(x.dtype)
    with torch.no_grad(), torch.autocast(x.device.type, enabled=False):
        _OPS._steps(
            rowptr, col, plain(value, exact),
            None if weight is None else weight.t(), x, alpha,
            plain(bias, exact), plain(inject, x.dtype), activation, reduce,
            ptr, count, y, other, h, stats,
        )  # fmt: skip
