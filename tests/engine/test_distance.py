"""Residuals in units of their own, outcomes that a callback says, and one
alpha for each leaf."""

import math

import pytest
import torch

from torch_picard import Anderson, Implicit, Picard, Status, fixed_point


def largest(x, z):
    return (z - x).abs().amax(-1)


def halve(x):
    return 0.5 * x + 1


def test_distance_decides():
    x0 = torch.tensor([[0.0, 0.0], [1.9, 2.0]])
    for distance in (largest, lambda x, z: 100 * largest(x, z)):
        solution = fixed_point(
            halve, x0, method=Picard(alpha=0.0), rtol=0, atol=0.1,
            segments="leading", distance=distance,
        )  # fmt: skip
        assert solution.converged.all()
        torch.testing.assert_close(
            solution.residual, distance(solution.value, halve(solution.value))
        )
        assert (solution.residual <= 0.1).all()
    # a change of 1, .5, .25, .125, .0625
    first = fixed_point(
        halve, x0, method=Picard(alpha=0.0), rtol=0, atol=0.1,
        segments="leading", distance=largest,
    )  # fmt: skip
    assert first.iterations.tolist() == [4, 0]
    assert (first.value - 2).abs().amax(-1)[0] <= first.error_bound[0]


def test_a_leaf_that_distance_ignores_may_not_be_nan():
    def step(state):
        x, s = state
        return 0.5 * x, torch.where(x < 0.3, torch.nan, s)

    solution = fixed_point(
        step, (torch.ones(1), torch.ones(1)), method=Picard(alpha=0.0), rtol=0,
        atol=0.2, distance=lambda a, b: (a[0] - b[0]).abs(),
        on_failure="ignore",
    )  # fmt: skip
    assert solution.status == Status.NONFINITE
    assert all(torch.isfinite(t).all() for t in solution.value)


def test_implicit_gradient_beside_a_distance():
    a = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    value = fixed_point(
        lambda x: a * x + 1, torch.zeros(1, dtype=torch.float64), rtol=0,
        atol=1e-13, distance=largest, gradient=Implicit(), max_iter=200,
    ).value  # fmt: skip
    value.sum().backward()
    assert math.isclose(a.grad.item(), 4.0, rel_tol=1e-6)


@pytest.mark.parametrize(
    "options, error, text",
    [
        ({"rtol": 1e-3}, ValueError, "rtol must be 0 beside a distance"),
        ({"method": Anderson()}, ValueError, "method must be Picard"),
        ({"distance": "l2"}, TypeError, "distance must be callable"),
        ({"distance": lambda x, z: 0.0}, ValueError, "one number for each"),
        (
            {"distance": lambda x, z: x - z},
            ValueError,
            "one number for each of 1",
        ),
    ],
)
def test_wrong_calls(options, error, text):
    given = {"rtol": 0, "atol": 0.1, "distance": lambda x, z: (x - z).norm()}
    with pytest.raises(error, match=text):
        fixed_point(halve, torch.zeros(3), **given | options)


def test_a_callback_says_how_each_segment_ends():
    def verdict(k, x, residual):
        if k < 2:
            return False
        return torch.tensor([Status.DIVERGED, -1, Status.STAGNATED])

    x0 = torch.tensor([[1.0], [1.0], [4.0]])
    solution = fixed_point(
        lambda x: 0.5 * x, x0, method=Picard(alpha=0.0), rtol=0, atol=1e-3,
        segments="leading", callback=verdict, on_failure="ignore",
    )  # fmt: skip
    assert solution.status.tolist() == [
        Status.DIVERGED, Status.CONVERGED, Status.STAGNATED,
    ]  # fmt: skip
    torch.testing.assert_close(
        solution.value[[0, 2], 0], torch.tensor([0.25, 1.0])
    )
    assert solution.iterations[[0, 2]].tolist() == [2, 2]
    whole = fixed_point(
        lambda x: -x, torch.ones(2), method=Picard(alpha=0.0),
        callback=lambda k, x, r: Status.STAGNATED if k == 4 else None,
        on_failure="ignore",
    )  # fmt: skip
    assert whole.status == Status.STAGNATED and whole.evaluations == 5


@pytest.mark.parametrize("claim", [Status.CONVERGED, Status.MAX_ITER])
def test_a_callback_may_not_claim_success(claim):
    with pytest.raises(ValueError, match="which is for the residual to say"):
        fixed_point(halve, torch.zeros(3), callback=lambda k, x, r: claim)


def test_a_callback_may_answer_with_a_bool_tensor():
    solution = fixed_point(
        halve, torch.zeros(3), callback=lambda k, x, r: r.sum() < 0.5
    )
    assert solution.status == Status.STOPPED
    assert solution.residual < 0.5


def test_one_alpha_for_each_leaf():
    def step(state):
        return {"s": state["x"] + 1, "x": 0.5 * state["s"]}

    start = {"x": torch.tensor([1.0]), "s": torch.tensor([4.0])}
    want = dict(start)
    for _ in range(5):
        new = step(want)
        want = {"x": new["x"], "s": 0.75 * want["s"] + 0.25 * new["s"]}
    for order in ({"s": 0.75, "x": 0.0}, {"x": 0.0, "s": 0.75}):
        got = fixed_point(
            step, start, method=Picard(alpha=order), max_iter=5, rtol=0
        ).value
        torch.testing.assert_close(got, want)


def test_a_learned_alpha_of_one_leaf():
    alpha = torch.tensor(0.5, requires_grad=True)
    x, s = fixed_point(
        lambda state: (0.5 * state[0], state[0]),
        (torch.ones(1), torch.ones(1)),
        method=Picard(alpha=(alpha, 0.0)), max_iter=2, rtol=0,
    ).value  # fmt: skip
    x.sum().backward()
    # x = (.5 + .5 alpha)^2
    assert math.isclose(alpha.grad.item(), 0.75, rel_tol=1e-6)
    assert s.item() == 0.75


@pytest.mark.parametrize(
    "alpha", [(0.5,), (0.5, 0.5, 0.5), {"a": 0.1, "b": 0.1}, (0.5, 1.0)]
)
def test_alpha_that_does_not_match(alpha):
    with pytest.raises(ValueError, match="alpha"):
        fixed_point(
            lambda s: s, (torch.ones(1), torch.ones(1)),
            method=Picard(alpha=alpha),
        )  # fmt: skip


@pytest.mark.parametrize(
    "answer, text",
    [
        (lambda x, r: r < 0.5, "callback must return True, False, None"),
        (lambda x, r: torch.zeros(2).long(), "for each of 3 segments"),
        (lambda x, r: x.zero_(), "callback must not write to x_k"),
    ],
)
@pytest.mark.parametrize("rtol", [0.0, 1e-5])
def test_answers_that_mean_nothing(answer, text, rtol):
    with pytest.raises(ValueError, match=text):
        fixed_point(
            halve, torch.ones(3), segments="leading", rtol=rtol,
            callback=lambda k, x, r: answer(x, r),
        )  # fmt: skip


def test_a_fixed_count_ends_as_the_callback_says():
    def solve(answer):
        return fixed_point(
            halve, torch.ones(3), segments="leading", rtol=0.0,
            callback=lambda k, x, r: answer if k == 2 else None,
        )  # fmt: skip

    for answer, status in [(True, Status.STOPPED), *[
        (s, s) for s in (Status.DIVERGED, Status.NONFINITE)
    ]]:  # fmt: skip
        s = solve(answer)
        assert (s.status == status).all() and (s.iterations == 2).all()
    with pytest.raises(ValueError, match="which is for the residual to say"):
        solve(Status.CONVERGED)
    with pytest.raises(ValueError, match="for all segments at once"):
        solve(torch.tensor([5, -1, -1]))
