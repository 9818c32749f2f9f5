"""Accelerators never lose, and report what they saw."""

import math
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from torch_picard import (
    Adaptive,
    Anderson,
    Broyden,
    NewtonKrylov,
    Picard,
    fixed_point,
    problems,
)

BANK = {p.name: p for p in problems.bank()}
OPTIONS = {"rtol": 1e-8, "max_iter": 4000, "on_failure": "ignore"}
EXTRA = 5


def picard(problem):
    """Evaluations of the better of alpha = 0 and the default."""
    counts = [math.inf]
    for alpha in (0.0, 0.5):
        s = problem.solve(method=Picard(alpha), **OPTIONS)
        if s.converged.all():
            counts.append(s.evaluations)
    return min(counts)


@pytest.mark.parametrize("name", BANK)
@pytest.mark.parametrize(
    "accelerator", [Anderson(), Broyden(), NewtonKrylov()], ids=repr
)
def test_an_accelerator_never_loses(accelerator, name):
    s = BANK[name].solve(method=accelerator, **OPTIONS)
    assert s.converged.all()
    assert s.evaluations <= picard(BANK[name]) + EXTRA


@given(
    seed=st.integers(0, 10_000),
    lipschitz=st.floats(0.05, 0.95),
    size=st.integers(1, 20),
)
@pytest.mark.parametrize(
    "accelerator", [Anderson(), Broyden(), NewtonKrylov()], ids=repr
)
def test_nor_on_random_contractions(
    contraction, accelerator, seed, lipschitz, size
):
    p = contraction(seed, size=size, lipschitz=lipschitz)
    problem = problems.Problem("random", p, p.x0)
    s = problem.solve(method=accelerator, **OPTIONS)
    assert s.converged.all()
    assert s.evaluations <= picard(problem) + EXTRA


@pytest.mark.parametrize("name", BANK)
def test_adaptive_converges(name):
    s = BANK[name].solve(method=Adaptive(), **OPTIONS)
    assert s.converged.all()
    assert 0 <= s.info["alpha"].item() < 1


def test_adaptive_finds_the_alpha_of_one_mode():
    """One negative eigenvalue mu: alpha = -mu/(1 - mu) solves at once."""
    p = problems.green_fredholm(lam=-1.5 * math.pi**2)
    s = p.solve(method=Adaptive(), **OPTIONS)
    assert s.converged.all() and s.evaluations <= 5
    assert s.info["alpha"].item() == pytest.approx(0.6, abs=1e-3)


@pytest.mark.parametrize("slope", [1.05, 1.2, 2.0, 5.0])
def test_adaptive_leaves_an_unstable_fixed_point(slope):
    """Growth along an eigenvalue beyond 1 is no reason to smooth."""
    x0 = torch.full((1,), 1e-6, dtype=torch.float64)
    p = problems.Problem("tanh", lambda x: torch.tanh(slope * x), x0)
    s = p.solve(method=Adaptive(), **OPTIONS)
    plain = p.solve(method=Picard(), **OPTIONS)
    assert s.converged.all() and s.value > 0.1
    assert s.evaluations <= plain.evaluations


@pytest.mark.parametrize("seed", range(8))
def test_and_smooths_what_oscillates(seed):
    """Eigenvalues of both signs, up to 3 in absolute value."""
    g = torch.Generator().manual_seed(seed)
    w = torch.randn(6, 6, dtype=torch.float64, generator=g)
    w = 3.0 * (w + w.T) / torch.linalg.matrix_norm(w + w.T, 2)
    b, x0 = 1e-6 * torch.randn(2, 6, dtype=torch.float64, generator=g)
    p = problems.Problem("tanh", lambda x: torch.tanh(w @ x + b), x0)
    assert p.solve(method=Adaptive(), **OPTIONS).converged.all()


@pytest.mark.parametrize("accelerator", [Anderson(), NewtonKrylov()], ids=repr)
def test_accelerators_converge_where_picard_diverges(accelerator):
    """A linear map with eigenvalues outside of the unit disk."""
    p = problems.symmetric_linear(size=5, rho=3.0)
    s = p.solve(method=accelerator, **OPTIONS)
    assert s.converged.all()
    assert p.error(s.value) <= 1e-6


def test_anderson_with_a_full_window_is_gmres():
    """On n unknowns it is done after n + 1 evaluations and one to see it."""
    p = problems.symmetric_linear(size=6, rho=0.9)
    s = p.solve(method=Anderson(window=6), rtol=1e-10)
    assert s.converged.all() and s.evaluations <= 8


@pytest.mark.parametrize("window", [1, 2, 10, 50])
def test_every_window_converges(window):
    for accelerator in (Anderson(window=window), Broyden(memory=window)):
        p = BANK["GCN"]
        s = p.solve(method=accelerator, **OPTIONS)
        assert s.converged.all()
        assert s.evaluations <= picard(p) + EXTRA


@settings(max_examples=8)
@given(seed=st.integers(0, 1000), alpha=st.floats(0.0, 0.9))
def test_accelerators_take_an_alpha(contraction, seed, alpha):
    p = contraction(seed, lipschitz=0.8)
    for accelerator in (
        Anderson(alpha=alpha),
        Broyden(alpha=alpha),
        NewtonKrylov(alpha=alpha),
    ):
        s = fixed_point(p, p.x0, method=accelerator, **OPTIONS)
        assert s.converged.all()
        torch.testing.assert_close(s.value, p.solution(), rtol=0, atol=1e-6)


def test_newton_is_quadratic_at_the_end():
    """Each of the last steps squares the residual, but for K*beta."""
    x0 = torch.full((1,), 10.0, dtype=torch.float64)
    trace = []
    s = fixed_point(
        lambda x: 0.99 * torch.cos(x),
        x0,
        method=NewtonKrylov(),
        callback=lambda k, x, r: trace.append(r.item()),
        **OPTIONS,
    )
    assert s.converged.all()
    before, after = trace[-2:]
    assert 1e-8 < before < 0.1 and after <= before**2


@pytest.mark.parametrize("seed", range(3))
def test_newton_on_many_unknowns(seed):
    """Far from x* its steps lead nowhere; they must not go on for that."""
    torch.manual_seed(seed)
    x0 = torch.randn(2, 3, 4, 5, dtype=torch.float64)
    counts = [
        fixed_point(torch.cos, x0, method=m, **OPTIONS).evaluations
        for m in (Picard(0.0), NewtonKrylov())
    ]
    assert counts[1] <= counts[0] / 2


def test_newton_alone_and_in_a_batch():
    """What a segment may spend is its own account."""
    torch.manual_seed(0)
    x0 = 3 * torch.randn(6, 20, dtype=torch.float64)
    rho = torch.linspace(0.2, 1.2, 6, dtype=torch.float64)[:, None]

    def solve(x0, rho):
        return fixed_point(
            lambda x: rho * torch.cos(x.flip(1) + x),
            x0,
            segments="leading",
            method=NewtonKrylov(),
            rtol=1e-10,
            max_iter=3000,
            on_failure="ignore",
        )

    together = solve(x0, rho)
    assert together.converged.any()
    for i in range(6):
        alone = solve(x0[i : i + 1], rho[i : i + 1])
        assert alone.status[0] == together.status[i]
        if alone.converged:
            torch.testing.assert_close(alone.value[0], together.value[i])


@pytest.mark.parametrize("target", [0.5, 2.0])
def test_kantorovich_on_the_square_root(target):
    """F(x) = (x^2 - a)/2 has F' = x and K = 1 exactly, so beta = 1/x0,
    eta = |x0^2 - a|/(2 x0), and h follows."""
    x0 = 1.5
    s = fixed_point(
        lambda x: x - (x.square() - target) / 2,
        torch.tensor([x0], dtype=torch.float64),
        method=NewtonKrylov(),
        **OPTIONS,
    )
    assert s.converged.all()
    assert s.value.item() == pytest.approx(math.sqrt(target), rel=1e-7)
    beta, eta = 1 / x0, abs(x0**2 - target) / (2 * x0)
    assert s.info["beta"].item() == pytest.approx(beta)
    assert s.info["eta"].item() == pytest.approx(eta)
    assert s.info["K"].item() == pytest.approx(1.0)
    assert s.info["h"].item() == pytest.approx(beta * eta)
    assert s.info["h"].item() <= 0.5


def test_kantorovich_of_squares():
    """F(x) = x + x^2 - b, by elements: what the linear model leaves out of a
    step s is s^2, whatever its direction."""
    torch.manual_seed(0)
    b = torch.rand(12, dtype=torch.float64)
    iterates = []
    s = fixed_point(
        lambda x: b - x.square(),
        torch.zeros_like(b),
        method=NewtonKrylov(),
        callback=lambda k, x, r: iterates.append(x),
        **OPTIONS,
    )
    step = iterates[1] - iterates[0]
    k = 2 * step.square().norm() / step.square().sum()
    assert s.info["K"].item() == pytest.approx(k.item())


@pytest.mark.parametrize("name", BANK)
def test_kantorovich_is_finite(name):
    info = BANK[name].solve(method=NewtonKrylov(), **OPTIONS).info
    assert set(info) == {"beta", "eta", "K", "h"}
    for value in info.values():
        assert value.shape == (1,) and value.isfinite().all()
        assert (value >= 0).all()


@pytest.mark.parametrize("name", ["linear rho=0.9", "GCN", "APPNP"])
def test_newton_sees_that_a_problem_is_linear(name):
    info = BANK[name].solve(method=NewtonKrylov(), **OPTIONS).info
    assert info["K"].item() <= 1e-6
    assert info["h"].item() <= 1e-4


@given(seed=st.integers(0, 1000))
def test_beta_is_a_lower_bound(contraction, seed):
    p = contraction(seed, size=8, lipschitz=0.9)
    info = fixed_point(p, p.x0, method=NewtonKrylov(), **OPTIONS).info
    jacobian = torch.func.jacrev(p)(p.x0)
    inverse = torch.linalg.inv(torch.eye(8).double() - jacobian)
    norm = torch.linalg.matrix_norm(inverse, 2).item()
    assert info["beta"].item() <= norm * (1 + 1e-6)


def test_newton_asks_for_no_gradient_of_its_own():
    """Nothing here can be learned: the value hangs on no graph."""
    x0 = torch.zeros(3, dtype=torch.float64)
    s = fixed_point(torch.cos, x0, method=NewtonKrylov(), **OPTIONS)
    assert s.converged.all() and not s.value.requires_grad


def test_newton_in_threads():
    """Forward mode is one for all of them."""
    x0 = torch.zeros(3, dtype=torch.float64)

    def solve(b):
        s = fixed_point(
            lambda x: torch.cos(x) + b, x0, method=NewtonKrylov(), **OPTIONS
        )
        return s.converged.all().item()

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(solve, torch.linspace(0, 1, 40).double()))


def test_newton_within_newton():
    """Forward mode does not nest; two reverse passes take its place."""
    x0 = torch.zeros(3, dtype=torch.float64)

    def outer(x):
        inner = fixed_point(
            lambda y: 0.3 * torch.sin(y + x),
            x0,
            method=NewtonKrylov(),
            rtol=1e-12,
        )
        return 0.5 * torch.cos(inner.value + x)

    s = fixed_point(outer, x0, method=NewtonKrylov(), **OPTIONS)
    assert s.converged.all()
    plain = fixed_point(outer, x0, **OPTIONS)
    torch.testing.assert_close(s.value, plain.value)


def test_newton_without_a_forward_derivative():
    """Two reverse passes take the place of the missing formula."""

    class Half(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return 0.5 * x

        @staticmethod
        def backward(ctx, g):
            return 0.5 * g

    x0 = torch.zeros(3, dtype=torch.float64)
    s = fixed_point(
        lambda x: Half.apply(x) + 1, x0, method=NewtonKrylov(), **OPTIONS
    )
    assert s.converged.all()
    torch.testing.assert_close(s.value, x0 + 2)
