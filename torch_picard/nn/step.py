"""P on compressed rows, as operators for the engine."""

from __future__ import annotations

import torch
from torch import Tensor

from ..ops import capture, loop, scatter
from ..ops.arguments import ACTIVATIONS, REDUCTIONS
from ..ops.linear import linear_propagate
from ..ops.propagation import propagate
from ..ops.workspace import Workspace
from .width import check_shape


class Step:
    """P as one dense map and one fused sparse pass; an operator for
    :func:`fixed_point` that smooths by itself."""

    backend = "native"

    def __init__(self, conv, form, graph, value, f, activation: str):
        self.conv, self.form, self.f = conv, form, f
        self.rowptr, self.col, self.value = graph.rowptr, graph.col, value
        self.activation = ACTIVATIONS.index(activation)
        self.reduce = REDUCTIONS.index(form.reduce)
        if form.restart:
            self.value = (1 - form.restart) * value
        self.work = Workspace()

    def __call__(self, x: Tensor) -> Tensor:
        # y = z: the old state serves for a residual that nobody looks at
        return self._run(x, x.detach(), 0.0, None, None)[0]

    def smoothed(self, x, alpha, ptr, active) -> tuple[Tensor, Tensor]:
        return self._run(x, x, alpha, ptr, active)

    def steps(self, x, alpha, ptr, count: int):
        """So many updates at once, or None; see :func:`loop.steps`."""
        form = self.form
        more = form.pre is not None or form.root is not None
        if more or form.hops > 1 or form.restart:
            return None
        inputs = (alpha, self.value, form.weight, form.bias, self.f)
        if capture.applies(x, *inputs):
            return self._recorded(x, alpha, ptr, count)
        if not loop.runs_whole(x, *inputs):
            return None
        return loop.steps(
            self.rowptr, self.col, self.value, form.weight, x, alpha,
            form.bias, self.f, self.activation, self.reduce, ptr, count,
            _low(x), self.work,
        )  # fmt: skip

    def _recorded(self, x, alpha, ptr, count):
        """The same on CUDA, where the launches are recorded."""
        form, low = self.form, _low(x)

        def run(x, inject):
            work, stats = Workspace(), []
            for _ in range(count):
                x, squares = linear_propagate(
                    self.rowptr, self.col, self.value, x, form.weight, x,
                    alpha, form.bias, inject, self.activation, self.reduce,
                    ptr, None, low, work,
                )  # fmt: skip
                stats.append(squares)
            return x, torch.stack(stats)

        options = (alpha, count, low, self.activation, self.reduce)
        kept = (
            self.rowptr, self.col, self.value, form.weight, form.bias, ptr
        )  # fmt: skip
        with torch.no_grad():
            return capture.steps(
                run, self.rowptr, options, kept, x.contiguous(), self.f
            )

    def _whole(self, x: Tensor) -> bool:
        form = self.form
        return loop.runs_whole(x, self.value, form.weight, form.bias, self.f)

    def _hops(self, h: Tensor, again: Tensor | None, count: int) -> Tensor:
        """Propagations before the one that is smoothed."""
        if self._whole(h):
            return loop.hops(
                self.rowptr, self.col, self.value, h, again, self.reduce,
                count, self.work,
            )  # fmt: skip
        for _ in range(count):
            h, _ = propagate(
                self.rowptr, self.col, self.value, h, h.detach(), 0.0, None,
                again, 0, self.reduce, None, None,
            )  # fmt: skip
        return h

    def _again(self, x: Tensor) -> Tensor | None:
        """What every hop starts from anew."""
        restart = self.form.restart
        if not restart:
            return None
        if not self._whole(x):
            return restart * x
        return torch.mul(x, restart, out=self.work.empty("again", x.shape, x))

    def _run(self, x, old, alpha, ptr, active):
        form = self.form
        h = x
        if form.pre is not None:
            h = form.pre(x).to(x.dtype)  # autocast may have lowered it
            check_shape(self.conv, x, h)
        inject = self.f
        if form.root is not None:
            inject = _sum(form.root(x), inject)
        weight = form.weight
        again = self._again(x)
        if form.hops > 1:
            if weight is not None:
                h, weight = torch.nn.functional.linear(h, weight), None
            h = self._hops(h, again, form.hops - 1)
        if again is not None:
            inject = _sum(again, inject)
        return linear_propagate(
            self.rowptr, self.col, self.value, h, weight, old, alpha,
            form.bias, inject, self.activation, self.reduce, ptr, active,
            _low(x), self.work,
        )  # fmt: skip


class Aggregated:
    """P whose aggregation alone is a kernel: a dense map comes after it, or
    an activation the kernel does not know, or torch-scatter does it."""

    def __init__(self, conv, form, graph, value, f, activation, backend):
        self.form, self.f, self.activation = form, f, activation
        self.graph, self.value, self.backend = graph, value, backend
        self.step = Step(conv, form, graph, value, None, "none")

    def __call__(self, x: Tensor) -> Tensor:
        z = self.step(x) if self.backend == "native" else self._scattered(x)
        if self.form.after is not None:
            z = self.form.after(z, x)
        z = _sum(z, self.f)
        return z if self.activation is None else self.activation(z)

    def _scattered(self, x: Tensor) -> Tensor:
        form, graph = self.form, self.graph
        h = x if form.pre is None else form.pre(x)
        if form.weight is not None:
            h = torch.nn.functional.linear(h, form.weight)
        for _ in range(form.hops):
            h = scatter.aggregate(
                graph.rowptr, graph.col, self.value, h, form.reduce
            ).to(h.dtype)
            if form.restart:
                h = (1 - form.restart) * h + form.restart * x
        h = h if form.bias is None else h + form.bias
        return h if form.root is None else h + form.root(x)


def _sum(a: Tensor, b: Tensor | None) -> Tensor:
    return a if b is None else a + b


def _low(x: Tensor) -> torch.dtype | None:
    """What autocast would have messages in."""
    kind = x.device.type
    if x.dtype != torch.float32 or not torch.is_autocast_enabled(kind):
        return None
    return torch.get_autocast_dtype(kind)
