"""The linear solve behind the implicit gradient."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from . import loop
from .gradients import Implicit
from .krylov import gmres
from .loop import iterate, linear_solution
from .monitor import Monitor
from .operator import Evaluator, pullback
from .solution import Solution
from .space import Leaves, Space, add, detach, sub
from .status import Status


def cotangent(
    z: Leaves, x: Leaves, g: Leaves, space: Space, options: Implicit
) -> tuple[Leaves, Solution]:
    """u of (I - J^T) u = g, per segment, to rtol*|g|, with J = dz/dx."""
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
    return space.lower(u), solution


def _krylov(
    transposed: Callable[[Leaves], Leaves],
    g: Leaves,
    space: Space,
    target: np.ndarray,
    options: Implicit,
) -> tuple[Leaves, Solution]:
    """GMRES, its residual measured and not only estimated."""

    def product(v: Leaves) -> Leaves:
        loop.all_done(False, space.device)
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
    while not loop.all_done(True, space.device):
        transposed(g)  # which others still need, where P communicates
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
