"""``update``: the elementwise kernel with its gradients."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from . import reference
from .arguments import NONE, as_tensor, needs_grad, segments_of
from .formulas import derivatives
from .library import is_compiled

_OPS = torch.ops.torch_picard


def update(
    x: Tensor,
    z: Tensor,
    alpha: float | Tensor,
    ptr: Tensor | None,
    active: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """y and stats [S, 2], with gradients."""
    if not needs_grad((x, z, alpha)):
        return forward(x, z, alpha, ptr, active)
    return _Update.apply(x, z, as_tensor(alpha), ptr, active)


def forward(x, z, alpha, ptr, active):
    if not is_compiled(x.device):
        y, stats = reference.update(x, z, alpha, ptr, active)
        return (y.clone() if y is x or y is z else y), stats
    x, z = x.contiguous(), z.contiguous()
    y = torch.empty_like(x)
    size = 1 if ptr is None else ptr.numel() - 1
    stats = torch.empty(size, 2, dtype=torch.float64, device=x.device)
    _OPS._update(x, z, float(alpha), *segments_of(ptr, active), y, stats)
    return y, stats


def setup_context(ctx: Any, inputs: tuple, output: tuple) -> None:
    x, z, alpha, ptr, active = inputs
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)
    learned = alpha.requires_grad
    ctx.save_for_backward(
        x if learned else None, z if learned else None, alpha, ptr, active
    )


def backward(ctx: Any, gy: Tensor | None, *_: Any) -> tuple:
    if gy is None:
        return (None,) * 5
    x, z, alpha, ptr, active = ctx.saved_tensors
    needs = ctx.needs_input_grad
    if torch.is_grad_enabled():
        x = torch.zeros_like(gy) if x is None else x
        z = torch.zeros_like(gy) if z is None else z
        found = derivatives(
            lambda a, b, c: reference.update(a, b, c, ptr, active)[0],
            (x, z, alpha),
            needs[:3],
            gy,
        )
        return (*found, None, None)
    compute = (
        _OPS._smoothed_update_backward
        if type(gy) is not Tensor  # while it is traced
        else gradients
    )
    gx, gz, galpha = compute(gy, x, z, alpha, ptr, active)
    return (
        gx if needs[0] else None,
        gz if needs[1] else None,
        galpha if needs[2] else None,
        None,
        None,
    )


def gradients(gy, x, z, alpha, ptr, active):
    if not is_compiled(gy.device):
        learned = x is not None
        with torch.enable_grad():
            a, b = (
                (torch.zeros_like(gy) if t is None else t.detach())
                .clone()
                .requires_grad_()
                for t in (x, z)
            )
            c = alpha.detach().clone().requires_grad_(learned)
            out = reference.update(a, b, c, ptr, active)[0]
            leaves = (a, b, c) if learned else (a, b)
            grads = torch.autograd.grad(out, leaves, gy)
        return grads if learned else (*grads, torch.zeros_like(alpha))
    gy = gy.contiguous()
    gx, gz = torch.empty_like(gy), torch.empty_like(gy)
    galpha = None
    if x is not None:
        x, z = x.contiguous(), z.contiguous()
        galpha = gy.new_empty((), dtype=torch.float64)
    _OPS._update_backward(
        gy, z, x, float(alpha), NONE, *segments_of(ptr, active), gx, gz, galpha
    )
    if galpha is None:
        return gx, gz, torch.zeros_like(alpha)
    return gx, gz, galpha.to(alpha).reshape(alpha.shape)


class _Update(torch.autograd.Function):
    forward = staticmethod(forward)
    setup_context = staticmethod(setup_context)
    backward = staticmethod(backward)
