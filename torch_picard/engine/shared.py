"""States that are spread over the processes of a group.

Norms and inner products are summed over the group, so that every process
sees the same residuals, takes the same decisions and stops at the same
iteration, whatever the method and the gradient.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from .space import Batched, Leaves, Whole


class Shared:
    """Segments of which every process has some rows.

    Args:
        group: the processes.
        batch: the segment of every row here, [n], in any order; None: one
            segment, of which every process has a part.
    """

    def __init__(self, group: Any, batch: Tensor | None = None):
        self.group = group
        if batch is None:
            self.inner: Any = Whole()
        else:
            last = batch.max() if batch.numel() else batch.new_tensor(-1)
            self._reduce(last, dist.ReduceOp.MAX)
            self.inner = Batched([batch], 1 + int(last))
        self.size = self.inner.size

    def norm(self, i: int, t: Tensor, dtype: torch.dtype) -> Tensor:
        square = self.inner.norm(i, t, dtype).square()
        self._reduce(square)
        return square.sqrt()

    def dot(self, i: int, u: Tensor, v: Tensor) -> Tensor:
        return _Sum.apply(self.inner.dot(i, u, v), self.group)

    def spread(self, i: int, c: Tensor, like: Tensor) -> Tensor:
        return self.inner.spread(i, c, like)

    def occupied(self) -> Tensor | None:
        full = self.inner.occupied()
        if full is None:
            return None
        count = full.long().to(self.inner.index[0].device)
        self._reduce(count)
        return (count > 0).cpu()

    def ptr(self, i: int, rows: int) -> None:
        return None

    def _reduce(self, t: Tensor, how: Any = dist.ReduceOp.SUM) -> None:
        with naming_ranks("agreeing on a residual", self.group):
            dist.all_reduce(t, how, group=self.group)

    def check(self, leaves: Leaves) -> None:
        """As Space checks other segments."""
        if len(leaves) != 1:
            raise ValueError(
                f"a shared state must be one Tensor, got {len(leaves)}"
            )


class _Sum(torch.autograd.Function):
    """Summed over the group. Each process's result counts in its own loss,
    and the gradients of all losses add."""

    @staticmethod
    def forward(ctx, t: Tensor, group: Any) -> Tensor:
        ctx.group = group
        out = t.clone()
        with naming_ranks("an inner product", group):
            dist.all_reduce(out, group=group)
        return out

    @staticmethod
    def backward(ctx, g: Tensor) -> tuple[Tensor, None]:
        return _Sum.apply(g.contiguous(), ctx.group), None


@contextmanager
def naming_ranks(what: str, group: Any):
    """Errors of the transport, in words of what was going on."""
    try:
        yield
    except RuntimeError as error:
        rank = dist.get_rank(group) if dist.is_initialized() else "?"
        raise RuntimeError(
            f"rank {rank}: {what} with the other processes failed; one of "
            "them has ended, or did not answer within the time-out of the "
            f"group ({error})"
        ) from error
