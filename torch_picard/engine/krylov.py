"""GMRES on leaves, every segment a system of its own."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from .space import Leaves, Space, add

_TINY = 1e-300


class KrylovResult(NamedTuple):
    """What GMRES found; arrays are per segment [S].

    ``rest`` is b - A x and ``residual`` its norm, as GMRES knows them without
    a further product; ``history`` is the norm after each product,
    ``products`` and ``work`` the products that were made and that each
    segment needed, ``inverse_norm`` 1/sigma_min of the last projected matrix
    (how large |A^{-1}| is on the space that was seen, from below), and
    ``picard`` |b - A b|/|b|, what one step x <- x + b would have left.
    """

    x: Leaves
    rest: Leaves
    residual: np.ndarray
    products: int
    history: list[np.ndarray]
    work: np.ndarray
    inverse_norm: np.ndarray
    picard: np.ndarray


def gmres(
    product: Callable[[Leaves], Leaves],
    b: Leaves,
    space: Space,
    target: np.ndarray,
    *,
    max_products: int,
    restart: int = 20,
    allowed: np.ndarray | None = None,
) -> KrylovResult:
    """Solve A x = b to |b - A x| <= target, per segment.

    Classical GMRES with restarts; written in functional tensor operations,
    so it is differentiable where ``product`` is. Scalars of the Arnoldi
    process are float64. A segment that has met its target, spent what it was
    allowed, gained nothing in a whole cycle or met a NaN is closed: its
    vectors are 0 from then on, so its x is the one it gets when solved alone.

    Args:
        product: v -> A v on leaves in the dtype of the algebra.
        b: right-hand side.
        target: [S] absolute tolerances.
        max_products: products with A allowed.
        restart: basis vectors kept before a restart.
        allowed: [S] products that each segment may need; None is no limit.

    Source: Saad and Schultz, SIAM J. Sci. Stat. Comput. 7, 1986.
    """
    x = zeros = tuple(torch.zeros_like(t) for t in b)
    rest = b
    residual = _host(space.norm(b))
    work = np.zeros(residual.shape, dtype=np.int64)
    inverse = np.zeros_like(residual)
    picard = np.zeros_like(residual)
    history = [residual]
    spent = 0
    if allowed is None:
        allowed = np.full(residual.shape, max_products)
    live = _open(residual, target) & (work < allowed)
    while spent < max_products and live.any():
        budget = min(restart, max_products - spent)
        cycle = _cycle(
            product,
            space.where(_mask(live, space), rest, zeros),
            space,
            target,
            budget,
            allowed - work,
        )
        if not spent:
            picard = np.where(live, cycle.picard, picard)
        inverse = np.where(live, cycle.inverse_norm, inverse)
        x = add(x, cycle.x)
        rest = space.where(_mask(live, space), cycle.rest, rest)
        spent += cycle.products
        work += np.where(live, cycle.work, 0)
        before = residual
        history += [np.where(live, r, before) for r in cycle.history]
        sound = live & np.isfinite(history[-1])
        residual = np.where(sound, _host(space.norm(rest)), history[-1])
        history[-1] = residual
        live = live & _open(residual, target) & (work < allowed)
        live = live & (residual < before)
    return KrylovResult(
        x, rest, residual, spent, history, work, inverse, picard
    )


def _cycle(
    product: Callable[[Leaves], Leaves],
    b: Leaves,
    space: Space,
    target: np.ndarray,
    budget: int,
    allowed: np.ndarray,
) -> KrylovResult:
    """One Arnoldi run of up to ``budget`` products."""
    beta = _root(space.dot(b, b))
    basis = [space.scale(_reciprocal(beta), b)]
    columns: list[list[Tensor]] = []
    givens = _Givens(_host(beta), budget)
    live = givens.rest > 0
    work = np.zeros(live.shape, dtype=np.int64)
    zeros = tail = tuple(torch.zeros_like(t) for t in b)
    eps = 10 * torch.finfo(space.dtype).eps
    history: list[np.ndarray] = []
    for j in range(budget):
        w = product(basis[j])
        column = [space.dot(v, w) for v in basis]
        for c, v in zip(column, basis):
            w = space.axpy(-c, v, w)
        for i, v in enumerate(basis):  # a second pass keeps it orthogonal
            c = space.dot(v, w)
            column[i] = column[i] + c
            w = space.axpy(-c, v, w)
        height = _root(space.dot(w, w))
        column.append(height)
        columns.append(column)
        known = np.stack([_host(c) for c in column])
        history.append(givens.push(known))
        work += live
        # a space that A does not leave has no more to give
        leaves = known[-1] > eps * np.linalg.norm(known, axis=0)
        before = live
        live = live & leaves & _open(history[-1], target) & (work < allowed)
        if j + 1 == budget:
            live = np.zeros_like(live)
        # what it leaves by rounding alone has no derivative worth having
        height = torch.where(_mask(leaves, space), height, 0.0)
        v = space.scale(_reciprocal(height), w)
        tail = space.where(_mask(before & ~live, space), v, tail)
        if not live.any():
            break
        basis.append(space.where(_mask(live, space), v, zeros))
    y, image, inverse = _least_squares(columns, beta)
    y, image = y.to(space.dtype), image.to(space.dtype)
    dx = zeros
    for j in range(len(columns)):
        dx = space.axpy(y[:, j], basis[j], dx)
    rest = b
    for i, v in enumerate(basis):
        rest = space.axpy(-image[:, i], v, rest)
    ends = torch.from_numpy(work).to(space.device)[:, None]
    rest = space.axpy(-image.gather(1, ends)[:, 0], tail, rest)
    picard = np.hypot(1 - _host(columns[0][0]), _host(columns[0][1]))
    return KrylovResult(
        dx, rest, history[-1], len(columns), history, work, inverse, picard
    )


class _Givens:
    """The residual of the growing least-squares problem, on the host."""

    def __init__(self, beta: np.ndarray, budget: int):
        self.rotations: list[tuple[np.ndarray, np.ndarray]] = []
        self.rest = beta

    def push(self, column: np.ndarray) -> np.ndarray:
        """column [j+2, S]: rotate it, and return the new residual [S]."""
        h = column.copy()
        for i, (c, s) in enumerate(self.rotations):
            h[i], h[i + 1] = c * h[i] + s * h[i + 1], c * h[i + 1] - s * h[i]
        radius = np.hypot(h[-2], h[-1])
        safe = np.where(radius > 0, radius, 1.0)
        c = np.where(radius > 0, h[-2] / safe, 1.0)
        s = h[-1] / safe
        self.rotations.append((c, s))
        # a closed segment has a column of zeros and keeps what it had
        with np.errstate(invalid="ignore"):  # of what was not finite before
            rest = np.abs(s) * self.rest
        self.rest = np.where(radius == 0, self.rest, rest)
        return self.rest


def _least_squares(
    columns: list[list[Tensor]], beta: Tensor
) -> tuple[Tensor, Tensor, np.ndarray]:
    """y [S, m] of min |beta e_1 - H y|, H y [S, m+1] and 1/sigma_min(H) [S];
    0 where H holds a NaN."""
    m = len(columns)
    zero = torch.zeros_like(beta)
    rows = [torch.stack(c + [zero] * (m + 1 - len(c)), dim=1) for c in columns]
    h = torch.stack(rows, dim=2).double()  # [S, m+1, m]
    sound = torch.isfinite(h).all(dim=1).all(dim=1) & torch.isfinite(beta)
    h = torch.where(sound[:, None, None], h, torch.zeros_like(h))
    beta = torch.where(sound, beta, zero)
    # Closed segments have zero columns: a ridge at rounding level keeps the
    # factorisation, and its derivative, defined.
    scale = torch.linalg.matrix_norm(h.detach(), keepdim=True)
    ridge = torch.finfo(torch.float64).eps * scale.clamp(min=_TINY)
    eye = torch.eye(m, dtype=h.dtype, device=h.device)
    q, r = torch.linalg.qr(torch.cat([h, ridge * eye], dim=1))
    rhs = q[:, 0, :, None] * beta.double()[:, None, None]
    y = torch.linalg.solve_triangular(r, rhs, upper=True)
    with torch.no_grad():
        used = (h != 0).any(dim=1).sum(dim=1)
        last = (used - 1).clamp(min=0)[:, None]
        sigma = torch.linalg.svdvals(h).gather(1, last)[:, 0]
        inverse = torch.where(used > 0, 1 / sigma, torch.zeros_like(sigma))
    return y[:, :, 0], (h @ y)[:, :, 0], inverse.cpu().numpy()


def _root(c: Tensor) -> Tensor:
    """sqrt(c), and 0 with the derivative 0 where c is 0 (or below)."""
    safe = torch.where(c > 0, c, torch.ones_like(c))
    # written so that NaN stays NaN
    return torch.where(
        c <= 0, torch.zeros_like(c), torch.where(c > 0, safe.sqrt(), c)
    )


def _reciprocal(c: Tensor) -> Tensor:
    """1/c, and 0 for 0."""
    safe = torch.where(c > 0, c, torch.ones_like(c))
    return torch.where(c > 0, 1 / safe, torch.zeros_like(c))


def _open(residual: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Not there yet. NaN cannot improve, so it does not keep others busy."""
    return ~(residual <= target) & np.isfinite(residual)


def _mask(live: np.ndarray, space: Space) -> Tensor:
    return torch.from_numpy(live).to(space.device)


def _host(t: Tensor) -> np.ndarray:
    return t.detach().cpu().double().numpy()
