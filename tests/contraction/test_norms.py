"""Norms of matrices: never below the truth, at any size, scale and dtype."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from torch_picard.contraction import gram_bound, norms
from torch_picard.contraction.norms import (
    differentiable_norm,
    gram_iterations,
    operator_norm,
)

SEEDS = st.integers(0, 10_000)
EPS = torch.finfo(torch.float64).eps


def singular(m):
    """The largest singular value, in float64 at least."""
    kind = torch.complex128 if m.is_complex() else torch.float64
    unit = float(m.abs().max()) or 1.0
    return unit * torch.linalg.svdvals(m.to(kind) / unit).max().item()


def matrix(seed, rows, cols, condition=1.0, dtype=torch.float64):
    rng = torch.Generator().manual_seed(seed)
    m = torch.randn(rows, cols, generator=rng, dtype=torch.float64)
    u, s, v = torch.linalg.svd(m, full_matrices=False)
    exponent = torch.linspace(0, 1, len(s), dtype=torch.float64)
    return ((u * s * condition**-exponent) @ v).to(dtype)


def holds(m, excess=1e-2):
    """Above the truth, and at most by the excess."""
    true, found = singular(m), float(gram_bound(m))
    assert found >= true * (1 - 8 * EPS)
    assert found <= true * (1 + excess)


@given(
    seed=SEEDS,
    rows=st.integers(1, 40),
    cols=st.integers(1, 40),
    condition=st.sampled_from([1.0, 1e3, 1e12]),
    scale=st.sampled_from([1e-200, 1e-30, 1.0, 1e30, 1e200]),
)
def test_gram_bound_is_above_and_near(seed, rows, cols, condition, scale):
    holds(scale * matrix(seed, rows, cols, condition))


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
@pytest.mark.parametrize("rows, cols", [(300, 310), (1, 400), (600, 5)])
def test_gram_bound_in_float32(rows, cols, scale):
    m = matrix(0, rows, cols).float() * scale
    holds(m)
    q = torch.linalg.qr(matrix(1, max(rows, cols), min(rows, cols)))[0]
    holds(q.float() * scale)  # all singular values equal: the worst case


def test_gram_bound_in_float32_of_a_wide_layer():
    """What rounding may add is part of the excess."""
    holds(torch.linalg.qr(matrix(1, 1024, 1024).float())[0])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_gram_bound_of_short_floats(dtype):
    holds(matrix(0, 300, 300).to(dtype) / 16)


def test_gram_bound_counts_on_no_rounded_products():
    """Under autocast, and with float32 products in bfloat16."""
    m = matrix(0, 300, 300).float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        holds(m)
        holds(m.double())
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        holds(m)
    finally:
        torch.set_float32_matmul_precision(before)


def test_gram_bound_of_complex_matrices():
    rng = torch.Generator().manual_seed(0)
    m = torch.randn(7, 9, generator=rng, dtype=torch.complex128)
    holds(m)
    rows = torch.stack([m, 1e-20 * m, 3 * m, 0 * m])
    found = float(gram_bound(rows))
    assert 3 * singular(m) <= found <= 3.03 * singular(m)


@given(seed=SEEDS, k=st.integers(0, 8))
def test_more_iterations_never_raise_the_bound(seed, k):
    m = matrix(seed, 8, 6)
    first, second = (float(gram_bound(m, n)) for n in (k, k + 1))
    assert singular(m) * (1 - 8 * EPS) <= second <= first * (1 + 1e-12)


def test_no_iteration_is_the_frobenius_norm():
    m = matrix(0, 5, 3)
    assert float(gram_bound(m, 0)) == pytest.approx(float(m.norm()))


@given(rank=st.integers(1, 5000), excess=st.floats(1e-4, 1.0))
def test_iterations_are_the_fewest(rank, excess):
    k = gram_iterations(rank, excess)
    assert rank ** (0.5 ** (k + 1)) <= (1 + excess) * (1 + 1e-12)
    if k:
        assert rank ** (0.5**k) > (1 + excess) * (1 - 1e-12)


def test_rank_one_is_exact():
    rng = torch.Generator().manual_seed(0)
    a, b = torch.randn(2, 50, generator=rng, dtype=torch.float64)
    m = torch.outer(a, b)
    true = float(a.norm() * b.norm())
    assert float(gram_bound(m)) == pytest.approx(true, rel=1e-12)


@pytest.mark.parametrize("shape", [(3, 5), (0, 3), (3, 0), (2, 4, 4)])
def test_zero(shape):
    m = torch.zeros(shape, dtype=torch.float64, requires_grad=True)
    found = gram_bound(m)
    assert found.item() == pytest.approx(0, abs=1e-300)
    if m.numel():
        (grad,) = torch.autograd.grad(found, m)
        assert bool(grad.isfinite().all())
    for norm in ("l2", "l1", "linf"):
        assert operator_norm(m, norm) == 0


@pytest.mark.parametrize("shape", [(4, 3), (3, 4), (2, 3, 3)])
def test_gram_bound_gradient(shape):
    rng = torch.Generator().manual_seed(1)
    m = torch.randn(shape, generator=rng, dtype=torch.float64)
    m.requires_grad_()
    assert torch.autograd.gradcheck(gram_bound, m)
    assert torch.autograd.gradgradcheck(lambda v: gram_bound(v, 3), m)


@pytest.mark.parametrize("norm", ["l2", "l1", "linf"])
@given(seed=SEEDS)
def test_the_differentiable_norm_is_above_the_exact_one(norm, seed):
    m = matrix(seed, 6, 4)
    exact = operator_norm(m, norm)
    order = {"l2": 2, "l1": 1, "linf": math.inf}[norm]
    true = float(torch.linalg.matrix_norm(m, order))
    assert exact == pytest.approx(true, rel=1e-12)
    assert exact >= true
    assert float(differentiable_norm(m, norm)) >= true * (1 - 8 * EPS)


@pytest.mark.parametrize("norm", ["l2", "l1", "linf"])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_what_is_not_finite_has_no_bound(norm, bad):
    m = torch.ones(3, 3)
    m[1, 1] = bad
    assert operator_norm(m, norm) == math.inf


def test_beyond_the_largest_svd(monkeypatch):
    """The Gram bound takes over; a matrix of known norm."""
    monkeypatch.setattr(norms, "_LARGEST_SVD", 100)
    rng = torch.Generator().manual_seed(0)
    v = torch.randn(150, generator=rng, dtype=torch.float64)
    v = v / v.norm()
    m = torch.eye(150, dtype=torch.float64) - 3 * torch.outer(v, v)
    assert 2 <= operator_norm(m) <= 2 * 1.001
