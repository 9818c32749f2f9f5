"""What happens when a solve fails: warn, raise, ignore."""

import pickle
import warnings

import pytest
import torch

from torch_picard import (
    ConvergenceError,
    ConvergenceWarning,
    Implicit,
    Picard,
    Status,
    fixed_point,
)


def slow(x):
    return 0.99 * x + 1


X0 = torch.zeros(3, dtype=torch.float64)


def test_warn_is_the_default_and_warns_once():
    with pytest.warns(ConvergenceWarning, match="MAX_ITER") as caught:
        fixed_point(slow, X0)
    assert len(caught) == 1
    assert caught[0].filename == __file__  # points at the caller


def test_one_warning_for_many_segments():
    x0 = torch.zeros(4, 2, dtype=torch.float64)
    factor = torch.tensor([0.1, 0.99, -3.0, 0.999]).double()[:, None]
    with pytest.warns(ConvergenceWarning) as caught:
        fixed_point(
            lambda x: factor * x + 1,
            x0,
            segments="leading",
            method=Picard(0.0),
        )
    assert len(caught) == 1
    text = str(caught[0].message)
    assert "2 of 4" in text and "1 of 4" in text and "DIVERGED" in text


def test_a_start_that_is_not_finite_is_named():
    x0 = X0.clone()
    x0[1] = torch.inf
    with pytest.raises(ConvergenceError, match="NONFINITE: x0 itself held"):
        fixed_point(slow, x0, on_failure="raise")
    with pytest.raises(ConvergenceError, match=r"NONFINITE: P\(x\) held"):
        fixed_point(lambda x: x0, X0, on_failure="raise")


def test_raise_carries_the_solution():
    with pytest.raises(ConvergenceError, match="larger max_iter") as info:
        fixed_point(slow, X0, on_failure="raise", max_iter=7)
    s = info.value.solution
    assert s.status.item() == Status.MAX_ITER and s.evaluations == 7
    torch.testing.assert_close(
        s.value, torch.full_like(X0, 100 * (1 - 0.995**7))
    )


def test_the_error_can_be_pickled():
    with pytest.raises(ConvergenceError) as info:
        fixed_point(slow, X0, on_failure="raise")
    again = pickle.loads(pickle.dumps(info.value))
    assert str(again) == str(info.value)
    assert torch.equal(again.solution.value, info.value.solution.value)


def test_ignore_is_silent(no_warnings):
    s = fixed_point(slow, X0, on_failure="ignore")
    assert not s.converged.all()
    with pytest.raises(ConvergenceError) as info:
        s.raise_for_status()
    assert info.value.solution is s


@pytest.mark.parametrize("on_failure", ["warn", "raise"])
@pytest.mark.parametrize("factor", [0.99, -1.0, 3.0, float("nan")])
def test_the_fixed_count_never_fails(no_warnings, method, on_failure, factor):
    s = fixed_point(
        lambda x: factor * x + 1,
        X0,
        method=method,
        max_iter=30,
        rtol=0.0,
        on_failure=on_failure,
    )
    assert s.status.item() == Status.MAX_ITER


@pytest.mark.parametrize("on_failure", ["warn", "raise"])
def test_success_is_silent(no_warnings, method, on_failure):
    s = fixed_point(
        lambda x: 0.5 * x + 1, X0, method=method, on_failure=on_failure
    )
    assert s.raise_for_status() is s


def test_the_text_of_a_solution():
    s = fixed_point(slow, X0, on_failure="ignore")
    assert "50 evaluations" in repr(s) and "MAX_ITER" in repr(s)


def hard_backward(on_failure, options):
    """Forward: one step, as x0 is the solution. Backward: eigenvalues of J
    on a circle around the origin, which a few products cannot resolve."""
    n = 40
    matrix = 0.999 * torch.eye(n, dtype=torch.float64).roll(1, 0)
    matrix.requires_grad_()
    s = fixed_point(
        lambda x: matrix @ x,
        torch.zeros(n, dtype=torch.float64),
        gradient=options,
        on_failure=on_failure,
    )
    assert s.converged.all()
    return s, s.value[0]


BACKWARDS = [
    Implicit(max_iter=5),
    Implicit(method=Picard(0.0), max_iter=5),
]


@pytest.mark.parametrize("options", BACKWARDS, ids=repr)
def test_a_failed_backward_solve_warns(options):
    s, loss = hard_backward("warn", options)
    with pytest.warns(ConvergenceWarning, match="MAX_ITER") as caught:
        loss.backward()
    assert len(caught) == 1
    assert s.backward.status.item() == Status.MAX_ITER
    assert s.backward.evaluations <= 5


@pytest.mark.parametrize("options", BACKWARDS, ids=repr)
def test_a_failed_backward_solve_raises(options):
    s, loss = hard_backward("raise", options)
    with pytest.raises(ConvergenceError) as info:
        loss.backward()
    assert info.value.solution is s.backward
    assert info.value.solution.status.item() == Status.MAX_ITER


@pytest.mark.parametrize("options", BACKWARDS, ids=repr)
def test_a_failed_backward_solve_is_recorded(no_warnings, options):
    s, loss = hard_backward("ignore", options)
    loss.backward()
    assert s.backward.status.item() == Status.MAX_ITER


def test_a_singular_backward_solve_is_reported():
    """I - J^T has no inverse: there is no gradient."""
    w = torch.eye(3, dtype=torch.float64, requires_grad=True)
    s = fixed_point(
        lambda x: w @ x, X0 + 1, gradient=Implicit(), on_failure="ignore"
    )
    s.value.sum().backward()
    assert Status(s.backward.status).failed


def test_a_nan_in_the_loss_reaches_the_gradient():
    """Gradient scalers look for it."""
    w = torch.full((3,), 0.5, dtype=torch.float64, requires_grad=True)
    for method in (None, Picard(0.0)):
        s = fixed_point(
            lambda x: w * x + 1,
            X0,
            gradient=Implicit(method=method),
            on_failure="ignore",
        )
        (g,) = torch.autograd.grad(s.value.sum() * float("nan"), w)
        assert g.isnan().all()
        assert s.backward.status.item() == Status.NONFINITE


def test_a_good_backward_solve_is_recorded(no_warnings):
    w = torch.full((3,), 0.5, dtype=torch.float64, requires_grad=True)
    s = fixed_point(lambda x: w * x + 1, X0, gradient=Implicit())
    assert s.backward is None
    s.value.sum().backward()
    assert s.backward.converged.all() and s.backward.value is None
    torch.testing.assert_close(
        w.grad, torch.full_like(w, 4.0), rtol=1e-4, atol=0
    )


def test_warnings_can_be_made_errors():
    with warnings.catch_warnings():
        warnings.simplefilter("error", ConvergenceWarning)
        with pytest.raises(ConvergenceWarning):
            fixed_point(slow, X0)
