"""Equation (1): x = lam*T(x) + f."""

import pytest
import torch

from torch_picard import Implicit, OperatorEquation, fixed_point


def vector(*entries):
    return torch.tensor(entries, dtype=torch.float64)


def test_it_is_the_operator_of_equation_1():
    equation = OperatorEquation(torch.sin, vector(1.0, 2.0), lam=0.5)
    x = vector(0.3, -0.7)
    expected = 0.5 * torch.sin(x) + vector(1.0, 2.0)
    assert torch.equal(equation(x), expected)
    assert "lam=0.5" in repr(equation)


def test_solve_starts_from_f():
    f = vector(1.0, 2.0)
    equation = OperatorEquation(torch.sin, f, lam=0.5)
    starts = []
    s = equation.solve(
        rtol=1e-12,
        max_iter=200,
        callback=lambda k, x, residual: starts.append(x),
    )
    assert torch.equal(starts[0], f)
    direct = fixed_point(equation, f, rtol=1e-12, max_iter=200)
    assert torch.equal(s.value, direct.value)
    torch.testing.assert_close(
        s.value, 0.5 * torch.sin(s.value) + f, rtol=1e-11, atol=0
    )


def test_x0_may_be_given():
    equation = OperatorEquation(torch.sin, vector(1.0), lam=0.5)
    s = equation.solve(vector(40.0), rtol=1e-12, max_iter=200)
    assert s.converged.all()


def test_without_f():
    equation = OperatorEquation(torch.cos)
    s = equation.solve(vector(0.0), max_iter=100)
    assert s.value.item() == pytest.approx(0.739085, abs=1e-4)
    with pytest.raises(ValueError, match="x0"):
        equation.solve()


def test_structures():
    f = {"u": vector(1.0), "v": (vector(2.0, 3.0),)}
    equation = OperatorEquation(
        lambda x: {"u": torch.sin(x["u"]), "v": (torch.cos(x["v"][0]),)},
        f,
        lam=0.5,
    )
    s = equation.solve(rtol=1e-12, max_iter=200)
    assert s.converged.all()
    u, (v,) = s.value["u"], s.value["v"]
    torch.testing.assert_close(u, 0.5 * torch.sin(u) + 1)
    torch.testing.assert_close(v, 0.5 * torch.cos(v) + vector(2.0, 3.0))
    free = OperatorEquation(equation.T, lam=0.5)
    s = free.solve(f, rtol=1e-12, max_iter=200)
    torch.testing.assert_close(s.value["u"], vector(0.0), rtol=0, atol=1e-9)


def test_lam_and_f_can_be_learned():
    def solve(lam, f):
        equation = OperatorEquation(torch.sin, f, lam)
        return equation.solve(
            gradient=Implicit(rtol=1e-12), rtol=1e-14, max_iter=200
        ).value

    lam = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    f = vector(1.0, 2.0).requires_grad_()
    assert torch.autograd.gradcheck(solve, (lam, f))


def test_a_structure_that_does_not_match():
    equation = OperatorEquation(lambda x: x["u"], {"u": vector(1.0)})
    with pytest.raises(ValueError, match="structure of f"):
        equation.solve()
