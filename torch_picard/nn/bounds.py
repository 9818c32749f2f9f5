"""Lipschitz bounds of the modules of this folder."""

from __future__ import annotations

import math
from dataclasses import replace

from torch.nn import Dropout

from ..contraction.bounds import (
    Bound,
    Context,
    is_scaled,
    plus,
    register_bound,
    times,
)
from .picard_conv import PicardConv
from .pign import _Operator
from .smoothing_linear import SmoothingLinear


@register_bound(PicardConv)
def _picard_conv(module: PicardConv, context: Context) -> Bound:
    """Of P, one application: what is injected does not matter."""
    if context.depth > 1:
        raise ValueError(
            "module: as part of another module PicardConv is the whole "
            "solve, but lipschitz_bound(PicardConv) is about P, one "
            "application; ask for it by itself"
        )
    act = () if module.activation is None else (module.activation,)
    bound = context.chain(module.conv, *act)
    return replace(bound, reach=math.inf, anywhere=False)


@register_bound(_Operator)
def _operator(module: _Operator, context: Context) -> Bound:
    dropout = Dropout(module.dropout)
    dropout.train(module.training)
    norm = () if module.norm is None else (module.norm,)
    return context.chain(dropout, module.conv, *norm)


@register_bound(SmoothingLinear)
def _smoothing(module: SmoothingLinear, context: Context) -> Bound:
    constant = module.lam
    if context.norm != "l2" or not is_scaled(context):
        constant = context.fixed_norm(module.weight)
    reach = times(constant, context.reach)
    if context.norm != "l2":
        reach = math.inf
    return Bound(
        constant, plus(reach, 0.0), context.anywhere,
        width=module.out_channels,
    )  # fmt: skip
