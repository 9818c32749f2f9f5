"""One problem a segment: alone or in a batch, the same result."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from torch_picard import Implicit, Picard, Status, fixed_point
from torch_picard.engine.point import Point, Smoothed
from torch_picard.problems.graph import gcn_matrix, random_graph


class Graphs:
    """Graphs of several sizes under x = tanh(A x W c_g) + f, each with its
    own factor c_g and so its own rate."""

    def __init__(self, seed, sizes, factors):
        rng = torch.Generator().manual_seed(seed)

        def normal(*shape):
            return torch.randn(shape, generator=rng, dtype=torch.float64)

        weight = normal(3, 3)
        self.weight = weight / torch.linalg.matrix_norm(weight, 2)
        self.blocks = [
            c * gcn_matrix(random_graph(n, seed + i), n)
            for i, (n, c) in enumerate(zip(sizes, factors))
        ]
        self.f = [normal(n, 3) for n in sizes]
        self.batch = torch.arange(len(sizes)).repeat_interleave(
            torch.tensor(sizes)
        )
        self.sizes = sizes

    def alone(self, i):
        """Operator and start of one graph."""
        a, f = self.blocks[i], self.f[i]
        return lambda x: torch.tanh(a @ x @ self.weight) + f, f

    def together(self):
        a, f = torch.block_diag(*self.blocks), torch.cat(self.f)
        return lambda x: torch.tanh(a @ x @ self.weight) + f, f


def solve_both(graphs, **options):
    """The batch's solution, and one for each graph by itself."""
    operator, f = graphs.together()
    batch = fixed_point(operator, f, segments=graphs.batch, **options)
    alone = [
        fixed_point(*graphs.alone(i), **options)
        for i in range(len(graphs.sizes))
    ]
    return batch, alone


OPTIONS = {"max_iter": 300, "rtol": 1e-9, "on_failure": "ignore"}


@settings(max_examples=8)
@given(
    seed=st.integers(0, 1000),
    sizes=st.lists(st.integers(3, 9), min_size=2, max_size=4),
    data=st.data(),
)
def test_batch_mates_do_not_matter(method, seed, sizes, data):
    factor = st.sampled_from([0.1, 0.5, 0.8, 0.95])
    factors = [data.draw(factor) for _ in sizes]
    graphs = Graphs(seed, sizes, factors)
    batch, alone = solve_both(graphs, method=method, **OPTIONS)
    for i, s in enumerate(alone):
        mine = batch.value[graphs.batch == i]
        # accelerators make more of rounding, but not more than the tolerance
        apart = 1e-10 if isinstance(method, Picard) else 1e-9
        scale = s.value.norm()
        assert (mine - s.value).norm() <= apart * scale
        assert batch.status[i] == s.status[0] == Status.CONVERGED
        assert batch.iterations[i] == s.iterations[0]
        # Small differences of rounding grow with the iterations.
        early = s.residual_history[:4, 0]
        torch.testing.assert_close(
            batch.residual_history[: len(early), i], early
        )


def test_a_nan_stays_where_it_is(method):
    """The operator multiplies by a block-diagonal matrix, where 0 * NaN
    would spread: so it is never shown a NaN."""
    graphs = Graphs(0, [5, 6, 4], [0.5, 0.8, 0.9])
    clean, _ = solve_both(graphs, method=method, **OPTIONS)
    operator, f = graphs.together()
    dirty = fixed_point(
        lambda x: torch.where(
            graphs.batch[:, None] == 1, x * torch.nan, operator(x)
        ),
        f,
        segments=graphs.batch,
        method=method,
        **OPTIONS,
    )
    assert dirty.status.tolist() == [
        Status.CONVERGED,
        Status.NONFINITE,
        Status.CONVERGED,
    ]
    others = graphs.batch != 1
    torch.testing.assert_close(
        dirty.value[others], clean.value[others], rtol=1e-11, atol=1e-11
    )
    assert dirty.value.isfinite().all()
    assert torch.equal(dirty.value[~others], f[~others])


def test_a_nan_that_comes_late_leaves_the_others_alone(method):
    calls = 0

    def operator(x):
        nonlocal calls
        calls += 1
        z = torch.stack([0.5 * x[0] + 1, 0.9 * x[1] + 1])
        if calls > 4:
            z = z * torch.tensor([[torch.nan], [1.0]], dtype=x.dtype)
        return z

    x0 = torch.zeros(2, 3, dtype=torch.float64)
    s = fixed_point(
        operator,
        x0,
        segments="leading",
        method=method,
        **{**OPTIONS, "max_iter": 1000},
    )
    assert s.status[1] == Status.CONVERGED
    assert s.value.isfinite().all()
    torch.testing.assert_close(
        s.value[1], torch.full((3,), 10.0).double(), rtol=1e-6, atol=0
    )


def test_a_finished_segment_does_not_move(method):
    """Bitwise, however long the others go on."""
    factors = torch.tensor([0.1, 0.5, 0.97], dtype=torch.float64)[:, None]
    x0 = torch.linspace(-1, 1, 12, dtype=torch.float64).reshape(3, 4)
    seen = []
    s = fixed_point(
        lambda x: torch.tanh(factors * x) + 1,
        x0,
        segments="leading",
        method=method,
        callback=lambda k, x, residual: seen.append(x),
        **OPTIONS,
    )
    assert s.converged.all()
    for i, k in enumerate(s.iterations.tolist()):
        assert torch.equal(
            s.residual_history[k:, i],
            s.residual_history[k, i].expand(len(s.residual_history) - k),
        )
        for x in seen[k:]:
            assert torch.equal(x[i], s.value[i])


def test_leading_is_a_batch_vector_of_single_rows(method):
    rng = torch.Generator().manual_seed(0)
    x0 = torch.randn(5, 3, generator=rng, dtype=torch.float64)
    rates = torch.linspace(0.1, 0.9, 5, dtype=torch.float64)[:, None]

    def operator(x):
        return rates * torch.sin(x) + 1

    named, indexed = (
        fixed_point(operator, x0, segments=g, method=method, **OPTIONS)
        for g in ("leading", torch.arange(5))
    )
    torch.testing.assert_close(named.value, indexed.value)
    assert torch.equal(named.iterations, indexed.iterations)


def test_none_is_one_segment_of_everything(method):
    x0 = torch.ones(4, 3, dtype=torch.float64)
    whole, batched = (
        fixed_point(
            lambda x: torch.cos(x), x0, segments=g, method=method, **OPTIONS
        )
        for g in (None, torch.zeros(4, dtype=torch.long))
    )
    assert whole.status.shape == (1,)
    torch.testing.assert_close(whole.value, batched.value)


def test_an_empty_segment_is_converged(method):
    batch = torch.tensor([0, 0, 2, 4])
    s = fixed_point(
        lambda x: 0.5 * x + 1,
        torch.zeros(4, 2),
        segments=batch,
        method=method,
    )
    assert s.status.shape == (5,)
    assert s.converged.all()
    assert s.residual[[1, 3]].tolist() == [0, 0]
    assert s.iterations[[1, 3]].tolist() == [0, 0]
    assert s.residual_history[:, [1, 3]].eq(0).all()


@pytest.mark.parametrize("kind", [Smoothed, Point])
def test_a_segment_that_has_ended_needs_no_more_care(kind, monkeypatch):
    """Its residual may be 0 from then on, or is not looked at: not a reason
    to measure that of the others twice."""
    halves = torch.full((2, 3), 0.5, dtype=torch.float64)
    alpha = 0.5 if kind is Smoothed else halves  # which no kernel takes
    measured, own = [], kind.measured

    def measure(here):
        measured.append(here)
        return own(here)

    monkeypatch.setattr(kind, "measured", measure)
    factors = torch.tensor([0.0, 0.9])[:, None].double()
    s = fixed_point(
        lambda x: factors * x + 1,
        torch.ones(2, 3, dtype=torch.float64),
        segments="leading",
        method=Picard(alpha),
        max_iter=1000,
    )
    assert s.converged.all()
    assert s.iterations[0] == 0 and s.iterations[1] > 100
    assert len(measured) <= 1  # where it ended, with a residual of 0


def test_segments_that_end_at_once_by_a_callback_and_by_themselves():
    """Each returns the iterate that its residual is of."""

    def operator(x):
        return torch.stack([1e3 * x[0] + 1, 0.9 * x[1] + 1])

    def callback(k, x, residual):
        return torch.tensor([-1, Status.DIVERGED]) if k == 3 else None

    s = fixed_point(
        operator,
        torch.ones(2, 1, dtype=torch.float64),
        segments="leading",
        method=Picard(0.0),
        callback=callback,
        on_failure="ignore",
    )
    assert (s.status == Status.DIVERGED).all()
    assert s.iterations.tolist() == [0, 3]
    true = (operator(s.value) - s.value).norm(dim=1)
    torch.testing.assert_close(s.residual, true)


def test_segments_of_different_outcome():
    """Converged, diverged, cycling, not finite and slow, in one batch."""
    factors = torch.tensor([0.5, -30.0, -1.0, 0.5, 0.99])[:, None].double()
    nan = torch.tensor([0, 0, 0, torch.nan, 0])[:, None].double()
    s = fixed_point(
        lambda x: factors * x + 1 + nan,
        torch.zeros(5, 2, dtype=torch.float64),
        segments="leading",
        method=Picard(0.0),
        max_iter=60,
        on_failure="ignore",
    )
    assert s.status.tolist() == [
        Status.CONVERGED,
        Status.DIVERGED,
        Status.STAGNATED,
        Status.NONFINITE,
        Status.MAX_ITER,
    ]
    assert s.value.isfinite().all()


def test_the_gradient_of_a_segment_does_not_depend_on_its_mates(method):
    graphs = Graphs(0, [5, 6, 4], [0.3, 0.8, 0.9])
    operator, f = graphs.together()
    weight = graphs.weight.clone().requires_grad_()
    graphs.weight = weight
    options = {
        "method": method,
        "gradient": Implicit(rtol=1e-12),
        "max_iter": 300,
        "rtol": 1e-11,
    }
    s = fixed_point(operator, f, segments=graphs.batch, **options)
    mine = s.value[graphs.batch == 1].sin().sum()
    (in_batch,) = torch.autograd.grad(mine, weight)
    s = fixed_point(*graphs.alone(1), **options)
    (alone,) = torch.autograd.grad(s.value.sin().sum(), weight)
    torch.testing.assert_close(in_batch, alone, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("method_alpha", [0.0, 0.5])
def test_a_permutation_of_the_nodes_permutes_the_result(method_alpha):
    graphs = Graphs(2, [12], [0.9])
    operator, f = graphs.alone(0)
    order = torch.randperm(12, generator=torch.Generator().manual_seed(1))
    a = graphs.blocks[0][order][:, order]
    options = {"method": Picard(method_alpha), **OPTIONS}
    s = fixed_point(operator, f, **options)
    t = fixed_point(
        lambda x: torch.tanh(a @ x @ graphs.weight) + f[order],
        f[order],
        **options,
    )
    torch.testing.assert_close(t.value, s.value[order])


@pytest.mark.parametrize("segments", [False, True], ids=["whole", "batch"])
def test_an_empty_leaf_changes_nothing(method, segments):
    """A node type of which there are no nodes."""
    torch.manual_seed(0)
    b = torch.randn(4, 2, dtype=torch.float64, requires_grad=True)
    none = torch.zeros(0, 3, dtype=torch.float64)
    batch = torch.tensor([0, 0, 1, 1])
    index = {"a": batch, "b": batch[:0]}

    def pair(x):
        return {"a": one(x["a"]) + 0.1 * x["b"].sum(), "b": 0.5 * x["b"]}

    def one(x):
        return 0.5 * torch.tanh(x) + b

    options = {"method": method, "gradient": Implicit(), "rtol": 1e-9}
    options["max_iter"] = 200
    both = fixed_point(
        pair,
        {"a": torch.zeros_like(b), "b": none},
        segments=index if segments else None,
        **options,
    )
    alone = fixed_point(
        one,
        torch.zeros_like(b),
        segments=batch if segments else None,
        **options,
    )
    assert both.converged.all() and both.value["b"].shape == (0, 3)
    torch.testing.assert_close(both.value["a"], alone.value)
    assert torch.equal(both.iterations, alone.iterations)
    (g,) = torch.autograd.grad(both.value["a"].sum(), b)
    (exact,) = torch.autograd.grad(alone.value.sum(), b)
    torch.testing.assert_close(g, exact)
