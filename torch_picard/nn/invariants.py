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
    MessagePassing,
    SGConv,
    TAGConv,
)
from torch_geometric.nn.conv.gcn_conv import gcn_norm
from torch_geometric.utils import (
    add_self_loops,
    is_torch_sparse_tensor,
    remove_self_loops,
)

from ..contraction.contractive import hold, release

_NORMALISED = (APPNP, GCNConv, LGConv, TAGConv)
_LOOPED = (GATConv, GATv2Conv)


def bind(
    conv: Any,
    x: Tensor,
    edge_index: Any,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> Callable[[Tensor], Tensor]:
    """x -> conv(x, edge_index, *args, **kwargs), invariants hoisted.

    Subclasses, convs that cache by themselves, convs with hooks (which see
    the arguments) and calls that the conv itself would refuse are made as
    they are. So is everything under ``torch.compile``, whose own analysis
    finds common subexpressions.
    """
    if _csc(edge_index) and isinstance(conv, MessagePassing):
        edge_index = edge_index.to_sparse_csr()
    kind = type(conv)
    known = kind in (SGConv, *_NORMALISED, *_LOOPED)
    if known and not torch.compiler.is_compiling() and not hooked(conv):
        if kind in _LOOPED:
            if conv.add_self_loops and _coo(edge_index):
                return _looped(conv, x, edge_index, args, kwargs)
        elif _takes(args, kwargs):
            if kind is SGConv:
                return _simplified(conv, x, edge_index, args, kwargs)
            if conv.normalize and not _caches(conv):
                return _normalised(conv, x, edge_index, args, kwargs)
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
    more = len(args) + len(kwargs) > 1 or set(kwargs) - {"edge_attr"}
    if more or x.dim() != 2:
        return lambda y: conv(y, edge_index, *args, **kwargs)
    (edge_attr,) = (*args, *kwargs.values()) or (None,)
    edge_index, edge_attr = remove_self_loops(edge_index, edge_attr)
    edge_index, edge_attr = add_self_loops(
        edge_index, edge_attr, fill_value=conv.fill_value, num_nodes=x.size(0)
    )

    def call(y: Tensor) -> Tensor:
        with _set(conv, "add_self_loops", False):
            return conv(y, edge_index, edge_attr)

    return call


def normalised_graph(conv, x, edge_index, edge_weight=None):
    """The same, from or into the cache of a conv that keeps one."""
    if not _caches(conv) or is_torch_sparse_tensor(edge_index):
        return _norm(conv, x, edge_index, edge_weight)
    if conv._cached_edge_index is None:
        graph = _norm(conv, x, edge_index, edge_weight)
        conv._cached_edge_index = graph
    return conv._cached_edge_index


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


def hooked(module) -> bool:
    """By somebody else than contractive."""
    hooks = [
        *module._forward_hooks.values(),
        *module._forward_pre_hooks.values(),
        *module._backward_hooks.values(),
        *module._backward_pre_hooks.values(),
    ]
    return any(hook not in (hold, release) for hook in hooks)


def _takes(args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether these can be the edge weight and nothing else."""
    return len(args) + len(kwargs) <= 1 and set(kwargs) <= {"edge_weight"}


def _coo(edge_index: Any) -> bool:
    return isinstance(edge_index, Tensor) and not is_torch_sparse_tensor(
        edge_index
    )


def _csc(edge_index: Any) -> bool:
    """PyG would convert it in every call, or refuse it."""
    is_tensor = isinstance(edge_index, Tensor)
    return is_tensor and edge_index.layout == torch.sparse_csc
