"""What a conv sees of a graph, when it is computed piece by piece."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor
from torch_geometric import nn as pyg
from torch_geometric.nn import MessagePassing

from .invariants import _set

#: Their messages depend on the two nodes and the edge alone. All others are
#: given the neighbours of the halo as well, whose number they may look at.
_PLAIN = (
    pyg.GATConv, pyg.GATv2Conv, pyg.SAGEConv, pyg.GraphConv, pyg.GINConv,
    pyg.GINEConv, pyg.TransformerConv, pyg.SimpleConv, pyg.ResGatedGraphConv,
    pyg.EdgeConv, pyg.NNConv, pyg.LEConv, pyg.GeneralConv, pyg.CGConv,
)  # fmt: skip
_GLOBAL = (
    pyg.InstanceNorm, pyg.GraphNorm, pyg.PairNorm, pyg.MeanSubtractionNorm,
    pyg.GraphSizeNorm, pyg.DiffGroupNorm,
)  # fmt: skip


def is_plain(conv: Any) -> bool:
    """Whether the images of some rows follow from the edges to them alone."""
    return all(
        type(m) in _PLAIN
        for m in conv.modules()
        if isinstance(m, MessagePassing)
    )


def is_normalised(conv: Any) -> bool:
    """Whether the graph can be normalised for it beforehand."""
    return type(conv) is pyg.GCNConv and conv.normalize and not conv.cached


def options_set(conv: Any, options: dict[str, Any]) -> ExitStack:
    stack = ExitStack()
    for name, value in options.items():
        stack.enter_context(_set(conv, name, value))
    return stack


def check_pieces(conv: Any, where: str, name: str = "conv") -> None:
    """Refuses what cannot be computed piece by piece, ``where`` it is
    tried: "on a PartitionedGraph". ``name`` is the argument.

    Raises:
        ValueError: says what, and what to use instead.
    """
    for module in conv.modules():
        kind = type(module).__name__
        graphwise = isinstance(module, pyg.LayerNorm)
        graphwise = graphwise and module.mode == "graph"
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
            graphwise = module.training or module.running_mean is None
        if isinstance(module, _GLOBAL) or graphwise:
            raise ValueError(
                f"{name} holds {kind}, whose statistics are over all nodes; "
                f"{where} use a norm of each row, such as "
                "LayerNorm(mode='node')"
            )
        if not isinstance(module, MessagePassing):
            continue
        if module.flow != "source_to_target":
            raise ValueError(
                f"conv must have flow='source_to_target' {where}, got "
                f"{module.flow!r}"
            )
        if getattr(module, "cached", False):
            raise ValueError(
                f"conv {module} was made with cached=True, and would keep one "
                "piece of the graph for another; use cached=False (it is "
                "computed once a solve anyway)"
            )
        hops = getattr(module, "K", getattr(module, "num_layers", 1))
        if isinstance(hops, int) and hops > 1:
            raise ValueError(_TOO_FAR.format(kind))


_TOO_FAR = (
    "conv looks further than one hop in one evaluation ({}); piece by piece "
    "only direct neighbours are at hand: iterate a conv of one hop"
)

_PADS = (pyg.aggr.LSTMAggregation, pyg.aggr.GRUAggregation)


@torch.no_grad()
def check_one_hop(
    conv: Any,
    edge_index: Tensor,
    num_nodes: int,
    like: Tensor,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    edges_of_neighbours: bool = True,
) -> bool:
    """Tries whether the image of a node depends on its neighbours alone:
    it must be the same when others are computed beside it. Convs of which
    that is known are not tried.

    Args:
        edge_index: [2, E], the whole graph.
        like: of the dtype and width of a state, [?, F].
        args, kwargs: further arguments of conv, tensors of all edges.
        edges_of_neighbours: whether a piece has the edges to the neighbours
            of its nodes, too, where conv may look at them.

    Returns:
        Whether it is known now; the graph may have no edges to try it on.

    Raises:
        ValueError: it depends on more, such as two hops, the other end of
            outgoing edges, or all nodes.
    """
    for module in conv.modules():
        if isinstance(module, _PADS):
            raise ValueError(
                f"conv holds {type(module).__name__}, which pads with zeros "
                "up to the largest number of neighbours among all nodes, and "
                "they change its result; use another aggregation"
            )
    if type(conv) in _PLAIN or is_normalised(conv):
        return True
    some = _near_each_other(edge_index, num_nodes)
    if some is None:
        return False
    wider = edges_of_neighbours and not is_plain(conv)
    trained = [(module, module.training) for module in conv.modules()]
    conv.eval()
    try:
        alone, among = (
            _image(conv, edge_index, nodes, like, args, kwargs, wider)
            for nodes in (some[:1], some)
        )
    finally:
        for module, training in trained:
            module.training = training
    error = torch.finfo(like.dtype).eps ** 0.5
    if not torch.allclose(alone, among, error, error, equal_nan=True):
        raise ValueError(_TOO_FAR.format(type(conv).__name__))
    return True


def _near_each_other(edge_index: Tensor, num_nodes: int) -> Tensor | None:
    """Nodes t, s, u with edges s -> t -> u, and one to s, as far as there
    are such; with few neighbours."""
    source, target = edge_index[:, edge_index[0] != edge_index[1]]
    if not source.numel():
        return None
    ones = torch.ones_like(source)
    zeros = source.new_zeros(num_nodes)
    into, out = zeros.index_add(0, target, ones), zeros.index_add(
        0, source, ones
    )  # fmt: skip
    lacking = (into[source] == 0).long() + (out[target] == 0).long()
    cost = into[source] + into[target] + 2 * num_nodes * lacking
    best = int(cost.argmin())
    s, t = source[best], target[best]
    after = target[source == t]
    return torch.stack([t, s, *after[:1]]).unique_consecutive()


def _image(conv, edge_index, nodes, like, args, kwargs, wider) -> Tensor:
    """Of the first of the nodes, from a piece with all of them."""
    edges = torch.isin(edge_index[1], nodes)
    near = edge_index[0, edges].unique()
    if wider:
        edges = torch.isin(edge_index[1], torch.cat([nodes, near]))
    rows = torch.cat([nodes, near[~torch.isin(near, nodes)]])
    column = torch.arange(like.size(1), device=rows.device)
    state = torch.sin(1.7 * rows[:, None] + column + 1.0).to(like)
    state = torch.cat([state, state.new_zeros(1, like.size(1))])

    def of(value: Any) -> Any:
        return value[edges] if isinstance(value, Tensor) else value

    local = places(rows, edge_index[:, edges])
    named = {key: of(value) for key, value in kwargs.items()}
    return conv(state, local, *map(of, args), **named)[0]


def places(rows: Tensor, ids: Tensor) -> Tensor:
    """Where these ids are in ``rows``; len(rows) where they are not."""
    ordered, order = rows.sort()
    at = torch.searchsorted(ordered, ids).clamp(max=len(rows) - 1)
    return torch.where(ordered[at] == ids, order[at], len(rows))
