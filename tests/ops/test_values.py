"""Every backend gives the formulas, row by row in float64, to the rounding."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.ops.cases import (
    ALPHAS,
    FLOATS,
    LAYOUTS,
    REDUCTIONS,
    cases,
    check_update,
    check_values,
    generator,
    offsets,
    random_case,
)
from torch_picard.ops import smoothed_propagate, smoothed_update


@settings(max_examples=60)
@given(case=cases())
def test_propagate(backend, case):
    check_values(case, backend)


@st.composite
def updates(draw):
    shape = draw(st.lists(st.integers(0, 9), max_size=3))
    if draw(st.booleans()):  # beyond the pieces that sums are taken in
        shape = [*shape[:1], draw(st.sampled_from([300, 4096, 5000]))]
    dtype = draw(st.sampled_from(FLOATS))
    g = generator(draw(st.integers(0, 2**16)))
    x, z = (
        torch.randn(shape, generator=g, dtype=torch.float64).to(dtype)
        for _ in range(2)
    )
    ptr = active = None
    if shape and draw(st.booleans()):
        ptr, active = draw(offsets(shape[0]))
    elif draw(st.booleans()):
        active = torch.tensor([draw(st.booleans())])
    how = LAYOUTS[draw(st.sampled_from(list(LAYOUTS)))] if shape else bool
    if shape:
        x, z = how(x), how(z)
    return x, z, draw(st.sampled_from(ALPHAS)), ptr, active


@settings(max_examples=60)
@given(arguments=updates())
def test_update(backend, arguments):
    check_update(*arguments, backend)


@pytest.mark.parametrize("dtype", FLOATS)
def test_update_copies_bits_of_rows_that_are_not_active(backend, dtype):
    x = torch.tensor([[1.0, torch.nan], [-0.0, torch.inf]], dtype=dtype)
    z = torch.tensor([[torch.nan, 2.0], [3.0, 4.0]], dtype=dtype)
    ptr, off = torch.tensor([0, 1, 2]), torch.tensor([False, False])
    y, residual = smoothed_update(x, z, 0.5, ptr, off, backend=backend)
    assert torch.equal(y.view(torch.uint8), x.view(torch.uint8))
    assert residual.tolist() == [0, 0]


@pytest.mark.parametrize("index", [torch.int32, torch.int64])
@pytest.mark.parametrize("reduce", REDUCTIONS)
@pytest.mark.parametrize(
    "rows, sources, entries",
    [(1, 1, 0), (1, 1, 1), (1, 1, 40), (3, 0, 0), (40, 1, 3)],
)
def test_small_graphs(backend, rows, sources, entries, reduce, index):
    case = random_case(
        rows, max(sources, 1), entries, 5, reduce=reduce, index=index
    )
    case["h"] = case["h"][:sources]
    check_values(case, backend)


@pytest.mark.parametrize("reduce", REDUCTIONS)
def test_no_rows(backend, reduce):
    case = random_case(1, 2, 0, 4, reduce=reduce)
    case |= {"rowptr": torch.zeros(1, dtype=torch.int64)}
    case |= {"x": torch.zeros(0, 4).double(), "inject": None}
    y, residual = smoothed_propagate(**case, backend=backend)
    assert y.shape == (0, 4)
    assert residual.tolist() == [0]


@pytest.mark.parametrize("reduce", REDUCTIONS)
def test_no_columns(backend, reduce):
    case = random_case(3, 2, 4, 0, reduce=reduce)
    flags = torch.tensor([True, False])
    case |= {"ptr": torch.tensor([0, 1, 3]), "active": flags}
    y, residual = smoothed_propagate(**case, backend=backend)
    assert y.shape == (3, 0)
    assert residual.tolist() == [0, 0]


def test_no_segments(backend):
    empty = torch.zeros(0, 3)
    ptr = torch.zeros(1, dtype=torch.int64)
    y, residual = smoothed_update(empty, empty, 0.5, ptr, backend=backend)
    assert (y.shape, residual.shape) == ((0, 3), (0,))


@pytest.mark.parametrize("width", [1, 3, 8, 40])
@pytest.mark.parametrize("dtype", FLOATS)
def test_infinite_messages(backend, dtype, width):
    """They are numbers as others, for the maximum and for relu as well."""
    infinity = torch.inf
    h = torch.tensor([[infinity], [-infinity], [1.0]], dtype=dtype)
    arguments = {
        "rowptr": torch.tensor([0, 1, 2, 4, 4]),
        "col": torch.tensor([0, 1, 1, 2]),
        "value": None,
        "h": h.expand(3, width),
        "x": torch.zeros(4, width, dtype=dtype),
        "alpha": 0.0,
        "backend": backend,
    }

    def column(**others):
        y, _ = smoothed_propagate(**arguments, **others)
        assert (y == y[:, :1]).all()
        return y[:, 0].tolist()

    assert column() == [infinity, -infinity, -infinity, 0]
    assert column(reduce="max") == [infinity, -infinity, 1, 0]
    assert column(activation="relu") == [infinity, 0, 0, 0]
    assert column(activation="tanh") == [1, -1, -1, 0]


@pytest.mark.parametrize("reduce", REDUCTIONS)
@pytest.mark.parametrize("activation", ["none", "relu", "tanh"])
@pytest.mark.parametrize("width", [1, 8, 20])
@pytest.mark.parametrize("place", [0, 1, 2])
def test_a_nan_among_the_messages_stays(
    backend, reduce, activation, width, place
):
    h = torch.ones(4, width)
    h[place] = torch.nan
    y, residual = smoothed_propagate(
        torch.tensor([0, 3, 4]),
        torch.tensor([0, 1, 2, 3]),
        None,
        h,
        torch.zeros(2, width),
        0.5,
        activation=activation,
        reduce=reduce,
        ptr=torch.tensor([0, 1, 2]),
        backend=backend,
    )
    assert y[0].isnan().all() and y[1].isfinite().all()
    assert residual.isnan().tolist() == [True, False]


@pytest.mark.parametrize("width", [16, 30])
def test_states_larger_than_the_cache(native, width):
    """They are stored past the caches, and by the same formula."""
    rows = (17 << 20) // (4 * width)
    g = generator(0)
    x, z = (torch.randn(rows, width, generator=g) for _ in range(2))
    rowptr = torch.arange(rows + 1)
    y, residual = smoothed_propagate(
        rowptr, rowptr[:-1].flip(0), None, z.flip(0), x, 0.25, backend=native
    )
    other, its = smoothed_update(x, z, 0.25, backend=native)
    eps = torch.finfo(torch.float32).eps
    want = 0.25 * x.double() + 0.75 * z.double()
    error = 4 * eps * (x.double().abs() + z.double().abs())
    assert ((y - want).abs() <= error).all()
    assert ((other - want).abs() <= error).all()
    r = (z.double() - x.double()).square().sum()
    assert abs(residual - r) <= 100 * eps * r
    assert abs(its - r) <= 4100 * eps * r


def test_no_argument_is_written_to_or_returned(backend):
    case = random_case(alpha=0.0, active=torch.tensor([False]))
    before = {
        k: t.clone() for k, t in case.items() if isinstance(t, torch.Tensor)
    }
    y, _ = smoothed_propagate(**case, backend=backend)
    others = [case["x"], case["inject"]]
    off = torch.tensor([False])
    copied, _ = smoothed_update(*others, 0.0, active=off, backend=backend)
    moved, _ = smoothed_update(*others, 0.0, backend=backend)
    for t in (y, copied, moved):
        t.fill_(9)
    assert all(torch.equal(case[k], t) for k, t in before.items())
