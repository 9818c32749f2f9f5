"""Recycling: distances, outcomes, smoothing, gradients."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from torch_picard import (
    ConvergenceError,
    ConvergenceWarning,
    Implicit,
    Status,
    Unrolled,
)
from torch_picard.recycling import Recycler, ca_distance

TARGET = torch.tensor([[0.0, 0.0, 0.0], [3.8, 0.0, 0.0], [3.8, 3.8, 0.0]])


def gap(prev, cur):
    return (cur - prev).abs().amax(-1)


def toward(rate):
    return lambda x: TARGET + rate * (x - TARGET)


# -- the distance ----------------------------------------------------------


def test_alphafold_multimers_tolerance_by_hand():
    prev = torch.tensor([[0.0, 0, 0], [3, 0, 0]])
    cur = torch.tensor([[0.0, 0, 0], [0, 5, 0]])
    # pairs (0,0) (0,1) (1,0) (1,1): changes 0, 2, 2, 0
    torch.testing.assert_close(
        ca_distance(prev, cur), torch.tensor(math.sqrt(2.0))
    )
    three = torch.tensor([[0.0, 0, 0], [3, 0, 0], [3, 4, 0]])
    moved = torch.tensor([[0.0, 0, 0], [3, 0, 0], [3, 0, 1]])
    # |1-2|: 4 -> 1; |0-2|: 5 -> sqrt 10
    want = math.sqrt(2 * (9 + (5 - math.sqrt(10)) ** 2) / 9)
    torch.testing.assert_close(ca_distance(three, moved), torch.tensor(want))
    masked = ca_distance(three, moved, torch.tensor([1, 1, 0]))
    assert masked == 0
    batch = ca_distance(
        torch.stack([three, three]), torch.stack([moved, three])
    )
    torch.testing.assert_close(batch, torch.tensor([want, 0.0]))


@given(st.integers(2, 20), st.integers(0, 10**6))
def test_distance_does_not_see_placement(n, seed):
    draw = torch.Generator().manual_seed(seed)
    prev, cur = torch.randn(2, n, 3, generator=draw, dtype=torch.float64)
    turn, _ = torch.linalg.qr(
        torch.randn(3, 3, generator=draw, dtype=torch.float64)
    )
    placed = cur @ turn + torch.randn(3, generator=draw, dtype=torch.float64)
    same = ca_distance(prev, placed)
    torch.testing.assert_close(same, ca_distance(prev, cur))
    assert ca_distance(cur, placed) < 1e-12
    torch.testing.assert_close(same, ca_distance(cur, prev))
    # a root mean square: of the masked part as of a structure of its own
    mask = torch.rand(n, generator=draw) < 0.7
    if mask.any():
        torch.testing.assert_close(
            ca_distance(prev, cur, mask), ca_distance(prev[mask], cur[mask])
        )


def test_what_is_masked_may_be_anything():
    prev, cur = torch.randn(2, 4, 3)
    cur[3] = torch.inf
    mask = torch.tensor([True, True, True, False])
    want = ca_distance(prev[:3], cur[:3])
    torch.testing.assert_close(ca_distance(prev, cur, mask), want)
    assert ca_distance(prev, cur, torch.zeros(4)) == 0


def test_half_precision_is_measured_in_float32():
    prev, cur = (10 * torch.randn(2, 30, 3)).half()
    d = ca_distance(prev, cur)
    assert d.dtype == torch.float32
    torch.testing.assert_close(d, ca_distance(prev.float(), cur.float()))


# -- outcomes --------------------------------------------------------------


def test_early_stop_equals_running_on():
    step, start = toward(0.5), torch.zeros(3, 3)
    solution = Recycler(step)(start)
    assert solution.status == Status.CONVERGED
    # the same passes by hand
    x, changes = start, []
    for _ in range(solution.evaluations):
        x, prev = step(x), x
        changes.append(ca_distance(prev, x))
    torch.testing.assert_close(solution.value, x, rtol=0, atol=0)
    torch.testing.assert_close(
        solution.residual_history[:, 0], torch.stack(changes)
    )
    assert changes[-1] <= 0.5 < changes[-2]
    for _ in range(50):
        x = step(x)
    assert ca_distance(solution.value, x) <= 0.5


@pytest.mark.parametrize("n", [0, 1, 4, 20])
def test_max_recycles_is_one_pass_less(n):
    calls = []

    def step(x):
        calls.append(x)
        return 0.9 * x + 1

    solution = Recycler(
        step, max_recycles=n, tol=0.0, distance=gap, on_failure="ignore"
    )(torch.zeros(2))
    assert len(calls) == solution.evaluations == n + 1
    assert solution.status == Status.MAX_ITER
    x = torch.zeros(2)
    for _ in range(n + 1):
        x = 0.9 * x + 1
    torch.testing.assert_close(solution.value, x)


def test_a_contracting_an_oscillating_and_a_diverging_map():
    start = torch.full((4,), 3.0)
    contracting = Recycler(lambda x: 0.5 * x, distance=gap)(start)
    assert contracting.status == Status.CONVERGED
    with pytest.warns(ConvergenceWarning, match="STAGNATED"):
        oscillating = Recycler(lambda x: 1 - x, distance=gap)(start)
    assert oscillating.status == Status.STAGNATED
    with pytest.warns(ConvergenceWarning, match="DIVERGED"):
        diverging = Recycler(lambda x: 1.3 * x, distance=gap)(start)
    assert diverging.status == Status.DIVERGED


@given(st.floats(1.1, 30), st.integers(6, 30))
def test_growth_is_divergence_whatever_the_budget(rate, n):
    solution = Recycler(
        lambda x: rate * x, distance=gap, max_recycles=n, on_failure="ignore",
    )(torch.full((2,), 10.0))  # fmt: skip
    grown = rate**n > 4
    want = Status.DIVERGED if grown else Status.MAX_ITER
    assert solution.status == want
    if grown:  # the output of the pass that changed least, the first
        assert solution.residual == solution.residual_history.min()
        torch.testing.assert_close(solution.value, torch.full((2,), 10 * rate))


@given(st.integers(2, 4), st.integers(8, 30))
def test_cycles_are_found_long_before_the_end(period, n):
    turn = 2 * math.pi / period
    c, s = math.cos(turn), math.sin(turn)
    rotation = torch.tensor([[c, -s], [s, c]])
    solution = Recycler(
        lambda x: x @ rotation, distance=gap, max_recycles=n, tol=1e-3,
        on_failure="ignore",
    )(torch.tensor([3.0, 1.0]))  # fmt: skip
    assert solution.status == Status.STAGNATED
    assert solution.evaluations <= period + 3


@given(st.floats(-0.93, 0.93), st.floats(1.0, 50.0))
def test_what_converges_in_time_is_never_accused(rate, scale):
    """Alternating ones included: |x| (1+|rate|) rate^20 is below tol."""
    solution = Recycler(
        lambda x: rate * x, distance=gap, on_failure="ignore",
        tol=1.05 * scale * abs(rate - 1) * abs(rate) ** 20 + 1e-9,
    )(torch.full((2,), scale))  # fmt: skip
    assert solution.status == Status.CONVERGED


def test_smoothing_turns_the_oscillating_one():
    solution = Recycler(lambda x: 1 - x, distance=gap, alpha=0.5, tol=1e-6)(
        torch.full((4,), 3.0)
    )
    assert solution.status == Status.CONVERGED
    torch.testing.assert_close(solution.value, torch.full((4,), 0.5))


def test_the_best_pass_is_returned():
    changes = iter([4.0, 2.0, 1.0, 0.7, 3.0, 9.0, 27.0, 81.0, 243.0, 729.0])
    outputs = []

    def step(x):
        outputs.append(x + next(changes))
        return outputs[-1]

    solution = Recycler(
        step, distance=gap, max_recycles=9, on_failure="ignore"
    )(torch.zeros(1))
    assert solution.status == Status.DIVERGED
    torch.testing.assert_close(solution.value, outputs[3])
    torch.testing.assert_close(solution.residual, torch.tensor([0.7]))


def test_a_nan_gives_the_best_pass():
    outputs = []

    def step(x):
        k = len(outputs)
        outputs.append(torch.full((2,), torch.nan) if k == 3 else 0.8 * x)
        return outputs[-1]

    solution = Recycler(step, distance=gap, tol=1e-3, on_failure="ignore")(
        torch.ones(2)
    )
    assert solution.status == Status.NONFINITE
    torch.testing.assert_close(solution.value, outputs[2])


def test_members_of_a_batch_end_apart_and_as_alone():
    rates = torch.tensor([0.2, 0.7, -1.0, 1.5])[:, None, None]
    start = torch.randn(4, 5, 3)

    def recycle(rows):
        return Recycler(
            lambda x: rates[rows] * x, on_failure="ignore", tol=0.05
        )(start[rows])

    together = recycle([0, 1, 2, 3])
    # -x is the same structure, mirrored: no distance changes
    assert together.status.tolist() == [
        Status.CONVERGED, Status.CONVERGED, Status.CONVERGED, Status.DIVERGED,
    ]  # fmt: skip
    for b in range(4):
        alone = recycle([b])
        assert alone.iterations[0] == together.iterations[b]
        assert torch.equal(alone.value[0], together.value[b])


def test_the_callback_sees_every_pass_and_iterations_count_them():
    seen = []
    recycler = Recycler(
        toward(0.5), callback=lambda k, x, d: seen.append((k, x, d))
    )
    solution = recycler(torch.zeros(3, 3))
    assert [k for k, _, _ in seen] == list(range(solution.evaluations))
    assert torch.equal(seen[-1][1], solution.value)
    assert torch.equal(seen[-1][2], solution.residual)
    assert solution.iterations == solution.evaluations
    x = torch.zeros(3, 3)
    for _ in range(int(solution.iterations)):
        x = toward(0.5)(x)
    torch.testing.assert_close(solution.value, x)


def test_the_warning_is_where_the_call_is():
    recycler = Recycler(lambda x: 2 * x, distance=gap, max_recycles=6)
    with pytest.warns(ConvergenceWarning) as found:
        recycler(torch.ones(2))
    assert found[0].filename == __file__


def test_on_failure_and_the_callback():
    seen = []

    def callback(k, state, distance):
        seen.append((k, state.item(), distance.item()))
        return k == 2

    solution = Recycler(
        lambda x: 2 * x, distance=gap, callback=callback, on_failure="raise"
    )(torch.ones(1))
    assert solution.status == Status.STOPPED
    assert seen == [(0, 2.0, 1.0), (1, 4.0, 2.0), (2, 8.0, 4.0)]
    assert solution.value == 8  # what the callback saw
    with pytest.raises(ConvergenceError):
        Recycler(lambda x: 2 * x, distance=gap, on_failure="raise")(
            torch.ones(1)
        )


# -- states ----------------------------------------------------------------


def structured(state):
    s, bins = state["rep"]["s"], state["bins"]
    x = 0.5 * state["x"] + s.mean(-1, keepdim=True)
    new = torch.where(s > 0, 1.0, -1.0) - 0.9 * s
    return {"rep": {"s": new}, "x": x, "bins": bins + 1}


def test_any_structure_and_smoothing_of_chosen_parts():
    start = {
        "rep": {"s": torch.randn(2, 4)},
        "x": torch.randn(2, 3),
        "bins": torch.zeros(2, dtype=torch.long),
    }
    solution = Recycler(
        structured, distance=lambda a, b: gap(a["x"], b["x"]), tol=0.0,
        max_recycles=5, alpha=0.3, smooth=("rep",), on_failure="ignore",
    )(start)  # fmt: skip
    want = start
    for _ in range(6):
        new = structured(want)
        s = 0.3 * want["rep"]["s"] + 0.7 * new["rep"]["s"]
        want = new | {"rep": {"s": s}}
    assert solution.value["bins"].tolist() == [6, 6]
    torch.testing.assert_close(solution.value, want)
    assert solution.status.numel() == 2


def test_integers_of_ended_members_stay():
    rate = torch.tensor([[0.1], [0.8]])
    start = (torch.full((2, 1), 8.0), torch.zeros(2, dtype=torch.int32))
    solution = Recycler(
        lambda s: (rate * s[0], s[1] + 1), tol=0.5,
        distance=lambda a, b: gap(a[0], b[0]),
    )(start)  # fmt: skip
    x, count = solution.value
    assert count.dtype == torch.int32
    for b in range(2):
        torch.testing.assert_close(
            x[b, 0], 8 * rate[b, 0] ** int(count[b]), rtol=1e-5, atol=0
        )
    assert count[0] < count[1]


# -- gradients -------------------------------------------------------------


class Fold(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.rate = torch.nn.Parameter(torch.tensor(0.5, dtype=torch.float64))
        self.calls = 0

    def forward(self, x):
        self.calls += 1
        return self.rate * x + 1


def test_gradient_of_the_last_pass_alone():
    fold = Fold()
    recycler = Recycler(fold, distance=gap, tol=0.2)
    start = torch.zeros(2, dtype=torch.float64)
    solution = recycler(start)
    assert fold.calls == solution.evaluations  # no pass more
    x = start
    for _ in range(solution.evaluations - 1):
        x = fold(x).detach()
    fold(x).sum().backward()
    want, fold.rate.grad = fold.rate.grad.clone(), None
    solution.value.sum().backward()
    torch.testing.assert_close(fold.rate.grad, want)
    assert list(recycler.parameters()) == [fold.rate]


def test_gradient_of_the_last_pass_with_smoothing_at_the_end():
    fold = Fold()
    solution = Recycler(
        fold, distance=gap, tol=0.0, max_recycles=2, alpha=0.25,
        on_failure="ignore",
    )(torch.zeros(1, dtype=torch.float64))  # fmt: skip
    x = torch.zeros(1, dtype=torch.float64)
    for _ in range(2):
        x = (0.25 * x + 0.75 * fold(x)).detach()
    (0.25 * x + 0.75 * fold(x)).sum().backward()
    want, fold.rate.grad = fold.rate.grad.clone(), None
    solution.value.sum().backward()
    torch.testing.assert_close(fold.rate.grad, want)


@pytest.mark.parametrize("gradient", [Unrolled(), Implicit()])
def test_gradients_of_the_engine(gradient):
    fold = Fold()
    solution = Recycler(
        fold, distance=gap, tol=1e-12, max_recycles=60, gradient=gradient
    )(torch.zeros(1, dtype=torch.float64))
    solution.value.sum().backward()
    # x = 1 / (1 - rate)
    assert math.isclose(fold.rate.grad.item(), 4.0, rel_tol=1e-6)


def test_one_arrives_in_the_recycle_in_which_another_is_found_to_cycle():
    """Its image is returned, as it is when it is recycled alone."""

    def distance(a, b):
        return (a - b).abs().amax(1)

    def recycled(step, *starts):
        recycler = Recycler(
            step, distance=distance, tol=0.5, max_recycles=20,
            on_failure="ignore",
        )  # fmt: skip
        return recycler(torch.tensor(starts, dtype=torch.float64)[:, None])

    for start in (8.0, 16.0, 32.0, 64.0):
        alone = recycled(lambda x: 0.5 * x, start)
        both = recycled(
            lambda x: torch.cat([0.5 * x[:1], 10 - x[1:]]), start, 10.0
        )
        assert torch.equal(both.value[:1], alone.value)
        assert both.iterations[0] == alone.iterations[0]
