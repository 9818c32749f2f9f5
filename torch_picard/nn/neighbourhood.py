"""What a conv sees of a graph, when it is computed piece by piece."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
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
    "conv looks further than one hop in one evaluation ({}): at more than "
    "the nodes that a node hears from and their in-degrees; piece by piece "
    "no more is at hand: iterate a conv of one hop"
)

_PADS = (pyg.aggr.LSTMAggregation, pyg.aggr.GRUAggregation)

#: Of the graph that convs are tried on, and of its pieces.
_NODES, _EDGES, _PIECE = 64, 128, 8


@torch.no_grad()
def check_one_hop(
    conv: Any,
    like: Tensor,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    edges_of_neighbours: bool = True,
) -> None:
    """Tries whether the image of a node depends on its neighbours alone, on
    a random directed graph: piece by piece it must be the same.

    Args:
        like: of the dtype and width of a state, [?, F].
        args, kwargs: further arguments of conv, tensors of all edges.
        edges_of_neighbours: whether a piece has the edges to the neighbours
            of its nodes, too, where conv may look at them.

    Raises:
        ValueError: it depends on more, such as two hops, the other end of
            outgoing edges, or all nodes; or it cannot be computed on another
            graph.
    """
    for module in conv.modules():
        if isinstance(module, _PADS):
            raise ValueError(
                f"conv holds {type(module).__name__}, which pads with zeros "
                "up to the largest number of neighbours among all nodes, and "
                "they change its result; use another aggregation"
            )
    if is_normalised(conv):
        return
    wider = edges_of_neighbours and not is_plain(conv)
    rng = torch.Generator().manual_seed(0)
    source = torch.randint(_NODES, (_EDGES,), generator=rng)
    away = torch.randint(1, _NODES, (_EDGES,), generator=rng)
    target = (source + away) % _NODES
    edge_index = torch.stack([source, target])[:, target.argsort()]
    edge_index = edge_index.to(like.device)
    state = _drawn(_NODES, like, rng)

    def of(value: Any, edges: Tensor) -> Any:
        if not isinstance(value, Tensor) or value.dim() == 0:
            return value
        if not len(value):
            return value.new_zeros(len(edges), *value.shape[1:])
        return value[edges % len(value)]

    def image(x: Tensor, edges: Tensor, local: Tensor) -> Tensor:
        named = {key: of(value, edges) for key, value in kwargs.items()}
        return conv(x, local, *(of(a, edges) for a in args), **named)

    def piece(first: int) -> Tensor:
        """The images of some nodes, from what is at hand there."""
        nodes = torch.arange(first, first + _PIECE, device=like.device)
        into = torch.isin(edge_index[1], nodes)
        near = edge_index[0, into].unique()
        rows = torch.cat([nodes, near[~torch.isin(near, nodes)]])
        edges = torch.isin(edge_index[1], rows) if wider else into
        x = torch.cat([state[rows], state.new_zeros(1, *state.shape[1:])])
        local = places(rows, edge_index[:, edges])
        order = local[1].argsort(stable=True)  # some convs need it
        edges = edges.nonzero()[order, 0]
        return image(x, edges, local[:, order])[:_PIECE]

    kind = type(conv).__name__
    with _evaluated(conv):
        try:
            every = torch.arange(_EDGES, device=like.device)
            whole = image(state, every, edge_index)
            pieces = [piece(first) for first in range(0, _NODES, _PIECE)]
        except Exception as error:
            raise ValueError(
                f"conv {kind} cannot be computed on a part of the graph: it "
                f"was tried on one of {_NODES} nodes with states like "
                f"[?, {like.size(-1)}], {like.dtype}: {error}"
            ) from error
    if not _same(torch.cat(pieces), whole):
        raise ValueError(_TOO_FAR.format(kind))


@torch.no_grad()
def check_rows(name: str, function: Any, like: Tensor, where: str) -> None:
    """Tries whether a function maps each row by itself, as those of other
    pieces are not at hand; one that draws random numbers is left alone.

    Args:
        name: the argument that it was given as.
        function: a module or another callable; anything else is left alone.
        like: of the dtype and width of its input, [?, F].
        where: as of :func:`check_pieces`.

    Raises:
        ValueError: it does not.
    """
    if not callable(function):
        return
    if isinstance(function, torch.nn.Module):
        check_pieces(function, where, name)
    rows = _drawn(4 * _PIECE, like, torch.Generator().manual_seed(0))
    kind = getattr(function, "__name__", type(function).__name__)
    with _evaluated(function):
        try:
            whole, again = function(rows), function(rows)
            parts = [function(part) for part in rows.split(_PIECE + 1)]
        except Exception as error:
            raise ValueError(
                f"{name} must map each row by itself {where}, but {kind} "
                f"fails for {len(rows)} rows or for {_PIECE + 1}: {error}"
            ) from error
    if _same(again, whole) and not _same(torch.cat(parts), whole):
        raise ValueError(
            f"{name} must map each row by itself {where}, but {kind} looks "
            "at other rows, too, or at their number"
        )


def _drawn(count: int, like: Tensor, rng: torch.Generator) -> Tensor:
    drawn = torch.randn(count, *like.shape[1:], generator=rng)
    return drawn.to(like.device, like.dtype)


def _same(a: Tensor, b: Tensor) -> bool:
    error = torch.finfo(b.dtype).eps ** 0.5
    return a.shape == b.shape and torch.allclose(a, b, error, error, True)


@contextmanager
def _evaluated(function: Any) -> Iterator[None]:
    """In eval mode, if it is a module."""
    found = isinstance(function, torch.nn.Module)
    trained = [(m, m.training) for m in function.modules()] if found else []
    try:
        for module, _ in trained:
            module.training = False
        yield
    finally:
        for module, training in trained:
            module.training = training


def places(rows: Tensor, ids: Tensor) -> Tensor:
    """Where these ids are in ``rows``; len(rows) where they are not."""
    ordered, order = rows.sort()
    at = torch.searchsorted(ordered, ids).clamp(max=len(rows) - 1)
    return torch.where(ordered[at] == ids, order[at], len(rows))
