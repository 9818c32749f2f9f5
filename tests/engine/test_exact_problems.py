"""The engine on problems whose answer is known in closed form."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from torch_picard import Adaptive, Picard, Status, fixed_point, problems

ALPHAS = st.floats(0.0, 0.9)


def smoothed(problem, alpha, n):
    return problem.solve(method=Picard(alpha), max_iter=n, rtol=0.0)


@given(lam=st.floats(0.1, 2.5), n=st.integers(1, 12))
def test_banach_holds_with_equality_on_the_separable_kernel(lam, n):
    p = problems.separable_fredholm(lam)
    q = lam / 3
    first = (p.operator(p.x0) - p.x0).norm().item()
    error = p.error(smoothed(p, 0.0, n).value)
    bound = q**n / (1 - q) * first
    assert error == pytest.approx(bound, rel=1e-6, abs=1e-13)


@given(alpha=ALPHAS, lam=st.floats(0.5, 2.5))
def test_one_mode_shows_its_rate_and_its_error(alpha, lam):
    p = problems.separable_fredholm(lam)
    s = p.solve(method=Picard(alpha), rtol=1e-6, max_iter=2000)
    q = alpha + (1 - alpha) * lam / 3
    assert s.converged.all()
    assert s.rate.item() == pytest.approx(q, rel=1e-6)
    assert s.error_bound.item() == pytest.approx(p.error(s.value), rel=1e-5)


@pytest.mark.parametrize("lam", [8.0, -8.0, 2.0])
def test_green_function_to_machine_precision(method, lam):
    p = problems.green_fredholm(lam)
    s = p.solve(method=method, rtol=1e-14, max_iter=500)
    assert s.converged.all()
    assert p.error(s.value) <= 1e-12 * p.solution.norm()


def test_smoothing_beyond_one_fifth_rescues_the_negative_kernel():
    p = problems.green_fredholm(lam=-1.5 * math.pi**2)
    options = {"max_iter": 400, "rtol": 1e-9, "on_failure": "ignore"}
    plain = p.solve(method=Picard(0.15), **options)
    assert plain.status.item() == Status.DIVERGED
    rescued = p.solve(method=Picard(0.25), **options)
    assert rescued.converged.all()
    assert p.error(rescued.value) <= 1e-7
    chosen = p.solve(method=Adaptive(), **options)
    assert chosen.converged.all()
    assert chosen.evaluations < rescued.evaluations


@given(
    seed=st.integers(0, 1000),
    rho=st.floats(0.1, 0.99),
    alpha=ALPHAS,
    n=st.integers(1, 30),
)
def test_every_mode_has_its_own_rate(seed, rho, alpha, n):
    p = problems.symmetric_linear(size=8, rho=rho, seed=seed)
    b = p.operator(torch.zeros(8, dtype=torch.float64))
    matrix = torch.stack(
        [p.operator(e) - b for e in torch.eye(8, dtype=torch.float64)], 1
    )
    values, vectors = torch.linalg.eigh((matrix + matrix.T) / 2)
    before = vectors.T @ (p.x0 - p.solution)
    after = vectors.T @ (smoothed(p, alpha, n).value - p.solution)
    exact = (alpha + (1 - alpha) * values) ** n * before
    scale = before.norm().item()
    torch.testing.assert_close(after, exact, rtol=0, atol=1e-11 * scale)


@given(
    theta=st.floats(0.1, math.pi),
    alpha=st.floats(0.0, 0.95),
    n=st.integers(1, 40),
)
def test_rotation_shrinks_as_the_cosine_says(theta, alpha, n):
    p = problems.rotation(theta)
    square = alpha**2 + (1 - alpha) ** 2
    q = math.sqrt(square + 2 * alpha * (1 - alpha) * math.cos(theta))
    error = p.error(smoothed(p, alpha, n).value)
    exact = q**n * p.error(p.x0)
    assert error == pytest.approx(exact, rel=1e-9, abs=1e-13)


@given(theta=st.floats(0.2, math.pi))
def test_plain_picard_circles_and_says_so(theta):
    s = problems.rotation(theta).solve(
        method=Picard(0.0), max_iter=200, on_failure="ignore"
    )
    assert s.status.item() == Status.STAGNATED


def test_one_half_solves_the_reflection_in_one_step():
    p = problems.reflection()
    assert torch.equal(smoothed(p, 0.5, 1).value, p.solution)
    s = p.solve(method=Picard(0.5), rtol=1e-12)
    assert s.converged.all() and s.iterations.item() == 1
    assert s.evaluations == 2 and s.error_bound.item() == 0


@pytest.mark.parametrize("x0", [-3.0, 0.0, 1.0, 50.0])
def test_the_cosine(method, x0):
    p = problems.cosine()
    start = torch.full_like(p.x0, x0)
    s = fixed_point(p.operator, start, method=method, rtol=1e-14, max_iter=200)
    assert s.converged.all()
    assert p.error(s.value) <= 1e-13


def test_the_cosine_shows_its_rate():
    p = problems.cosine()
    s = p.solve(method=Picard(0.0), rtol=1e-10, max_iter=200)
    assert s.rate.item() == pytest.approx(p.rate, rel=1e-6)
    # Banach's bound does not know that the error changes its sign.
    loose = (1 + p.rate) / (1 - p.rate)
    error, bound = p.error(s.value), s.error_bound.item()
    assert error <= bound <= loose * error * (1 + 1e-3)


@pytest.mark.parametrize("teleport", [0.05, 0.3])
def test_appnp(method, teleport):
    p = problems.appnp(teleport=teleport)
    s = p.solve(method=method, rtol=1e-12, max_iter=2000)
    assert s.converged.all()
    assert p.error(s.value) <= s.residual.item() / teleport * (1 + 1e-6)


def test_the_error_estimate_is_of_the_right_size():
    """Within a factor of 10 of the truth on the bank: an estimate, but one
    that a user can rely on."""
    for p in problems.bank():
        if p.solution is None:
            continue
        s = p.solve(rtol=1e-6, max_iter=4000)
        error = p.error(s.value)
        assert 0.5 * error <= s.error_bound.item() <= 10 * error, p.name
