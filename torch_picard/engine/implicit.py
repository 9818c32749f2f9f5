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

from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from .gradients import Implicit
from .krylov import gmres
from .loop import iterate, linear_solution
from .monitor import Monitor
from .operator import Evaluator, pullback
from .solution import Solution
from .space import Leaves, Space, add, detach, sub
from .status import Status


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
    opaque: bool = False


def attach(
    evaluate: Callable[[Leaves], Leaves],
    space: Space,
    value: Leaves,
    start: Leaves,
    options: Implicit,
    report: Callable[[Solution], None],
    captured: list[Tensor] | None = None,
) -> Leaves:
    """``value`` as a differentiable function of all that P depends on.

    Args:
        evaluate: P on leaves.
        value: x*, detached.
        start: x0, which gets the gradient zero.
        options, report: the backward solve, and who hears of its failure.
        captured: the closure of P, where it is known.
    """
    state = Backward(evaluate, space, options, report, value)
    with torch.enable_grad():
        state.point = tuple(t.detach().requires_grad_() for t in value)
        if captured is None:
            with _Closure(state.point) as closure:
                z = evaluate(state.point)
            state.captured = closure.tensors(z)
            state.opaque = closure.opaque
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
        transposed, space, detach(u), (), state.options, state.report, closure
    )
    gate = _Gate()
    z = state.evaluate(gate(out))
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


@contextmanager
def _partial(closure: list[Tensor]):
    """Within, a gradient that has reached one of these tensors goes no
    further: where one depends on another, each still gets its own part."""
    nodes = {t.grad_fn for t in closure} - {None}
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


def _local(state: Backward, out: Leaves) -> tuple[Leaves, Leaves]:
    """P at a detached copy of x*, with a graph of its own."""
    with torch.enable_grad():
        x = tuple(t.detach().requires_grad_() for t in out)
        return state.evaluate(x), x


def _cotangent(state: Backward, z: Leaves, x: Leaves, g: Leaves) -> Leaves:
    """u of (I - J^T) u = g, per segment, to rtol*|g|."""
    space, options = state.space, state.options
    g = detach(g)

    def transposed(v: Leaves) -> Leaves:
        w = pullback(z, x, space.lower(v))
        return space.lift(w)

    size = space.norm(g).cpu().double().numpy()
    target = options.rtol * size
    lifted = space.lift(g)
    with torch.no_grad():
        if options.method is None:
            u, solution = _krylov(transposed, lifted, space, target, options)
        else:
            u, solution = _iterated(transposed, g, space, target, options)
    state.report(solution)
    return space.lower(u)


def _krylov(
    transposed: Callable[[Leaves], Leaves],
    g: Leaves,
    space: Space,
    target: np.ndarray,
    options: Implicit,
) -> tuple[Leaves, Solution]:
    """GMRES, its residual measured and not only estimated."""

    def product(v: Leaves) -> Leaves:
        return sub(v, transposed(v))

    eps = torch.finfo(space.dtype).eps
    u = tuple(torch.zeros_like(t) for t in g)
    rest = g
    residual = space.norm(g).cpu().double().numpy()
    smallest = residual
    spent, history = 0, [residual]
    stalled = False
    goal = target
    while not (residual <= goal).all() and not stalled:
        left = options.max_iter - spent - 1
        if left < 1:
            break
        result = gmres(product, rest, space, goal, max_products=left)
        u = add(u, result.x)
        rest = sub(g, product(u))
        spent += result.products + 1
        residual = space.norm(rest).cpu().double().numpy()
        history += [*result.history[1:], residual]
        goal = target + 10 * eps * space.norm(u).cpu().double().numpy()
        with np.errstate(invalid="ignore"):
            stalled = not (residual < 0.5 * smallest).any()
        smallest = np.fmin(smallest, residual)
    finite = np.isfinite(residual)
    status = np.where(
        residual <= goal,
        Status.CONVERGED,
        np.where(
            finite,
            Status.STAGNATED if stalled else Status.MAX_ITER,
            Status.NONFINITE,
        ),
    )
    if not finite.all():
        # GMRES leaves 0 there, but a NaN must reach those who look for it.
        mask = torch.from_numpy(finite).to(space.device)
        nan = tuple(torch.full_like(t, torch.nan) for t in u)
        u = space.where(mask, u, nan)
    return u, linear_solution(space, status, spent, residual, history)


def _iterated(
    transposed: Callable[[Leaves], Leaves],
    g: Leaves,
    space: Space,
    target: np.ndarray,
    options: Implicit,
) -> tuple[Leaves, Solution]:
    """u <- J^T u + g by a method of the engine."""
    assert options.method is not None
    inner = Space(g)
    inner.segments, inner.size = space.segments, space.size
    lifted = inner.lift(g)
    evaluate = Evaluator(
        lambda u: inner.lower(add(transposed(inner.lift(u)), lifted)), inner
    )
    watch = Monitor(inner, 0.0, target, options.method)
    u, solution = iterate(
        evaluate,
        options.method,
        g,
        options.method.init(inner),
        max_iter=options.max_iter,
        watch=watch,
    )
    return inner.lift(u), solution


class _Closure(TorchFunctionMode):
    """Finds the tensors that an evaluation reaches from outside.

    Function calls show tensors as arguments; the graph of the result shows
    the parameters that no call showed, and whether anything was missed.
    Nodes made during the evaluation have later sequence numbers.
    """

    def __init__(self, point: Leaves):
        super().__init__()
        self.point = {id(t) for t in point}
        self.found: dict[int, Tensor] = {}
        self.opaque = False
        marker = point[0].view_as(point[0])
        assert marker.grad_fn is not None
        self.start = marker.grad_fn._sequence_nr()

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        for t in pytree.tree_leaves((args, kwargs)):
            if isinstance(t, Tensor) and t.requires_grad:
                self._see(t)
        return func(*args, **kwargs)

    def _see(self, t: Tensor) -> None:
        outside = t.grad_fn is None or not self._inner(t.grad_fn)
        if outside and id(t) not in self.point:
            self.found[id(t)] = t

    def _inner(self, node: Any) -> bool:
        leaf = hasattr(node, "variable")
        return not leaf and node._sequence_nr() > self.start

    def tensors(self, z: Leaves) -> list[Tensor]:
        """Everything found, after a walk over the graph of z."""
        known = {
            (t.grad_fn, t.output_nr)
            for t in self.found.values()
            if t.grad_fn is not None
        }
        todo: list[Any] = []
        for t in z:
            if t.requires_grad:
                self._see(t)  # P may return a closure tensor as it is
            if t.grad_fn is not None:
                todo.append((t.grad_fn, t.output_nr))
        known |= {
            (t.grad_fn, t.output_nr)
            for t in self.found.values()
            if t.grad_fn is not None
        }
        seen: set[Any] = set()
        while todo:
            node, nr = todo.pop()
            if node is None or (node, nr) in seen:
                continue
            seen.add((node, nr))
            if hasattr(node, "variable"):
                if id(node.variable) not in self.point:
                    self.found[id(node.variable)] = node.variable
            elif self._inner(node):
                todo.extend(node.next_functions)
            elif (node, nr) not in known:
                self.opaque = True
        return list(self.found.values())
