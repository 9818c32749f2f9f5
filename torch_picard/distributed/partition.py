"""Who owns which node."""

from __future__ import annotations

import importlib.util
from typing import Any

import torch
import torch_geometric.typing
from torch import Tensor
from torch_geometric.utils import remove_self_loops, to_undirected

from ..ops.csr import compress


def partition(edge_index: Tensor, num_nodes: int, parts: int) -> Tensor:
    """A part for every node, of sizes that differ by little.

    METIS where pymetis (``torch-picard[metis]``), pyg-lib or torch-sparse
    brings it; otherwise contiguous pieces of a breadth-first order, which
    keeps neighbours together on grids, meshes and communities. Neither does
    much on random graphs.

    Args:
        edge_index: [2, E], int64.
        num_nodes: N.
        parts: their number.

    Returns:
        long [N], in 0..parts-1, none of which is empty.

    Raises:
        ValueError: an argument is unsound, or fewer nodes than parts.
    """
    check_edges(edge_index, num_nodes)
    if not isinstance(parts, int) or not 1 <= parts <= num_nodes:
        raise ValueError(
            f"parts must be from 1 to the number of nodes, {num_nodes}, got "
            f"{parts}"
        )
    if parts == 1:
        return torch.zeros(num_nodes, dtype=torch.long)
    edge_index = edge_index.cpu()
    found = None
    if importlib.util.find_spec("pymetis") is not None:
        found = _pymetis(edge_index, num_nodes, parts)
    elif torch_geometric.typing.WITH_METIS:
        found = _metis(edge_index, num_nodes, parts)
    if found is not None and found.unique().numel() == parts:
        return found
    return in_pieces(edge_index, num_nodes, parts)


def in_pieces(edge_index: Tensor, num_nodes: int, parts: int) -> Tensor:
    """Contiguous pieces of a breadth-first order, long [N]."""
    order = breadth_first(edge_index, num_nodes)
    rank = torch.empty_like(order)
    rank[order] = torch.arange(num_nodes)
    return rank * parts // num_nodes


def _pymetis(edge_index: Tensor, num_nodes: int, parts: int) -> Tensor:
    import pymetis

    edges = to_undirected(
        remove_self_loops(edge_index)[0], num_nodes=num_nodes
    )
    rowptr, perm = compress(edges[1], num_nodes)
    graph = pymetis.CSRAdjacency(rowptr.numpy(), edges[0][perm].numpy())
    return torch.tensor(pymetis.part_graph(parts, graph)[1])


def _metis(edge_index: Tensor, num_nodes: int, parts: int) -> Tensor:
    from torch_geometric.data import Data
    from torch_geometric.loader import ClusterData

    data = Data(edge_index=edge_index, num_nodes=num_nodes)
    clusters = ClusterData(data, parts, log=False).partition
    owner = torch.empty(num_nodes, dtype=torch.long)
    sizes = clusters.partptr.diff()
    owner[clusters.node_perm] = torch.arange(parts).repeat_interleave(sizes)
    return owner


def breadth_first(edge_index: Tensor, num_nodes: int) -> Tensor:
    """All nodes, level by level from a node of least degree in every
    component, long [N]."""
    both = torch.cat([edge_index, edge_index.flip(0)], dim=1)
    rowptr, perm = compress(both[1], num_nodes)
    col, rowptr = both[0][perm], rowptr.long()
    degree = rowptr.diff()
    seen = torch.zeros(num_nodes, dtype=torch.bool)
    alone = (degree == 0).nonzero()[:, 0]
    seen[alone] = True
    levels = []
    starts = iter(degree.argsort().tolist())
    while int(seen.sum()) < num_nodes:
        start = next(i for i in starts if not seen[i])
        level = torch.tensor([start])
        while level.numel():
            seen[level] = True
            levels.append(level)
            level = _neighbours(rowptr, col, level)
            level = level[~seen[level]].unique()
    return torch.cat([*levels, alone])


def _neighbours(rowptr: Tensor, col: Tensor, nodes: Tensor) -> Tensor:
    count = rowptr[nodes + 1] - rowptr[nodes]
    first = rowptr[nodes].repeat_interleave(count)
    before = count.cumsum(0) - count
    within = torch.arange(int(count.sum())) - before.repeat_interleave(count)
    return col[first + within]


def check_edges(edge_index: Any, num_nodes: Any) -> None:
    if not isinstance(edge_index, Tensor) or edge_index.dtype != torch.long:
        kind = getattr(edge_index, "dtype", type(edge_index).__name__)
        raise ValueError(f"edge_index must be a LongTensor [2, E], got {kind}")
    if edge_index.dim() != 2 or edge_index.size(0) != 2:
        raise ValueError(
            "edge_index must be a LongTensor [2, E], got shape "
            f"{list(edge_index.shape)}"
        )
    if not isinstance(num_nodes, int) or num_nodes < 1:
        raise ValueError(f"num_nodes must be at least 1, got {num_nodes!r}")
    if edge_index.numel():
        low, high = int(edge_index.min()), int(edge_index.max())
        if low < 0 or high >= num_nodes:
            raise ValueError(
                f"edge_index must be in 0..{num_nodes - 1}, got {low}..{high}"
            )
