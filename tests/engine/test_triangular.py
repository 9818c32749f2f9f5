"""x_i = P_i(x_<i): the front."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from torch_picard import Status
from torch_picard.engine.triangular import Front


def chain(rows, steps, seed):
    """x_{i+1} = g_i(x_i), one after the other, [B, N+1]."""
    draw = torch.Generator().manual_seed(seed)
    weight = torch.randn(rows, steps, generator=draw, dtype=torch.float64)
    shift = torch.randn(rows, steps, generator=draw, dtype=torch.float64)
    x = torch.zeros(rows, steps + 1, dtype=torch.float64)
    for i in range(steps):
        x[:, i + 1] = torch.sin(2 * weight[:, i] * x[:, i]) + shift[:, i]
    return x, weight, shift


def sweep(weight, shift, length, window, tol, break_at=None):
    rows, steps = weight.shape
    x = torch.zeros(rows, steps + 1, dtype=torch.float64)
    front = Front(length, window, dtype=torch.float64)
    used = 0
    while front.running:
        width = front.width
        used += int(width.sum())
        index = front.at[:, None] + torch.arange(window)
        inside = torch.arange(window) < width[:, None]
        index = torch.where(inside, index, torch.zeros_like(index))
        old = x.gather(1, index + 1)
        w, s = weight.gather(1, index), shift.gather(1, index)
        new = torch.sin(2 * w * x.gather(1, index)) + s
        if break_at is not None:
            new[index == break_at] = torch.nan
        change = (new - old).abs()
        row, j = inside.nonzero(as_tuple=True)
        x[row, index[row, j] + 1] = new[row, j]
        front.advance(change, change <= tol, torch.isfinite(new))
    return x, front, used


@given(
    rows=st.integers(1, 4),
    steps=st.integers(1, 12),
    window=st.integers(1, 14),
    seed=st.integers(0, 10**6),
)
def test_the_sequence_itself_in_at_most_its_length(rows, steps, window, seed):
    want, weight, shift = chain(rows, steps, seed)
    length = torch.randint(1, steps + 1, (rows,))
    x, front, used = sweep(weight, shift, length, window, tol=0.0)
    solution = front.solution(x, used)
    assert (solution.status == Status.CONVERGED).all()
    assert solution.rounds <= int(length.max())
    assert (solution.iterations <= length).all()
    for b in range(rows):
        n = int(length[b]) + 1
        torch.testing.assert_close(x[b, :n], want[b, :n], rtol=0, atol=0)
    assert torch.equal(solution.info["positions"], length)


def test_window_one_is_the_sequence():
    want, weight, shift = chain(2, 7, 3)
    x, front, used = sweep(weight, shift, torch.tensor([7, 7]), 1, 0.0)
    assert front.rounds == 7 and used == 14
    torch.testing.assert_close(x, want, rtol=0, atol=0)


def test_rows_alone_and_together():
    _, weight, shift = chain(3, 9, 5)
    length = torch.tensor([9, 4, 6])
    x, front, _ = sweep(weight, shift, length, 5, 1e-3)
    rounds = front.solution(None, 0).iterations
    for b in range(3):
        part = slice(b, b + 1)
        one, alone, _ = sweep(weight[part], shift[part], length[part], 5, 1e-3)
        assert alone.solution(None, 0).iterations == rounds[b]
        assert torch.equal(one[0], x[b])


def test_a_break_ends_its_row_when_the_front_is_there():
    _, weight, shift = chain(1, 9, 5)
    _, front, _ = sweep(weight, shift, torch.tensor([9]), 5, 0.0, break_at=6)
    solution = front.solution(None, 0)
    assert solution.status == Status.NONFINITE
    assert solution.info["positions"] == 6
    assert torch.isinf(solution.residual).all()


def test_rounds_can_run_out():
    front = Front(torch.tensor([9]), 3, max_rounds=2)
    change = torch.ones(1, 3)
    rounds = 0
    while front.running:
        front.advance(change, change <= 0)
        rounds += 1
    solution = front.solution(None, 6)
    assert rounds == solution.rounds == 2
    assert solution.status == Status.MAX_ITER
    assert solution.info["positions"] == 2


def test_a_row_of_nothing_has_converged():
    solution = Front(torch.tensor([0, 0]), 3).solution(None, 0)
    assert solution.status.tolist() == [Status.CONVERGED] * 2
    assert solution.residual.tolist() == [0, 0]
