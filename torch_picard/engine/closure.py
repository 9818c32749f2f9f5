"""Which tensors an evaluation reaches by closure."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import BackwardCFunction
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from .space import Leaves


class Closure(TorchFunctionMode):
    """Finds the tensors that an evaluation reaches from outside.

    Function calls show tensors as arguments; the graph of the result shows
    which of them it depends on, the parameters that no call showed, and
    whether anything was missed. Nodes made during the evaluation have later
    sequence numbers.
    """

    def __init__(self, point: Leaves):
        super().__init__()
        self.point = {id(t) for t in point}
        self.found: dict[int, Tensor] = {}
        self.opaque = False
        #: that the evaluation put on tensors, to be called in backward
        self.hooks: list[Any] = []
        #: what gradients are rounded to on their way through the evaluation
        self.dtypes: set[torch.dtype] = set()
        marker = point[0].view_as(point[0])
        assert marker.grad_fn is not None
        self.start = marker.grad_fn._sequence_nr()

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        for t in pytree.tree_leaves((args, kwargs)):
            if isinstance(t, Tensor) and t.requires_grad:
                self._see(t)
        if func is Tensor.register_hook:
            self.hooks.append(args[1] if len(args) > 1 else kwargs["hook"])
        return func(*args, **kwargs)

    def _see(self, t: Tensor) -> None:
        outside = t.grad_fn is None or not self._inner(t.grad_fn)
        if outside and id(t) not in self.point:
            self.found[id(t)] = t

    def _inner(self, node: Any) -> bool:
        leaf = hasattr(node, "variable")
        return not leaf and node._sequence_nr() > self.start

    def tensors(self, z: Leaves) -> list[Tensor]:
        """What z depends on, by a walk over its graph."""
        todo: list[Any] = []
        for t in z:
            if t.requires_grad:
                self._see(t)  # P may return a closure tensor as it is
            if t.grad_fn is not None:
                todo.append((t.grad_fn, t.output_nr))
        known = {
            (t.grad_fn, t.output_nr): t
            for t in self.found.values()
            if t.grad_fn is not None
        }
        reached: dict[int, Tensor] = {}
        seen: set[Any] = set()
        while todo:
            node, nr = todo.pop()
            if node is None or (node, nr) in seen:
                continue
            seen.add((node, nr))
            if hasattr(node, "variable"):
                if id(node.variable) not in self.point:
                    reached[id(node.variable)] = node.variable
            elif self._inner(node):
                self.dtypes |= _dtypes(node)
                todo.extend(node.next_functions)
            elif (node, nr) in known:
                t = known[node, nr]
                reached[id(t)] = t
            else:
                self.opaque = True
        return list(reached.values())


def _dtypes(node: Any) -> set[torch.dtype]:
    """Of the gradients that a node of the graph is given. What a custom or a
    compiled function does with them is not seen; under autocast it is taken
    to be done in its dtype."""
    given = [m for m in node._input_metadata if m is not None]
    found = {m.dtype for m in given}
    for device in {m.device.type for m in given}:
        hidden = isinstance(node, BackwardCFunction)
        if hidden and torch.is_autocast_enabled(device):
            found.add(torch.get_autocast_dtype(device))
    return {t for t in found if t.is_floating_point or t.is_complex}
