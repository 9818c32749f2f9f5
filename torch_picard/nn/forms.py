"""What the convs that are known compute, written as one formula."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.parametrize import (
    is_parametrized,
    type_before_parametrizations,
)
from torch_geometric.nn import (
    APPNP,
    GCNConv,
    GINConv,
    GraphConv,
    LGConv,
    MessagePassing,
    SAGEConv,
    SGConv,
    SimpleConv,
)
from torch_geometric.nn.aggr import (
    MaxAggregation,
    MeanAggregation,
    SumAggregation,
)
from torch_geometric.nn.dense.linear import Linear as PyGLinear

from .invariants import hooked

_AGGREGATIONS = {
    SumAggregation: "sum",
    MeanAggregation: "mean",
    MaxAggregation: "max",
}


class Unknown(Exception):
    """The reason why a conv is not planned."""


@dataclass(frozen=True)
class Form:
    """s = reduce_j(a_ij*h_j) + bias + root(x) with h = weight*pre(x), then
    z = after(s, x).

    Attributes:
        reduce: how messages are combined.
        weights: whether a call may bring edge weights.
        normalised: whether the graph is normalised first.
        loops: self-loops that SimpleConv adds.
        pre: a map of x before ``weight``.
        weight: a matrix [F, F] applied to what is gathered.
        bias: [F].
        root: x -> what is added to the sum.
        after: a map of the sum and x; the rest then cannot be fused.
        hops, restart: x_{k+1} = (1-restart)*A x_k + restart*x_0, so often.
    """

    reduce: str = "sum"
    weights: bool = False
    normalised: bool = False
    loops: bool = False
    pre: Callable[[Tensor], Tensor] | None = None
    weight: Tensor | None = None
    bias: Tensor | None = None
    root: Callable[[Tensor], Tensor] | None = None
    after: Callable[[Tensor, Tensor], Tensor] | None = None
    hops: int = 1
    restart: float = 0.0


def _reduce(conv: MessagePassing, *allowed: str) -> str:
    reduce = _AGGREGATIONS.get(type(conv.aggr_module))
    if reduce is None or (allowed and reduce not in allowed):
        raise Unknown(f"it aggregates by {conv.aggr_module}")
    return reduce


def _gcn(conv: GCNConv) -> Form:
    pre, weight, _ = _dense(conv.lin)
    return Form(
        _reduce(conv),
        weights=True,
        normalised=conv.normalize,
        pre=pre,
        weight=weight,
        bias=conv.bias,
    )


def _sgc(conv: SGConv) -> Form:
    # lin(A^K x) = A^K (x W') + b
    pre, weight, bias = _linear(conv.lin)
    return Form(
        _reduce(conv, "sum"),
        weights=True,
        normalised=True,
        pre=pre,
        weight=weight,
        bias=bias,
        hops=conv.K,
    )


def _sage(conv: SAGEConv) -> Form:
    if conv.normalize:
        raise Unknown("it normalises its output")
    reduce = _reduce(conv)
    pool = None
    if conv.project:
        pool = lambda x: conv.lin(x).relu()  # noqa: E731
    root = conv.lin_r if conv.root_weight else None
    if reduce == "max":
        return Form(reduce, pre=pool, after=_plus(conv.lin_l, root))
    pre, weight, bias = _linear(conv.lin_l, pool)
    return Form(reduce, pre=pre, weight=weight, bias=bias, root=root)


def _graph(conv: GraphConv) -> Form:
    reduce = _reduce(conv)
    if reduce == "max":
        after = _plus(conv.lin_rel, conv.lin_root)
        return Form(reduce, weights=True, after=after)
    pre, weight, bias = _linear(conv.lin_rel)
    return Form(
        reduce,
        weights=True,
        pre=pre,
        weight=weight,
        bias=bias,
        root=conv.lin_root,
    )


def _gin(conv: GINConv) -> Form:
    reduce = _reduce(conv)
    eps = conv.eps

    def root(x: Tensor) -> Tensor:
        if not eps.requires_grad and float(eps) == 0:
            return x
        return (1 + eps) * x

    return Form(reduce, root=root, after=lambda s, x: conv.nn(s))


def _simple(conv: SimpleConv) -> Form:
    reduce = _reduce(conv)
    if conv.combine_root == "cat":
        raise Unknown("it concatenates the root's features")
    return Form(
        reduce,
        weights=True,
        loops=conv.combine_root == "self_loop",
        root=(lambda x: x) if conv.combine_root == "sum" else None,
    )


def _lg(conv: LGConv) -> Form:
    return Form(_reduce(conv), weights=True, normalised=conv.normalize)


def _appnp(conv: APPNP) -> Form:
    if conv.dropout > 0 and conv.training:
        raise Unknown("it drops edges")
    return Form(
        _reduce(conv, "sum"),
        weights=True,
        normalised=conv.normalize,
        hops=conv.K,
        restart=conv.alpha,
    )


FORMS: dict[type, Callable[[Any], Form]] = {
    GCNConv: _gcn,
    SGConv: _sgc,
    SAGEConv: _sage,
    GraphConv: _graph,
    GINConv: _gin,
    SimpleConv: _simple,
    LGConv: _lg,
    APPNP: _appnp,
}


def _plus(first: Callable, second: Callable | None) -> Callable:
    def after(s: Tensor, x: Tensor) -> Tensor:
        return first(s) if second is None else first(s) + second(x)

    return after


def _dense(lin: Any) -> tuple[Any, Tensor | None, Tensor | None]:
    """A plain matrix where ``lin`` is nothing else, or the module. A
    parametrised weight is a matrix, too: it is computed once a solve."""
    computed = isinstance(lin, torch.nn.Module) and is_parametrized(lin)
    kind = type_before_parametrizations(lin) if computed else type(lin)
    plain = kind in (torch.nn.Linear, PyGLinear)
    plain = plain and not hooked(lin) and "forward" not in vars(lin)
    if plain:
        weight = lin.weight
        matrix = type(weight) in (torch.nn.Parameter, Tensor)
        if matrix and weight.dim() == 2:
            return None, weight, lin.bias
    return lin, None, None


def _linear(lin: Any, before: Any = None) -> tuple[Any, Any, Any]:
    """The same for a map after a linear aggregation: it is moved in front,
    all but its bias."""
    pre, weight, bias = _dense(lin)
    if pre is None:
        return before, weight, bias
    raise Unknown(f"{type(lin).__name__} is no plain matrix")
