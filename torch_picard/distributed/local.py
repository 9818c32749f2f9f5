"""A conv on the part of a graph that is here.

In two pieces: the nodes whose neighbours are all here, computed while the rows
of the others arrive; then the others.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch_geometric import nn as pyg
from torch_geometric.nn import MessagePassing

from ..nn.invariants import _set
from ..nn.plan import plan
from ..nn.width import check_shape

if TYPE_CHECKING:
    from .graph import PartitionedGraph

#: Their messages depend on the two nodes and the edge alone. All others are
#: given the neighbours of the halo as well, whose number they may look at.
_PLAIN = (
    pyg.GATConv, pyg.GATv2Conv, pyg.SAGEConv, pyg.GraphConv, pyg.GINConv,
    pyg.GINEConv, pyg.TransformerConv, pyg.SimpleConv, pyg.ResGatedGraphConv,
    pyg.EdgeConv, pyg.NNConv, pyg.LEConv, pyg.GeneralConv, pyg.CGConv,
)  # fmt: skip
_GLOBAL = (
    torch.nn.modules.batchnorm._BatchNorm,
    pyg.BatchNorm, pyg.InstanceNorm, pyg.GraphNorm, pyg.PairNorm,
    pyg.MeanSubtractionNorm, pyg.GraphSizeNorm, pyg.DiffGroupNorm,
)  # fmt: skip


@dataclass
class Piece:
    """Some rows, and the edges between them.

    Attributes:
        rows: of those here, to be followed by the halo's; None: all, and no
            halo.
        edge_index: [2, e], in the numbering of ``rows``.
        size: number of rows in all.
        kept: the images of so many first rows are asked for.
    """

    rows: Tensor | None
    edge_index: Tensor
    size: int
    kept: int


def local_operator(
    graph: PartitionedGraph,
    conv: Any,
    x: Tensor,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    backend: str,
) -> Callable[[Tensor], Tensor]:
    """conv on the whole graph, from the rows here to the rows here."""
    _check(conv)
    if type(conv) is pyg.GCNConv and conv.normalize and not conv.cached:
        weight = _only_weight(args, kwargs)
        pieces, values = _normalised(graph, conv, weight, x)
        parts: list[tuple[tuple, dict]] = [((v,), {}) for v in values]
        plainly = {"normalize": False}
    else:
        plain = all(
            type(m) in _PLAIN
            for m in conv.modules()
            if isinstance(m, MessagePassing)
        )
        # the numbers of the neighbours' neighbours are right in one piece
        edges = graph.incoming() if plain else graph.surrounding()
        at = graph.num_interior if plain else 0
        order, pieces = graph.split(*graph.ends(edges), at)
        parts = _divided(graph, args, kwargs, edges[order], pieces)
        plainly = {}
    watch = _Hops(conv, len(pieces))
    calls = []
    for piece, (some, named) in zip(pieces, parts):
        like = x.new_empty(piece.size, *x.shape[1:])
        with _options(conv, plainly):
            made = plan(
                None, conv, like, piece.edge_index, some, named,
                f=None, activation=None, backend=backend,
            )  # fmt: skip
        calls.append(made.operator)

    def operator(y: Tensor) -> Tensor:
        arriving = graph.halo.exchange(y)
        found = []
        with _options(conv, plainly), watch:
            for piece, call in zip(pieces, calls):
                rows = y
                if piece.rows is not None:
                    unknown = y.new_zeros(1, *y.shape[1:])
                    near, far = y[piece.rows], arriving.wait()
                    rows = torch.cat([near, far, unknown])
                found.append(call(rows)[: piece.kept])
        z = torch.cat(found)
        check_shape(conv, y, z)
        return z

    return operator


def _options(conv: Any, options: dict[str, Any]) -> ExitStack:
    stack = ExitStack()
    for name, value in options.items():
        stack.enter_context(_set(conv, name, value))
    return stack


def _normalised(
    graph: PartitionedGraph, conv: Any, weight: Tensor | None, x: Tensor
):
    """D^-1/2 (A + I) D^-1/2, with the degrees of the halo from their
    owners. As PyG's gcn_norm, of which this is the formula."""
    edges = graph.incoming()
    source, target = graph.ends(edges)
    if weight is None:
        value = x.new_ones(edges.numel())
    else:
        value = graph.whole("edge_weight", weight)[edges].reshape(-1)
    if conv.add_self_loops:
        here = torch.arange(graph.num_owned, device=x.device)
        loop = source == target
        # PyG's ``improved`` does nothing without weights
        fill = 2.0 if conv.improved and weight is not None else 1.0
        loops = value.new_full((graph.num_owned,), fill)
        loops = loops.index_put((target[loop],), value[loop])
        source = torch.cat([source[~loop], here])
        target = torch.cat([target[~loop], here])
        value = torch.cat([value[~loop], loops])
    degree = value.new_zeros(graph.num_owned).index_add(0, target, value)
    scale = degree.pow(-0.5).masked_fill(degree == 0, 0.0)
    far = graph.halo.exchange(scale[:, None]).wait()[:, 0]
    both = torch.cat([scale, far])
    value = both[source] * value * scale[target]
    order, pieces = graph.split(source, target, graph.num_interior)
    return pieces, value[order].split([p.edge_index.size(1) for p in pieces])


def _divided(graph, args, kwargs, edges: Tensor, pieces: list[Piece]):
    """The arguments of the conv for the pieces."""
    counts = [piece.edge_index.size(1) for piece in pieces]

    def of(name: str, value: Any) -> list[Any]:
        if not isinstance(value, Tensor):
            return [value] * len(counts)
        return list(graph.whole(name, value)[edges].split(counts))

    pairs = [of(f"argument {i} of conv", a) for i, a in enumerate(args)]
    named = {key: of(key, value) for key, value in kwargs.items()}
    return [
        (
            tuple(pair[i] for pair in pairs),
            {key: pair[i] for key, pair in named.items()},
        )
        for i in range(len(counts))
    ]


def _only_weight(args: tuple, kwargs: dict) -> Tensor | None:
    more = dict(kwargs)
    weight = args[0] if args else more.pop("edge_weight", None)
    if len(args) > 1 or more:
        raise ValueError(
            "GCNConv takes edge_weight alone on a PartitionedGraph, got "
            f"{len(args)} arguments and {sorted(more)}"
        )
    return weight


def _check(conv: Any) -> None:
    for module in conv.modules():
        if isinstance(module, _GLOBAL):
            raise ValueError(
                f"conv holds {type(module).__name__}, whose statistics are "
                "over all nodes; on a PartitionedGraph use a norm of each "
                "row, such as LayerNorm(mode='node')"
            )
        if isinstance(module, pyg.LayerNorm) and module.mode == "graph":
            raise ValueError(
                "conv holds LayerNorm(mode='graph'), whose statistics are "
                "over all nodes; on a PartitionedGraph use mode='node'"
            )
        if isinstance(module, MessagePassing):
            if module.flow != "source_to_target":
                raise ValueError(
                    f"conv must have flow='source_to_target' on a "
                    f"PartitionedGraph, got {module.flow!r}"
                )
            if getattr(module, "cached", False):
                raise ValueError(
                    f"conv {module} was made with cached=True, and would "
                    "keep one piece of the graph for another; use "
                    "cached=False (it is computed once a solve anyway)"
                )
            hops = getattr(module, "K", getattr(module, "num_layers", 1))
            if isinstance(hops, int) and hops > 1:
                raise ValueError(_TOO_FAR.format(type(module).__name__))


_TOO_FAR = (
    "conv looks further than one hop in one evaluation ({}), but a "
    "PartitionedGraph exchanges direct neighbours; iterate a conv of one hop"
)


class _Hops:
    """An error if a conv propagates more than once for a piece."""

    def __init__(self, conv: Any, pieces: int):
        self._allowed = pieces
        self._convs = [
            m for m in conv.modules() if isinstance(m, MessagePassing)
        ]
        self._count, self._handles = 0, []  # type: ignore[var-annotated]
        self._done = False

    def __enter__(self) -> None:
        if self._done:
            return

        def count(module, inputs) -> None:
            self._count += 1
            if self._count > self._allowed:
                raise ValueError(_TOO_FAR.format(type(module).__name__))

        self._handles = [
            m.register_propagate_forward_pre_hook(count) for m in self._convs
        ]

    def __exit__(self, *error: Any) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles, self._done = [], True
