"""One solve, one map: dropout is frozen."""

import pytest
import torch
from torch.nn import functional as F

from torch_picard import Implicit, OneStep, Phantom, Unrolled, fixed_point

GRADIENTS = [
    Unrolled(),
    Unrolled(checkpoint=True),
    Implicit(rtol=1e-10),
    Phantom(3),
    OneStep(),
]


def noisy(x):
    return F.dropout(0.5 * torch.tanh(x), 0.5) + 1


def start():
    return torch.linspace(-1, 1, 50, dtype=torch.float64)


def test_the_operator_is_the_same_map_in_a_solve(seed, method):
    probe = torch.ones(50, dtype=torch.float64)
    seen = []

    def operator(x):
        mask = F.dropout(probe, 0.5)
        seen.append(mask)
        return 0.3 * torch.tanh(x) * mask + 1

    s = fixed_point(operator, start(), method=method, rtol=1e-9)
    assert s.converged.all() and len(seen) > 3
    assert all(torch.equal(mask, seen[0]) for mask in seen)


def test_it_is_another_one_in_the_next_solve(seed, method):
    first = fixed_point(noisy, start(), method=method)
    second = fixed_point(noisy, start(), method=method)
    assert not torch.equal(first.value, second.value)


def test_the_seed_decides(method):
    values = []
    for _ in range(2):
        torch.manual_seed(5)
        values.append(fixed_point(noisy, start(), method=method).value)
    assert torch.equal(*values)


@pytest.mark.parametrize("gradient", GRADIENTS, ids=repr)
def test_generators_are_left_as_after_one_evaluation(seed, method, gradient):
    w = torch.ones(50, dtype=torch.float64, requires_grad=True)
    noisy(start())
    expected = torch.get_rng_state()
    torch.manual_seed(0)
    s = fixed_point(
        lambda x: w * noisy(x), start(), method=method, gradient=gradient
    )
    assert torch.equal(torch.get_rng_state(), expected)
    s.value.sum().backward()
    assert torch.equal(torch.get_rng_state(), expected)


def test_a_deterministic_operator_leaves_them_alone(seed, method):
    before = torch.get_rng_state()
    fixed_point(lambda x: 0.5 * torch.tanh(x) + 1, start(), method=method)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("gradient", GRADIENTS, ids=repr)
def test_the_gradient_sees_the_same_masks(gradient):
    """A zero in the mask is a zero in the gradient, and the kept entries
    have the gradient of the masked map."""
    torch.manual_seed(3)
    w = torch.full((50,), 0.2, dtype=torch.float64, requires_grad=True)
    masks = []

    def operator(x):
        masks.append(F.dropout(torch.ones_like(x), 0.5).detach())
        return masks[-1] * w * torch.sin(x) + 1

    s = fixed_point(
        operator, start(), rtol=1e-12, max_iter=200, gradient=gradient
    )
    (g,) = torch.autograd.grad(s.value.sum(), w)
    mask = masks[0]
    assert all(torch.equal(m, mask) for m in masks)
    assert torch.equal(g == 0, mask == 0)
    if isinstance(gradient, (Unrolled, Implicit)):
        x = s.value.detach()
        exact = mask * x.sin() / (1 - mask * 0.2 * x.cos())
        torch.testing.assert_close(g, exact, rtol=1e-6, atol=1e-9)


def test_double_backward_sees_the_same_masks():
    def second(gradient):
        torch.manual_seed(3)
        w = torch.full((20,), 0.2, dtype=torch.float64, requires_grad=True)
        x = fixed_point(
            lambda x: F.dropout(w * torch.sin(x), 0.5) + 1,
            torch.zeros(20, dtype=torch.float64),
            rtol=1e-13,
            max_iter=200,
            gradient=gradient,
        ).value
        torch.rand(7)  # somebody else draws in between
        (g,) = torch.autograd.grad(x.square().sum(), w, create_graph=True)
        return torch.autograd.grad(g.square().sum(), w)[0]

    torch.testing.assert_close(
        second(Implicit(rtol=1e-13)), second(Unrolled())
    )


def test_modules_in_training_and_in_eval_mode(seed):
    layer = torch.nn.Sequential(
        torch.nn.Linear(8, 8), torch.nn.Tanh(), torch.nn.Dropout(0.3)
    )
    x0 = torch.randn(4, 8)

    def solve():
        return fixed_point(
            lambda x: 0.5 * layer(x) + x0, x0, gradient=Implicit()
        )

    assert solve().converged.all()
    assert not torch.equal(solve().value, solve().value)
    layer.eval()
    assert torch.equal(solve().value, solve().value)


def test_an_error_in_the_operator_leaves_the_generators_usable(seed):
    calls = 0

    def operator(x):
        nonlocal calls
        calls += 1
        if calls == 3:
            raise RuntimeError("enough")
        return noisy(x)

    with pytest.raises(RuntimeError, match="enough"):
        fixed_point(operator, start())
    after = torch.get_rng_state()
    torch.manual_seed(0)
    noisy(start())
    assert torch.equal(torch.get_rng_state(), after)
