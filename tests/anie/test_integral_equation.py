"""Equations with known solutions, orders of convergence, certificates."""

import math
from dataclasses import replace
from itertools import pairwise

import pytest
import torch

from torch_picard import Anderson, Implicit, Picard, Status
from torch_picard.anie import (
    Attention,
    GaussLegendre,
    IntegralEquation,
    MonteCarlo,
    Trapezoid,
)
from torch_picard.contraction import Ball
from torch_picard.problems import integral_equations

EXACT = {"method": Picard(alpha=0.0), "rtol": 1e-14, "max_iter": 300,
         "on_failure": "ignore"}  # fmt: skip


@pytest.fixture(autouse=True)
def _double():
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


PROBLEMS = {p.name: p for p in integral_equations()}
SMOOTH = [name for name in PROBLEMS if name != "F3"]


def worst(problem, equation, value):
    return float((value - problem.exact(equation.nodes)).abs().max())


@pytest.mark.parametrize("name", SMOOTH)
def test_gauss_legendre_reaches_1e_10(name):
    """With 16 nodes; tan x, whose pole is at 1.57, takes 32."""
    problem = PROBLEMS[name]
    assert problem.nodes == (32 if name == "V3" else 16)
    if name == "V3":
        coarse = problem.equation(GaussLegendre(16))
        missed = worst(problem, coarse, coarse.solve(**EXACT).value)
        assert 1e-10 < missed < 3e-10
    equation = problem.equation(GaussLegendre(problem.nodes))
    solution = equation.solve(**EXACT)
    assert worst(problem, equation, solution.value) < 1e-10
    x = torch.linspace(*problem.domain, 21)[:, None]
    between = equation.evaluate(solution, x)
    assert (between - problem.exact(x)).abs().max() < 1e-10


def test_the_error_of_gauss_legendre_falls_geometrically():
    for n, least in ((8, 1e-3), (16, 1e-6), (32, 1e-10)):
        equation = PROBLEMS["V3"].equation(GaussLegendre(n))
        u = equation.solve(**EXACT).value
        assert worst(PROBLEMS["V3"], equation, u) < least


@pytest.mark.parametrize("name", PROBLEMS)
def test_the_trapezoid_has_order_two(name):
    problem, errors = PROBLEMS[name], []
    for n in (17, 33, 65):
        equation = problem.equation(Trapezoid(n))
        u = equation.solve(**EXACT).value
        errors.append(worst(problem, equation, u))
    if name == "H2":  # exact: its integrand is a trigonometric polynomial
        assert max(errors) < 1e-12
        return
    for coarse, fine in pairwise(errors):
        assert math.log2(coarse / fine) > 1.8


@pytest.mark.parametrize("name", PROBLEMS)
def test_the_rate_is_the_one_that_is_stated(name):
    """Of plain Picard steps, near the solution; a Volterra equation's falls
    to nothing."""
    problem = PROBLEMS[name]
    equation = problem.equation(GaussLegendre(problem.nodes or 64))
    if problem.rate is None:
        return
    truth = equation.solve(**EXACT).value
    x, errors = equation.f, []
    while not errors or (1e-9 < errors[-1] and len(errors) < 40):
        errors.append(float((x - truth).abs().max()))
        x = equation(x)
    ratios = [b / a for a, b in pairwise(errors)]
    if problem.rate == 0:
        assert ratios[-1] < 0.5 * ratios[0]
    else:
        assert ratios[-1] == pytest.approx(problem.rate, rel=2e-2)


@pytest.mark.parametrize("name", PROBLEMS)
def test_it_contracts_where_that_is_stated(name):
    """There the bound is at least the error, and the iterations are no more
    than those that the certificate allows."""
    problem = PROBLEMS[name]
    equation = problem.equation(GaussLegendre(problem.nodes or 64))
    region = problem.region(equation)
    certificate = equation.certificate(region)
    assert certificate.contracts == (problem.radius is not None)
    assert certificate.kind == ("certified" if region is None else "local")
    if not certificate.contracts:
        return
    truth = equation.solve(**EXACT).value
    x = truth + 0.2 * torch.cos(9 * equation.nodes)
    first = float((equation(x) - x).abs().max())
    for k in range(60):
        image = equation(x)
        error = float((x - truth).abs().max())
        residual = float((image - x).abs().max())
        assert error <= certificate.error_bound(residual) + 1e-13
        if error > 1e-12:
            assert k <= certificate.iterations_for(error, first)
        x = image
    assert error < 1e-8


@pytest.mark.parametrize("name", ["F1", "F3", "U1"])
def test_monte_carlo_has_order_one_half(name):
    problem = PROBLEMS[name]

    def error(n):
        squares = []
        for seed in range(30):
            equation = problem.equation(MonteCarlo(n, seed))
            u = equation.solve(**EXACT).value
            exact = problem.exact(equation.nodes)
            squares.append((u - exact).square().mean())
        return float(torch.stack(squares).mean()) ** 0.5

    order = math.log(error(25) / error(400)) / math.log(16)
    assert 0.35 < order < 0.65


def test_the_k_th_iterate_of_v1_is_the_taylor_polynomial():
    for k in range(1, 9):
        equation = replace(PROBLEMS["V1"], lam=1.5).equation(GaussLegendre(16))
        u = equation.solve(
            method=Picard(alpha=0.0), max_iter=k, rtol=0.0, atol=0.0
        ).value
        x = 1.5 * equation.nodes
        taylor = sum(x**j / math.factorial(j) for j in range(k + 1))
        torch.testing.assert_close(u, taylor, atol=1e-13, rtol=1e-13)


def green(alpha, n=41):
    """F3 on the trapezoid grid with lam = -1.5 pi^2."""
    equation = IntegralEquation(
        lambda x, t, u: torch.minimum(x, t) * (1 - torch.maximum(x, t)) * u,
        lambda x: torch.sin(math.pi * x), Trapezoid(n), (0, 1),
        lam=-1.5 * math.pi**2,
    )  # fmt: skip
    start = 0.1 * torch.sin(math.pi * equation.nodes)
    return equation, equation.solve(
        start, method=Picard(alpha=alpha), rtol=1e-12, max_iter=2000,
        on_failure="ignore",
    )  # fmt: skip


def test_smoothing_rescues_f3_from_alpha_0_2_on():
    equation, solution = green(0.25)
    assert solution.status == Status.CONVERGED
    h = 1 / 40
    grid_value = h**2 / (4 * math.sin(math.pi * h / 2) ** 2)
    exact = torch.sin(math.pi * equation.nodes)
    exact = exact / (1 + 1.5 * math.pi**2 * grid_value)
    torch.testing.assert_close(solution.value, exact, atol=1e-11, rtol=0)
    for alpha in (0.0, 0.15):
        assert green(alpha)[1].status != Status.CONVERGED


def test_h1_has_two_solutions_and_a_local_certificate():
    lam = 1.0
    equation = PROBLEMS["H1"].equation(GaussLegendre(16))
    assert equation.certificate().constant == math.inf
    assert not equation.certificate().contracts
    region = Ball(1.2, equation.nodes)
    certificate = equation.certificate(region)
    assert certificate.kind == "local"
    exact = float((2 * equation.nodes * 1).max())  # at least at u = x
    assert certificate.constant > exact * float(equation.nodes.mean()) / 2
    solution = equation.solve(**EXACT)
    torch.testing.assert_close(solution.value, equation.nodes)
    other = (4 - lam) / lam * equation.nodes
    torch.testing.assert_close(equation(other), other)
    # a fixed point, but one that repels
    away = equation.solve(1.001 * other, **EXACT)
    assert away.status != Status.CONVERGED


def test_the_slope_of_u1_is_the_one_of_the_formula():
    equation = PROBLEMS["U1"].equation(GaussLegendre(400))
    m = 0.6
    certificate = equation.certificate(
        Ball(1 - m, torch.ones_like(equation.nodes))
    )
    assert certificate.constant == pytest.approx(1 / (m * (m + 1)), rel=1e-2)


@pytest.mark.parametrize(
    "name, beta", [("V1", 4.0), ("V2", 2.0), ("V3", 8.0), ("V4", 10.0)]
)
def test_volterra_equations_contract_in_a_weighted_norm(name, beta):
    """Bielecki's: max of exp(-beta x) |u|. The bound is at least the error,
    and the iterations are no more than those allowed."""
    problem = PROBLEMS[name]
    equation = problem.equation(Trapezoid(200))
    truth = equation.solve(**EXACT).value
    region = None
    if not equation.certificate().constant < math.inf:
        region = Ball(0.1, truth)
    certificate = equation.certificate(region, beta=beta)
    assert certificate.contracts
    weight = torch.exp(-beta * equation.nodes)

    def size(v):
        return float((weight * v).abs().max())

    x = truth + 0.005 * torch.cos(9 * equation.nodes)
    first = size(equation(x) - x)
    for k in range(60):
        image = equation(x)
        assert region is None or (x - truth).abs().max() <= 0.1
        error = size(x - truth)
        assert error <= certificate.error_bound(size(image - x)) + 1e-13
        if error > 1e-12:
            assert k <= certificate.iterations_for(error, first)
        x = image
    assert error < 1e-8


def test_beta_is_checked():
    equation = PROBLEMS["V1"].equation(Trapezoid(20))
    for beta, norm in ((-1.0, "linf"), ("a", "linf"), (1.0, "l2")):
        with pytest.raises(ValueError, match="beta"):
            equation.certificate(norm=norm, beta=beta)


@pytest.mark.parametrize("name", ["F1", "F2", "V2"])
@pytest.mark.parametrize("norm", ["l2", "linf", "l1"])
def test_certified_equations_keep_their_promises(name, norm):
    equation = PROBLEMS[name].equation(GaussLegendre(16))
    certificate = equation.certificate(norm=norm)
    assert certificate.kind == "certified"
    order = {"l2": 2, "linf": math.inf, "l1": 1}[norm]

    def size(v):
        return float(torch.linalg.vector_norm(v, order))

    torch.manual_seed(0)
    for _ in range(20):
        u, v = torch.randn(2, 16, 1)
        ratio = size(equation(u) - equation(v)) / size(u - v)
        assert ratio <= certificate.constant * (1 + 1e-12)
    if not certificate.contracts:
        return
    truth = equation.solve(**EXACT).value
    x = equation.f
    first = size(equation(x) - x)
    for k in range(30):
        image = equation(x)
        error = size(x - truth)
        assert error <= certificate.error_bound(size(image - x)) + 1e-13
        if error > 1e-12:
            assert k <= certificate.iterations_for(error, first)
        x = image


def test_linear_certificates_are_exact_in_l_inf():
    equation = replace(PROBLEMS["F1"], lam=1.0).equation(GaussLegendre(16))
    # max_i x_i * int t dt
    top = float(equation.nodes.max()) / 2
    assert equation.certificate().constant == pytest.approx(top, rel=1e-9)


def test_an_unknown_operation_is_named_and_nothing_is_claimed():
    equation = IntegralEquation(
        lambda x, t, u: torch.special.bessel_j0(u), torch.ones_like,
        Trapezoid(5), (0, 1),
    )  # fmt: skip
    certificate = equation.certificate(Ball(1.0))
    assert certificate.constant == math.inf
    assert "bessel" in certificate.reason


def test_systems_and_batches():
    """u' = v, v' = -u as a Volterra system, and a batch of right sides."""
    turn = torch.tensor([[0.0, 1.0], [-1.0, 0.0]])
    start = torch.tensor([[0.0, 1.0], [1.0, 0.0], [2.0, 3.0]])
    rule = GaussLegendre(16)
    f = start[:, None].expand(3, 16, 2)
    equation = IntegralEquation(
        lambda x, t, u: u @ turn.T, f, rule, (0, 1), volterra=True
    )
    solution = equation.solve(**EXACT)
    assert solution.status.shape == (3,)
    x = equation.nodes[:, 0]
    for b in range(3):
        a, c = start[b]
        torch.testing.assert_close(
            solution.value[b],
            torch.stack([a * x.cos() + c * x.sin(),
                         c * x.cos() - a * x.sin()], 1),
        )  # fmt: skip
    alone = IntegralEquation(
        lambda x, t, u: u @ turn.T, f[1], rule, (0, 1), volterra=True
    )
    torch.testing.assert_close(solution.value[1], alone.solve(**EXACT).value)


def test_several_dimensions():
    """u(x,y) = x + lam*int_[0,1]^2 x s u(s,t): u = x / (1 - lam/3)."""
    for rule in (GaussLegendre(6), Trapezoid(25)):
        equation = IntegralEquation(
            lambda x, t, u: x[..., :1] * t[..., :1] * u,
            lambda x: x[:, :1], rule, ((0, 1), (0, 2)), lam=0.5,
        )  # fmt: skip
        u = equation.solve(**EXACT).value
        exact = equation.nodes[:, :1] / (1 - 0.5 * 2 / 3)
        error = (u - exact).abs().max()
        assert error < (1e-12 if isinstance(rule, GaussLegendre) else 2e-3)


def test_volterra_in_two_dimensions():
    """u = 1 + int_0^x int_0^y u ds dt: the Bessel-like series
    sum (xy)^k / k!^2."""
    equation = IntegralEquation(
        lambda x, t, u: u, lambda x: torch.ones(len(x), 1),
        GaussLegendre(8), ((0, 1), (0, 1)), volterra=True,
    )  # fmt: skip
    u = equation.solve(**EXACT).value
    product = equation.nodes.prod(1, keepdim=True)
    series = sum(product**k / float(math.factorial(k)) ** 2 for k in range(20))
    torch.testing.assert_close(u, series, atol=1e-9, rtol=0)


@pytest.mark.parametrize(
    "kind, n",
    [(GaussLegendre, 8), (Trapezoid, 9), (MonteCarlo, 15), (Attention, 12)],
)
@pytest.mark.parametrize("volterra", [False, True])
def test_blocks_change_nothing(kind, n, volterra):
    rule = kind(n)
    theta = torch.tensor(0.7, requires_grad=True)

    def solve(memory):
        equation = IntegralEquation(
            lambda x, t, u: torch.sin(theta * x + t) * u, lambda x: x + 1,
            rule, (0, 1), volterra=volterra, lam=0.5, memory=memory,
        )  # fmt: skip
        u = equation.solve(rtol=1e-12, max_iter=100).value
        return u, torch.autograd.grad(u.sum(), theta)[0]

    for a, b in zip(solve(2**28), solve(1000)):
        torch.testing.assert_close(a, b)


def test_untrained_attention_is_the_midpoint_rule_and_learns():
    equation = PROBLEMS["F1"].equation(Attention(200))
    u = equation.solve(**EXACT).value
    exact = equation.nodes / (1 - 0.8 / 3)
    assert (u - exact).abs().max() < 1e-5
    rule = Attention(10)
    equation = PROBLEMS["F1"].equation(rule)
    u = equation.solve(gradient=Implicit(), rtol=1e-10, max_iter=100).value
    u.square().sum().backward()
    assert rule.query.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("gradient", [None, Implicit(rtol=1e-12)])
def test_gradients_of_parameters_f_and_lam(gradient):
    def value(theta, f, lam):
        equation = IntegralEquation(
            lambda x, t, u: torch.sin(theta * x * t * u), f,
            GaussLegendre(4), (0, 1), lam=lam,
        )  # fmt: skip
        options = {} if gradient is None else {"gradient": gradient}
        return equation.solve(rtol=1e-14, max_iter=200, **options).value

    inputs = [
        torch.tensor(0.8, requires_grad=True),
        torch.ones(4, 1, requires_grad=True),
        torch.tensor(0.5, requires_grad=True),
    ]
    assert torch.autograd.gradcheck(value, inputs, atol=1e-6)


def test_accelerators_and_warm_starts_apply():
    equation = PROBLEMS["F2"].equation(GaussLegendre(16))
    plain = equation.solve(rtol=1e-10, max_iter=500)
    fast = equation.solve(method=Anderson(), rtol=1e-10, max_iter=500)
    assert fast.evaluations < plain.evaluations
    assert equation.solve(plain.value, rtol=1e-9).evaluations <= 2


def test_monte_carlo_nodes_do_not_change_within_a_solve():
    equation = PROBLEMS["F1"].equation(MonteCarlo(50))
    assert equation.solve(rtol=1e-13, max_iter=200).converged.all()
    same = PROBLEMS["F1"].equation(MonteCarlo(50))
    assert torch.equal(equation.nodes, same.nodes)
    assert not torch.equal(
        equation.nodes, PROBLEMS["F1"].equation(MonteCarlo(50, seed=1)).nodes
    )


@pytest.mark.parametrize(
    "change, error, name",
    [
        ({"kernel": 3}, TypeError, "kernel"),
        ({"free": None}, TypeError, "free"),
        ({"free": torch.ones(4)}, ValueError, "free"),
        ({"free": torch.ones(3, 1)}, ValueError, "free"),
        ({"free": lambda x: x[:, 0]}, ValueError, "free"),
        ({"quadrature": 4}, TypeError, "quadrature"),
        ({"domain": (1, 0)}, ValueError, "domain"),
        ({"domain": (0, math.inf)}, ValueError, "domain"),
        ({"domain": "ab"}, ValueError, "domain"),
        ({"domain": ()}, ValueError, "domain"),
        ({"lam": "1"}, ValueError, "lam"),
        ({"lam": math.nan}, ValueError, "lam"),
        ({"memory": 0}, ValueError, "memory"),
    ],
)
def test_wrong_arguments(change, error, name):
    arguments = {
        "kernel": lambda x, t, u: u, "free": lambda x: x,
        "quadrature": Trapezoid(4), "domain": (0, 1),
    }  # fmt: skip
    arguments |= change
    with pytest.raises(error, match=name):
        IntegralEquation(
            arguments.pop("kernel"), arguments.pop("free"),
            arguments.pop("quadrature"), arguments.pop("domain"), **arguments,
        )  # fmt: skip


def test_wrong_calls():
    equation = PROBLEMS["F1"].equation(Trapezoid(4))
    with pytest.raises(ValueError, match="u must"):
        equation(torch.ones(4))
    with pytest.raises(ValueError, match="u0"):
        equation.solve(torch.ones(3, 1))
    with pytest.raises(ValueError, match="domain"):
        equation.evaluate(torch.ones(4, 1), torch.tensor([[2.0]]))
    with pytest.raises(ValueError, match="columns"):
        equation.evaluate(torch.ones(4, 1), torch.ones(1, 2))
    with pytest.raises(TypeError, match="region"):
        equation.certificate(1.0)
    bad = IntegralEquation(
        lambda x, t, u: u.sum(-1), lambda x: x, Trapezoid(4), (0, 1)
    )
    with pytest.raises(ValueError, match="kernel must return"):
        bad(torch.ones(4, 1).expand(4, 1) * torch.ones(2, 4, 1))
    known = IntegralEquation(
        lambda x, t, u: u, torch.ones(4, 1), Trapezoid(4), (0, 1)
    )
    with pytest.raises(ValueError, match="free"):
        known.evaluate(torch.ones(4, 1), torch.ones(1, 1))
    with pytest.raises(ValueError, match="at least 2"):
        Trapezoid(1)
    with pytest.raises(TypeError, match="integer"):
        GaussLegendre(1.5)


@pytest.mark.slow
def test_100_000_nodes_in_bounded_memory():
    equation = IntegralEquation(
        lambda x, t, u: x * t * u, lambda x: x, Trapezoid(100_000), (0, 1),
        lam=0.3, memory=2**27,
    )  # fmt: skip
    with torch.no_grad():
        u = equation.solve(
            method=Picard(alpha=0.0), max_iter=1, rtol=0.0, atol=0.0
        ).value
    exact = equation.nodes * sum(0.1**k for k in range(2))
    torch.testing.assert_close(u, exact, atol=1e-8, rtol=0)
