"""Attention: on a ball for softmax over dot products, everywhere for
distances."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from ..attention import L2Attention, L2TransformerLayer
from ..bounds import (
    Bound,
    Context,
    Sum,
    in_l2,
    is_scaled,
    plus,
    register_bound,
    times,
)
from ..growth import hypot
from .dense import vector_norm


@register_bound(nn.MultiheadAttention)
@in_l2(lambda module: module.embed_dim)
def _attention(module: nn.MultiheadAttention, context: Context) -> Bound:
    r"""Self-attention X -> MHA(X, X, X) with every :math:`|x_i| \le R`:

    .. math::
        L_h = |W_V| \big(\sqrt n + |A| R^2 +
              \sqrt n R (|A| R + |W_K^\top b_Q|/\sqrt{d_h})\big), \qquad
        A = W_Q^\top W_K / \sqrt{d_h}

    The value term is :math:`|P|_2 \le \sqrt n`; the query term a covariance
    under the attention weights, at most :math:`R^2`; the key term is bounded
    by Cauchy and Schwarz, with column sums of P of at most n.
    """
    _check_attention(module)
    if module.training and module.dropout > 0:
        return Bound(
            math.inf, reason="attention with dropout on its weights: eval()"
        )
    rows = context.need_rows(module)
    reach = context.known_reach()
    heads, size = module.num_heads, module.head_dim
    packed = context.weight(module, "in_proj_weight")
    # products and sums of weights are not to be rounded
    query, key, value = packed.double().chunk(3)
    bias: Tensor | None = module.in_proj_bias
    bias = None if bias is None else bias.double()
    eps = torch.finfo(packed.dtype).eps * (1 + math.sqrt(query.size(1)))
    root, scale = math.sqrt(rows), 1 / math.sqrt(size)
    parts = []
    values = []
    for h in range(heads):
        rows_of = slice(h * size, (h + 1) * size)
        scores = query[rows_of].T @ key[rows_of] * scale
        scores_norm = context.matrix_norm(scores, degree=2, rest=scale)
        if is_scaled(context):
            # scaled weights are rounded, the product may cancel
            lost = times(
                context.matrix_norm(query[rows_of]),
                context.matrix_norm(key[rows_of]),
            )
            scores_norm = plus(scores_norm, times(eps * scale, lost))
        value_norm = context.matrix_norm(value[rows_of])
        shift: Any = 0.0
        if bias is not None:
            pull = bias[: module.embed_dim][rows_of] * scale
            shift = context.matrix_norm(
                (key[rows_of].T @ pull)[:, None],
                rest=vector_norm(context, pull),
            )
        slope = plus(
            plus(root, times(scores_norm, times(reach, reach))),
            times(root, times(reach, plus(times(scores_norm, reach), shift))),
        )
        parts.append(times(value_norm, slope))
        values.append(value_norm)
    out = context.matrix_norm(context.weight(module.out_proj, "weight"))
    constant = times(_hypot(parts), out)
    image = times(context.reach, _hypot(values))
    if bias is not None:
        image = plus(image, vector_norm(context, bias.chunk(3)[2]))
    image = plus(times(out, image), vector_norm(context, module.out_proj.bias))
    reason = (
        "softmax attention is not Lipschitz on the whole space: give "
        "region=Ball(radius)"
        if reach is math.inf
        else f"attention of {rows} tokens on a ball"
    )
    return Bound(
        constant, image, context.anywhere, width=module.embed_dim,
        reason=reason,
    )  # fmt: skip


@register_bound(nn.TransformerEncoderLayer)
def _layer(module: nn.TransformerEncoderLayer, context: Context) -> Bound:
    mix = (module.self_attn, module.dropout1)
    feed = (
        module.linear1, module.activation, module.dropout, module.linear2,
        module.dropout2,
    )  # fmt: skip
    if module.norm_first:
        first = Sum(((), (module.norm1, *mix)))
        return context.chain(first, Sum(((), (module.norm2, *feed))))
    return context.chain(
        Sum(((), mix)), module.norm1, Sum(((), feed)), module.norm2
    )


@register_bound(nn.TransformerEncoder)
def _encoder(module: nn.TransformerEncoder, context: Context) -> Bound:
    norm = () if module.norm is None else (module.norm,)
    return context.chain(*module.layers, *norm)


@register_bound(L2Attention)
@in_l2(lambda module: module.embed_dim)
def _l2_attention(module: L2Attention, context: Context) -> Bound:
    r""":math:`\sqrt{n/d_h}\,(4 W_0((n-1)/e) + 1)
    \sqrt{\sum_h |W_Q^h|^4 |W_V^h|^2}\,|W_O|` for n tokens."""
    rows, size = context.need_rows(module), module.head_dim
    query = context.weight(module, "query").split(size)
    value = context.weight(module, "value").split(size)
    heads, reaches = [], []
    for q, v in zip(query, value):
        q_norm, v_norm = context.matrix_norm(q), context.matrix_norm(v)
        head = times(times(q_norm, q_norm), v_norm)
        heads.append(head)
        reaches.append(head)
    out = context.matrix_norm(context.weight(module, "out"))
    mixing = 4 * lambert_w((rows - 1) / math.e) + 1
    factor = math.sqrt(rows / size) * mixing
    # Every row of P u is a mean of the u_j.
    image = times(context.reach, _hypot(reaches))
    image = times(image, times(out, 1 / math.sqrt(size)))
    image = plus(image, vector_norm(context, module.bias))
    return Bound(
        times(factor, times(_hypot(heads), out)),
        image,
        context.anywhere,
        width=module.embed_dim,
        reason=f"L2 attention of {rows} tokens",
    )


@register_bound(L2TransformerLayer)
def _l2_layer(module: L2TransformerLayer, context: Context) -> Bound:
    return context.chain(*module)


def lambert_w(x: float) -> float:
    """W_0(x) for x >= 0, rounded up: w e^w = x by Newton's method, from
    above."""
    w = math.log1p(x)
    for _ in range(50):
        step = (w - x * math.exp(-w)) / (1 + w)
        w -= step
        if abs(step) <= 1e-15 * (1 + w):
            break
    return w * (1 + 1e-14)


def _hypot(parts: list) -> Any:
    if any(p is math.inf or p == math.inf for p in parts if _plain(p)):
        return math.inf
    return hypot(*parts)


def _plain(value: Any) -> bool:
    return isinstance(value, (int, float))


def _check_attention(module: nn.MultiheadAttention) -> None:
    usual = module._qkv_same_embed_dim and module.bias_k is None
    if not usual or module.add_zero_attn:
        raise ValueError(
            "module: MultiheadAttention has a bound as self-attention only, "
            "without kdim, vdim, add_bias_kv and add_zero_attn"
        )
