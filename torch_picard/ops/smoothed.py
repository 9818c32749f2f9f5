"""``smoothed_update`` and ``smoothed_propagate``: the public operators."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from . import propagation, reference, scatter, updating
from .arguments import ACTIVATIONS, REDUCTIONS, is_transformed, residual_of
from .backends import choose
from .csr import Csr

_FLOATS = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
_INTEGERS = (torch.int32, torch.int64)


def smoothed_update(
    x: Tensor,
    z: Tensor,
    alpha: float | Tensor,
    ptr: Tensor | None = None,
    active: Tensor | None = None,
    *,
    backend: str | None = None,
) -> tuple[Tensor, Tensor]:
    r"""One smoothed Picard update and its residual, in one pass:

    .. math::
        y = \alpha x + (1-\alpha) z, \qquad
        r_s = \sum_{i \in s} |z_i - x_i|^2.

    Args:
        x: the old state, [N, \*], float32, float64, bfloat16 or float16.
        z: its image P(x), of the same shape, dtype and device.
        alpha: weight of the old state, 0 <= alpha < 1; a number or a Tensor
            of one element.
        ptr: int64 offsets [S+1] of the segments, as PyG's ``ptr``: segment s
            has the rows from ``ptr[s]`` to ``ptr[s+1]``. None: one segment.
        active: bool [S] ([1] without ``ptr``). Rows of other segments are
            copied from x, whatever z holds there.
        backend: ``"native"``, ``"scatter"`` or ``"torch"``; None takes
            ``$TORCH_PICARD_BACKEND``, else the fastest present.

    Returns:
        ``y``, of the shape and dtype of x, with gradients to x, z and alpha;
        and ``residual_sq`` [S], float64 for float64 and float32 otherwise,
        without gradient, 0 where not active.

    Raises:
        ValueError: an argument has a wrong value, shape, dtype or device.
        TypeError: an argument is of a wrong type.
        RuntimeError: the ``backend`` asked for is not installed.

    Source: Zappala et al. 2023, Algorithm 1.
    """
    _check_tensor("x", x)
    _check_tensor("z", z)
    _check_floating("x", x)
    _check_like("z", z, "x", x)
    if z.shape != x.shape:
        raise ValueError(
            f"z must have the shape of x, {list(x.shape)}, got {list(z.shape)}"
        )
    _check_alpha(alpha, x)
    rows = x.size(0) if x.dim() else 1
    _check_segments(ptr, active, rows, x, x.dim())
    chosen = choose(backend, x.device)
    if _is_traced():
        if chosen == "native":
            op = torch.ops.torch_picard.smoothed_update
            return op(x, z, _tensor(alpha), ptr, active)
        chosen = "torch"
    if chosen == "scatter":
        return scatter.smoothed_update(x, z, alpha, ptr, active)
    if chosen == "torch" or is_transformed(x, z, alpha):
        return reference.smoothed_update(x, z, alpha, ptr, active)
    y, stats = updating.update(x, z, alpha, ptr, active)
    return y, residual_of(stats, x)


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
    *,
    backend: str | None = None,
) -> tuple[Tensor, Tensor]:
    r"""One smoothed Picard update of a graph network, in one pass:

    .. math::
        z_i &= \sigma\Big( \operatorname*{reduce}_{j \in \text{row } i}
               a_{ij} h_j + b + f_i \Big) \\
        y &= \alpha x + (1-\alpha) z, \qquad
        r_s = \sum_{i \in s} |z_i - x_i|^2

    Neither the messages nor z are written to memory by the native backend.
    An empty row gives 0 for every reduction; ``mean`` divides by the number
    of entries; the gradient of ``max`` goes to the first maximum, and a NaN
    among the messages is the maximum.

    Args:
        rowptr: offsets of the rows, [N+1], int32 or int64, from 0 to E.
        col: the j of every entry, [E], of the dtype of rowptr, in [0, M).
        value: the :math:`a_{ij}`, [E], or None for ones.
        h: what is gathered, [M, F].
        x: the old state, [N, F].
        alpha: weight of the old state, 0 <= alpha < 1; a number or a Tensor
            of one element.
        bias: b, [F], or None.
        inject: f, [N, F], or None.
        activation: ``"none"``, ``"relu"`` or ``"tanh"``.
        reduce: ``"sum"``, ``"mean"`` or ``"max"``.
        ptr: int64 offsets [S+1] of the segments among the rows of x.
        active: bool [S]; rows of other segments are copied from x.
        backend: as for :func:`smoothed_update`.

    All floating tensors have one dtype: float32, float64, bfloat16 or
    float16; sums are taken in float64 for float64 and in float32 otherwise.

    Returns:
        ``y`` [N, F] with gradients to value, h, x, alpha, bias and inject;
        ``residual_sq`` [S] as :func:`smoothed_update` has it.

    Raises:
        ValueError: an argument has a wrong value, shape, dtype or device, or
            an index is out of range.
        TypeError: an argument is of a wrong type.
        RuntimeError: the ``backend`` asked for is not installed.
    """
    tensors = {"value": value, "bias": bias, "inject": inject}
    for name, t in {"rowptr": rowptr, "col": col, "h": h, "x": x}.items():
        _check_tensor(name, t)
    _check_floating("x", x)
    _check_like("h", h, "x", x)
    for name, term in tensors.items():
        if term is not None:
            _check_tensor(name, term)
            _check_like(name, term, "x", x)
    _check_graph(rowptr, col, h, x)
    rows, width = x.shape
    _check_shape("value", value, (col.numel(),))
    _check_shape("bias", bias, (width,))
    _check_shape("inject", inject, (rows, width))
    _check_choice("activation", activation, ACTIVATIONS)
    _check_choice("reduce", reduce, REDUCTIONS)
    _check_alpha(alpha, x)
    _check_segments(ptr, active, rows, x, 2)
    chosen = choose(backend, x.device)
    if _is_traced():
        if chosen == "native":
            return torch.ops.torch_picard.smoothed_propagate(
                rowptr, col, value, h, x, _tensor(alpha), bias, inject,
                activation, reduce, ptr, active,
            )  # fmt: skip
        chosen = "torch"
    else:
        Csr.of(rowptr, col, h.size(0))
    if reduce == "max" and col.numel() >= 2**31:
        raise ValueError(
            f"reduce='max' takes fewer than 2^31 entries, got {col.numel()}"
        )
    arguments = (rowptr, col, value, h, x, alpha, bias, inject)
    if chosen == "native" and not is_transformed(
        value, h, x, alpha, bias, inject
    ):
        y, stats = propagation.propagate(
            *arguments,
            ACTIVATIONS.index(activation),
            REDUCTIONS.index(reduce),
            ptr,
            active,
        )
        return y, residual_of(stats, x)
    module = scatter if chosen == "scatter" else reference
    return module.smoothed_propagate(
        *arguments, activation, reduce, ptr, active
    )


# -- what the arguments must be ----------------------------------------------


def _check_tensor(name: str, t: Any) -> None:
    if not isinstance(t, Tensor):
        raise TypeError(f"{name} must be a Tensor, got {type(t).__name__}")
    if t.layout != torch.strided:
        raise ValueError(f"{name} must be dense, got layout {t.layout}")


def _check_floating(name: str, t: Tensor) -> None:
    if t.dtype not in _FLOATS:
        names = ", ".join(str(d).removeprefix("torch.") for d in _FLOATS)
        raise ValueError(f"{name} must be one of {names}, got {t.dtype}")


def _check_like(name: str, t: Tensor, other: str, x: Tensor) -> None:
    if t.dtype != x.dtype:
        raise ValueError(
            f"{name} must have the dtype of {other}, {x.dtype}, got {t.dtype}"
        )
    _check_device(name, t, x)


def _check_device(name: str, t: Tensor, x: Tensor) -> None:
    if t.device != x.device:
        raise ValueError(
            f"{name} must be on the device of x, {x.device}, got {t.device}"
        )


def _check_shape(name: str, t: Tensor | None, shape: tuple[int, ...]) -> None:
    if t is not None and tuple(t.shape) != shape:
        raise ValueError(
            f"{name} must have shape {list(shape)}, got {list(t.shape)}"
        )


def _check_choice(name: str, value: Any, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ValueError(
            f"{name} must be one of {', '.join(allowed)}, got {value!r}"
        )


def _check_graph(rowptr: Tensor, col: Tensor, h: Tensor, x: Tensor) -> None:
    for name, t in (("h", h), ("x", x)):
        if t.dim() != 2:
            raise ValueError(
                f"{name} must be a matrix, got shape {list(t.shape)}"
            )
    if h.size(1) != x.size(1):
        raise ValueError(
            f"h must have the {x.size(1)} columns of x, got {h.size(1)}"
        )
    for name, t in (("rowptr", rowptr), ("col", col)):
        if t.dtype not in _INTEGERS:
            raise ValueError(f"{name} must be int32 or int64, got {t.dtype}")
        if t.dim() != 1:
            raise ValueError(
                f"{name} must have one dimension, got shape {list(t.shape)}"
            )
        _check_device(name, t, x)
    if rowptr.dtype != col.dtype:
        raise ValueError(
            f"col must have the dtype of rowptr, {rowptr.dtype}, got "
            f"{col.dtype}"
        )
    if rowptr.numel() != x.size(0) + 1:
        raise ValueError(
            f"rowptr must have one entry more than x has rows, "
            f"{x.size(0) + 1}, got {rowptr.numel()}"
        )


def _check_alpha(alpha: float | Tensor, x: Tensor) -> None:
    if isinstance(alpha, Tensor):
        if alpha.numel() != 1 or not alpha.is_floating_point():
            raise ValueError(
                "alpha must be a number or a floating Tensor of one element, "
                f"got {alpha.dtype} of shape {list(alpha.shape)}"
            )
        if _is_traced():
            return
        number = float(alpha.detach())
    elif isinstance(alpha, (int, float)) and not isinstance(alpha, bool):
        number = alpha
    else:
        raise TypeError(
            f"alpha must be a number or a Tensor, got {type(alpha).__name__}"
        )
    if not 0 <= number < 1:
        raise ValueError(
            "alpha weights the old state and must be in [0, 1), got "
            f"{number:g}"
        )


def _check_segments(
    ptr: Tensor | None,
    active: Tensor | None,
    rows: int,
    x: Tensor,
    dims: int,
) -> None:
    size = 1
    if ptr is not None:
        _check_tensor("ptr", ptr)
        if ptr.dtype != torch.int64 or ptr.dim() != 1 or ptr.numel() < 1:
            raise ValueError(
                f"ptr must be int64 of shape [S+1], got {ptr.dtype} of shape "
                f"{list(ptr.shape)}"
            )
        _check_device("ptr", ptr, x)
        if dims == 0:
            raise ValueError("ptr needs rows, but x is a scalar")
        size = ptr.numel() - 1
        if not _is_traced():
            sound = (ptr[0] == 0) & (ptr[-1] == rows)
            if not bool(sound & (ptr.diff() >= 0).all()):
                raise ValueError(
                    f"ptr must rise from 0 to the number of rows, {rows}, "
                    f"without falling, got {_shown(ptr)}"
                )
    if active is not None:
        _check_tensor("active", active)
        if active.dtype != torch.bool or tuple(active.shape) != (size,):
            raise ValueError(
                f"active must be bool of shape [{size}], one flag a segment, "
                f"got {active.dtype} of shape {list(active.shape)}"
            )
        _check_device("active", active, x)


def _shown(t: Tensor) -> str:
    values = t.tolist()
    if len(values) <= 8:
        return str(values)
    return f"[{', '.join(map(str, values[:8]))}, ...]"


def _tensor(alpha: float | Tensor) -> Tensor:
    if isinstance(alpha, Tensor):
        return alpha
    return torch.full((), float(alpha), dtype=torch.float64)


def _is_traced() -> bool:
    return torch.compiler.is_compiling()
