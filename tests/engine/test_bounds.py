"""The bounds of the theory, on random contractions.

L: Lipschitz constant of P; q = alpha + (1 - alpha)*L; r(x) = |P(x) - x|.
"""

import math

import torch
from hypothesis import given
from hypothesis import strategies as st

from torch_picard import Picard, fixed_point

SEEDS = st.integers(0, 10_000)
ALPHAS = st.floats(0.0, 0.95)
CONSTANTS = st.floats(0.01, 0.9)
STEPS = st.integers(1, 40)
SLACK = 1 + 1e-9
FLOOR = 1e-12


def iterates(operator, x0, alpha, n):
    """x_0 .. x_n as the engine makes them."""
    seen = []
    solution = fixed_point(
        operator,
        x0,
        method=Picard(alpha),
        max_iter=n,
        rtol=0.0,
        callback=lambda k, x, residual: seen.append(x),
    )
    return [*seen, solution.value]


@given(seed=SEEDS, lipschitz=CONSTANTS, alpha=ALPHAS, n=STEPS)
def test_a_priori(contraction, seed, lipschitz, alpha, n):
    p = contraction(seed, lipschitz=lipschitz)
    x = iterates(p, p.x0, alpha, n)
    q = alpha + (1 - alpha) * lipschitz
    first = (x[1] - x[0]).norm()
    error = (x[n] - p.solution()).norm()
    assert error <= q**n / (1 - q) * first * SLACK + FLOOR


@given(seed=SEEDS, lipschitz=CONSTANTS, alpha=ALPHAS, n=STEPS)
def test_a_posteriori(contraction, seed, lipschitz, alpha, n):
    p = contraction(seed, lipschitz=lipschitz)
    x = iterates(p, p.x0, alpha, n)
    q = alpha + (1 - alpha) * lipschitz
    last = (x[n] - x[n - 1]).norm()
    error = (x[n] - p.solution()).norm()
    assert error <= q / (1 - q) * last * SLACK + FLOOR


@given(seed=SEEDS, lipschitz=CONSTANTS, alpha=ALPHAS, n=STEPS)
def test_the_residual_bounds_the_error_from_both_sides(
    contraction, seed, lipschitz, alpha, n
):
    p = contraction(seed, lipschitz=lipschitz)
    x = iterates(p, p.x0, alpha, n)[-1]
    error, r = (x - p.solution()).norm(), p.residual(x)
    assert r / (1 + lipschitz) <= error * SLACK + FLOOR
    assert error <= r / (1 - lipschitz) * SLACK + FLOOR


@given(seed=SEEDS, lipschitz=CONSTANTS, alpha=ALPHAS)
def test_the_step_is_the_damped_residual(contraction, seed, lipschitz, alpha):
    p = contraction(seed, lipschitz=lipschitz)
    x = iterates(p, p.x0, alpha, 1)
    step = (x[1] - x[0]).norm().item()
    assert math.isclose(step, (1 - alpha) * p.residual(x[0]), rel_tol=1e-9)


def test_the_solve_stops_on_the_residual_and_not_on_the_step():
    """At alpha = .99 a step of .088 hides a residual of 8.8."""
    solution = fixed_point(
        lambda x: 0.5 * x,
        torch.tensor([17.6], dtype=torch.float64),
        method=Picard(0.99),
        rtol=0.0,
        atol=0.1,
        max_iter=3,
        on_failure="ignore",
    )
    assert not solution.converged
    assert solution.residual_history[0].item() == 8.8


@given(seed=SEEDS, lipschitz=st.floats(0.01, 1.0), alpha=ALPHAS, n=STEPS)
def test_the_residual_shrinks_by_q(contraction, seed, lipschitz, alpha, n):
    p = contraction(seed, lipschitz=lipschitz)
    history = fixed_point(
        p, p.x0, method=Picard(alpha), max_iter=n, rtol=0.0
    ).residual_history[:, 0]
    q = alpha + (1 - alpha) * lipschitz
    assert (history[1:] <= q * history[:-1] * SLACK + FLOOR).all()


@given(seed=SEEDS, alpha=st.floats(0.05, 0.95), n=STEPS)
def test_krasnoselskii_mann(contraction, seed, alpha, n):
    """L = 1 and a fixed point, which is c."""
    p = contraction(seed, lipschitz=1.0)
    p.b = p.c
    r = fixed_point(
        p, p.x0, method=Picard(alpha), max_iter=n, rtol=0.0
    ).residual_history[:, 0]
    distance = (p.x0 - p.c).norm()
    k = torch.arange(n)
    bound = distance / ((k + 1) * alpha * (1 - alpha)).sqrt()
    assert (r <= bound * SLACK + FLOOR).all()


@given(seed=SEEDS, lipschitz=CONSTANTS)
def test_without_injection_the_input_is_forgotten(
    contraction, seed, lipschitz
):
    p = contraction(seed, lipschitz=lipschitz)
    ends = [
        fixed_point(p, x0, rtol=1e-13, max_iter=2000).value
        for x0 in (p.x0, 100 * p.other)
    ]
    assert (ends[0] - ends[1]).norm() <= 1e-10


@given(seed=SEEDS, lipschitz=CONSTANTS)
def test_with_injection_it_is_kept(contraction, seed, lipschitz):
    p = contraction(seed, lipschitz=lipschitz, bias=False)
    f, g = p.x0, p.other
    end_f, end_g = (
        fixed_point(
            lambda x, f=f: p(x) + f, f, rtol=1e-13, max_iter=2000
        ).value
        for f in (f, g)
    )
    apart, inputs = (end_f - end_g).norm(), (f - g).norm()
    assert apart <= inputs / (1 - lipschitz) * SLACK + 1e-10
    assert apart >= inputs / (1 + lipschitz) / SLACK - 1e-10
