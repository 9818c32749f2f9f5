"""Linear maps, containers, residual sums and normalisation layers."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch_geometric.nn import MLP
from torch_geometric.nn import BatchNorm as PyGBatchNorm
from torch_geometric.nn import LayerNorm as PyGLayerNorm
from torch_geometric.nn.dense.linear import Linear as PyGLinear

from ..bounds import (
    Bound,
    Context,
    Sum,
    plus,
    register_bound,
    residual_sum,
    times,
)
from ..residual import Residual


def linear(
    context: Context, module: nn.Module, bias: Tensor | None, name="weight"
) -> Bound:
    """x W' + b on every row."""
    weight = context.weight(module, name)
    constant = context.matrix_norm(weight)
    moved = constant
    if context.norm != "l2" and context.reach != math.inf:
        moved = context.matrix_norm(weight, "l2")
    return Bound(
        constant,
        plus(times(moved, context.reach), vector_norm(context, bias)),
        context.anywhere,
        width=weight.size(0),
    )


def vector_norm(context: Context, vector: Tensor | None) -> Any:
    """|b| in l2, of something that is not scaled."""
    if vector is None:
        return 0.0
    return context.number(torch.linalg.vector_norm(vector.double()))


@register_bound(nn.Linear)
@register_bound(PyGLinear)
def _linear(module: Any, context: Context) -> Bound:
    return linear(context, module, module.bias)


@register_bound(nn.Sequential)
def _sequential(module: nn.Sequential, context: Context) -> Bound:
    return context.chain(*module)


@register_bound(tuple)
def _composition(parts: tuple, context: Context) -> Bound:
    return context.chain(*parts)


@register_bound(Sum)
def _sum(parts: Sum, context: Context) -> Bound:
    return residual_sum(*[context.bound(part) for part in parts.parts])


@register_bound(Residual)
def _residual(module: Residual, context: Context) -> Bound:
    inner = context.bound(module.module)
    keep, take = 1.0, 1.0
    if module.weight is not None:
        keep, take = 1 - module.weight, module.weight
    kept = Bound(
        keep, times(keep, context.reach), context.anywhere,
        width=context.width, reason=f"{keep:g} of the input",
        size=context.input_size, keeps_size=True,
    )  # fmt: skip
    taken = Bound(
        times(take, inner.constant), times(take, inner.reach),
        inner.anywhere, inner.local, inner.width,
        f"{take:g} of [{inner.reason}]", inner.size, inner.keeps_size,
    )  # fmt: skip
    return residual_sum(kept, taken)


@register_bound(MLP)
def _mlp(module: MLP, context: Context) -> Bound:
    parts: list[Any] = []
    count = len(module.lins)
    plain = count if not module.plain_last else count - 1
    for i, lin in enumerate(module.lins):
        parts.append(lin)
        if i < plain:
            act = [] if module.act is None else [module.act]
            norm = [module.norms[i]]
            parts += act + norm if module.act_first else norm + act
        if module.dropout[i] > 0 and module.training:
            parts.append(nn.Dropout(module.dropout[i]))
    return context.chain(*parts)


@register_bound(nn.Flatten)
@register_bound(nn.Unflatten)
def _reshaped(module: nn.Module, context: Context) -> Bound:
    return Bound(1.0)


# -- normalisation ------------------------------------------------------------


@register_bound(nn.LayerNorm)
def _layer_norm(module: nn.LayerNorm, context: Context) -> Bound:
    r"""The derivative is gain/sigma times a projection, and sigma^2 is the
    variance + eps: in l2 at most max|gain|/sqrt(eps), which is attained."""
    features = math.prod(module.normalized_shape)
    rows = len(module.normalized_shape) == 1
    return _centred(module, context, features, rows)


@register_bound(PyGLayerNorm)
def _graph_layer_norm(module: Any, context: Context) -> Bound:
    if module.mode == "node":
        return _centred(module, context, module.in_channels, True)
    if context.norm != "l2":
        return Bound(math.inf, reason="LayerNorm(mode='graph') outside l2")
    # divided by (standard deviation + eps), or by the root of (variance +
    # eps) where a batch vector is given
    gain: Any = 1.0
    if module.weight is not None:
        gain = context.number(module.weight.double().abs().max())
    slope = max(1 / module.eps, module.eps**-0.5) if module.eps else math.inf
    return Bound(times(gain, slope), width=context.width)


def _centred(
    module: Any, context: Context, features: int, rows: bool
) -> Bound:
    gain: Any = 1.0
    if module.weight is not None:
        gain = context.number(module.weight.double().abs().max())
    slope = _over_root(gain, module.eps)
    if context.norm != "l2":
        # I - 11'/n - zz'/n with |z|^2 <= n: the absolute sums of a row or a
        # column are at most 2 and |z|_1 |z|_inf / n <= sqrt(n).
        slope = times(slope, 2 + math.sqrt(features))
    reach = gain * math.sqrt(features)
    reach = plus(reach, vector_norm(context, module.bias))
    return Bound(
        slope, reach if rows else math.inf, rows, width=context.width,
        keeps_size=True,
    )  # fmt: skip


def _over_root(gain: Any, eps: float) -> Any:
    return times(gain, 1 / math.sqrt(eps)) if eps > 0 else math.inf


@register_bound(nn.RMSNorm)
def _rms_norm(module: nn.RMSNorm, context: Context) -> Bound:
    features = math.prod(module.normalized_shape)
    gain: Any = 1.0
    if module.weight is not None:
        gain = context.number(module.weight.double().abs().max())
    eps = module.eps
    if eps is None:  # that of the input, which may be the finest
        kind = torch.float64
        kind = kind if module.weight is None else module.weight.dtype
        # short floats are worked on in float32
        eps = min(torch.finfo(kind).eps, torch.finfo(torch.float32).eps)
    slope = _over_root(gain, eps)
    if context.norm != "l2":
        slope = times(slope, 1 + math.sqrt(features))
    rows = len(module.normalized_shape) == 1
    reach = gain * math.sqrt(features) if rows else math.inf
    return Bound(slope, reach, rows, width=context.width, keeps_size=True)


@register_bound(PyGBatchNorm)
def _wrapped(module: Any, context: Context) -> Bound:
    return _normalised(module.module, context, nodes=True)


@register_bound(nn.BatchNorm1d)
@register_bound(nn.BatchNorm2d)
@register_bound(nn.BatchNorm3d)
def _batch_norm(module: Any, context: Context) -> Bound:
    return _normalised(module, context, nodes=False)


def _normalised(module: Any, context: Context, nodes: bool) -> Bound:
    """``nodes``: rows are known to hold the channels."""
    if module.training or module.running_var is None:
        return Bound(
            math.inf,
            width=context.width,
            reason=f"{type(module).__name__} with the statistics of the "
            "batch: call eval()",
        )
    root = (module.running_var.double() + module.eps).sqrt()
    gain = 1 / root if module.weight is None else module.weight.double() / root
    shift = -gain * module.running_mean
    if module.bias is not None:
        shift = shift + module.bias
    slope = context.number(gain.abs().max())
    # A row holds the channels of one sample, or one channel along an axis.
    length = math.inf if context.width is None else math.sqrt(context.width)
    moved = times(context.number(shift.abs().max()), length)
    if nodes:
        moved = vector_norm(context, shift)
    reach = plus(times(slope, context.reach), moved)
    return Bound(
        slope, reach, context.anywhere, width=context.width, keeps_size=True
    )
