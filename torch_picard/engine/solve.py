"""``fixed_point``: check, iterate, attach a gradient, report."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils import parametrize

from . import observers
from .gradients import Gradient, Implicit, OneStep, Phantom, Unrolled
from .held import held_weights
from .implicit import attach
from .loop import iterate
from .methods import Method, Picard
from .methods.base import check_count
from .monitor import FixedCount, Monitor
from .operator import Evaluator, refuse_transforms
from .point import Point
from .solution import Later, Solution
from .space import Leaves, Space, detach, tree_map
from .status import Status


def fixed_point(
    operator: Callable[[Any], Any],
    x0: Any,
    *,
    method: Method = Picard(alpha=0.5),  # noqa: B008
    max_iter: int = 50,
    rtol: float = 1e-5,
    atol: float = 0.0,
    segments: Any = None,
    gradient: Gradient = Unrolled(),  # noqa: B008
    on_failure: str = "warn",
    callback: Callable[[int, Any, Tensor], Any] | None = None,
    distance: Callable[[Any, Any], Tensor] | None = None,
) -> Solution:
    r"""Solve x = P(x).

    Stops segment by segment, on the undamped residual
    :math:`r(x) = |P(x) - x|_2 \le atol + rtol\,|P(x)|_2`. A segment that
    ended is frozen: its values equal those it gets when solved alone.

    Args:
        operator: P, any callable x -> P(x) that returns the structure,
            shapes and dtypes of x. Gradients reach x0, parameters and
            tensors captured by closure alike. Random masks (dropout) are
            drawn once and kept for the whole solve and its gradient.
        x0: a Tensor, or a tuple, list or dict of Tensors, of a real floating
            dtype; or a :class:`Solution`, whose value and method state are
            then the start (detached).
        method: :class:`Picard`, :class:`Anderson`, :class:`Broyden`,
            :class:`NewtonKrylov` or :class:`Adaptive`.
            (default: ``Picard(alpha=0.5)``)
        max_iter: evaluations of P allowed, Jacobian products included.
        rtol, atol: tolerances. Both 0 is the fixed-count path: exactly
            ``max_iter`` evaluations, no early stop, no decision on the host,
            and ``torch.compile(fullgraph=True)`` traces it. Not so
            :class:`NewtonKrylov`, whose steps take as many evaluations as
            the host finds they need, nor, as to tracing,
            :class:`Implicit`.
        segments: what one problem is. :obj:`None`: the whole state is one
            vector. ``"leading"``: each index of dim 0. A sorted LongTensor
            [N] (PyG's ``batch``): rows with the same entry; leaves of
            different dim 0 take a matching structure of such tensors.
        gradient: :class:`Unrolled`, :class:`Implicit`, :class:`Phantom` or
            :class:`OneStep`. (default: ``Unrolled()``)
        on_failure: ``"warn"`` (once a solve), ``"raise"``
            (:class:`ConvergenceError` carrying the Solution) or
            ``"ignore"``. The fixed-count path never fails.
        callback: called as ``callback(k, x_k, residual)``, residual [S],
            after each evaluation. Returning True stops the solve; a
            :class:`Status` that is a failure ends it with that one; a
            LongTensor [S] does so segment by segment, -1 to go on.
        distance: the residual in units of its own, as in RMS Angstrom
            between structures: ``distance(x, P(x))`` of shape [S], detached.
            Converged when it is at most ``atol``; ``rtol`` must be 0, the
            method :class:`Picard`, and ``error_bound`` is in these units.
            (default: the l2 norm of P(x) - x)

    Returns:
        A :class:`Solution`.

    Raises:
        ValueError: an option is out of range, ``segments`` does not fit, or
            P changed shape, dtype, structure or its argument.
        TypeError: an argument is of the wrong type.
        NotImplementedError: inside vmap, grad or jvp of torch.func.
        ConvergenceError: a segment failed and ``on_failure="raise"``.

    Source: Zappala et al. 2023, equation (1) and Algorithms 1 and 2.
    """
    _check(operator, method, max_iter, rtol, atol, gradient, on_failure)
    if callback is not None and not callable(callback):
        raise TypeError(f"callback must be callable, got {callback!r}")
    if distance is not None:
        _check_distance(distance, method, rtol)
    return solve(
        operator,
        x0,
        method=method,
        max_iter=max_iter,
        rtol=rtol,
        atol=atol,
        segments=segments,
        gradient=gradient,
        on_failure=on_failure,
        callback=callback,
        distance=distance,
    )


def solve(
    operator: Callable[[Any], Any],
    x0: Any,
    *,
    method: Method,
    max_iter: int,
    rtol: float,
    atol: float,
    segments: Any,
    gradient: Gradient | None,
    on_failure: str,
    callback: Callable[[int, Any, Tensor], Any] | None = None,
    distance: Callable[[Any, Any], Tensor] | None = None,
    images: bool = False,
    called: str = "operator",
    eager: bool = False,
) -> Solution:
    """:func:`fixed_point` with its options checked.

    ``images``, for operators whose output is what is wanted, not their
    argument: the value is P(x_k) where it would be x_k, unless the
    evaluations ran out; tolerances of 0 are tolerances, not a fixed count.
    ``gradient=None``: of the last evaluation alone, at the x it was made at.
    ``called``: what errors call the operator. ``eager``: torch.compile is
    known to keep out.
    """
    counted = rtol == 0 and atol == 0 and not images
    # A caller that is compiled in pieces, because something in it breaks its
    # graph, runs this frame as it is: its parts are not compiled, either.
    if not eager and not (counted and torch.compiler.is_compiling()):
        solution = _eagerly(
            operator, x0, method=method, max_iter=max_iter, rtol=rtol,
            atol=atol, segments=segments, gradient=gradient,
            on_failure=on_failure, callback=callback, distance=distance,
            images=images, called=called, eager=True,
        )  # fmt: skip
        if not counted:
            solution.report(on_failure, stacklevel=3)
        return solution
    warm = x0 if isinstance(x0, Solution) else None
    if warm is not None:
        x0 = tree_map(torch.detach, warm.value)
    space = Space(x0, segments, distance, called)
    checkpointed = isinstance(gradient, Unrolled) and gradient.checkpoint
    with held_weights(operator):
        evaluate = Evaluator(operator, space, checkpointed, counted)
        watch: FixedCount | Monitor = (
            FixedCount(space, method, max_iter)
            if counted
            else Monitor(space, rtol, atol, method, images)
        )
        carry = _carry(method, space, warm)
        start = space.start

        def run(x: Leaves) -> tuple[Leaves, Solution]:
            return iterate(
                evaluate,
                method,
                x,
                carry,
                max_iter=max_iter,
                watch=watch,
                callback=callback,
                forget=gradient is None,
            )

        through = gradient is None or isinstance(gradient, Unrolled)
        if through or not torch.is_grad_enabled():
            value, solution = run(start)
            if isinstance(gradient, Unrolled) and isinstance(watch, Monitor):
                _say_where_nothing_is_unrolled(value, watch)
        else:
            if parametrize._cache_enabled:
                # parametrize.cached() keeps what it is first asked for:
                # weights with their gradient, not those of the solve
                # without one
                evaluate(start)
            with torch.no_grad():
                value, solution = run(detach(start))
            assert gradient is not None
            value = _differentiable(
                gradient, evaluate, value, start, solution, on_failure
            )
            solution.evaluations = evaluate.count
    solution.value = space.pack(value)
    observers.notify(solution)
    return solution


@torch.compiler.disable(
    reason="a solve that stops by itself decides on the host; fix the count "
    "(rtol=0, atol=0) to have all of it in one graph, or compile P alone"
)
def _eagerly(*args: Any, **kwargs: Any) -> Solution:
    return solve(*args, **kwargs)


def _say_where_nothing_is_unrolled(value: Leaves, watch: Monitor) -> None:
    """In the backward pass, if it asks for the gradient of a segment whose
    x0 passed as it was."""
    passed = (watch.status == Status.CONVERGED) & (watch.iterations == 0)
    if not passed.any():
        return
    space = watch.space
    unmoved = torch.from_numpy(passed).to(space.device)

    def look(i: int, g: Tensor | None) -> None:
        if g is None:  # as gradgradcheck has it
            return
        if ((g != 0) & space.segments.spread(i, unmoved, g)).any():
            warnings.warn(
                "x0 passed the tolerance as it was, so Unrolled() has no "
                "update to differentiate: the gradient goes to x0 alone and "
                "is 0 for all else that P depends on. After a warm start use "
                "gradient=Implicit() or Phantom()",
                stacklevel=2,
            )

    for i, t in enumerate(value):
        if t.requires_grad:
            t.register_hook(partial(look, i))


def _differentiable(
    gradient: Gradient,
    evaluate: Evaluator,
    value: Leaves,
    start: Leaves,
    solution: Solution,
    on_failure: str,
) -> Leaves:
    """``value`` with the derivative that was asked for."""
    if not evaluate.compiling:
        refuse_transforms(value)  # they have derivatives of their own
    if isinstance(gradient, Implicit):
        # not of the solution: the graph of the value must not keep the
        # value alive
        later = solution.later = Later()

        def report(backward: Solution) -> None:
            backward.title = (
                f"Backward solve of {gradient}, of which the options are to "
                "be changed"
            )
            later.backward = backward
            backward.report(on_failure, stacklevel=3)

        return attach(evaluate, evaluate.space, value, start, gradient, report)
    if isinstance(gradient, OneStep):
        gradient = Phantom(steps=1, alpha=0.0)
    assert isinstance(gradient, Phantom)
    x = value
    for _ in range(gradient.steps):
        here = Point(evaluate.space, x, evaluate(x))
        here.mend(torch.isfinite(here.residual))  # what has failed stays
        x = here.smoothed(gradient.alpha)
    if not any(t.requires_grad for t in (*x, *start)):
        return value
    return _Graft.apply(value, len(x), *x, *start)


class _Graft(torch.autograd.Function):
    """The value of one computation with the gradient of another; x0, where
    the iteration happened to start, gets the gradient zero."""

    @staticmethod
    def forward(ctx, value: Leaves, n: int, *inputs: Tensor):
        ctx.n = n
        ctx.save_for_backward(*inputs[n:])
        return tuple(t.detach().view_as(t) for t in value)

    @staticmethod
    def backward(ctx, *g: Tensor):
        zeros = tuple(torch.zeros_like(t) for t in ctx.saved_tensors)
        return (None, None, *g, *zeros)


def _carry(method: Method, space: Space, warm: Solution | None) -> Any:
    """A fresh method state, or the one of an earlier solve if it fits."""
    carry = method.init(space)
    if warm is None or warm.method_state is None:
        return carry
    kind, old = warm.method_state
    if kind != method.kind or old is None:
        return carry
    if warm.status.numel() != space.size:
        raise ValueError(
            f"x0 is a Solution of {warm.status.numel()} segments, but "
            f"segments makes {space.size}; pass x0=solution.value to start "
            "from the value alone"
        )
    return method.resume(old, space)


def _check(
    operator: Any,
    method: Any,
    max_iter: Any,
    rtol: Any,
    atol: Any,
    gradient: Any,
    on_failure: Any,
) -> None:
    if not callable(operator):
        raise TypeError(
            f"operator must be callable as x -> P(x), got {operator!r}"
        )
    if not isinstance(method, Method):
        raise TypeError(
            "method must be an instance such as Picard(alpha=0.5), "
            f"Anderson() or Broyden(), got {method!r}"
        )
    if not isinstance(gradient, Gradient):
        raise TypeError(
            "gradient must be Unrolled(), Implicit(), Phantom() or "
            f"OneStep(), got {gradient!r}"
        )
    check_count("max_iter", max_iter)
    check_tolerances(rtol, atol)
    check_on_failure(on_failure)


def _check_distance(distance: Any, method: Method, rtol: float) -> None:
    if not callable(distance):
        raise TypeError(f"distance must be callable, got {distance!r}")
    if rtol != 0:
        raise ValueError(
            f"rtol must be 0 beside a distance, got {rtol}: it is relative to "
            "|P(x)| in l2; say how close is enough by atol"
        )
    if not isinstance(method, Picard):
        raise ValueError(
            "method must be Picard beside a distance, got "
            f"{type(method).__name__}, which judges its steps in l2"
        )


def check_tolerances(rtol: Any, atol: Any) -> None:
    """Both finite and not negative."""
    for name, value in (("rtol", rtol), ("atol", atol)):
        number = isinstance(value, (int, float))
        if not number or isinstance(value, bool):
            raise TypeError(
                f"{name} must be a number, got {type(value).__name__}"
            )
        if not 0 <= value < math.inf:  # which a symbol can answer, too
            raise ValueError(
                f"{name} must be finite and not negative, got {value}"
            )


def check_on_failure(on_failure: Any) -> None:
    if on_failure not in ("warn", "raise", "ignore"):
        raise ValueError(
            "on_failure must be 'warn', 'raise' or 'ignore', got "
            f"{on_failure!r}"
        )
