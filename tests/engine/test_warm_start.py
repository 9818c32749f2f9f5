"""Starting from an earlier Solution."""

import pytest
import torch

from torch_picard import (
    Anderson,
    Broyden,
    Implicit,
    OneStep,
    Phantom,
    Picard,
    Unrolled,
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


UNMOVED = "no update to differentiate"


def restarted(gradient, **options):
    """A start that passes, of theta x + 1, and the solve from there."""
    theta = torch.full((3, 1), 0.5, dtype=torch.float64, requires_grad=True)
    x0 = torch.full((3, 2), 2.0, dtype=torch.float64)

    def operator(x):
        return theta * x + 1

    return (
        theta,
        x0,
        operator,
        fixed_point(
            operator, x0, segments="leading", gradient=gradient, **options
        ),
    )


@pytest.mark.parametrize("checkpoint", [False, True])
def test_without_an_update_nothing_is_unrolled(checkpoint, method):
    """The gradient is the one of x0 as it is, and that is said."""
    theta, _, _, s = restarted(Unrolled(checkpoint), method=method)
    assert s.evaluations == 1
    with pytest.warns(UserWarning, match=UNMOVED):
        s.value.sum().backward()
    assert torch.equal(theta.grad, torch.zeros_like(theta))


def test_segments_without_an_update_are_named_if_they_matter(recwarn):
    theta = torch.full((3, 1), 0.5, dtype=torch.float64, requires_grad=True)
    x0 = torch.tensor([[2.0], [1.0], [2.0]], dtype=torch.float64)
    s = fixed_point(lambda x: theta * x + 1, x0, segments="leading")
    assert s.iterations[1] > 0
    s.value[1].sum().backward(retain_graph=True)
    assert not recwarn.list
    torch.testing.assert_close(theta.grad[1].item(), 4.0, rtol=1e-3, atol=0)
    with pytest.warns(UserWarning, match=UNMOVED):
        s.value.sum().backward()


@pytest.mark.parametrize("gradient", [Implicit(), Phantom(50)], ids=repr)
def test_the_equation_has_its_gradient_at_any_start(gradient, recwarn):
    theta, _, _, s = restarted(gradient)
    s.value.sum().backward()
    torch.testing.assert_close(theta.grad, torch.full_like(theta, 8.0))
    assert not recwarn.list


@pytest.mark.parametrize("rtol", [0.0, 1e-5])
def test_stopped_at_the_start(rtol, recwarn):
    theta = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    s = fixed_point(
        lambda x: theta * x + 1, torch.zeros(2, dtype=torch.float64),
        rtol=rtol, callback=lambda k, x, r: True,
    )  # fmt: skip
    (g,) = torch.autograd.grad(s.value.sum(), theta)
    assert s.evaluations == 1 and g == 0
    assert not recwarn.list


@pytest.mark.parametrize(
    "gradient", [Unrolled(), Implicit(), Phantom(), OneStep()], ids=repr
)
@pytest.mark.parametrize("enabled", [False, True])
def test_the_value_is_not_the_memory_of_the_start(gradient, enabled):
    with torch.set_grad_enabled(enabled):
        _, x0, operator, s = restarted(gradient)
    before = x0.clone()
    with torch.no_grad():
        s.value.add_(1)
    assert torch.equal(x0, before)
    again = fixed_point(operator, s, segments="leading")
    assert again.value is not s.value
