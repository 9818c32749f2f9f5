"""Graph convs: the norm of the aggregation times that of the weights."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor
from torch_geometric.nn import (
    APPNP,
    GATConv,
    GCNConv,
    GINConv,
    GraphConv,
    LGConv,
    SAGEConv,
    SGConv,
    SimpleConv,
)
from torch_geometric.nn.aggr import (
    MaxAggregation,
    MeanAggregation,
    SumAggregation,
)

from ..bounds import (
    Bound,
    Context,
    in_l2,
    is_scaled,
    plus,
    register_bound,
    residual_sum,
    times,
)
from ..growth import hypot
from .activations import elementwise
from .dense import vector_norm


def _reduction(conv: Any) -> str:
    kinds = {
        SumAggregation: "sum",
        MeanAggregation: "mean",
        MaxAggregation: "max",
    }
    reduce = kinds.get(type(conv.aggr_module))
    if reduce is None:
        raise ValueError(
            f"module: {type(conv).__name__} aggregates by "
            f"{conv.aggr_module}; bounds are known for sum, mean and max"
        )
    return reduce


def _normalised(
    conv: Any, context: Context, norm: str, normalize: bool = True
) -> float:
    """|A| of GCN's propagation; without a graph, of every undirected one."""
    if not normalize:
        graph = context.need_graph(conv)
        return graph.sum(norm, True, conv.flow)
    loops = getattr(conv, "add_self_loops", True)
    improved = getattr(conv, "improved", False)
    if context.graph is not None:
        return context.graph.normalised(norm, improved, loops, conv.flow)
    if norm != "l2":
        return math.inf if norm != context.norm else _missing(conv, context)
    if _reduction(conv) != "sum":
        return _missing(conv, context)
    return 1.0


def _missing(conv: Any, context: Context) -> float:
    context.need_graph(conv)
    return math.inf


def _row_sums(conv: Any, context: Context, normalize: bool) -> float:
    """How far a row of the aggregate may reach: |A|_inf times the rows."""
    if context.reach == math.inf or context.graph is None:
        return math.inf
    return _normalised(conv, context, "linf", normalize)


def _any_graph(conv: Any, context: Context, normalize: bool) -> str:
    if context.graph is None and normalize:
        return " on every undirected graph with weights >= 0"
    return ""


def _check_sum(conv: Any) -> None:
    if _reduction(conv) != "sum":
        raise ValueError(
            f"module: {type(conv).__name__} has a bound for aggr='add', got "
            f"{conv.aggr!r}"
        )


def _linear_propagation(
    conv: Any,
    context: Context,
    normalize: bool,
    lin: Any = None,
    bias: Tensor | None = None,
    hops: int = 1,
) -> Bound:
    """A^K (x W') + b."""
    _check_sum(conv)
    size = _normalised(conv, context, context.norm, normalize) ** hops
    inner = context.bound(() if lin is None else lin)
    rows = _row_sums(conv, context, normalize)
    # at least 1, as the bias of SGConv is added after the hops
    grown = max(rows, 1.0) ** hops if rows < math.inf else rows
    reach = times(grown, inner.reach)
    reach = plus(reach, vector_norm(context, bias))
    where = _any_graph(conv, context, normalize)
    reason = f"{type(conv).__name__}{where}: |A| = {size:.6g}"
    if lin is not None:
        reason += f", {inner.reason}"
    return Bound(
        times(size, inner.constant), reach, inner.anywhere, inner.local,
        inner.width, reason,
    )  # fmt: skip


@register_bound(GCNConv)
def _gcn(conv: GCNConv, context: Context) -> Bound:
    return _linear_propagation(
        conv, context, conv.normalize, conv.lin, conv.bias
    )


@register_bound(SGConv)
def _sgc(conv: SGConv, context: Context) -> Bound:
    return _linear_propagation(conv, context, True, conv.lin, hops=conv.K)


@register_bound(LGConv)
def _lgc(conv: LGConv, context: Context) -> Bound:
    if not conv.normalize:
        return _linear_propagation(conv, context, False)
    # normalised without self-loops
    conv_norm = context.graph
    if conv_norm is None:
        return _linear_propagation(conv, context, True)
    _check_sum(conv)
    size = conv_norm.normalised(context.norm, False, False, conv.flow)
    return Bound(
        size,
        width=context.width,
        reason=f"LGConv: |A| = {size:.6g}",
    )


@register_bound(APPNP)
def _appnp(conv: APPNP, context: Context) -> Bound:
    r"""As a map of x: :math:`a \sum_{k<K} (1-a)^k A^k + (1-a)^K A^K`."""
    if conv.dropout > 0 and conv.training:
        return Bound(math.inf, reason="APPNP drops edges: call eval()")
    _check_sum(conv)
    size = _normalised(conv, context, context.norm, conv.normalize)
    step = (1 - conv.alpha) * size
    constant = conv.alpha * sum(step**k for k in range(conv.K))
    constant += step**conv.K
    reason = f"APPNP{_any_graph(conv, context, conv.normalize)}"
    return Bound(constant, width=context.width, reason=reason)


def _aggregation(
    conv: Any, context: Context, norm: str, weighted: bool
) -> float:
    """|.| of the aggregation alone."""
    reduce = _reduction(conv)
    averages = reduce in ("mean", "max") and norm == "linf"
    if averages and not weighted and context.graph is None:
        return 1.0
    graph = context.need_graph(conv)
    if reduce == "max":
        return graph.max_norm(norm, weighted, conv.flow)
    if reduce == "mean":
        return graph.mean(norm, weighted, conv.flow)
    return graph.sum(norm, weighted, conv.flow)


def _two_maps(
    conv: Any,
    context: Context,
    neighbours: Any,
    root: Any,
    weighted: bool,
    before: tuple = (),
) -> Bound:
    """neighbours(aggregate(before(x))) + root(x)."""
    size = _aggregation(conv, context, context.norm, weighted)
    inner = context.bound((*before, neighbours))
    what = f"{type(conv).__name__} {_reduction(conv)}: |A| = {size:.6g}"
    gathered = Bound(
        times(size, inner.constant), width=inner.width, local=inner.local,
        reason=f"{what}, {inner.reason}",
    )  # fmt: skip
    if root is None:
        return gathered
    return residual_sum(gathered, context.bound(root))


@register_bound(SAGEConv)
def _sage(conv: SAGEConv, context: Context) -> Bound:
    r"""In l2, the maximum has :math:`\sqrt{\max_u outdeg(u)}`; the mean the
    norm of :math:`D^{-1}A`, which may exceed 1."""
    if conv.normalize:
        return Bound(math.inf, reason="SAGEConv(normalize=True) at rows of 0")
    before: tuple = ()
    if conv.project:
        before = (conv.lin, _relu)
    root = conv.lin_r if conv.root_weight else None
    return _two_maps(conv, context, conv.lin_l, root, False, before)


@register_bound(GraphConv)
def _graph_conv(conv: GraphConv, context: Context) -> Bound:
    return _two_maps(conv, context, conv.lin_rel, conv.lin_root, True)


@register_bound(GINConv)
def _gin(conv: GINConv, context: Context) -> Bound:
    r"""nn((1+eps) x + A x): :math:`|(1+\epsilon) I + A|` times that of
    nn."""
    # eps may be learned or loaded: keep it apart
    known = None if is_scaled(context) else float(conv.eps.detach())
    graph = context.need_graph(conv)
    reduce = _reduction(conv)
    if reduce == "sum" and known is not None and known >= -1:
        size: Any = graph.sum(context.norm, False, conv.flow, loop=1 + known)
    else:
        size = plus(
            _aggregation(conv, context, context.norm, False),
            context.number((1 + conv.eps.double()).abs().reshape(())),
        )
    reason = "GINConv: |(1+eps)I + A|"
    if isinstance(size, float):
        reason += f" = {size:.6g}"
    mixing = Bound(size, width=context.width, reason=reason)
    return context.chain(_Given(mixing), conv.nn)


class _Given:
    """A part whose bound is known."""

    def __init__(self, bound: Bound):
        self.bound = bound


@register_bound(_Given)
def _given(part: _Given, context: Context) -> Bound:
    return part.bound


@register_bound(SimpleConv)
def _simple(conv: SimpleConv, context: Context) -> Bound:
    if conv.combine_root == "cat":
        raise ValueError(
            "module: SimpleConv(combine_root='cat') changes the width; a "
            "bound is known for None, 'sum' and 'self_loop'"
        )
    graph = context.need_graph(conv)
    reduce = _reduction(conv)
    if conv.combine_root == "self_loop":
        if reduce != "sum":
            raise ValueError(
                "module: SimpleConv(combine_root='self_loop') has a bound "
                f"for aggr='sum', got {conv.aggr!r}"
            )
        size = graph.sum(context.norm, True, conv.flow, loop=1.0)
    else:
        size = _aggregation(conv, context, context.norm, True)
        size += 1.0 if conv.combine_root == "sum" else 0.0
    return Bound(size, width=context.width, reason=f"SimpleConv {size:.6g}")


@register_bound(GATConv)
@in_l2(lambda conv: conv.in_channels)
def _gat(conv: GATConv, context: Context) -> Bound:
    r"""On :math:`|x_i| \le R`, with at most :math:`\Delta` messages sent by a
    node, for each head

    .. math::
        L_h = |W|\big(\sqrt\Delta\,(1 + |W| R\,|a_s|) + |W| R\,|a_d|\big)

    since an entry of the scores moves by at most :math:`|a_s||W\delta x_j| +
    |a_d||W\delta x_i|` (the slope of LeakyReLU is at most 1), and the
    attention weights that a node sends sum to at most :math:`\Delta`.
    """
    lin = conv.lin
    plain = lin is not None and abs(conv.negative_slope) <= 1
    if not plain or conv.edge_dim is not None or conv.residual:
        raise ValueError(
            "module: GATConv has a bound for one input width, negative_slope "
            "in [-1, 1], and without edge_dim and residual"
        )
    if conv.training and conv.dropout > 0:
        return Bound(
            math.inf, reason="GATConv drops attention weights: call eval()"
        )
    graph = context.need_graph(conv)
    reach = context.known_reach()
    loop = 1.0 if conv.add_self_loops else 0.0
    root = math.sqrt(graph.out_degree(conv.flow) + loop)
    weight = context.weight(lin, "weight").split(conv.out_channels)
    source, target = conv.att_src[0], conv.att_dst[0]
    parts, images = [], []
    for h, w in enumerate(weight):
        size = context.matrix_norm(w)
        a_source = vector_norm(context, source[h])
        a_target = vector_norm(context, target[h])
        moved = times(size, reach)
        slope = plus(
            times(root, plus(1.0, times(moved, a_source))),
            times(moved, a_target),
        )
        parts.append(times(size, slope))
        images.append(times(size, context.reach))
    heads = len(parts)
    if any(isinstance(p, float) and p == math.inf for p in parts):
        return Bound(
            math.inf,
            reason="attention is not Lipschitz on the whole space: give "
            "region=Ball(radius)",
        )
    constant, image = hypot(*parts), hypot(*images)
    if not conv.concat:
        # of the mean over heads: |mean v_h| <= sqrt(sum |v_h|^2 / H)
        constant = times(1 / math.sqrt(heads), constant)
        image = times(1 / math.sqrt(heads), image)
    image = plus(image, vector_norm(context, conv.bias))
    width = conv.out_channels * (heads if conv.concat else 1)
    return Bound(
        constant, image, context.anywhere, width=width,
        reason=f"GATConv, {heads} head(s), on a ball",
    )  # fmt: skip


def _relu(x: Tensor) -> Tensor:
    return x.relu()


@register_bound(_relu)
def _relu_rule(module: Any, context: Context) -> Bound:
    return elementwise(context, 1.0)
