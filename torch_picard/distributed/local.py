"""A conv on the part of a graph that is here.

In two pieces: the nodes whose neighbours are all here, computed while the rows
of the others arrive; then the others.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..nn.neighbourhood import (
    check_pieces,
    is_normalised,
    is_plain,
    options_set,
)
from ..nn.plan import plan
from ..nn.width import check_shape

if TYPE_CHECKING:
    from .graph import PartitionedGraph


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
    check_pieces(conv, "on a PartitionedGraph")
    if is_normalised(conv):
        weight = _only_weight(args, kwargs)
        pieces, values = _normalised(graph, conv, weight, x)
        parts: list[tuple[tuple, dict]] = [((v,), {}) for v in values]
        plainly = {"normalize": False}
    else:
        plain = is_plain(conv)
        # the numbers of the neighbours' neighbours are right in one piece
        edges = graph.incoming() if plain else graph.surrounding()
        at = graph.num_interior if plain else 0
        order, pieces = graph.split(*graph.ends(edges), at)
        parts = _divided(graph, args, kwargs, edges[order], pieces)
        graph.try_once(conv, x, args, kwargs)
        plainly = {}
    calls = []
    for piece, (some, named) in zip(pieces, parts):
        like = x.new_empty(piece.size, *x.shape[1:])
        with options_set(conv, plainly):
            made = plan(
                None, conv, like, piece.edge_index, some, named,
                f=None, activation=None, backend=backend,
            )  # fmt: skip
        calls.append(made.operator)

    def operator(y: Tensor) -> Tensor:
        arriving = graph.halo.exchange(y)
        found = []
        with options_set(conv, plainly):
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
