"""``propagate``: the fused kernel with its gradients."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from . import formulas, reference
from .arguments import (
    ACTIVATIONS,
    MAX,
    MEAN,
    NONE,
    REDUCTIONS,
    as_tensor,
    is_transformed,
    needs_grad,
    or_empty,
    plain,
    segments_of,
    to_keep,
)
from .csr import Csr, check_csr
from .library import is_compiled
from .reference import accumulation_dtype
from .workspace import Workspace

_OPS = torch.ops.torch_picard


def propagate(
    rowptr: Tensor,
    col: Tensor,
    value: Tensor | None,
    h: Tensor,
    x: Tensor,
    alpha: float | Tensor,
    bias: Tensor | None,
    inject: Tensor | None,
    activation: int,
    reduce: int,
    ptr: Tensor | None,
    active: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """y and stats [S, 2], with gradients; indices are taken as checked.

    ``h`` may be of half precision where ``x`` is float32.
    """
    if is_transformed(value, h, x, alpha, bias, inject):
        return formulas.propagate(
            rowptr, col, value, h, x, alpha, bias, inject, activation, reduce,
            ptr, active,
        )  # fmt: skip
    if not needs_grad((value, h, x, alpha, bias, inject)):
        y, stats, _, _ = forward(
            rowptr, col, value, h, x, alpha, bias, inject, activation, reduce,
            ptr, active, False, False, False,
        )  # fmt: skip
        return y, stats
    y, stats, _, _ = _Propagate.apply(
        rowptr, col, value, h, x, as_tensor(alpha), bias, inject, activation,
        reduce, ptr, active, False, *to_keep(activation, reduce, alpha),
    )  # fmt: skip
    return y, stats


def forward(
    rowptr: Tensor,
    col: Tensor,
    value: Tensor | None,
    h: Tensor,
    x: Tensor,
    alpha: float | Tensor,
    bias: Tensor | None,
    inject: Tensor | None,
    activation: int,
    reduce: int,
    ptr: Tensor | None,
    active: Tensor | None,
    check: bool,
    keep_z: bool,
    keep_arg: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """y, stats, and what the gradient needs: z and, for max, the entries."""
    if not is_compiled(x.device):
        return _forward_reference(
            rowptr, col, value, h, x, alpha, bias, inject, activation, reduce,
            ptr, active, check, keep_z,
        )  # fmt: skip
    exact = accumulation_dtype(h.dtype)
    x = x.contiguous()
    y = torch.empty_like(x)
    z = torch.empty_like(x) if keep_z else None
    arg = None
    if keep_arg:
        arg = torch.empty(x.shape, dtype=torch.int32, device=x.device)
    size = 1 if ptr is None else ptr.numel() - 1
    stats = torch.empty(size, 2, dtype=torch.float64, device=x.device)
    _OPS._propagate(
        rowptr.contiguous(),
        col.contiguous(),
        plain(value, exact),
        h.contiguous(),
        x,
        float(alpha),
        plain(bias, exact),
        plain(inject, x.dtype),
        activation,
        reduce,
        *segments_of(ptr, active),
        check,
        y,
        stats,
        z,
        arg,
    )
    return y, stats, or_empty(z, x), or_empty(arg, x, torch.int32)


def _forward_reference(
    rowptr, col, value, h, x, alpha, bias, inject, activation, reduce, ptr,
    active, check, keep_z,
):  # fmt: skip
    if check:
        check_csr(rowptr, col, h.size(0))
    name = ACTIVATIONS[activation]
    z = reference.aggregate(rowptr, col, value, h, REDUCTIONS[reduce])
    z = reference.image(z, x, bias, inject, name, ptr, active)
    y, stats = reference.update(x, z, alpha, ptr, active)
    y = y.clone() if y is x else y
    return (
        y,
        stats,
        z.to(x.dtype) if keep_z else x.new_empty(0),
        x.new_empty(0, dtype=torch.int32),
    )


def setup_context(ctx: Any, inputs: tuple, output: tuple) -> None:
    (rowptr, col, value, h, x, alpha, bias, inject, activation, reduce, ptr,
     active, _, _, _) = inputs  # fmt: skip
    _, _, z, arg = output
    ctx.mark_non_differentiable(output[1], z, arg)
    ctx.set_materialize_grads(False)
    ctx.options = activation, reduce
    ctx.sources, ctx.dtype = h.size(0), h.dtype
    # An affine map needs nothing of h and x for its derivatives.
    needs = ctx.needs_input_grad
    affine = activation == NONE and reduce != MAX and not needs[5]
    if affine and not needs[2]:
        h = None
    if affine:
        x = inject = bias = None
    ctx.save_for_backward(
        rowptr, col, value, h, x, alpha, bias, inject, ptr, active, z, arg
    )


def backward(ctx: Any, gy: Tensor | None, *_: Any) -> tuple:
    none = (None,) * 15
    if gy is None:
        return none
    needs = ctx.needs_input_grad
    (rowptr, col, value, h, x, alpha, bias, inject, ptr, active, z, arg) = (
        ctx.saved_tensors
    )
    activation, reduce = ctx.options
    wanted = [needs[i] for i in (2, 3, 4, 5)]
    wanted.append(needs[6] or needs[7])
    if torch.is_grad_enabled():
        return formulas.differentiable_backward(
            gy, needs, ctx.sources, ctx.dtype, rowptr, col, value, h, x,
            alpha, bias, inject, activation, reduce, ptr, active,
        )  # fmt: skip
    compute = (
        _OPS._smoothed_propagate_backward
        if type(gy) is not Tensor  # while it is traced
        else gradients
    )
    gvalue, gh, gx, galpha, gz = compute(
        gy, rowptr, col, value, h, x, alpha, bias, inject, activation, reduce,
        ptr, active, z, arg, ctx.sources, ctx.dtype, wanted,
    )  # fmt: skip
    gbias = gz.sum(0) if needs[6] and gz is not None else None
    return (
        None,
        None,
        gvalue if needs[2] else None,
        gh if needs[3] else None,
        gx if needs[4] else None,
        galpha if needs[5] else None,
        gbias,
        gz if needs[7] else None,
        *none[8:],
    )


def gradients(
    gy: Tensor,
    rowptr: Tensor,
    col: Tensor,
    value: Tensor | None,
    h: Tensor | None,
    x: Tensor | None,
    alpha: Tensor,
    bias: Tensor | None,
    inject: Tensor | None,
    activation: int,
    reduce: int,
    ptr: Tensor | None,
    active: Tensor | None,
    z: Tensor,
    arg: Tensor,
    sources: int,
    dtype: torch.dtype,
    wanted: list[bool],
    work: Workspace | None = None,
) -> tuple[Tensor | None, ...]:
    """Of value, h, x, alpha, and gz, that of bias and inject."""
    if not is_compiled(gy.device):
        return formulas.gradients(
            gy, rowptr, col, value, h, x, alpha, bias, inject, activation,
            reduce, ptr, active, sources, dtype, wanted,
        )  # fmt: skip
    want_value, want_h, want_x, want_alpha, _ = wanted
    exact = accumulation_dtype(gy.dtype)
    gy = gy.contiguous()
    rowptr, col = rowptr.contiguous(), col.contiguous()
    weight = float(alpha)
    gz, gx, galpha = gy, None, None
    if activation != NONE or weight or active is not None or want_alpha:
        gz = torch.empty_like(gy)
        gx = torch.empty_like(gy) if want_x else None
        galpha = gy.new_empty((), dtype=torch.float64) if want_alpha else None
        _OPS._update_backward(
            gy,
            z if z.numel() else None,
            None if x is None else x.contiguous(),
            weight,
            activation,
            *segments_of(ptr, active),
            gx,
            gz,
            galpha,
        )
    elif want_x:
        gx = torch.zeros_like(gy)
    message = gz.to(dtype)
    gvalue = gh = None
    if want_h:
        transposed = Csr.of(rowptr, col, sources).transposed(rowptr, col)
        weights = transposed.weights(value, reduce == MEAN, dtype)
        shape = (sources, gy.size(1))
        if work is None:
            gh = torch.empty(shape, dtype=dtype, device=gy.device)
        else:
            gh = work.empty("gh", shape, gy, dtype)
        if reduce == MAX:
            _OPS._max_backward(
                transposed.colptr,
                transposed.row,
                transposed.perm,
                weights,
                message,
                arg,
                gh,
            )
        else:
            _OPS._propagate(
                transposed.colptr, transposed.row, weights, message, None,
                0.0, None, None, NONE, 0, None, None, False, gh, None, None,
                None,
            )  # fmt: skip
    if want_value:
        assert value is not None and h is not None
        gvalue = torch.empty(col.numel(), dtype=exact, device=gy.device)
        _OPS._sampled(
            rowptr,
            col,
            message,
            h.contiguous(),
            arg if reduce == MAX else None,
            reduce,
            gvalue,
        )
        gvalue = gvalue.to(value.dtype)
    if galpha is not None:
        galpha = galpha.to(alpha).reshape(alpha.shape)
    return gvalue, gh, gx, galpha, gz


class _Propagate(torch.autograd.Function):
    forward = staticmethod(forward)
    setup_context = staticmethod(setup_context)
    backward = staticmethod(backward)
