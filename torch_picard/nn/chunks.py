"""A conv, computed for some nodes at a time."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch_geometric.nn.conv.gcn_conv import gcn_norm

from ..ops.csr import compress
from .footprint import Footprint
from .neighbourhood import (
    check_one_hop,
    is_normalised,
    is_plain,
    options_set,
    places,
)
from .plan import plan


class Chunks:
    """Runs of nodes, and what an evaluation of conv needs for them.

    Args:
        conv: of which the images are asked for.
        edge_index: [2, E], on the CPU.
        num_nodes: N.
        like: of the dtype and width of a state, [?, F].
        extra: further arguments of conv by name, of all edges.
        budget: bytes of the tensors of a chunk; None: one chunk.
        footprint: what a chunk takes; not needed for one chunk.

    Attributes:
        starts: chunk i has the nodes starts[i] to starts[i+1]-1.

    Raises:
        ValueError: the budget is below what one node takes, or conv looks
            further than one hop and there are several chunks.
    """

    def __init__(
        self,
        conv: Any,
        edge_index: Tensor,
        num_nodes: int,
        like: Tensor,
        extra: dict[str, Tensor],
        budget: int | None,
        footprint: Footprint | None = None,
    ):
        self.conv, self.like = conv, like
        self.options: dict[str, Any] = {}
        if is_normalised(conv):
            edge_index, weight = gcn_norm(
                edge_index, extra.get("edge_weight"), num_nodes,
                conv.improved, conv.add_self_loops, conv.flow, like.dtype,
            )  # fmt: skip
            extra = {"edge_weight": weight}
            self.options = {"normalize": False}
        self.plain = bool(self.options) or is_plain(conv)
        rowptr, self.order = compress(edge_index[1], num_nodes)
        self.rowptr = rowptr.long()
        self.edge_index, self.extra = edge_index, extra
        self.starts = self._cut(budget, footprint)
        if len(self) > 1:
            check_one_hop(conv, like, (), extra)

    def __len__(self) -> int:
        return len(self.starts) - 1

    def span(self, i: int) -> slice:
        return slice(self.starts[i], self.starts[i + 1])

    def _cut(
        self, budget: int | None, footprint: Footprint | None
    ) -> list[int]:
        n = self.rowptr.numel() - 1
        if budget is None or footprint is None or n == 0:
            return [0, n]
        degree = self.rowptr.diff()
        edges = degree
        if not self.plain:  # those of its neighbours, too
            source, target = self.edge_index
            far = torch.zeros(n, dtype=torch.long)
            edges = degree + far.index_add_(0, target, degree[source])
        cost = footprint.of(degree, edges)
        worst = int(cost.argmax())
        least = math.ceil(float(cost[worst]) + footprint.fixed)
        if least > budget:
            raise ValueError(
                f"memory_budget must be at least {least} bytes, what node "
                f"{worst} with its {int(degree[worst])} neighbours takes, "
                f"got {budget}"
            )
        total = cost.cumsum(0)
        starts, used = [0], 0.0
        while starts[-1] < n:
            most = used + budget - footprint.fixed
            end = int(torch.searchsorted(total, most, right=True))
            starts.append(max(end, starts[-1] + 1))  # against rounding
            used = float(total[starts[-1] - 1])
        return starts

    def image(self, i: int, y: Tensor, backend: str) -> Tensor:
        """conv of the state y [N, F], for the nodes of chunk i."""
        first, last = self.starts[i], self.starts[i + 1]
        edges = self._incoming(first, last)
        far = self.edge_index[0, edges].unique()
        far = far[(far < first) | (far >= last)]
        if not self.plain:
            # how many neighbours they have may matter, not who these are
            edges = torch.cat([edges, self._incoming_of(far)])
        rows = torch.cat([torch.arange(first, last), far])
        state = y[rows]
        local = places(rows, self.edge_index[:, edges])
        if not self.plain and len(self) > 1:  # neighbours' neighbours
            unknown = self.like.new_zeros(1, self.like.size(1))
            state = torch.cat([state, unknown])
        named = {name: value[edges] for name, value in self.extra.items()}
        with options_set(self.conv, self.options):
            made = plan(
                None, self.conv, state, local, (), named, f=None,
                activation=None, backend=backend,
            )  # fmt: skip
            return made.operator(state)[: last - first]

    def _incoming(self, first: int, last: int) -> Tensor:
        return self.order[self.rowptr[first] : self.rowptr[last]]

    def _incoming_of(self, nodes: Tensor) -> Tensor:
        first = self.rowptr[nodes]
        count = self.rowptr[nodes + 1] - first
        skipped = first - (count.cumsum(0) - count)
        at = torch.arange(int(count.sum()))
        return self.order[at + skipped.repeat_interleave(count)]
