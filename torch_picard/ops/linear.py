"""``linear_propagate``: a dense map h = u W', then :func:`propagate` of h."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from . import formulas
from .arguments import (
    MAX,
    NONE,
    as_tensor,
    is_transformed,
    needs_grad,
    to_keep,
)
from .library import is_compiled
from .propagation import forward, gradients, propagate
from .workspace import Workspace

_OPS = torch.ops.torch_picard


def linear_propagate(
    rowptr: Tensor,
    col: Tensor,
    value: Tensor | None,
    u: Tensor,
    weight: Tensor | None,
    x: Tensor,
    alpha: float | Tensor,
    bias: Tensor | None,
    inject: Tensor | None,
    activation: int,
    reduce: int,
    ptr: Tensor | None,
    active: Tensor | None,
    low: torch.dtype | None,
    work: Workspace,
) -> tuple[Tensor, Tensor]:
    """:func:`propagate` of h = u W', which is not kept. ``low``: the dtype
    that h is rounded to, its product being taken in that of u."""
    inputs = (value, u, weight, x, alpha, bias, inject)
    if weight is None or is_transformed(*inputs):
        h = u if weight is None else torch.nn.functional.linear(u, weight)
        h = h if low is None else h.to(low)
        return propagate(
            rowptr, col, value, h, x, alpha, bias, inject, activation, reduce,
            ptr, active,
        )  # fmt: skip
    arguments = (
        rowptr, col, value, u, weight, x, as_tensor(alpha), bias, inject,
        activation, reduce, ptr, active, low, work,
    )  # fmt: skip
    if not needs_grad(inputs):
        return _linear_forward(*arguments, False, False)[:2]
    kept = to_keep(activation, reduce, alpha)
    return _LinearPropagate.apply(*arguments, *kept)[:2]


def _product(u: Tensor, weight: Tensor, low: Any, work: Workspace) -> Tensor:
    """u W', taken in the dtype of u and kept in ``low``."""
    shape = (u.size(0), weight.size(0))
    h = work.empty("h", shape, u, low)
    with torch.autocast(u.device.type, enabled=False):
        if low is None:
            return torch.mm(u, weight.t(), out=h)
        if u.device.type == "cpu" and is_compiled(u.device):
            _OPS._product(u, weight.t(), h)
            return h
        return h.copy_(torch.mm(u, weight.t()))


def _linear_forward(
    rowptr, col, value, u, weight, x, alpha, bias, inject, activation, reduce,
    ptr, active, low, work, keep_z, keep_arg,
):  # fmt: skip
    with torch.no_grad():
        h = _product(u, weight, low, work)
    return forward(
        rowptr, col, value, h, x, alpha, bias, inject, activation, reduce,
        ptr, active, False, keep_z, keep_arg,
    )  # fmt: skip


class _LinearPropagate(torch.autograd.Function):
    @staticmethod
    def forward(*arguments):
        return _linear_forward(*arguments)

    @staticmethod
    def setup_context(ctx, inputs, output):
        (rowptr, col, value, u, weight, x, alpha, bias, inject, activation,
         reduce, ptr, active, low, work, _, _) = inputs  # fmt: skip
        _, stats, z, arg = output
        ctx.mark_non_differentiable(stats, z, arg)
        ctx.set_materialize_grads(False)
        ctx.options = activation, reduce, low, work
        affine = activation == NONE and reduce != MAX
        if affine and not ctx.needs_input_grad[6]:
            x = inject = bias = None
        ctx.save_for_backward(
            rowptr, col, value, u, weight, x, alpha, bias, inject, ptr,
            active, z, arg,
        )  # fmt: skip

    @staticmethod
    def backward(ctx, gy, *_):
        none = (None,) * 17
        if gy is None:
            return none
        needs = ctx.needs_input_grad
        (rowptr, col, value, u, weight, x, alpha, bias, inject, ptr, active,
         z, arg) = ctx.saved_tensors  # fmt: skip
        activation, reduce, low, work = ctx.options
        if torch.is_grad_enabled():
            return _linear_differentiable(
                gy, needs, rowptr, col, value, u, weight, x, alpha, bias,
                inject, activation, reduce, ptr, active, low,
            )  # fmt: skip
        want_h = needs[3] or needs[4]
        h = _product(u, weight, low, work) if needs[2] else None
        gvalue, gh, gx, galpha, gz = gradients(
            gy, rowptr, col, value, h, x, alpha, bias, inject, activation,
            reduce, ptr, active, z, arg, u.size(0), low or u.dtype,
            [needs[2], want_h, needs[5], needs[6], needs[7] or needs[8]],
            work,
        )  # fmt: skip
        gu = gweight = None
        if gh is not None:
            gh = gh.to(u.dtype)
            gu = gh @ weight if needs[3] else None
            gweight = gh.t() @ u if needs[4] else None
        return (
            None, None, gvalue if needs[2] else None, gu, gweight,
            gx if needs[5] else None, galpha if needs[6] else None,
            gz.sum(0) if gz is not None and needs[7] else None,
            gz if needs[8] else None,
            *none[9:],
        )  # fmt: skip


def _linear_differentiable(
    gy, needs, rowptr, col, value, u, weight, x, alpha, bias, inject,
    activation, reduce, ptr, active, low,
):  # fmt: skip
    x = torch.zeros_like(gy) if x is None else x
    if needs[7] and bias is None:
        bias = gy.new_zeros(gy.size(1))
    if needs[8] and inject is None:
        inject = torch.zeros_like(gy)

    def formula(value, u, weight, x, alpha, bias, inject):
        h = torch.nn.functional.linear(u, weight)
        h = h if low is None else h.to(low)
        return formulas.propagate(
            rowptr, col, value, h, x, alpha, bias, inject, activation, reduce,
            ptr, active,
        )[0]  # fmt: skip

    inputs = value, u, weight, x, alpha, bias, inject
    found = formulas.derivatives(formula, inputs, needs[2:9], gy)
    return (None, None, *found, *(None,) * 8)
