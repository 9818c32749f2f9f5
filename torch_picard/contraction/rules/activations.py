"""Activation functions: the largest slope, and how far the image reaches."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from ..bounds import Bound, Context, plus, register_bound, times
from ..growth import largest, smallest

#: |f'(x)| <= slope for all x, |f(0)|, sup |f|. The slopes of GELU, SiLU and
#: Mish are the values at the zeros of the second derivative, rounded up.
_KNOWN: dict[Any, tuple[float, float, float]] = {
    (nn.Identity,): (1.0, 0.0, math.inf),
    (nn.ReLU, torch.relu, F.relu): (1.0, 0.0, math.inf),
    (nn.ReLU6, F.relu6): (1.0, 0.0, 6.0),
    (nn.Tanh, torch.tanh, F.tanh): (1.0, 0.0, 1.0),
    (nn.Sigmoid, torch.sigmoid, F.sigmoid): (0.25, 0.5, 1.0),
    (nn.Softsign, F.softsign): (1.0, 0.0, 1.0),
    (nn.LogSigmoid, F.logsigmoid): (1.0, math.log(2), math.inf),
    (nn.Hardsigmoid, F.hardsigmoid): (1 / 6, 0.5, 1.0),
    (nn.Hardswish, F.hardswish): (1.5, 0.0, math.inf),
    (nn.Tanhshrink, F.tanhshrink): (1.0, 0.0, math.inf),
    (nn.SELU, F.selu): (1.7580993408473769, 0.0, math.inf),
    (nn.SiLU, F.silu): (1.0998393201288, 0.0, math.inf),
    (nn.Mish, F.mish): (1.0884981612514, 0.0, math.inf),
    (F.gelu,): (1.1289041451852, 0.0, math.inf),
    (torch.sin,): (1.0, 0.0, 1.0),
    (torch.cos,): (1.0, 1.0, 1.0),
    (torch.abs,): (1.0, 0.0, math.inf),
    (torch.atan,): (1.0, 0.0, math.pi / 2),
}


def elementwise(
    context: Context, slope: Any, at_zero: float = 0.0, top: float = math.inf
) -> Bound:
    """A function of each entry: |f(x)| <= |f(0)| + slope*|x|."""
    root = math.inf if context.width is None else math.sqrt(context.width)
    moved = times(slope, context.reach)
    reach = plus(moved, times(at_zero, root))
    anywhere = context.anywhere
    if top < math.inf and root < math.inf:
        bounded = top * root
        reach = smallest(bounded, reach)
        anywhere = anywhere or reach is bounded or reach == bounded
    return Bound(slope, reach, anywhere, width=context.width, keeps_size=True)


def _register(slope: float, at_zero: float, top: float) -> Any:
    def rule(module: Any, context: Context) -> Bound:
        return elementwise(context, slope, at_zero, top)

    return rule


for _kinds, _facts in _KNOWN.items():
    for _kind in _kinds:
        register_bound(_kind)(_register(*_facts))


@register_bound(nn.GELU)
def _gelu(module: nn.GELU, context: Context) -> Bound:
    tanh = module.approximate == "tanh"
    return elementwise(context, 1.1289930686558 if tanh else 1.1289041451852)


@register_bound(nn.LeakyReLU)
def _leaky(module: nn.LeakyReLU, context: Context) -> Bound:
    return elementwise(context, max(1.0, abs(module.negative_slope)))


@register_bound(nn.PReLU)
def _prelu(module: nn.PReLU, context: Context) -> Bound:
    return elementwise(
        context,
        largest(1.0, context.number(module.weight.double().abs().max())),
    )


@register_bound(nn.ELU)
def _elu(module: nn.ELU, context: Context) -> Bound:
    return elementwise(context, max(1.0, abs(module.alpha)))


@register_bound(nn.CELU)
def _celu(module: nn.CELU, context: Context) -> Bound:
    # the slope is exp(x/alpha) where x is negative
    slope = 1.0 if module.alpha > 0 else math.inf
    return elementwise(context, slope)


@register_bound(nn.Softplus)
def _softplus(module: nn.Softplus, context: Context) -> Bound:
    # Above the threshold torch goes on linearly, which is a jump down by
    # log1p(exp(-threshold))/beta. At 20, the default, and above it is below
    # the rounding of float32.
    if module.beta <= 0 or module.threshold < 20:
        return Bound(
            math.inf,
            width=context.width,
            reason="Softplus with a negative beta or a jump at a threshold "
            "below 20",
        )
    return elementwise(context, 1.0, math.log(2) / module.beta)


@register_bound(nn.Hardtanh)
def _hardtanh(module: nn.Hardtanh, context: Context) -> Bound:
    low, high = module.min_val, module.max_val
    at_zero = abs(min(max(0.0, low), high))
    return elementwise(context, 1.0, at_zero, max(abs(low), abs(high)))


@register_bound(nn.Softshrink)
def _softshrink(module: nn.Softshrink, context: Context) -> Bound:
    return elementwise(context, 1.0)


@register_bound(nn.Hardshrink)
@register_bound(nn.Threshold)
def _jump(module: nn.Module, context: Context) -> Bound:
    name = type(module).__name__
    return Bound(
        math.inf, width=context.width, reason=f"{name} is not continuous"
    )


@register_bound(nn.Softmax)
def _softmax(module: nn.Softmax, context: Context) -> Bound:
    # |diag(p) - pp'| <= 1/2: its entries in a row sum to 2p(1-p) in absolute
    # value, which bounds the norm in l1, l_inf and, as it is symmetric, l2.
    last = module.dim == -1
    return Bound(
        0.5, 1.0 if last else math.inf, last, width=context.width,
        keeps_size=True,
    )  # fmt: skip


@register_bound(nn.Dropout)
@register_bound(nn.Dropout1d)
@register_bound(nn.Dropout2d)
@register_bound(nn.Dropout3d)
def _dropout(module: nn.Dropout, context: Context) -> Bound:
    # With the mask of a solve it is diagonal, with entries 0 and 1/(1-p).
    slope = 1.0
    if module.training:
        slope = 1 / (1 - module.p) if module.p < 1 else 0.0
    return elementwise(context, slope)
