"""What a conv would compute anew in every iteration but need not.

Normalisation and self-loops depend on the graph alone. For the convs named
here they are computed once and the conv is told to skip them; all others
are called as they are.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch_geometric.nn import (
    APPNP,
    GATConv,
    GATv2Conv,
    GCNConv,
    LGConv,
    SGConv,
    TAGConv,
)
from torch_geometric.nn.conv.gcn_conv import gcn_norm
from torch_geometric.utils import (
    add_self_loops,
    is_torch_sparse_tensor,
    remove_self_loops,
)

_NORMALISED = (APPNP, GCNConv, LGConv, TAGConv)
_LOOPED = (GATConv, GATv2Conv)


def bind(
    conv: Callable[..., Tensor],
    x: Tensor,
    edge_index: Any,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> Callable[[Tensor], Tensor]:
    """x -> conv(x, edge_index, *args, **kwargs), invariants hoisted.

    Subclasses, and convs that cache by themselves, are called as they are.
    So is everything under ``torch.compile``, whose own analysis finds
    common subexpressions.
    """
    kind = type(conv)
    if not torch.compiler.is_compiling():
        if kind in _NORMALISED and conv.normalize and not _caches(conv):
            return _normalised(conv, x, edge_index, args, kwargs)
        if kind is SGConv and not _hooked(conv):
            return _simplified(conv, x, edge_index, args, kwargs)
        if kind in _LOOPED and conv.add_self_loops and _coo(edge_index):
            return _looped(conv, x, edge_index, args, kwargs)
    return lambda y: conv(y, edge_index, *args, **kwargs)


def _normalised(conv, x, edge_index, args, kwargs):
    """A conv with a ``normalize`` switch, on a normalised graph."""
    edge_index, edge_weight = _norm(conv, x, edge_index, *args, **kwargs)

    def call(y: Tensor) -> Tensor:
        with _set(conv, "normalize", False):
            return conv(y, edge_index, edge_weight)

    return call


def _simplified(conv, x, edge_index, args, kwargs):
    """SGConv has no such switch: K propagations, then one linear map."""
    edge_index, edge_weight = _norm(conv, x, edge_index, *args, **kwargs)

    def call(y: Tensor) -> Tensor:
        for _ in range(conv.K):
            y = conv.propagate(edge_index, x=y, edge_weight=edge_weight)
        return conv.lin(y)

    return call


def _looped(conv, x, edge_index, args, kwargs):
    """An attention conv, on a graph that has its self-loops."""
    return _with_loops(conv, x, edge_index, *args, **kwargs)


def _with_loops(conv, x, edge_index, edge_attr=None, *args, **kwargs):
    if kwargs.get("size") is not None or args:
        return lambda y: conv(y, edge_index, edge_attr, *args, **kwargs)
    edge_index, edge_attr = remove_self_loops(edge_index, edge_attr)
    edge_index, edge_attr = add_self_loops(
        edge_index, edge_attr, fill_value=conv.fill_value, num_nodes=x.size(0)
    )

    def call(y: Tensor) -> Tensor:
        with _set(conv, "add_self_loops", False):
            return conv(y, edge_index, edge_attr, **kwargs)

    return call


def _norm(conv, x, edge_index, edge_weight=None):
    """D^-1/2 A D^-1/2 as the conv itself would compute it."""
    loops = conv.add_self_loops if hasattr(conv, "add_self_loops") else False
    out = gcn_norm(
        edge_index,
        edge_weight,
        x.size(conv.node_dim),
        getattr(conv, "improved", False),
        loops,
        conv.flow,
        x.dtype,
    )
    return out if isinstance(out, tuple) else (out, None)


@contextmanager
def _set(module, name: str, value: Any):
    before = getattr(module, name)
    setattr(module, name, value)
    try:
        yield
    finally:
        setattr(module, name, before)


def _caches(conv) -> bool:
    return getattr(conv, "cached", False)


def _hooked(conv) -> bool:
    return bool(conv._forward_hooks or conv._forward_pre_hooks)


def _coo(edge_index: Any) -> bool:
    return isinstance(edge_index, Tensor) and not is_torch_sparse_tensor(
        edge_index
    )
