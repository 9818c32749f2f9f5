"""``propagate`` by the formulas of reference.py, with their derivatives:
where nothing is compiled, and where derivatives of derivatives are wanted."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from . import reference
from .arguments import ACTIVATIONS, REDUCTIONS


def propagate(
    rowptr, col, value, h, x, alpha, bias, inject, activation, reduce, ptr,
    active,
):  # fmt: skip
    z = reference.aggregate(rowptr, col, value, h, REDUCTIONS[reduce])
    name = ACTIVATIONS[activation]
    z = reference.image(z, x, bias, inject, name, ptr, active)
    return reference.update(x, z, alpha, ptr, active)


def _value(
    rowptr, col, value, h, x, alpha, bias, inject, activation, reduce, ptr,
    active,
):  # fmt: skip
    return propagate(
        rowptr, col, value, h, x, alpha, bias, inject, activation, reduce,
        ptr, active,
    )[0]  # fmt: skip


def gradients(
    gy, rowptr, col, value, h, x, alpha, bias, inject, activation, reduce,
    ptr, active, sources, dtype, wanted,
):  # fmt: skip
    shape = sources, gy.size(1)
    h = gy.new_zeros(shape, dtype=dtype) if h is None else h
    x = torch.zeros_like(gy) if x is None else x
    with torch.enable_grad():
        leaves = [
            None if t is None else t.detach().requires_grad_()
            for t in (value, h, x, alpha)
        ]
        offset = torch.zeros_like(x, requires_grad=True)
        total = offset if inject is None else offset + inject.detach()
        out = _value(
            rowptr, col, leaves[0], leaves[1], leaves[2], leaves[3], bias,
            total, activation, reduce, ptr, active,
        )  # fmt: skip
        leaves.append(offset)
        chosen = [
            t for t, want in zip(leaves, wanted) if want and t is not None
        ]
        grads = iter(torch.autograd.grad(out, chosen, gy, allow_unused=True))
    return tuple(
        next(grads) if want and t is not None else None
        for t, want in zip(leaves, wanted)
    )


def differentiable_backward(
    gy, needs, sources, dtype, rowptr, col, value, h, x, alpha, bias, inject,
    activation, reduce, ptr, active,
):  # fmt: skip
    """Second derivatives, through the formulas of reference.py."""
    width = gy.size(1)
    # Where the map is affine these were not kept, nor does it matter.
    h = gy.new_zeros(sources, width, dtype=dtype) if h is None else h
    x = torch.zeros_like(gy) if x is None else x
    if needs[6] and bias is None:
        bias = gy.new_zeros(width)
    if needs[7] and inject is None:
        inject = torch.zeros_like(gy)
    found = derivatives(
        lambda *t: _value(rowptr, col, *t, activation, reduce, ptr, active),  # type: ignore[call-arg]
        (value, h, x, alpha, bias, inject),
        needs[2:8],
        gy,
    )
    return (None, None, *found, *(None,) * 7)


def derivatives(
    formula: Callable[..., Tensor],
    inputs: Sequence[Tensor | None],
    needs: Sequence[bool],
    gy: Tensor,
) -> list[Tensor | None]:
    """The vector-Jacobian products of ``formula`` at ``inputs``,
    differentiable again in the inputs and in gy."""
    # Inputs may depend on each other (an injection on the weight that made
    # it); views keep what each of them is worth on its own apart.
    own = [
        t
        if t is None or not need
        else (t.view_as(t) if t.requires_grad else t.requires_grad_())
        for t, need in zip(inputs, needs)
    ]
    chosen = [t for t, need in zip(own, needs) if need and t is not None]
    grads = iter(
        torch.autograd.grad(
            formula(*own), chosen, gy, create_graph=True, allow_unused=True
        )
    )
    return [next(grads) if need else None for need in needs]
