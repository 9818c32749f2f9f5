"""Rows that other processes own and this one reads."""

from __future__ import annotations

import time
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from ..engine.shared import naming_ranks


class Halo:
    """What is sent and received, agreed upon once.

    Args:
        wanted: global ids of the rows read here, sorted by owner.
        owner: of every node, [N].
        position: where a node stands among the rows of its owner, [N].
        group: the processes.
        device: where they exchange rows.

    Attributes:
        size: rows received in an exchange.
        bytes_received, exchanges: since the start, backward passes included.
        seconds: spent in exchanges, the work meanwhile not counted.
    """

    def __init__(
        self,
        wanted: Tensor,
        owner: Tensor,
        position: Tensor,
        group: Any,
        device: torch.device,
    ):
        self.group = group
        self.size = wanted.numel()
        world = dist.get_world_size(group)
        self.receives = torch.bincount(
            owner[wanted], minlength=world
        ).tolist()  # fmt: skip
        counts = torch.tensor(self.receives, device=device)
        asked = torch.empty_like(counts)
        with naming_ranks("agreeing on the halo", group):
            _all_to_all(asked, counts, None, None, group)
            self.sends = asked.tolist()
            asking = position[wanted].to(device)
            rows = asking.new_empty(sum(self.sends))
            _all_to_all(rows, asking, self.sends, self.receives, group)
        #: rows here that others read, by reader
        self.rows = rows
        self.bytes_received = self.exchanges = 0
        self.seconds = 0.0

    def exchange(self, x: Tensor) -> Arriving:
        """Starts to send and receive; [n, F] to [size, F]."""
        return Arriving(self, x)

    @contextmanager
    def timed(self, what: str):
        start = time.perf_counter()
        with naming_ranks(what, self.group):
            yield
        self.seconds += time.perf_counter() - start

    def count(self, t: Tensor) -> None:
        self.exchanges += 1
        self.bytes_received += t.numel() * t.element_size()


class Arriving:
    """Rows on their way. Work that does not need them can go on."""

    def __init__(self, halo: Halo, x: Tensor):
        self._halo = halo
        self._work: list[Any] = []
        self._rows = _Exchange.apply(x, halo, self._work)

    def wait(self) -> Tensor:
        """[size, F], connected to the rows of the other processes."""
        with self._halo.timed("an exchange of rows"):
            for work in self._work:
                work.wait()
        return self._rows


class _Exchange(torch.autograd.Function):
    """Forward: rows to their readers. Backward: the readers' gradients to
    the rows, summed."""

    @staticmethod
    def forward(ctx, x: Tensor, halo: Halo, work: list[Any]) -> Tensor:
        ctx.halo, ctx.length = halo, x.size(0)
        with halo.timed("an exchange of rows"):
            sent = x.index_select(0, halo.rows).contiguous()
            received = x.new_empty(halo.size, *x.shape[1:])
            started = dist.all_to_all_single(
                received, sent, halo.receives, halo.sends,
                group=halo.group, async_op=True,
            )  # fmt: skip
        work.append(started)
        work.append(_Kept(sent))
        halo.count(received)
        return received

    @staticmethod
    def backward(ctx, g: Tensor):
        return _Return.apply(g, ctx.halo, ctx.length), None, None

    @staticmethod
    def jvp(ctx, tangent: Tensor, *_):
        return Arriving(ctx.halo, tangent).wait()


class _Return(torch.autograd.Function):
    """The transpose of :class:`_Exchange`."""

    @staticmethod
    def forward(ctx, g: Tensor, halo: Halo, length: int) -> Tensor:
        ctx.halo = halo
        back = g.new_empty(sum(halo.sends), *g.shape[1:])
        with halo.timed("an exchange of gradients"):
            _all_to_all(
                back, g.contiguous(), halo.sends, halo.receives, halo.group
            )
        halo.count(back)
        out = g.new_zeros(length, *g.shape[1:])
        return out.index_add_(0, halo.rows, back)

    @staticmethod
    def backward(ctx, h: Tensor):
        return Arriving(ctx.halo, h).wait(), None, None


class _Kept:
    """Holds what is being sent until it has been."""

    def __init__(self, sent: Tensor):
        self.sent = sent

    def wait(self) -> None:
        del self.sent


def _all_to_all(received, sent, receives, sends, group) -> None:
    dist.all_to_all_single(
        received, sent.contiguous(), receives, sends, group=group
    )
