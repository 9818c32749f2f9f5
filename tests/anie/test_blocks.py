"""Many nodes in bounded memory; nodes, weights and f as they should be."""

import math

import numpy as np
import pytest
import torch

from torch_picard import Picard
from torch_picard.anie import (
    NIE,
    Attention,
    GaussLegendre,
    IntegralEquation,
    MonteCarlo,
    Points,
    Trapezoid,
)
from torch_picard.anie.gauss import _asymptotic, gauss_legendre
from torch_picard.contraction import Ball

ONE = {"method": Picard(alpha=0.0), "max_iter": 1, "rtol": 0.0}
RULES = {
    "trapezoid": (Trapezoid(300), (0, 1)),
    "Monte Carlo": (MonteCarlo(300), (0, 1)),
    "attention": (Attention(300), (0, 1)),
    "Gauss": (GaussLegendre(300), (0, 1)),
    "plane": (Trapezoid(17), ((0, 1), (0, 1))),
    "attention in the plane": (Attention(17, 2), ((0, 1), (0, 1))),
}


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("volterra", [False, True])
def test_no_matrix_of_all_nodes_is_made(name, volterra, monkeypatch):
    """Weights that depend on x are asked for by blocks, as values are."""
    rule, domain = RULES[name]
    sizes = []
    for method in ("running_weights", "matrix"):
        if (inner := getattr(rule, method, None)) is None:
            continue

        def recorded(domain, x, inner=inner):
            sizes.append(len(x))
            return inner(domain, x)

        monkeypatch.setattr(rule, method, recorded)

    def solved(memory):
        equation = IntegralEquation(
            lambda x, t, u: (x * t).sum(-1, keepdim=True) * u,
            lambda x: x[:, :1], rule, domain, volterra=volterra, lam=0.3,
            memory=memory,
        )  # fmt: skip
        return equation.solve(**ONE).value

    whole = solved(2**28)
    sizes.clear()
    torch.testing.assert_close(solved(2**17), whole)
    if sizes:
        assert max(sizes) * 300 * 8 < 2**17


@pytest.mark.parametrize("n", [256, 257, 1000])
def test_many_nodes_of_gauss_are_those_of_the_eigenvalue_problem(n):
    nodes, weights = _asymptotic(n)
    others, ones = np.polynomial.legendre.leggauss(n)
    np.testing.assert_allclose(nodes, others, rtol=0, atol=1e-15)
    np.testing.assert_allclose(weights, ones, rtol=0, atol=1e-13)


def test_20_000_nodes_of_gauss_integrate_waves():
    nodes, weights = gauss_legendre(20_001)
    assert (np.diff(nodes) > 0).all()
    for wave in (1.0, 100.5, 15_000.25):
        exact = 2 * math.sin(wave) / wave
        assert abs((weights * np.cos(wave * nodes)).sum() - exact) < 1e-13
    with pytest.raises(ValueError, match="volterra"):
        GaussLegendre(5000).running_weights(((0.0, 1.0),), torch.ones(1, 1))


def test_f_is_what_free_is_now():
    b = torch.nn.Parameter(torch.tensor(1.0, dtype=torch.double))
    equation = IntegralEquation(
        lambda x, t, u: x * t * u, lambda x: b * x.double(),
        GaussLegendre(5), (0, 1), lam=0.5,
    )  # fmt: skip
    for _ in range(2):
        equation.solve().value.sum().backward()
    with torch.no_grad():
        b.mul_(3)
    solution = equation.solve(rtol=1e-12, max_iter=100)
    exact = 3 * equation.nodes / (1 - 0.5 / 3)
    torch.testing.assert_close(solution.value, exact)
    between = equation.evaluate(solution, equation.nodes)
    torch.testing.assert_close(between, solution.value)
    torch.testing.assert_close(equation(solution.value), solution.value)


def test_nodes_in_the_precision_of_f():
    """Not rounded to torch's default dtype first."""
    exact = (np.polynomial.legendre.leggauss(16)[0] + 1) / 2
    nodes = torch.from_numpy(exact)[:, None]
    assert torch.get_default_dtype() == torch.float32
    for free in (nodes, lambda x: x.double()):
        equation = IntegralEquation(
            lambda x, t, u: x * t * u, free, GaussLegendre(16), (0, 1),
            lam=0.8,
        )  # fmt: skip
        assert torch.equal(equation.nodes, nodes)
        u = equation.solve(rtol=1e-14, max_iter=200, on_failure="ignore").value
        assert (u - nodes / (1 - 0.8 / 3)).abs().max() < 1e-13


def test_running_weights_are_made_where_x_is():
    for rule in (Attention(4), MonteCarlo(4), Trapezoid(4)):
        if isinstance(rule, Attention):
            x = torch.zeros(3, 1, device="meta")
            rule = rule.to("meta")
            weights = rule.running_weights(((0.0, 1.0),), x)
            assert weights.device.type == "meta"
        x = torch.ones(3, 1, dtype=torch.double)
        if not isinstance(rule, Attention):
            weights = rule.running_weights(((0.0, 1.0),), x)
            assert weights.dtype == torch.double


def make(**changes):
    arguments = {
        "kernel": lambda x, t, u: x * t * u, "free": lambda x: x,
        "quadrature": Trapezoid(4), "domain": (0, 1),
    }  # fmt: skip
    arguments |= changes
    return IntegralEquation(**arguments)


WIDE = {"free": lambda x: x.expand(-1, 4)}


@pytest.mark.parametrize(
    "call, error, name",
    [
        (lambda: make(volterra="no"), TypeError, "volterra"),
        (lambda: make(lam=torch.tensor(math.nan)), ValueError, "lam"),
        (lambda: make(lam=torch.tensor(1j)), ValueError, "lam"),
        (lambda: make(free=torch.ones(4, 1).long()), TypeError, "free"),
        (lambda: make(free=lambda x: x + 1j), TypeError, "free"),
        (lambda: make().evaluate(torch.ones(4, 1), torch.ones(0, 1)),
         ValueError, "x must"),
        (lambda: make().evaluate(torch.ones(4, 1), torch.ones(1, 1).long()),
         TypeError, "x must"),
        (lambda: make().evaluate(torch.ones(4, 1), torch.tensor([[math.nan]])),
         ValueError, "x must"),
        (lambda: make().evaluate(torch.ones(3, 1), torch.ones(1, 1)),
         ValueError, "u must"),
        (lambda: make().solve(torch.ones(4, 1).double()), TypeError, "u0"),
        (lambda: make().certificate(Ball(1.0, torch.ones(3, 1))), ValueError,
         "region must have a center"),
        (lambda: make().certificate(norm="l3"), ValueError, "norm"),
        (lambda: make(kernel=lambda x, t, u: (x * t * u).sum(-1), **WIDE)(
            torch.ones(4, 4)), ValueError, "kernel must return"),
        (lambda: NIE(1, 1, domain="no"), ValueError, "domain"),
        (lambda: NIE(1, 2, domain=(0, 1)), ValueError, "domain"),
        (lambda: Points(torch.ones(2, 1), [1.0, 1.0]), TypeError, "weights"),
        (lambda: MonteCarlo(4, "a"), TypeError, "seed"),
        (lambda: MonteCarlo(4, 1.5), TypeError, "seed"),
    ],
)  # fmt: skip
def test_wrong_arguments(call, error, name):
    with pytest.raises(error, match=name):
        call()


@pytest.mark.slow
@pytest.mark.parametrize(
    "rule, domain, volterra",
    [
        (Trapezoid(30_000), (0, 1), True),
        (MonteCarlo(30_000), (0, 1), True),
        (Attention(30_000).double(), (0, 1), False),
        (Trapezoid(173), ((0, 1), (0, 1)), True),
        (GaussLegendre(100_000), (0, 1), False),
    ],
)
def test_one_evaluation_with_many_nodes(rule, domain, volterra):
    equation = IntegralEquation(
        lambda x, t, u: u, lambda x: torch.ones(len(x), 1).double(), rule,
        domain, volterra=volterra, lam=0.5, memory=2**27,
    )  # fmt: skip
    x = torch.full((50, len(equation.domain)), 0.5).double()
    full = rule.n < 100_000 and volterra
    with torch.no_grad():
        u = equation.solve(**ONE).value if full else equation.f
        at = equation.integral(equation.f, x)
    volume = 0.5 ** len(equation.domain) if volterra else 1.0
    tolerance = 0.02 if isinstance(rule, MonteCarlo) else 1e-9
    assert (at - volume).abs().max() < tolerance
    if full:
        exact = 1 + 0.5 * equation.nodes.prod(1, keepdim=True)
        assert (u - exact).abs().max() < tolerance
