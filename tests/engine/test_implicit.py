"""The implicit gradient: accuracy, memory, and what it cannot see."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from torch_picard import (
    Anderson,
    ConvergenceWarning,
    Implicit,
    OneStep,
    Phantom,
    Picard,
    Status,
    Unrolled,
    fixed_point,
    problems,
)


def linear(rho=0.9, size=12, seed=0):
    """x = Mx + b with b to be learned: the gradient of <c, x*> is
    (I - M)^{-T} c exactly."""
    p = problems.symmetric_linear(size=size, rho=rho, seed=seed)
    b = torch.zeros(size, dtype=torch.float64, requires_grad=True)
    matrix = torch.func.jacrev(p.operator)(p.x0)
    inverse = torch.linalg.inv(torch.eye(size).double() - matrix)
    return p, b, inverse


def gradient_of(gradient, weights, rho=0.9, size=12, **options):
    p, b, _ = linear(rho, size)
    s = fixed_point(
        lambda x: p.operator(x) + b,
        p.x0,
        method=Anderson(),
        rtol=1e-13,
        max_iter=500,
        gradient=gradient,
        **options,
    )
    (s.value @ weights).backward()
    return b.grad, s


@pytest.mark.parametrize("method", [None, Anderson(), Picard(0.0)], ids=repr)
@pytest.mark.parametrize("scale", [1e-20, 1e-5, 1.0, 1e5, 1e20])
def test_the_tolerance_is_relative(method, scale):
    """A small loss has as good a gradient as a large one."""
    weights = torch.arange(1.0, 13.0, dtype=torch.float64)
    exact = linear()[2].T @ weights
    options = Implicit(method, rtol=1e-4, max_iter=500)
    g, s = gradient_of(options, scale * weights)
    unscaled, t = gradient_of(options, weights)
    torch.testing.assert_close(g / scale, unscaled, rtol=1e-9, atol=0)
    assert s.backward.evaluations == t.backward.evaluations
    error = (g / scale - exact).norm() / exact.norm()
    assert 0 < error <= 1e-3


def segments_of_size(size, dtype, by=None, **options):
    """x = a sin(x) + b, the gradient g of its second segment being of this
    size; the gradient of b is then u."""
    a = torch.full((3, 1), 0.5, dtype=dtype, requires_grad=True)
    b = torch.tensor([[0.1, 1], [0.3, 2], [0.5, 3]], dtype=dtype)
    b.requires_grad_()
    g = torch.tensor([[1.0, 2], [3, 4], [5, 6]], dtype=dtype)
    g[1] *= size
    s = fixed_point(
        lambda x: a * torch.sin(x) + b, torch.zeros_like(b),
        segments="leading", gradient=Implicit(by), on_failure="ignore",
    )  # fmt: skip
    grads = torch.autograd.grad(s.value, (a, b), g, **options)
    return a, b, grads, s.backward


@pytest.mark.parametrize("by", [None, Anderson(), Picard(0.0)], ids=repr)
@pytest.mark.parametrize(
    "dtype, power",
    [
        (torch.float32, -100),
        (torch.float32, 100),
        (torch.float64, -800),
        (torch.float64, 900),
    ],
)
def test_squares_of_the_gradient_that_the_dtype_does_not_hold(
    by, dtype, power
):
    """Bitwise that of a gradient of usual size."""
    size = 2.0**power
    *_, grads, backward = segments_of_size(size, dtype, by)
    *_, usual, other = segments_of_size(1.0, dtype, by)
    assert backward.converged.all()
    for mine, theirs in zip(grads, usual):
        theirs[1] *= size
        assert torch.equal(mine, theirs)
    assert backward.evaluations == other.evaluations


@pytest.mark.parametrize("by", [None, Anderson(), Picard(0.0)], ids=repr)
@pytest.mark.parametrize("bad", [0.0, torch.inf, torch.nan])
def test_a_gradient_without_a_size(by, bad):
    *_, (_, mine), backward = segments_of_size(bad, torch.float32, by)
    *_, (_, usual), _ = segments_of_size(1.0, torch.float32, by)
    assert torch.equal(mine[::2], usual[::2])
    if bad == 0:
        assert backward.converged.all() and (mine[1] == 0).all()
    else:
        assert backward.converged.tolist() == [True, False, True]
        assert backward.status[1] == Status.NONFINITE
        assert not mine[1].isfinite().any()


@pytest.mark.parametrize("size", [1e-25, 1e20])
def test_a_second_derivative_at_any_size(size):
    def second(dtype):
        a, b, grads, _ = segments_of_size(size, dtype, create_graph=True)
        return torch.autograd.grad(grads[1].sum(1).sum(), (a, b))

    for mine, exact in zip(second(torch.float32), second(torch.float64)):
        torch.testing.assert_close(mine.double(), exact, rtol=1e-4, atol=0)


@given(rtol=st.floats(1e-12, 1e-1), rho=st.floats(0.1, 0.95))
def test_the_tolerance_is_kept(rtol, rho):
    """|u - u*| <= |(I - J)^{-1}| rtol |g|."""
    weights = torch.arange(1.0, 13.0, dtype=torch.float64)
    g, s = gradient_of(Implicit(rtol=rtol, max_iter=300), weights, rho)
    exact = linear(rho)[2].T @ weights
    assert s.backward.converged.all()
    bound = rtol * weights.norm() / (1 - rho)
    assert (g - exact).norm() <= bound * (1 + 1e-6) + 1e-11


@given(
    seed=st.integers(0, 1000),
    lipschitz=st.floats(0.05, 0.9),
    steps=st.integers(1, 8),
)
def test_a_truncated_series_errs_as_the_theory_says(
    contraction, seed, lipschitz, steps
):
    """k terms of the Neumann series: at most L^k/(1-L) of |g|."""
    p = contraction(seed, lipschitz=lipschitz)
    weights = p.other

    def derivative(gradient):
        b = torch.zeros(6, dtype=torch.float64, requires_grad=True)
        s = fixed_point(
            lambda x: p(x) + b,
            p.x0,
            rtol=1e-14,
            max_iter=2000,
            gradient=gradient,
            on_failure="ignore",
        )
        return torch.autograd.grad(s.value @ weights, b)[0]

    error = derivative(Phantom(steps)) - derivative(Implicit(rtol=1e-13))
    bound = lipschitz**steps / (1 - lipschitz) * weights.norm()
    assert error.norm() <= bound * (1 + 1e-9) + 1e-11


@pytest.mark.parametrize("alpha", [0.0, 0.5])
@pytest.mark.parametrize("steps", [1, 2, 5])
def test_phantom_is_a_sum_that_can_be_written_down(steps, alpha):
    """b -> sum_{j<k} (1-a) (aI + (1-a)M)^j b."""
    weights = torch.arange(1.0, 13.0, dtype=torch.float64)
    p = problems.symmetric_linear(size=12)
    matrix = torch.func.jacrev(p.operator)(p.x0)
    smoothed = alpha * torch.eye(12).double() + (1 - alpha) * matrix
    expected, term = torch.zeros_like(weights), (1 - alpha) * weights
    for _ in range(steps):
        expected, term = expected + term, smoothed.T @ term
    g, _ = gradient_of(Phantom(steps, alpha), weights)
    torch.testing.assert_close(g, expected)


def test_one_step_is_one_application_of_p():
    weights = torch.arange(1.0, 13.0, dtype=torch.float64)
    one, s = gradient_of(OneStep(), weights)
    phantom, t = gradient_of(Phantom(steps=1, alpha=0.0), weights)
    assert torch.equal(one, phantom) and torch.equal(one, weights)
    assert s.evaluations == t.evaluations
    assert torch.equal(s.value, t.value)


def test_the_value_does_not_depend_on_the_gradient():
    weights = torch.ones(12, dtype=torch.float64)
    modes = [Unrolled(), Implicit(), Phantom(5, 0.5), OneStep()]
    values = [gradient_of(mode, weights)[1].value for mode in modes]
    for value in values[1:]:
        assert torch.equal(value, values[0])


def stored(gradient, max_iter):
    """Numbers that the graph keeps alive, and its nodes."""
    w = torch.full((30, 30), 0.01, dtype=torch.float64, requires_grad=True)
    numbers, seen = 0, set()

    def pack(t):
        nonlocal numbers
        numbers += t.numel()
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        s = fixed_point(
            lambda x: torch.tanh(x @ w) + 1,
            torch.zeros(30, 30, dtype=torch.float64),
            max_iter=max_iter,
            rtol=0.0,
            gradient=gradient,
        )
    todo = [s.value.grad_fn]
    while todo:
        node = todo.pop()
        if node is not None and node not in seen:
            seen.add(node)
            todo.extend(n for n, _ in node.next_functions)
    return numbers, len(seen)


@pytest.mark.parametrize(
    "gradient", [Implicit(), Phantom(2), OneStep()], ids=repr
)
def test_memory_does_not_depend_on_the_iterations(gradient):
    assert stored(gradient, 3) == stored(gradient, 100)
    assert stored(Unrolled(), 100) > stored(Unrolled(), 3)


class Opaque(torch.autograd.Function):
    """sin(x)/2 + 1, with a gradient for t that no torch call shows."""

    @staticmethod
    def forward(ctx, x, t):
        ctx.save_for_backward(x)
        return torch.sin(x) * 0.5 + 1

    @staticmethod
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        return 0.5 * torch.cos(x) * g, 3 * g


def opaque_solve(gradient, a):
    t = a.exp()  # not a leaf
    return fixed_point(
        lambda x: Opaque.apply(x, t),
        torch.zeros_like(a),
        rtol=1e-13,
        max_iter=200,
        gradient=gradient,
    ).value


def test_an_opaque_closure_has_a_first_derivative():
    a = torch.tensor([0.1, 0.7], dtype=torch.float64, requires_grad=True)
    mine, theirs = (
        torch.autograd.grad(opaque_solve(g, a).sum(), a)[0]
        for g in (Implicit(rtol=1e-12), Unrolled())
    )
    torch.testing.assert_close(mine, theirs)


def test_an_opaque_closure_refuses_a_second_one():
    a = torch.tensor([0.1, 0.7], dtype=torch.float64, requires_grad=True)
    x = opaque_solve(Implicit(), a)
    with pytest.raises(NotImplementedError, match=r"Unrolled\(\)"):
        torch.autograd.grad(x.sum(), a, create_graph=True)


def test_two_backward_passes():
    weights = torch.ones(12, dtype=torch.float64)
    p, b, inverse = linear()
    s = fixed_point(
        lambda x: p.operator(x) + b,
        p.x0,
        rtol=1e-12,
        max_iter=500,
        gradient=Implicit(rtol=1e-12),
    )
    for _ in range(2):
        (g,) = torch.autograd.grad(s.value @ weights, b, retain_graph=True)
        torch.testing.assert_close(g, inverse.T @ weights)


@pytest.mark.slow
def test_a_solve_within_a_solve():
    """The operator solves an equation of its own."""

    def outer(a):
        def operator(x):
            inner = fixed_point(
                lambda y: 0.3 * torch.sin(y) + x,
                torch.zeros_like(x),
                rtol=1e-14,
                max_iter=200,
                gradient=Implicit(rtol=1e-13),
                on_failure="ignore",
            ).value
            return 0.4 * torch.cos(inner) + a

        return fixed_point(
            operator,
            torch.zeros_like(a),
            rtol=1e-14,
            max_iter=200,
            gradient=Implicit(rtol=1e-13),
            on_failure="ignore",
        ).value

    a = torch.tensor([0.1, 0.7], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(outer, (a,))
    assert torch.autograd.gradgradcheck(outer, (a,))


def test_a_backward_solve_that_fails_is_called_that():
    b = torch.ones(3, requires_grad=True)
    s = fixed_point(
        lambda x: 0.99 * x.roll(1) + b, torch.zeros(3),
        method=Anderson(), max_iter=3000, gradient=Implicit(max_iter=2),
    )  # fmt: skip
    with pytest.warns(ConvergenceWarning, match="Backward solve of Implicit"):
        s.value[0].backward()
    assert "fixed_point" not in s.backward.describe()
