"""What the problems claim about themselves."""

import math

import pytest
import torch
from torch.func import jacrev
from torch_geometric.nn import APPNP

from torch_picard import problems

BANK = {p.name: p for p in problems.bank()}
MORE = [
    problems.reflection(),
    problems.green_fredholm(lam=-1.5 * math.pi**2),
    problems.separable_fredholm(lam=-2.0, panels=3),
    problems.symmetric_linear(size=1, rho=0.3),
    problems.exponential_fredholm(),
    problems.exponential_fredholm(lam=-0.3, panels=5),
    problems.hammerstein(),
    problems.hammerstein(lam=-0.5, panels=3),
    problems.volterra(),
]
ALL = {**BANK, **{f"{p.name} {i}": p for i, p in enumerate(MORE)}}


def test_the_bank_is_large_and_its_names_are_unique():
    assert len(problems.bank()) == len(BANK) >= 8


@pytest.mark.parametrize("name", ALL)
def test_the_solution_is_a_fixed_point(name):
    p = ALL[name]
    if p.solution is None:
        with pytest.raises(ValueError, match="no exact solution"):
            p.error(p.x0)
        return
    torch.testing.assert_close(
        p.operator(p.solution), p.solution, rtol=1e-13, atol=1e-13
    )
    assert p.error(p.solution) == 0


@pytest.mark.parametrize("name", ALL)
def test_the_rate_is_the_spectral_radius_at_the_solution(name):
    p = ALL[name]
    if p.rate is None:
        return
    flat = p.solution.reshape(-1)
    jacobian = jacrev(lambda x: p.operator(x.reshape(p.x0.shape)).reshape(-1))(
        flat
    )
    # The norm is the spectral radius because the matrix is normal.
    torch.testing.assert_close(
        jacobian @ jacobian.T, jacobian.T @ jacobian, rtol=0, atol=1e-12
    )
    norm = torch.linalg.matrix_norm(jacobian, 2).item()
    assert norm == pytest.approx(p.rate, rel=1e-9)


def test_constructors_take_a_dtype():
    for p in problems.bank(torch.float32):
        image = p.operator(p.x0)
        assert image.dtype == p.x0.dtype == torch.float32
        assert p.solution is None or p.solution.dtype == torch.float32


def test_appnp_is_the_one_of_pyg():
    edge_index = problems.random_graph(20, seed=3)
    p = problems.appnp(edge_index, 20, teleport=0.2)
    theirs = APPNP(K=200, alpha=0.2)(p.x0, edge_index)
    torch.testing.assert_close(theirs, p.solution, rtol=1e-10, atol=1e-10)


def test_solve_passes_options_on():
    p = problems.symmetric_linear(rho=0.5)
    solution = p.solve(rtol=1e-10, max_iter=200)
    assert solution.converged.all()
    assert p.error(solution.value) <= 1e-8


def test_the_second_solution_of_the_hammerstein_equation():
    p = problems.hammerstein(lam=0.8)
    other = (4 - 0.8) / 0.8 * p.solution
    torch.testing.assert_close(p.operator(other), other)


def test_the_quadrature_of_the_exponential_is_that_of_the_integral():
    rate = problems.exponential_fredholm(lam=1.0, panels=64).rate
    assert rate == pytest.approx((math.e**2 - 1) / 2, rel=1e-8)


def test_picard_on_volterra_is_the_taylor_series():
    p = problems.volterra(lam=3.0, degree=12)
    u = p.x0
    for k in range(1, 14):
        u = p.operator(u)
        known = min(k, 12) + 1
        torch.testing.assert_close(u[:known], p.solution[:known])
        assert not u[known:].any()


@pytest.mark.parametrize(
    "call, name",
    [
        (lambda: problems.uniform_attention(tokens=0), "tokens"),
        (lambda: problems.appnp(teleport=2.0), "teleport"),
        (lambda: problems.separable_fredholm(panels=0), "panels"),
        (lambda: problems.green_fredholm(size=0), "size"),
    ],
)
def test_wrong_arguments(call, name):
    with pytest.raises(ValueError, match=name):
        call()
