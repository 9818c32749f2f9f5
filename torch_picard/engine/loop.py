"""The one loop that every method, segment layout and gradient mode runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from .methods.base import Method
from .monitor import FixedCount, Monitor
from .operator import Evaluator
from .point import Point, secant
from .solution import Ending, Solution
from .space import Leaves, Space, detach, tree_map
from .status import Status


def own_all_done(done: bool, device: torch.device) -> bool:
    """Whether a solve may end that is done here; distributed.agreed_stopping
    asks the other processes as well."""
    return done


all_done: Callable[[bool, torch.device], bool] = own_all_done


@contextmanager
def ending_by(how: Callable[[bool, torch.device], bool]) -> Iterator[None]:
    """Within, solves end by this in place of :func:`own_all_done`."""
    global all_done
    if how is all_done:  # nothing that another thread could be disturbed by
        yield
        return
    before, all_done = all_done, how
    try:
        yield
    finally:
        all_done = before


def iterate(
    evaluate: Evaluator,
    method: Method,
    x: Leaves,
    carry: Any,
    *,
    max_iter: int,
    watch: FixedCount | Monitor,
    callback: Callable[[int, Any, Tensor], Any] | None = None,
    forget: bool = False,
) -> tuple[Leaves, Solution]:
    """Evaluate, judge, step; until every segment has ended or ``max_iter``
    evaluations are spent. Returns the leaves and a Solution without value.
    ``forget``: gradients go through one evaluation, not back to the x it was
    made at."""
    space, smoothing = evaluate.space, method.smoothing
    if isinstance(watch, FixedCount) and callback is None:
        done = evaluate.steps(x, smoothing, max_iter)
        if done is not None:
            x, stats = done
            watch.record(stats)
            solution = _counted(space, watch, None, None)
            return x, _completed(solution, evaluate, method, carry, {})
    if all_done is not own_all_done and space.local and not method.lockstep:
        raise ValueError(
            "method must make one evaluation a step within agreed_stopping, "
            f"as processes would make different numbers of them, got {method}"
        )
    here = previous = None
    moved = False
    budget = evaluate.count + max_iter
    while evaluate.count < budget and not all_done(watch.done, space.device):
        previous = here if watch.stride is None else None
        waiting = watch.done
        if forget:
            x, here = detach(x), None
        # a callback is shown the residuals of all segments
        active = watch.active if callback is None else None
        here = evaluate.point(x, smoothing, active)
        watch.observe(here, previous)
        here.release()
        if callback is not None and not waiting:
            said = _asked(callback, watch.count - 1, x, here)
            if not watch.done and said is not None:
                watch.stop(said, here, previous)
        if waiting:
            # a P that communicates must do so in the backward pass, too
            x_next = x = _tied(x, here)
        elif watch.done:
            x_next = x
        else:
            left = budget - evaluate.count
            x_next, carry = method.step(evaluate, here, carry, left)
            moved = True
        x = watch.settle(x_next, x, here)
    assert here is not None
    if not moved:
        x = _tied(x, here)  # x0 is the caller's, and may have no graph
    if isinstance(watch, FixedCount):
        solution = _counted(space, watch, here, previous)
    else:
        if not watch.done:
            watch.exhaust(here, previous)
            x = watch.settle(x, x, here)
        solution = _judged(space, watch)
    info = method.report(carry, here)
    return x, _completed(solution, evaluate, method, carry, info)


def _asked(
    callback: Callable[[int, Any, Tensor], Any], k: int, x: Leaves, here: Point
) -> Any:
    """What it says: None to go on, True, a Status or a LongTensor [S]."""
    kept = () if torch.compiler.is_compiling() else x
    before = [t._version for t in kept if not t.is_inference()]
    said = callback(k, here.space.pack(x), here.residual)
    if before != [t._version for t in kept if not t.is_inference()]:
        raise ValueError("callback must not write to x_k; write to a copy")
    size = here.space.size
    if isinstance(said, Tensor) and said.dtype == torch.long:
        if said.numel() not in (1, size):
            raise ValueError(
                f"callback must return one outcome for each of {size} "
                f"segments, got a LongTensor of shape {list(said.shape)}"
            )
        return said
    if isinstance(said, Tensor) and said.numel() != 1:
        raise ValueError(
            "callback must return True, False, None, a Status or a LongTensor "
            f"[{size}] of them (-1 to go on), got a Tensor of {said.dtype} "
            f"and shape {list(said.shape)}"
        )
    return said if isinstance(said, Status) or said else None


def _tied(x: Leaves, here: Point) -> Leaves:
    """A copy of x that is differentiated as x is, and P(x) by the way."""
    return tuple(map(_Tied.apply, x, here.smoothed(0.0)))


class _Tied(torch.autograd.Function):
    """x, and a gradient of zero for z."""

    @staticmethod
    def forward(ctx, x: Tensor, z: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx, g: Tensor) -> tuple[Tensor, Tensor]:
        return g, torch.zeros_like(g)


def _completed(
    solution: Solution,
    evaluate: Evaluator,
    method: Method,
    carry: Any,
    info: dict[str, Tensor],
) -> Solution:
    solution.evaluations = evaluate.count
    solution.info = info
    solution.method_state = (method.kind, tree_map(torch.detach, carry))
    return solution


def _counted(
    space: Space,
    watch: FixedCount,
    here: Point | None,
    previous: Point | None,
) -> Solution:
    """Everything stays on the device."""
    history = watch.history
    counts = torch.full_like(history[0], watch.count, dtype=torch.long)
    last = counts - 1
    status = watch.said if watch.done else Status.MAX_ITER
    unknown = torch.full_like(history[0], torch.inf)
    step = slope = unknown
    if here is not None and previous is not None:
        step, slope = secant(space, here, previous)
    elif watch.stride is not None and watch.count > 1:
        step = watch.stride * history[-2]
        slope = torch.zeros_like(step)
    return _solution(
        status=torch.full_like(counts, int(status)),
        iterations=last if watch.done else counts,
        residual=history[-1],
        history=history,
        last=last,
        step=step,
        slope=slope,
    )


def _judged(space: Space, watch: Monitor) -> Solution:
    """From the host's arrays to tensors on the device of the state."""

    def real(array):
        return torch.as_tensor(array, dtype=space.dtype, device=space.device)

    def count(array):
        return torch.as_tensor(array, dtype=torch.long, device=space.device)

    solution = _solution(
        status=count(watch.status),
        iterations=count(watch.iterations),
        residual=real(watch.residual),
        history=real(watch.history),
        last=count(watch.last),
        step=real(watch.step),
        slope=real(watch.slope),
    )
    # The bound is about the last iterate; these return an earlier one.
    moved = (
        (solution.status == Status.DIVERGED)
        | (solution.status == Status.STAGNATED)
        | (solution.status == Status.NONFINITE)
    )
    assert solution.ending is not None
    solution.ending.moved = moved
    return solution


def _solution(
    *,
    status: Tensor,
    iterations: Tensor,
    residual: Tensor,
    history: Tensor,
    last: Tensor,
    step: Tensor,
    slope: Tensor,
) -> Solution:
    return Solution(
        value=None,
        status=status,
        iterations=iterations,
        evaluations=0,
        residual=residual,
        residual_history=history,
        ending=Ending(last, step, slope),
    )


def linear_solution(
    space: Space,
    status: Any,
    products: int,
    residual: Any,
    history: list[Any],
) -> Solution:
    """A Solution for a linear solve that was not made by the loop."""

    def real(array):
        return torch.as_tensor(array, dtype=space.dtype, device=space.device)

    status = torch.as_tensor(status, dtype=torch.long, device=space.device)
    last = torch.full_like(status, len(history) - 1)
    table = torch.stack([real(r) for r in history])
    solution = recorded(
        status, torch.full_like(status, products), real(residual), table, last
    )
    solution.evaluations = products
    return solution


def settled(x: Any, device: torch.device) -> Solution:
    """The Solution of an equation without unknowns: x, with nothing to do."""
    none = torch.zeros(1, dtype=torch.long, device=device)
    residual = torch.zeros(1, dtype=torch.float32, device=device)
    status = torch.full_like(none, int(Status.CONVERGED))
    solution = recorded(status, none, residual, residual[None], none)
    solution.value = x
    return solution


def recorded(
    status: Tensor,
    iterations: Tensor,
    residual: Tensor,
    history: Tensor,
    last: Tensor,
) -> Solution:
    """A Solution of these, with nothing to bound its error by."""
    unknown = torch.full_like(history[0], torch.inf)
    return _solution(
        status=status,
        iterations=iterations,
        residual=residual,
        history=history,
        last=last,
        step=unknown,
        slope=unknown,
    )
