"""Half precision, autocast, and the dtype of the algebra."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from torch_picard import (
    Anderson,
    Implicit,
    OneStep,
    Phantom,
    Picard,
    Status,
    Unrolled,
    fixed_point,
)

GRADIENTS = [
    Unrolled(),
    Unrolled(checkpoint=True),
    Implicit(rtol=1e-4),
    Phantom(2),
    OneStep(),
]


def layer(dtype=torch.float32):
    torch.manual_seed(0)
    linear = torch.nn.Linear(8, 8)
    with torch.no_grad():
        linear.weight *= 0.5 / torch.linalg.matrix_norm(linear.weight, 2)
    # What is drawn in half precision differs between versions of torch.
    return linear.to(dtype)


def solve(linear, x0, **options):
    options = {"rtol": 1e-2, "max_iter": 100, **options}
    return fixed_point(lambda x: torch.tanh(linear(x)) + x0, x0, **options)


@given(
    seed=st.integers(0, 1000),
    alpha=st.sampled_from([0.0, 0.5, 0.9, 0.9998]),
    dtype=st.sampled_from([torch.bfloat16, torch.float16, torch.float32]),
    rtol=st.sampled_from([1e-2, 1e-3, 1e-5]),
    first=st.integers(0, 2),
)
def test_the_residual_is_that_of_p_and_not_of_the_step(
    seed, alpha, dtype, rtol, first
):
    """In half precision alpha*x + (1-alpha)*P(x) may round to x long before
    P(x) does; also after others in the batch have ended, by whatever."""
    draw = torch.Generator().manual_seed(seed)
    b = torch.randn(5, 7, generator=draw).to(dtype)
    rate = torch.tensor([0.0, 30.0, 0.5, 0.8, 0.9], dtype=dtype)[:, None]
    rate, b = rate[first:], b[first:]

    def operator(x):
        return torch.sin(rate * x) * (rate < 1) + rate * x * (rate > 1) + b

    s = fixed_point(
        operator,
        torch.zeros_like(b),
        segments="leading",
        method=Picard(alpha),
        rtol=rtol,
        max_iter=200,
        on_failure="ignore",
    )
    z = operator(s.value)
    true = (z.double() - s.value.double()).norm(dim=1)
    done = s.converged
    if dtype == torch.float32 and alpha < 0.9:
        assert done.any()
    torch.testing.assert_close(
        s.residual[done].double(), true[done], rtol=1e-5, atol=0
    )
    passed = true <= 1.001 * rtol * z.double().norm(dim=1)
    assert passed[done].all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("rest", [0.0, torch.nan])
def test_what_p_makes_of_others_does_not_blur_a_residual(dtype, rest):
    """P(x) = 0 has no norm, and NaN none, either: measured once more."""
    x0 = torch.ones(2, 4, dtype=dtype)
    s = fixed_point(
        lambda x: torch.stack([0 * x[0], torch.full_like(x[1], rest)]),
        x0,
        segments="leading",
        method=Picard(0.9999),
        atol=1e-2,
        on_failure="ignore",
    )
    assert s.status[0] == Status.STAGNATED
    assert torch.equal(s.value, x0)
    torch.testing.assert_close(s.residual[0].item(), 2.0)


def test_residuals_are_lifted_before_they_are_subtracted(method):
    """-2^-9 and 1 differ by more than their difference in bfloat16."""
    x0 = torch.tensor([-(2.0**-9), 0.0], dtype=torch.bfloat16)
    s = fixed_point(
        lambda x: torch.tensor([1.0, 0.0], dtype=torch.bfloat16),
        x0, method=method, rtol=0.0, atol=1.0, max_iter=2,
    )  # fmt: skip
    assert s.residual_history[0].item() == 1 + 2.0**-9
    assert s.iterations.item() == 1


def test_each_leaf_has_rounding_of_its_own(method):
    """A leaf in bfloat16 is no reason to take float64 for noise."""
    x0 = (torch.zeros(1, dtype=torch.float64), torch.zeros(1).bfloat16())
    s = fixed_point(
        lambda x: (0.99 * x[0] + 1, 0 * x[1] + 1),
        x0, method=method, rtol=1e-8, max_iter=3000,
    )  # fmt: skip
    assert s.converged.all()
    torch.testing.assert_close(s.value[0].item(), 100.0, rtol=1e-4, atol=0)


@pytest.mark.parametrize("gradient", GRADIENTS, ids=repr)
def test_autocast(method, gradient):
    """P runs in bfloat16; the state and the algebra stay in float32."""
    linear, x0 = layer(), torch.randn(4, 8)
    seen = []
    with torch.autocast("cpu", dtype=torch.bfloat16):
        s = fixed_point(
            lambda x: seen.append(linear(x).dtype) or linear(x) + x0,
            x0,
            method=method,
            gradient=gradient,
            rtol=1e-2,
            max_iter=100,
        )
    assert set(seen) == {torch.bfloat16}
    assert s.converged.all()
    assert s.value.dtype == s.residual.dtype == torch.float32
    s.value.square().sum().backward()  # outside of autocast
    mine = linear.weight.grad.clone()
    linear.weight.grad = None
    exact = fixed_point(
        lambda x: linear(x) + x0,
        x0,
        method=method,
        gradient=gradient,
        rtol=1e-2,
        max_iter=100,
    )
    exact.value.square().sum().backward()
    difference = (mine - linear.weight.grad).norm()
    assert difference <= 0.05 * linear.weight.grad.norm()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    "gradient", [Unrolled(), Implicit(rtol=1e-2)], ids=repr
)
def test_half_precision_states(method, dtype, gradient):
    linear = layer(dtype)
    x0 = torch.randn(4, 8).to(dtype).requires_grad_()
    s = solve(linear, x0, method=method, gradient=gradient)
    assert s.converged.all()
    assert s.value.dtype == dtype
    assert s.residual.dtype == s.residual_history.dtype == torch.float32
    s.value.float().sum().backward()
    assert linear.weight.grad.dtype == x0.grad.dtype == dtype
    assert linear.weight.grad.isfinite().all()
    exact = solve(layer(), x0.detach().float(), rtol=1e-6)
    error = (s.value.float() - exact.value).norm() / exact.value.norm()
    assert error <= 0.05


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_beyond_half_precision_is_a_stall(method, dtype):
    """Or the rounded map has a fixed point of its own."""
    linear, x0 = layer(dtype), torch.randn(4, 8).to(dtype)
    s = solve(linear, x0, method=method, rtol=1e-7, on_failure="ignore")
    assert s.status.item() in (
        Status.STAGNATED,
        Status.CONVERGED,
        Status.MAX_ITER,
    )
    if s.converged.all():
        z = torch.tanh(linear(s.value)) + x0
        r = (z.float() - s.value.float()).norm()
        assert r <= 1e-7 * z.float().norm()


BACKWARD = pytest.mark.parametrize(
    "by", [None, Anderson(), Picard(0.0)], ids=repr
)


def solve_in(dtype, where, gradient, x0):
    """x = Wx/2 + x0 with P, or P and the state, in half precision."""
    linear, kind = layer(), dtype if where == "state" else torch.float32
    if where in ("state", "P"):
        linear = linear.to(dtype)

    def operator(x):
        y = linear(x.to(dtype)) if where == "P" else linear(x)
        return y.to(kind) + x0.to(kind)

    with torch.autocast("cpu", dtype, enabled=where == "autocast"):
        return fixed_point(
            operator, x0.detach().to(kind), gradient=gradient, rtol=1e-2,
            segments="leading", max_iter=100, on_failure="ignore",
        )  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("where", ["autocast", "P", "state"])
@BACKWARD
def test_a_backward_solve_is_as_good_as_its_products(dtype, where, by):
    """It passes at the rounding of the dtype they are computed in."""
    x0 = torch.randn(20, 8).requires_grad_()
    s = solve_in(dtype, where, Implicit(by), x0)
    s.value.float().sum().backward()
    assert s.converged.all() and s.backward.converged.all()
    # u = g + J^T u is the gradient of x0
    exact = torch.linalg.solve(torch.eye(8) - layer().weight.T, torch.ones(8))
    error = (x0.grad - exact).norm(dim=1) / exact.norm()
    assert (error <= 2 * torch.finfo(dtype).eps).all()


@BACKWARD
def test_autocast_alone_loosens_nothing(by):
    """P has no operation that runs in half precision."""
    x0 = torch.randn(20, 8).requires_grad_()
    scale = torch.linspace(0.1, 0.5, 8)
    with torch.autocast("cpu", torch.bfloat16):
        s = fixed_point(
            lambda x: scale * x + x0, x0.detach(), gradient=Implicit(by)
        )
    s.value.sum().backward()
    assert s.backward.converged.all()
    exact = (1 / (1 - scale)).expand(20, 8)
    torch.testing.assert_close(x0.grad, exact, rtol=1e-4, atol=0)


def test_rounding_excuses_no_products_that_were_not_made():
    x0 = torch.randn(20, 8).requires_grad_()
    gradient = Implicit(rtol=1e-6, max_iter=5)
    s = solve_in(torch.bfloat16, "state", gradient, x0)
    s.value.float().sum().backward()
    eps = torch.finfo(torch.bfloat16).eps
    small = s.backward.residual <= eps * x0.grad.norm(dim=1)
    assert small.any() and (s.backward.status == Status.MAX_ITER).all()


def test_leaves_of_different_dtype(method):
    s = fixed_point(
        lambda x: (0.5 * torch.cos(x[0]), 0.5 * torch.cos(x[1])),
        (torch.zeros(3), torch.zeros(2, dtype=torch.float64)),
        method=method,
    )
    assert s.converged.all()
    assert [t.dtype for t in s.value] == [torch.float32, torch.float64]
    assert s.residual.dtype == torch.float64


@pytest.mark.parametrize("gradient", GRADIENTS, ids=repr)
def test_without_autocast_a_changed_dtype_is_an_error(gradient):
    with pytest.raises(ValueError, match="dtype"):
        fixed_point(
            lambda x: x.double() * 0.5, torch.zeros(3), gradient=gradient
        )


def test_small_and_large_numbers_in_float16():
    """Squares of 300 overflow in float16, the norms do not."""
    x0 = torch.full((100,), 300.0, dtype=torch.float16)
    s = fixed_point(lambda x: 0.5 * x + 150, x0, rtol=1e-2)
    assert s.converged.all() and s.residual.item() == 0
    s = fixed_point(
        lambda x: 0.5 * x + 200,
        x0,
        rtol=1e-2,
        method=Anderson(),
    )
    assert s.converged.all()
    assert (s.value - 400).abs().max() <= 4


def test_the_default_tolerance_is_reached_in_float32(method):
    linear, x0 = layer(), torch.randn(4, 8)
    s = solve(linear, x0, method=method, rtol=1e-5)
    assert s.converged.all()


def test_a_float32_gradient(method):
    linear, x0 = layer(), torch.randn(4, 8)

    def gradient_of(kind):
        linear.weight.grad = None
        s = solve(linear, x0, rtol=1e-6, method=method, gradient=kind)
        s.value.square().sum().backward()
        return linear.weight.grad

    exact = gradient_of(Unrolled())
    mine = gradient_of(Implicit())
    assert (mine - exact).norm() <= 1e-4 * exact.norm()


def test_picard_in_float32_is_the_loop_in_float32():
    linear, x = layer(), torch.randn(4, 8)
    x0 = x
    with torch.no_grad():
        s = solve(linear, x0, method=Picard(0.25), rtol=0.0, max_iter=9)
        for _ in range(9):
            x = 0.25 * x + 0.75 * (torch.tanh(linear(x)) + x0)
    # Nothing but the order of the roundings may differ, nine times over.
    eps = torch.finfo(torch.float32).eps
    torch.testing.assert_close(s.value, x, rtol=18 * eps, atol=18 * eps)
