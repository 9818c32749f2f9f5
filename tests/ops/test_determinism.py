"""The same arguments give the same bits: again, and on more threads."""

import pytest
import torch

from tests.ops.cases import (
    DIFFERENTIABLE,
    FLOATS,
    REDUCTIONS,
    bits,
    generator,
    random_case,
)
from torch_picard.ops import smoothed_propagate, smoothed_update

# enough work for two threads
ROWS, ENTRIES, WIDTH = 2100, 5000, 33


@pytest.fixture
def threads():
    """torch.set_num_threads, undone afterwards."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def fixed_case(dtype=torch.float32, **others):
    case = random_case(ROWS, ROWS, ENTRIES, WIDTH, dtype=dtype, **others)
    case |= {"ptr": torch.tensor([0, 100, 100, 2000, ROWS])}
    case |= {"active": torch.tensor([True, True, False, True])}
    case["alpha"] = torch.tensor(0.3)
    for name in DIFFERENTIABLE:
        case[name].requires_grad_()
    return case


def results_of_propagate(case, backend):
    y, residual = smoothed_propagate(**case, backend=backend)
    leaves = [case[name] for name in DIFFERENTIABLE]
    gy = torch.randn(y.shape, generator=generator(1)).to(y.dtype)
    return [y.detach(), residual, *torch.autograd.grad(y, leaves, gy)]


def results_of_update(shape, segmented, backend):
    g = generator(0)
    leaves = [torch.randn(shape, generator=g) for _ in range(2)]
    leaves.append(torch.tensor(0.3))
    leaves = [t.requires_grad_() for t in leaves]
    ptr = torch.tensor([0, 1, shape[0]]) if segmented else None
    y, residual = smoothed_update(*leaves, ptr, backend=backend)
    gy = torch.randn(y.shape, generator=g)
    return [y.detach(), residual, *torch.autograd.grad(y, leaves, gy)]


def assert_same_bits(one, other):
    for a, b in zip(one, other):
        assert torch.equal(bits(a), bits(b))


SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    "reduce, count",
    [
        ("mean", 1),
        ("max", 2),
        pytest.param("sum", 2, marks=SLOW),
        pytest.param("mean", 2, marks=SLOW),
        pytest.param("max", 1, marks=SLOW),
    ],
)
def test_100_runs(native, threads, reduce, count):
    threads(count)
    case = fixed_case(reduce=reduce, activation="tanh")
    first = results_of_propagate(case, native)
    for _ in range(99):
        assert_same_bits(first, results_of_propagate(case, native))


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("reduce", REDUCTIONS)
def test_threads(native, threads, reduce, dtype):
    case = fixed_case(dtype, reduce=reduce, activation="tanh")
    threads(1)
    one = results_of_propagate(case, native)
    threads(2)
    assert_same_bits(one, results_of_propagate(case, native))


@pytest.mark.parametrize("segmented", [False, True])
@pytest.mark.parametrize("shape", [(50_000, 3), (7, 30_001), (300_000,)])
def test_update(native, threads, shape, segmented):
    threads(1)
    one = results_of_update(shape, segmented, native)
    threads(2)
    for _ in range(3):
        assert_same_bits(one, results_of_update(shape, segmented, native))


@pytest.mark.parametrize("reduce", REDUCTIONS)
def test_other_backends(backend, threads, reduce):
    """On one thread these, too, repeat themselves."""
    threads(1)
    case = fixed_case(reduce=reduce)
    first = results_of_propagate(case, backend)
    for _ in range(3):
        assert_same_bits(first, results_of_propagate(case, backend))
