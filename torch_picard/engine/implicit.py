"""The implicit function theorem as an autograd node.

The value of a solve enters the graph through :class:`_Attach`. Its inputs
are the leaves of z = P(x*), evaluated once with a graph, and every tensor
that P reached by closure. A first-order backward solves for the cotangent u
and hands it to z: autograd then carries it to whatever P depends on. A
backward that is itself to be differentiated cannot use that graph, because
x* in it is a constant; it evaluates P again at the attached x*, whose own
dependence on the closure is this very node, and returns the gradients of the
closure explicitly. u is then again the solution of a linear fixed-point
equation and is attached in the same way, so every order works.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from . import loop
from .adjoint import cotangent
from .closure import Closure
from .gradients import Implicit
from .operator import pullback
from .solution import Solution
from .space import Leaves, Space, add, detach


@dataclass
class Backward:
    """What the backward pass of one solve needs to know."""

    evaluate: Callable[[Leaves], Leaves]
    space: Space
    options: Implicit
    report: Callable[[Solution], None]
    value: Leaves = ()
    point: Leaves = ()
    captured: list[Tensor] = field(default_factory=list)
    #: of the coarsest dtype that a gradient has on its way through P
    eps: float = 0.0
    opaque: bool = False
    #: processes that end together in the forward pass do so in the backward
    all_done: Callable[[bool, torch.device], bool] = loop.own_all_done


def attach(
    evaluate: Callable[[Leaves], Leaves],
    space: Space,
    value: Leaves,
    start: Leaves,
    options: Implicit,
    report: Callable[[Solution], None],
    captured: list[Tensor] | None = None,
    eps: float = 0.0,
) -> Leaves:
    """``value`` as a differentiable function of all that P depends on.

    Args:
        evaluate: P on leaves.
        value: x*, detached.
        start: x0, which gets the gradient zero.
        options, report: the backward solve, and who hears of its failure.
        captured, eps: the closure of P and what it rounds to, where they
            are known.
    """
    state = Backward(evaluate, space, options, report, value, eps=eps)
    state.all_done = loop.all_done
    with torch.enable_grad():
        state.point = tuple(t.detach().requires_grad_() for t in value)
        if captured is None:
            with Closure(state.point) as closure:
                z = evaluate(state.point)
            _refuse_outermost_fsdp1(closure.hooks)
            state.captured = closure.tensors(z)
            state.opaque = closure.opaque
            dtypes = closure.dtypes.union(space.dtypes)
            state.eps = max(torch.finfo(t).eps for t in dtypes)
        else:
            z = evaluate(state.point)
            state.captured = captured
    # z depends on the point it was evaluated at, which is nobody's business
    outside = any(t.requires_grad for t in (*start, *state.captured))
    if not (outside or state.opaque):
        return value
    inputs = (*z, *start, *state.captured)
    return _Attach.apply(state, len(z), len(start), *inputs)


class _Attach(torch.autograd.Function):
    @staticmethod
    def forward(ctx, state: Backward, n: int, m: int, *inputs: Tensor):
        out = tuple(t.detach().view_as(t) for t in state.value)
        ctx.state, ctx.sizes = state, (n, m)
        ctx.save_for_backward(*inputs, *out)
        ctx.set_materialize_grads(False)
        return out

    @staticmethod
    def backward(ctx, *g: Tensor):
        state, (n, m) = ctx.state, ctx.sizes
        saved = ctx.saved_tensors
        if all(c is None for c in g):
            return (None,) * (3 + len(saved) - n)
        z, start, rest = saved[:n], saved[n : n + m], saved[n + m :]
        captured, out = rest[:-n], rest[-n:]
        g = tuple(
            torch.zeros_like(t) if c is None else c for t, c in zip(out, g)
        )
        zeros = tuple(torch.zeros_like(t) for t in start)
        with loop.ending_by(state.all_done):
            if torch.is_grad_enabled():
                grads = _higher_order(state, out, captured, g)
                to_z: Any = (None,) * n
            else:
                to_z = _cotangent(state, z, state.point, g)
                grads = (None,) * len(captured)
        return (None, None, None, *to_z, *zeros, *grads)


def _higher_order(
    state: Backward, out: Leaves, captured: tuple[Tensor, ...], g: Leaves
) -> tuple[Tensor | None, ...]:
    """Gradients of the closure, themselves differentiable."""
    if state.opaque:
        raise NotImplementedError(
            "double backward through Implicit() needs to see every tensor "
            "that the operator reaches by closure, but a non-leaf one enters "
            "it only through a custom autograd.Function or compiled code. "
            "Pass it through any torch operation inside the operator, or "
            "use gradient=Unrolled()"
        )
    space = state.space
    with torch.no_grad():
        u = _cotangent(state, *_local(state, out), g)

    def transposed(v: Leaves) -> Leaves:
        """v -> P'(x*)^T v + g as a function of v, x*, the closure and g."""
        x = tuple(t + 0 for t in out)
        return add(pullback(state.evaluate(x), x, v, True), g)

    closure = [t for t in (*captured, *out, *g) if t.requires_grad]
    u = attach(
        transposed, space, detach(u), (), state.options, state.report,
        closure, state.eps,
    )  # fmt: skip
    gate = _Gate()
    x = gate(out)
    with Closure(x) as seen:
        z = state.evaluate(x)
    _same_parameters(state.captured, seen.tensors(z))
    wanted = [i for i, t in enumerate(captured) if t.requires_grad]
    pairs = [(a, b) for a, b in zip(z, u) if a.requires_grad]
    grads: list[Tensor | None] = [None] * len(captured)
    with _partial([captured[i] for i in wanted]):
        found = torch.autograd.grad(
            [a for a, _ in pairs],
            [captured[i] for i in wanted],
            [b for _, b in pairs],
            create_graph=True,
            allow_unused=True,
        )
    gate.open = True
    for i, grad in zip(wanted, found):
        grads[i] = grad
    return tuple(grads)


def _same_parameters(before: list[Tensor], now: list[Tensor]) -> None:
    known = {id(t) for t in before}
    if any(isinstance(t, Parameter) and id(t) not in known for t in now):
        raise RuntimeError(
            "double backward through Implicit() evaluates the operator again, "
            "and now it depends on a parameter that had no part in the solve. "
            "What torch.func.functional_call put in place around the solve is "
            "gone by then: call it inside the operator, or use "
            "gradient=Unrolled()"
        )


@contextmanager
def _partial(closure: list[Tensor]):
    """Within, a gradient that has reached one of these tensors goes no
    further: where one depends on another, each still gets its own part."""
    nodes = {t.grad_fn for t in closure if t.grad_fn is not None}
    hooks = [
        node.register_prehook(lambda grads: (None,) * len(grads))
        for node in nodes
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


class _Gate:
    """x* as P sees it while the partial derivatives by the closure are
    taken: closed, nothing flows back into x*, since u has that accounted
    for. Open, afterwards, derivatives of those derivatives do."""

    def __init__(self):
        self.open = False

    def __call__(self, out: Leaves) -> Leaves:
        return tuple(_Pass.apply(self, t) for t in out)


class _Pass(torch.autograd.Function):
    @staticmethod
    def forward(ctx, gate: _Gate, t: Tensor):
        ctx.gate = gate
        return t.view_as(t)

    @staticmethod
    def backward(ctx, g: Tensor):
        return None, g if ctx.gate.open else None


def _refuse_outermost_fsdp1(hooks: list[Any]) -> None:
    """When a backward pass reaches it, the outermost FullyShardedDataParallel
    asks for a call at the end of that pass, to free the weights. Within P,
    that pass is the first of many products with P'(x*)^T, and the next one
    finds the weights gone."""
    fsdp = sys.modules.get("torch.distributed.fsdp")
    kind = getattr(fsdp, "FullyShardedDataParallel", None)
    if kind is None:
        return
    parts = (part for hook in hooks for part in getattr(hook, "args", ()))
    if any(isinstance(part, kind) and part.check_is_root() for part in parts):
        raise NotImplementedError(
            "the operator has a FullyShardedDataParallel module (FSDP1) in "
            "it, none is around it, and after the first product of "
            "Implicit()'s backward solve that one frees its weights. Use "
            "torch.distributed.fsdp.fully_shard (FSDP2), or wrap the whole "
            "PicardConv or model in FullyShardedDataParallel, too or "
            "instead, or use gradient=Unrolled(), Phantom() or OneStep()"
        )


def _local(state: Backward, out: Leaves) -> tuple[Leaves, Leaves]:
    """P at a detached copy of x*, with a graph of its own."""
    with torch.enable_grad():
        x = tuple(t.detach().requires_grad_() for t in out)
        return state.evaluate(x), x


def _cotangent(state: Backward, z: Leaves, x: Leaves, g: Leaves) -> Leaves:
    """u of (I - J^T) u = g; whoever wants to know hears how it went."""
    u, solution = cotangent(z, x, g, state.space, state.options, state.eps)
    state.report(solution)
    return u
