"""The fixed-count loop on CUDA, recorded once as a CUDA graph.

Of a small state the launches cost more than the work. A recorded loop is
launched as one; it reads and writes the addresses that it was recorded with,
so inputs are copied to where it expects them. What is recorded is kept for as
long as the compressed graph is: by the second call with the same tensors.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from .arguments import is_transformed, needs_grad
from .library import is_compiled

Run = Callable[[Tensor, Tensor | None], tuple[Tensor, Tensor]]

#: Beyond this many entries the work hides the launches, and a second copy of
#: the state is not worth it.
LARGEST = 2**22
#: Loops kept for a graph; the oldest makes room.
KEPT = 4

_LOOPS: WeakIdKeyDictionary = WeakIdKeyDictionary()


def applies(x: Tensor, *inputs: Any) -> bool:
    """Whether a loop over ``x`` may be recorded."""
    if x.device.type != "cuda" or x.numel() > LARGEST:
        return False
    if not is_compiled(x.device) or needs_grad((x, *inputs)):
        return False
    if is_transformed(x, *inputs):
        return False
    return not torch.cuda.is_current_stream_capturing()


class Recorded:
    """A loop with inputs and outputs of its own.

    Args:
        run: (x, inject) -> (y, stats), whose launches are recorded.
        kept: tensors that it reads besides; they must not be freed.
        x, inject: like those that it is going to be called with.
        record: f -> (f(), replay), where replay does again what f did and
            leaves it in the same outputs.
    """

    def __init__(
        self,
        run: Run,
        kept: tuple,
        x: Tensor,
        inject: Tensor | None,
        record: Callable,
    ):
        self.kept = kept
        self.x = x.detach().clone()
        self.inject = None if inject is None else inject.detach().clone()
        outputs, self.replay = record(lambda: run(self.x, self.inject))
        self.y, self.stats = outputs

    def __call__(
        self, x: Tensor, inject: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        self.x.copy_(x)
        if inject is not None and self.inject is not None:
            self.inject.copy_(inject)
        self.replay()
        return self.y.clone(), self.stats.clone()


def cuda_graph(function: Callable[[], Any]) -> tuple[Any, Callable]:
    """Records what ``function`` launches on the current stream."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        outputs = function()
    return outputs, graph.replay


def steps(
    run: Run,
    owner: Tensor,
    options: tuple,
    kept: tuple[Tensor | None, ...],
    x: Tensor,
    inject: Tensor | None,
    record: Callable = cuda_graph,
) -> tuple[Tensor, Tensor]:
    """``run(x, inject)``: as it is the first time, which also checks the
    graph and warms up; recorded the second time, and replayed from then on.

    Args:
        run: the loop, without a host synchronisation after its first call.
        owner: what the record lives as long as. Nothing that a record
            keeps may refer to it.
        options: numbers that the launches depend on.
        kept: tensors that the loop reads, besides x and inject.
    """
    loops = _LOOPS.setdefault(owner, {})
    key = _key(options, kept, x, inject)
    if key not in loops:
        while len(loops) >= KEPT:
            del loops[next(iter(loops))]
        loops[key] = None
        return run(x, inject)
    if loops[key] is None:
        others = tuple(t for t in kept if t is not owner)
        try:
            loops[key] = Recorded(run, others, x, inject, record)
        except RuntimeError as error:
            warnings.warn(
                f"the loop cannot be recorded as a CUDA graph: {error}",
                stacklevel=2,
            )
            loops[key] = run
    return loops[key](x, inject)


def _key(
    options: tuple, kept: tuple, x: Tensor, inject: Tensor | None
) -> tuple:
    stream = 0
    if x.is_cuda:
        stream = torch.cuda.current_stream(x.device).cuda_stream
    places = tuple(
        None if t is None else (t.data_ptr(), t.dtype, tuple(t.shape))
        for t in kept
    )
    # inputs and outputs of a record serve one caller at a time
    return (
        options, places, tuple(x.shape), x.dtype, inject is None, stream,
        threading.get_ident(),
    )  # fmt: skip
