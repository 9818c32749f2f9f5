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
    z: Leaves,
    x: Leaves,
    g: Leaves,
    space: Space,
    options: Implicit,
    eps: float,
) -> tuple[Leaves, Solution]:
    """u of (I - J^T) u = g, per segment, to rtol*|g|, with J = dz/dx.
    ``eps``: of the dtypes in which J^T is evaluated, the coarsest."""

    def transposed(v: Leaves) -> Leaves:
        w = pullback(z, x, space.lower(v))
        return space.lift(w)

    # u is linear in g: it is solved for where squares neither vanish nor
    # overflow, and powers of two round nothing. No residual may pass that
    # is not finite.
    g = space.lift(detach(g))
    size = space.any_norm(tuple(t.double() for t in g)).cpu().numpy()
    size = np.where(np.isfinite(size), size, 0.0)
    power = np.frexp(size)[1]
    target = options.rtol * np.ldexp(size, -power)
    rounding = max(10 * torch.finfo(space.dtype).eps, eps)
    solver = _krylov if options.method is None else _iterated
    with torch.no_grad():
        u, solution = solver(
            transposed, _shift(g, -power, space), space, target, rounding,
            options,
        )  # fmt: skip
        u = _shift(u, power, space)
    _rescale(solution, torch.from_numpy(np.ldexp(1.0, power)))
    return space.lower(u), solution


def _shift(u: Leaves, power: np.ndarray, space: Space) -> Leaves:
    """u * 2^power, segment by segment; in two halves, since 2^power itself
    may be beyond the dtype."""
    for part in (power // 2, power - power // 2):
        c = torch.from_numpy(np.ldexp(1.0, part))
        u = space.scale(c.to(space.device, space.dtype), u)
    return u


def _rescale(solution: Solution, c: torch.Tensor) -> None:
    """Residuals of a scaled equation, in the units of the one that it is."""

    def scaled(t: torch.Tensor) -> torch.Tensor:
        return (t.double() * c.to(t.device)).to(t.dtype)

    assert solution.ending is not None
    solution.residual = scaled(solution.residual)
    solution.residual_history = scaled(solution.residual_history)
    solution.ending.step = scaled(solution.ending.step)


def _krylov(
    transposed: Callable[[Leaves], Leaves],
    g: Leaves,
    space: Space,
    target: np.ndarray,
    rounding: float,
    options: Implicit,
) -> tuple[Leaves, Solution]:
    """GMRES, its residual measured and not only estimated. Where they
    differ, ``rounding`` of u explains it."""

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
        explained = np.where(result.residual <= goal, rounding, 10 * eps)
        goal = target + explained * space.norm(u).cpu().double().numpy()
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
    rounding: float,
    options: Implicit,
) -> tuple[Leaves, Solution]:
    """u <- J^T u + g by a method of the engine."""
    assert options.method is not None
    lifted, g = g, space.lower(g)
    inner = Space(g)
    inner.segments, inner.size = space.segments, space.size
    evaluate = Evaluator(
        lambda u: inner.lower(add(transposed(inner.lift(u)), lifted)), inner
    )
    watch = Monitor(inner, rounding, target, options.method)
    u, solution = iterate(
        evaluate,
        options.method,
        g,
        options.method.init(inner),
        max_iter=options.max_iter,
        watch=watch,
    )
    return inner.lift(u), solution
