"""Algorithm 1, and what is counted."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from torch_picard import (
    Adaptive,
    Anderson,
    Broyden,
    Implicit,
    OneStep,
    Phantom,
    Picard,
    Status,
    Unrolled,
    fixed_point,
    problems,
)

GRADIENTS = [
    Unrolled(),
    Unrolled(checkpoint=True),
    Implicit(),
    Phantom(steps=3),
    OneStep(),
]


def algorithm_1(operator, x, alpha, n):
    """x_n and the residuals of x_0 .. x_{n-1}."""
    residuals = []
    for _ in range(n):
        z = operator(x)
        residuals.append((z - x).norm())
        x = torch.lerp(x, z, 1 - alpha)
    return x, torch.stack(residuals)


@given(
    seed=st.integers(0, 1000),
    alpha=st.floats(0.0, 0.99),
    n=st.integers(1, 25),
)
def test_the_fixed_count_is_algorithm_1(contraction, seed, alpha, n):
    p = contraction(seed, lipschitz=0.8)
    x, residuals = algorithm_1(p, p.x0, alpha, n)
    s = fixed_point(
        p, p.x0, method=Picard(alpha), max_iter=n, rtol=0.0, atol=0.0
    )
    torch.testing.assert_close(s.value, x, rtol=1e-14, atol=1e-14)
    torch.testing.assert_close(s.residual_history[:, 0], residuals)
    assert s.status.item() == Status.MAX_ITER
    assert s.iterations.item() == s.evaluations == n


@given(seed=st.integers(0, 1000), n=st.integers(1, 25))
def test_so_is_a_solve_that_runs_out(contraction, seed, n):
    p = contraction(seed, lipschitz=0.8)
    x, residuals = algorithm_1(p, p.x0, 0.5, n)
    s = fixed_point(p, p.x0, max_iter=n, rtol=1e-15, on_failure="ignore")
    torch.testing.assert_close(s.value, x, rtol=1e-14, atol=1e-14)
    torch.testing.assert_close(s.residual_history[:, 0], residuals)
    assert s.status.item() == Status.MAX_ITER
    assert s.iterations.item() == s.evaluations == n
    assert s.residual.item() == s.residual_history[-1].item()


@given(
    seed=st.integers(0, 1000),
    alpha=st.floats(0.0, 0.8),
    rtol=st.floats(1e-10, 1e-1),
    atol=st.floats(0.0, 1e-2),
)
def test_converged_means_that_the_measured_residual_passes(
    contraction, seed, alpha, rtol, atol
):
    p = contraction(seed, lipschitz=0.7)
    s = fixed_point(
        p,
        p.x0,
        method=Picard(alpha),
        rtol=rtol,
        atol=atol,
        max_iter=1000,
    )
    assert s.converged.all()
    measured = p.residual(s.value)
    assert measured == pytest.approx(s.residual.item(), rel=1e-12)
    assert measured <= atol + rtol * p(s.value).norm()
    # the iterate that passed, and not one later
    x, _ = algorithm_1(p, p.x0, alpha, s.iterations.item() or 1)
    if s.iterations.item():
        torch.testing.assert_close(s.value, x)
    assert s.evaluations == s.iterations.item() + 1
    assert s.residual_history.shape == (s.evaluations, 1)


def test_converged_holds_for_every_method(method):
    for p in problems.bank():
        s = p.solve(
            method=method, rtol=1e-7, max_iter=4000, on_failure="ignore"
        )
        z = p.operator(s.value)
        passes = (z - s.value).norm() <= 1e-7 * z.norm()
        assert bool(passes) == bool(s.converged), p.name


@pytest.mark.parametrize("gradient", GRADIENTS, ids=repr)
@pytest.mark.parametrize("rtol", [0.0, 1e-6])
def test_evaluations_are_the_calls_of_the_operator(
    contraction, counted, method, gradient, rtol
):
    p = contraction(3, lipschitz=0.6)
    b = torch.zeros(6, dtype=torch.float64, requires_grad=True)
    operator = counted(lambda x: p(x) + b)
    s = fixed_point(
        operator,
        p.x0,
        method=method,
        max_iter=12,
        rtol=rtol,
        gradient=gradient,
        on_failure="ignore",
    )
    # A Jacobian product is an evaluation without being a call, or the other
    # way round where it is made by two reverse passes.
    newton = "h" in s.info
    if newton and isinstance(gradient, Unrolled):
        assert operator.calls <= s.evaluations
    else:
        assert operator.calls == s.evaluations


def test_the_budget_is_kept(counted, method):
    p = problems.symmetric_linear(rho=0.99)
    for budget in (1, 2, 3, 7, 20):
        for rtol in (0.0, 1e-12):
            operator = counted(p.operator)
            s = fixed_point(
                operator,
                p.x0,
                method=method,
                max_iter=budget,
                rtol=rtol,
                on_failure="ignore",
            )
            assert operator.calls <= s.evaluations == budget
            assert s.value.isfinite().all()


def test_the_callback_sees_every_iterate(contraction, method):
    p = contraction(1, lipschitz=0.6)
    seen = []
    s = fixed_point(
        p,
        p.x0,
        method=method,
        rtol=1e-8,
        max_iter=200,
        callback=lambda k, x, residual: seen.append((k, x, residual)),
    )
    # the last evaluation ends the solve, so nobody is asked about it
    ks, xs, residuals = zip(*seen)
    assert list(ks) == list(range(len(ks)))
    assert torch.equal(xs[0], p.x0)
    torch.testing.assert_close(
        torch.stack(residuals), s.residual_history[: len(ks)]
    )
    for x, residual in zip(xs, residuals):
        assert p.residual(x) == pytest.approx(residual.item(), rel=1e-12)


@pytest.mark.parametrize("rtol", [0.0, 1e-12])
def test_the_callback_stops(contraction, method, rtol, no_warnings):
    p = contraction(1, lipschitz=0.6)
    seen = []

    def callback(k, x, residual):
        seen.append(x)
        return k == 2

    s = fixed_point(
        p, p.x0, method=method, rtol=rtol, max_iter=200, callback=callback
    )
    assert s.status.item() == Status.STOPPED
    assert torch.equal(s.value, seen[-1]) and len(seen) == 3
    assert s.iterations.item() == 2
    assert s.raise_for_status() is s


def test_a_callback_stops_only_with_true(contraction):
    p = contraction(1)
    s = fixed_point(p, p.x0, callback=lambda k, x, residual: None)
    assert s.converged.all()


def test_the_callback_gets_the_structure(contraction):
    p = contraction(1)
    seen = []
    fixed_point(
        lambda x: {"a": p(x["a"])},
        {"a": p.x0},
        callback=lambda k, x, residual: seen.append(x),
    )
    assert all(set(x) == {"a"} for x in seen)


def test_a_start_that_is_the_solution_costs_one_evaluation(method):
    p = problems.reflection()
    s = fixed_point(p.operator, p.solution, method=method)
    assert s.converged.all() and s.evaluations == 1
    assert s.iterations.item() == 0
    assert torch.equal(s.value, p.solution)
    assert s.error_bound.item() == 0


@pytest.mark.parametrize(
    "method", [Picard(0.5), Anderson(), Broyden(), Adaptive()], ids=repr
)
def test_transforms_of_torch_func(method):
    """No value decides anything: grad and jvp see through the loop."""
    b = torch.tensor(0.7, dtype=torch.float64)

    def solve(b):
        x0 = torch.arange(12, dtype=torch.float64).view(2, 6)
        return fixed_point(
            lambda x: b * torch.cos(x), x0, method=method, max_iter=4,
            rtol=0.0, segments="leading",
        ).value  # fmt: skip

    leaf = b.clone().requires_grad_()
    (expected,) = torch.autograd.grad(solve(leaf).sum(), leaf)
    found = torch.func.grad(lambda b: solve(b).sum())(b)
    torch.testing.assert_close(found, expected)
    value, tangent = torch.func.jvp(solve, (b,), (torch.ones_like(b),))
    torch.testing.assert_close(value, solve(b))
    torch.testing.assert_close(tangent.sum(), expected)


@pytest.mark.parametrize("gradient", [Implicit(), Phantom(2), OneStep()])
def test_gradients_of_their_own_are_not_for_torch_func(gradient):
    def solve(b):
        return fixed_point(
            lambda x: b * torch.cos(x), torch.zeros(3), max_iter=4, rtol=0.0,
            gradient=gradient,
        ).value.sum()  # fmt: skip

    with pytest.raises(NotImplementedError, match=r"torch\.func"):
        torch.func.grad(solve)(torch.tensor(0.5))
