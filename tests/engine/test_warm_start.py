"""Starting from an earlier Solution."""

import pytest
import torch

from torch_picard import (
    Anderson,
    Broyden,
    Implicit,
    Picard,
    fixed_point,
    problems,
)

OPTIONS = {"rtol": 1e-9, "max_iter": 500}


def family(t):
    """A problem that changes slowly with t."""
    p = problems.symmetric_linear(rho=0.9)
    return lambda x: p.operator(x) + t, p.x0


def test_the_value_is_the_start(method):
    operator, x0 = family(0.0)
    cold = fixed_point(operator, x0, method=method, **OPTIONS)
    again = fixed_point(operator, cold, method=method, **OPTIONS)
    assert again.evaluations == 1
    assert torch.equal(again.value, cold.value)


def test_a_nearby_problem_costs_less(method):
    operator, x0 = family(0.0)
    first = fixed_point(operator, x0, method=method, **OPTIONS)
    operator, _ = family(1e-4)
    cold = fixed_point(operator, x0, method=method, **OPTIONS)
    warm = fixed_point(operator, first, method=method, **OPTIONS)
    assert warm.converged.all()
    assert warm.evaluations < cold.evaluations
    torch.testing.assert_close(warm.value, cold.value, rtol=0, atol=1e-5)


def test_what_the_method_learned_is_used_again():
    operator, x0 = family(0.0)
    for method, more in ((Anderson(window=20), -1), (Broyden(memory=40), 2)):
        first = fixed_point(operator, x0, method=method, **OPTIONS)
        moved, _ = family(1e-4)
        warm = fixed_point(moved, first, method=method, **OPTIONS)
        cold = fixed_point(moved, first.value, method=method, **OPTIONS)
        assert warm.converged.all()
        assert warm.evaluations <= cold.evaluations + more


def test_another_method_starts_from_the_value():
    operator, x0 = family(0.0)
    first = fixed_point(operator, x0, method=Anderson(), **OPTIONS)
    s = fixed_point(operator, first, method=Picard(), **OPTIONS)
    assert s.evaluations == 1


def test_segments_must_match(method):
    x0 = torch.zeros(4, 2, dtype=torch.float64)

    def operator(x):
        return 0.9 * torch.sin(x) + 1

    first = fixed_point(operator, x0, segments="leading", method=method)
    if first.method_state[1] is None:
        return  # nothing to carry over
    with pytest.raises(ValueError, match="segments"):
        fixed_point(operator, first, method=method)
    assert fixed_point(operator, first.value, method=method).converged.all()


def test_segments_are_warm_too(method):
    x0 = torch.zeros(3, 2, dtype=torch.float64)
    rates = torch.tensor([[0.3], [0.6], [0.9]], dtype=torch.float64)
    first, cold, warm = None, None, None
    for shift in (0.0, 1e-3):
        cold = fixed_point(
            lambda x, shift=shift: rates * torch.sin(x) + 1 + shift,
            x0,
            segments="leading",
            method=method,
            **OPTIONS,
        )
        first = first or cold
    warm = fixed_point(
        lambda x: rates * torch.sin(x) + 1.001,
        first,
        segments="leading",
        method=method,
        **OPTIONS,
    )
    assert warm.converged.all()
    assert warm.evaluations < cold.evaluations
    torch.testing.assert_close(warm.value, cold.value, rtol=1e-6, atol=0)


def test_the_graph_of_the_earlier_solve_is_cut():
    w = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    x0 = torch.zeros(2, dtype=torch.float64)
    first = fixed_point(lambda x: w * x + 1, x0, **OPTIONS)
    second = fixed_point(
        lambda x: w * x + 1, first, gradient=Implicit(), **OPTIONS
    )
    second.value.sum().backward()
    torch.testing.assert_close(w.grad.item(), 8.0, rtol=1e-5, atol=0)
