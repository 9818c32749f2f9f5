"""Norms of the sparse matrices of a graph, as proven upper bounds."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch_geometric.nn.conv.gcn_conv import gcn_norm
from torch_geometric.typing import SparseTensor
from torch_geometric.utils import (
    add_remaining_self_loops,
    add_self_loops,
    coalesce,
    is_torch_sparse_tensor,
    to_edge_index,
)
from torch_geometric.utils.num_nodes import maybe_num_nodes


class Graph:
    """What the bounds need to know of a graph. Every number is computed once
    and kept; :meth:`forget` drops the edges and leaves the numbers.

    Args:
        edge_index: [2, E], or an adjacency as the convs of PyG take it
            (rows are targets).
        num_nodes: N.
        edge_weight: [E], or :obj:`None` for ones.
    """

    def __init__(
        self,
        edge_index: Any,
        num_nodes: int | None = None,
        edge_weight: Tensor | None = None,
    ):
        self._adjacency: Any = None
        #: whether convs without edge weights multiply by these, too
        self._stored = False
        if isinstance(edge_index, SparseTensor):
            self._adjacency, num_nodes = edge_index, edge_index.size(0)
            row, col, value = edge_index.coo()
            edge_index, edge_weight = torch.stack([col, row]), value
        elif isinstance(edge_index, Tensor) and is_torch_sparse_tensor(
            edge_index
        ):
            self._adjacency, num_nodes = edge_index, edge_index.size(0)
            self._stored = True
            index, value = to_edge_index(edge_index)
            edge_index, edge_weight = index.flip(0), value
        _check_edges(edge_index, num_nodes, edge_weight)
        #: N, if it is certain: the last nodes may have no edges
        self.rows = num_nodes
        self.num_nodes = maybe_num_nodes(edge_index, num_nodes)
        self._edges: Any = edge_index.detach().as_subclass(Tensor)
        self._weight = None
        if edge_weight is not None:
            self._weight = edge_weight.detach().reshape(-1).double()
        self._known: dict[Any, float] = {}

    def forget(self) -> None:
        """Drop the edges; what was computed stays."""
        self._edges = self._weight = self._adjacency = None

    def normalised(
        self, norm: str, improved: bool, loops: bool, flow: str
    ) -> float:
        """|D^-1/2 (A + I) D^-1/2|: 1 in l2 if undirected."""
        key = ("gcn", norm, improved, loops, flow)
        size = self._memo(key, lambda: self._gcn(norm, improved, loops, flow))
        return self._with_isolated(size, 1.0 if loops else 0.0)

    def mean(self, norm: str, weighted: bool, flow: str) -> float:
        """|D^-1 A|: at most 1 in l_inf."""
        key = ("mean", norm, weighted, flow)
        return self._memo(
            key, lambda: self._either(norm, weighted, flow, mean=True)
        )

    def sum(
        self, norm: str, weighted: bool, flow: str, loop: float | None = None
    ) -> float:
        """|A|, or |loop*I + A|."""
        key = ("sum", norm, weighted, flow, loop)
        size = self._memo(
            key, lambda: self._either(norm, weighted, flow, loop=loop)
        )
        return self._with_isolated(size, abs(loop or 0.0))

    def out_degree(self, flow: str) -> float:
        """max_u of the number of messages that u sends."""
        return self._memo(
            ("out", flow),
            lambda: self._out(flow)[0],
        )

    def max_norm(self, norm: str, weighted: bool, flow: str) -> float:
        """Of the maximum over neighbours: sqrt(max out-degree) in l2, the
        out-degree in l1, 1 in l_inf; times the largest weight."""
        key = ("max", norm, weighted, flow)

        def compute() -> float:
            degree, weight = self._out(flow)
            size = {"l2": degree**0.5, "l1": degree, "linf": min(degree, 1)}
            weight = weight if weighted else max(1.0, weight * self._stored)
            return size[norm] * weight

        return self._memo(key, compute)

    def _with_isolated(self, size: float, loop: float) -> float:
        """Nodes that no edge names move by their self-loop alone."""
        return size if self.rows is not None else max(size, loop)

    def _memo(self, key: Any, compute: Any) -> float:
        if key not in self._known:
            if self._edges is None:
                raise RuntimeError(
                    "edge_index: the graph's edges were dropped, and this "
                    f"number was not asked for before: {key}; call "
                    "contractive again with edge_index"
                )
            self._known[key] = compute()
        return self._known[key]

    def _ends(self, flow: str) -> tuple[Tensor, Tensor]:
        """Sources and targets of the messages."""
        source, target = self._edges
        if flow == "target_to_source":
            source, target = target, source
        return source, target

    def _out(self, flow: str) -> tuple[float, float]:
        source, _ = self._ends(flow)
        if source.numel() == 0:
            return 0.0, 1.0
        weight = (
            1.0 if self._weight is None else float(self._weight.abs().max())
        )
        return float(torch.bincount(source).max()), weight

    def _gcn(self, norm: str, improved: bool, loops: bool, flow: str) -> float:
        if self._adjacency is not None:
            # existing self-loops are treated in another way
            target, source, value = self._gcn_adjacency(improved, loops, flow)
        else:
            # without weights, "improved" self-loops weigh 1, too
            (source, target), value = gcn_norm(
                self._edges, self._weight, self.num_nodes, improved, loops,
                flow, dtype=torch.float64,
            )  # fmt: skip
            if flow == "target_to_source":
                source, target = target, source
        return sparse_norm(
            target, source, value, self.num_nodes, norm,
            start=self._degree(improved, loops, flow).sqrt(),
        )  # fmt: skip

    def _gcn_adjacency(self, improved: bool, loops: bool, flow: str) -> Any:
        found = gcn_norm(
            self._adjacency.detach().to(torch.float64), None, self.num_nodes,
            improved, loops, flow, dtype=torch.float64,
        )  # fmt: skip
        if isinstance(found, SparseTensor):
            return found.coo()
        (target, source), value = to_edge_index(found[0])
        return target, source, value

    def _degree(self, improved: bool, loops: bool, flow: str) -> Tensor:
        """Row sums before normalisation: of an undirected graph their root
        is the leading eigenvector."""
        edges, weight = self._edges, self._weight
        if loops:
            fill = 2.0 if improved else 1.0
            # gcn_norm adds to the diagonal of a sparse tensor
            add = add_self_loops if self._stored else add_remaining_self_loops
            edges, weight = add(edges, weight, fill, self.num_nodes)
        if weight is None:
            weight = torch.ones_like(edges[0], dtype=torch.float64)
        target = edges[0 if flow == "target_to_source" else 1]
        degree = _sums(target, weight.abs(), self.num_nodes)
        return degree.clamp_min(1e-30)

    def _either(
        self, norm: str, weighted: bool, flow: str, **options: Any
    ) -> float:
        """With or without weights, where that depends on how the conv
        computes."""
        size = self._aggregate(norm, weighted, flow, **options)
        if self._stored and not weighted:
            size = max(size, self._aggregate(norm, True, flow, **options))
        return size

    def _aggregate(
        self,
        norm: str,
        weighted: bool,
        flow: str,
        mean: bool = False,
        loop: float | None = None,
    ) -> float:
        source, target = self._ends(flow)
        value = torch.ones_like(source, dtype=torch.float64)
        if weighted and self._weight is not None:
            value = self._weight
        if mean:
            count = torch.bincount(target, minlength=self.num_nodes)
            value = value / count[target]
        if loop is not None:
            nodes = torch.arange(self.num_nodes, device=source.device)
            source = torch.cat([source, nodes])
            target = torch.cat([target, nodes])
            value = torch.cat([value, value.new_full(nodes.shape, loop)])
        return sparse_norm(target, source, value, self.num_nodes, norm)


def sparse_norm(
    row: Tensor,
    col: Tensor,
    value: Tensor,
    num_nodes: int,
    norm: str,
    start: Tensor | None = None,
    num_iter: int = 100,
) -> float:
    r"""A proven upper bound of the norm of a sparse matrix A [N, N] with
    entries value[e] at (row[e], col[e]), duplicates added.

    In l1 and l_inf it is the exact column or row sum of :math:`|A|`. In l2
    it starts from :math:`\sqrt{|A|_1 |A|_\infty}` and is sharpened: for
    :math:`B = |A|^T |A|` and any positive v, :math:`\rho(B) \le \max_i
    (Bv)_i / v_i` (Collatz and Wielandt), and power iteration on v never
    raises it. Equal to :math:`|A|_2` in the limit if no entry is negative.

    Args:
        row, col: [E] long.
        value: [E].
        num_nodes: N.
        norm: ``"l2"``, ``"l1"`` or ``"linf"``.
        start: a positive v [N] to begin with.
        num_iter: steps of power iteration at most.
    """
    if value.numel() == 0 or num_nodes == 0:
        return 0.0
    if not bool(torch.isfinite(value).all()):
        return math.inf
    index, entries = coalesce(
        torch.stack([row, col]), value.double(), num_nodes
    )
    (row, col), entries = index, entries.abs()
    unit = float(entries.max())  # squares neither overflow nor vanish
    if unit == 0:
        return 0.0
    entries = entries / unit
    row_sums = _sums(row, entries, num_nodes)
    col_sums = _sums(col, entries, num_nodes)
    longest = int(torch.bincount(row).max())
    longest = max(longest, int(torch.bincount(col).max()))
    up = 1 + 4 * (longest + 4) * torch.finfo(torch.float64).eps
    if norm == "l1":
        return float(col_sums.max()) * up * unit
    if norm == "linf":
        return float(row_sums.max()) * up * unit
    best = float(row_sums.max() * col_sums.max()) ** 0.5
    v = torch.ones_like(row_sums) if start is None else start.double()
    # A column without entries is not moved by A.
    used = col_sums > 0
    v = torch.where(used, v, torch.zeros_like(v))
    for _ in range(num_iter):
        image = _sums(row, entries * v[col], num_nodes)
        image = _sums(col, entries * image[row], num_nodes)
        ratio = image[used] / v[used]
        upper = float(ratio.max()) ** 0.5
        lower = float(torch.dot(v, image) / torch.dot(v, v)) ** 0.5
        best = min(best, upper)
        if best <= lower * (1 + 1e-10):
            break
        # The old vector is kept in part: no entry dies out, so that v
        # stays positive; the same argument holds for B plus a multiple of I.
        v = image / upper**2 + 0.02 * v
        v = v / v.max()
    return best * up**2 * unit


def _sums(index: Tensor, entries: Tensor, size: int) -> Tensor:
    return entries.new_zeros(size).index_add_(0, index, entries)


def _check_edges(
    edge_index: Any, num_nodes: int | None, edge_weight: Any
) -> None:
    if not isinstance(edge_index, Tensor):
        raise TypeError(
            "edge_index must be a LongTensor [2, E] or a sparse adjacency, "
            f"got {type(edge_index).__name__}"
        )
    shaped = edge_index.dim() == 2 and edge_index.size(0) == 2
    if not shaped or edge_index.is_floating_point():
        raise ValueError(
            "edge_index must be a LongTensor [2, E], got "
            f"{edge_index.dtype} of shape {list(edge_index.shape)}"
        )
    if edge_index.numel():
        low, high = (int(v) for v in edge_index.aminmax())
        if low < 0 or (num_nodes is not None and high >= num_nodes):
            raise ValueError(
                f"edge_index must hold nodes in [0, {num_nodes}), got {low} "
                f"to {high}"
            )
    if edge_weight is not None:
        if not isinstance(edge_weight, Tensor):
            raise TypeError(
                "edge_weight must be a Tensor [E], got "
                f"{type(edge_weight).__name__}"
            )
        if edge_weight.numel() != edge_index.size(1):
            raise ValueError(
                "edge_weight must have one entry an edge, "
                f"{edge_index.size(1)}, got shape {list(edge_weight.shape)}"
            )
