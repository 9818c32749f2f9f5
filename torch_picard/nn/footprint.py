"""What a chunk of a graph takes, found by computing small ones."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

#: Bytes for each edge and node that sorting and numbering them takes inside
#: of operations, where it is not seen.
_INSIDE = 64


@dataclass(frozen=True)
class Footprint:
    """Bytes that the tensors of a chunk take at most.

    Whatever is made on the way has a row for each node, a row for each edge
    or neighbour, or a fixed size; the sum of all is alive at once at most.
    An aggregation that pads (LSTM) has a row for each node and as many as
    the largest number of neighbours.
    """

    fixed: float
    node: float
    edge: float
    padded: float

    def of(self, degree: Tensor, edges: Tensor) -> Tensor:
        """Of every node alone [N], beside what is fixed.

        Args:
            degree: [N], its neighbours.
            edges: [N], those that its image is computed from.
        """
        cost = self.node + self.edge * edges.double() + _INSIDE * (1 + edges)
        if self.padded:
            cost = cost + self.padded * edges.max() * (1 + degree)
        return cost


def footprint(took: Callable[[int, int], int], budget: int) -> Footprint:
    """Measured on chunks of some nodes, or some edges, that are small beside
    the budget.

    A chunk of n nodes and e edges takes max_i(c_i + a_i n + b_i e), as one
    of several moments is the worst. So ``took(1, 1)`` is no less than any
    c_i, ``took(k, 1) / k`` than any a_i, and likewise for edges.

    Args:
        took: bytes at the peak, for n nodes and e edges to the first of
            them from neighbours of their own.
        budget: bytes.
    """
    fixed = took(1, 1)
    k = min(max(budget // (2 * max(fixed, 1)), 1), 32)
    found = Footprint(fixed, took(k, 1) / k, took(1, k) / k, 0.0)
    few = min(k, 8)
    square, line = took(few, few), took(1, few)
    if square <= few * found.node + line:
        return found
    return Footprint(
        fixed, found.node, line / few, padded=square / (2 * few * few)
    )
