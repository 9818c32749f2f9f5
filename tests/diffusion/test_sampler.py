"""PicardSampler: the chain itself, sooner."""

import warnings

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from torch_picard import (
    ConvergenceError,
    ConvergenceWarning,
    Status,
    problems,
)
from torch_picard.diffusion import PicardSampler, reverse_chain
from torch_picard.diffusion.affine import chain
from torch_picard.diffusion.sampler import corrected

ALPHAS = torch.cumprod(1 - torch.linspace(1e-4, 0.05, 200), 0)
METHODS = ["picard", "anderson"]
FIELD = torch.randn(6, generator=torch.Generator().manual_seed(0))


def denoiser(x, t):
    """Bends, and depends on the time."""
    return torch.sin(1.5 * x + FIELD * (t / 200)[:, None])


MODES = torch.randn(4, 6, generator=torch.Generator().manual_seed(1))


def mixture(x, t):
    """The best denoiser of four Gaussians."""
    alpha = ALPHAS.to(x)[t][:, None]
    total = 0.01 * alpha + 1 - alpha
    off = x[:, None] - alpha.sqrt()[..., None] * MODES
    weight = torch.softmax(-off.square().sum(2) / (2 * total), 1)[..., None]
    gain = 0.01 * alpha.sqrt() / total
    image = (weight * (MODES + gain[..., None] * off)).sum(1)
    return (x - alpha.sqrt() * image) / (1 - alpha).sqrt()


def start(rows, steps, seed=0, dtype=torch.float32):
    draw = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, 6, generator=draw, dtype=dtype)
    noise = torch.randn(steps, rows, 6, generator=draw, dtype=dtype)
    return x, noise


@given(
    steps=st.integers(1, 30),
    window=st.integers(1, 35),
    rows=st.integers(1, 4),
    eta=st.sampled_from([0.0, 0.4, 1.0]),
    method=st.sampled_from(METHODS),
    order=st.sampled_from([None, 1, 3]),
    tol=st.sampled_from([0.0, 1e-6]),
    seed=st.integers(0, 10**6),
)
def test_the_chain_in_at_most_as_many_rounds(
    steps, window, rows, eta, method, order, tol, seed
):
    x, noise = start(rows, steps, seed)
    want = reverse_chain(denoiser, ALPHAS, steps, x, noise=noise, eta=eta)
    solve = PicardSampler(
        denoiser, ALPHAS, steps, window, tol, method, eta=eta, order=order
    )
    found, solution = solve(x, noise=noise)
    torch.testing.assert_close(found, want, rtol=0, atol=1e-5)
    assert solution.rounds <= steps
    assert solution.converged.all()
    assert (solution.residual <= tol).all()
    assert torch.equal(solution.value[-1], found)
    assert torch.equal(solution.value[0], x)


@pytest.mark.parametrize("method", METHODS)
def test_a_round_is_one_call(method):
    calls = []

    def counting(x, t):
        assert len(x) == len(t) <= 3 * 8
        calls.append(len(x))
        return denoiser(x, t)

    x, _ = start(3, 40)
    _, solution = PicardSampler(counting, ALPHAS, 40, 8, 0.1, method)(x)
    assert solution.rounds == len(calls) < 40
    assert solution.evaluations == sum(calls)
    assert solution.info["evaluations"].sum() == sum(calls)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_fewer_rounds_for_a_small_difference(method, eta):
    x, noise = start(4, 200)
    want = reverse_chain(mixture, ALPHAS, 200, x, noise=noise, eta=eta)
    differences, rounds = [], []
    for tol in (0.3, 0.01):
        solve = PicardSampler(mixture, ALPHAS, 200, 50, tol, method, eta=eta)
        found, solution = solve(x, noise=noise)
        differences.append(float((found - want).abs().max()))
        rounds.append(solution.rounds)
    assert max(rounds) < 40
    assert differences[1] < 1e-2
    assert differences[1] <= differences[0]


def rounds_of(model, alphas, x, noise, eta):
    found = []
    for method in METHODS:
        solve = PicardSampler(model, alphas, 100, 100, 0.1, method, eta=eta)
        found.append(solve(x, noise=noise)[1].rounds)
    return found


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_anderson_needs_two_thirds_of_the_rounds(eta):
    given = problems.gaussian_diffusion(size=6)
    x, noise = start(4, 100, dtype=torch.float64)
    picard, anderson = rounds_of(
        given.denoiser, given.alphas_cumprod, x, noise, eta
    )
    assert 3 * anderson <= 2 * picard


@pytest.mark.parametrize("eta", [0.0, 1.0])
@pytest.mark.parametrize("model", [mixture, denoiser])
def test_anderson_costs_few_rounds_where_it_does_not_help(model, eta):
    picard, anderson = rounds_of(model, ALPHAS, *start(4, 100), eta)
    assert anderson <= picard + 3


@pytest.mark.parametrize("method", METHODS)
def test_a_sample_has_no_batch_mates(method):
    x, noise = start(5, 60, dtype=torch.float64)
    solve = PicardSampler(denoiser, ALPHAS, 60, 20, 0.1, method, eta=1.0)
    together, solution = solve(x, noise=noise)
    for b in range(5):
        alone, own = solve(x[b : b + 1], noise=noise[:, b : b + 1])
        assert own.iterations == solution.iterations[b]
        torch.testing.assert_close(alone[0], together[b], rtol=0, atol=1e-10)


@pytest.mark.parametrize("method", METHODS)
def test_a_nan_is_never_converged_and_stays_where_it_is(method):
    def broken(x, t, bad):
        lost = (bad > 0) & (t < 100)
        return torch.where(lost[:, None], torch.nan, denoiser(x, t))

    x, _ = start(3, 40)
    bad = torch.tensor([0.0, 1.0, 0.0])
    solve = PicardSampler(
        broken, ALPHAS, 40, 10, 0.1, method, on_failure="ignore"
    )
    found, solution = solve(x, condition=bad)
    assert solution.status.tolist() == [
        Status.CONVERGED, Status.NONFINITE, Status.CONVERGED,
    ]  # fmt: skip
    assert torch.isfinite(found).all()
    assert torch.isfinite(solution.value).all()
    alone, _ = solve(x[::2], condition=bad[::2])
    torch.testing.assert_close(found[::2], alone, rtol=0, atol=1e-5)
    whole = reverse_chain(broken, ALPHAS, 40, x, condition=bad)
    assert torch.isfinite(whole).all(1).tolist() == [True, False, True]


@pytest.mark.parametrize("method", METHODS)
def test_a_nan_ahead_that_goes_away(method):
    """Of a guess, not of the chain."""
    x, _ = start(2, 30)
    chain = reverse_chain(denoiser, ALPHAS, 30, x)
    _, known = PicardSampler(denoiser, ALPHAS, 30, 30, 0.0)(x)
    limit = float(known.value.abs().max()) + 0.01

    def narrow(x, t):
        far = (x.abs() > limit).any(1, keepdim=True)
        return torch.where(far, torch.nan, denoiser(x, t))

    wild = torch.full((31, 2, 6), 50.0)
    solve = PicardSampler(narrow, ALPHAS, 30, 30, 1e-6, method)
    found, solution = solve(x, start=wild)
    assert solution.converged.all()
    torch.testing.assert_close(found, chain, rtol=0, atol=1e-4)


@pytest.mark.parametrize("method", METHODS)
def test_a_chain_that_blows_up_has_diverged(method):
    def growing(x, t):
        return -20 * x

    x, _ = start(2, 40)
    want = reverse_chain(growing, ALPHAS, 40, x)
    assert not float(want.abs().max()) < 1e4
    solve = PicardSampler(growing, ALPHAS, 40, 10, 0.1, method)
    with pytest.warns(ConvergenceWarning, match="DIVERGED"):
        found, solution = solve(x)
    assert (solution.status == Status.DIVERGED).all()
    assert torch.isfinite(found).all()


@pytest.mark.parametrize("size", [0.5, 3.0])
@pytest.mark.parametrize(
    ("share", "status"), [(0.99, Status.CONVERGED), (1.01, Status.DIVERGED)]
)
def test_the_bound_beyond_which_a_chain_has_diverged(size, share, status):
    """As the documentation has it."""
    x, _ = start(2, 20)
    x *= size / x.square().mean(1, keepdim=True).sqrt()
    # at the first of 20 evenly spaced times
    bound = 100 * max(1.0, size) / ALPHAS[190].sqrt()
    solve = PicardSampler(
        lambda x, t: share * bound * torch.ones_like(x), ALPHAS, 20,
        prediction="x0", on_failure="ignore",
    )  # fmt: skip
    _, solution = solve(x)
    assert (solution.status == status).all()


@pytest.mark.parametrize("method", METHODS)
def test_a_chain_that_grows_as_its_schedule_has_it(method):
    """With a denoiser that has learned nothing x is divided by what is left
    of the image."""
    alphas = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000), 0)
    x, _ = start(2, 50)
    want = reverse_chain(lambda x, t: 0 * x, alphas, 50, x)
    assert float(want.abs().max()) > 100
    solve = PicardSampler(lambda x, t: 0 * x, alphas, 50, 9, 0.0, method)
    found, solution = solve(x)
    assert solution.converged.all()
    torch.testing.assert_close(found, want)


def test_rounds_can_run_out():
    x, _ = start(2, 40)
    options = {"max_rounds": 3, "on_failure": "raise"}
    solve = PicardSampler(denoiser, ALPHAS, 40, 5, 0.0, **options)
    with pytest.raises(ConvergenceError) as caught:
        solve(x)
    solution = caught.value.solution
    assert (solution.status == Status.MAX_ITER).all()
    torch.testing.assert_close(
        solution.residual, solution.residual_history[-1]
    )
    assert (solution.residual > 0).all()
    assert solution.rounds == 3


def test_a_warning_points_at_the_caller():
    x, _ = start(1, 20)
    solve = PicardSampler(denoiser, ALPHAS, 20, 5, 0.0, max_rounds=1)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        solve(x)
    assert [w.filename for w in seen] == [__file__]


@pytest.mark.parametrize("method", METHODS)
def test_a_warm_start(method):
    """Another condition, the same noise."""

    def conditional(x, t, shift):
        return mixture(x + shift, t)

    x, noise = start(3, 60)
    shift = torch.zeros(3, 6)
    exact = PicardSampler(conditional, ALPHAS, 60, 60, 0.0, eta=1.0)
    _, first = exact(x, noise=noise, condition=shift)
    solve = PicardSampler(conditional, ALPHAS, 60, 60, 0.01, method, eta=1.0)
    _, same = solve(x, noise=noise, condition=shift, start=first.value)
    assert same.rounds <= 2
    near = {"noise": noise, "condition": shift + 1e-3}
    want, slow = solve(x, **near)
    found, fast = solve(x, **near, start=first.value)
    assert fast.rounds < slow.rounds
    torch.testing.assert_close(found, want, rtol=0, atol=1e-2)


def test_the_callback_sees_the_front_and_can_stop():
    seen = []

    def look(k, samples, settled):
        seen.append((k, samples.shape, settled.tolist()))
        return k == 3

    x, _ = start(2, 40)
    solve = PicardSampler(denoiser, ALPHAS, 40, 5, 0.1)
    _, solution = solve(x, callback=look)
    assert [k for k, *_ in seen] == [1, 2, 3]
    assert (solution.status == Status.STOPPED).all()
    assert seen[-1][2] == solution.info["positions"].tolist()


def test_a_condition_goes_with_its_sample():
    def conditional(x, t, parts):
        assert len(parts["shift"]) == len(x)
        return denoiser(x + parts["shift"], t)

    x, _ = start(4, 30)
    shift = {"shift": torch.linspace(0, 1, 4)[:, None]}
    want = reverse_chain(conditional, ALPHAS, 30, x, condition=shift)
    solve = PicardSampler(conditional, ALPHAS, 30, 7, 0.0)
    found, _ = solve(x, condition=shift)
    torch.testing.assert_close(found, want, rtol=0, atol=1e-5)


def test_a_generator_gives_the_same_noise_to_both():
    x, _ = start(2, 25)
    found, want = (
        sample(torch.Generator().manual_seed(3))
        for sample in (
            lambda g: PicardSampler(denoiser, ALPHAS, 25, 9, 0.0, eta=1.0)(
                x, generator=g
            )[0],
            lambda g: reverse_chain(
                denoiser, ALPHAS, 25, x, generator=g, eta=1.0
            ),
        )
    )
    torch.testing.assert_close(found, want, rtol=0, atol=1e-5)


def test_half_precision_is_that_of_the_denoiser_alone():
    def typed(x, t):
        assert x.dtype == torch.bfloat16
        return denoiser(x, t).to(x.dtype)

    x = start(2, 25)[0].bfloat16()
    found, solution = PicardSampler(typed, ALPHAS, 25, 10, 0.1)(x)
    assert found.dtype == torch.bfloat16
    assert solution.converged.all()


@given(
    order=st.one_of(st.none(), st.integers(1, 9)),
    columns=st.integers(1, 8),
    sloped=st.booleans(),
)
def test_changes_of_the_steps_before(order, columns, sloped):
    step, old, gain = torch.randn(3, 2, columns, 3, dtype=torch.float64)
    found = corrected(step, old, gain if sloped else None, order)
    for i in range(columns):
        first = 0 if order is None else max(0, i - order + 1)
        change = torch.zeros(2, 3, dtype=torch.float64)
        for j in range(first, i):
            passed_on = gain[:, j] * change if sloped else change
            change = step[:, j] - old[:, j] + passed_on
        want = step[:, i] + (gain[:, i] * change if sloped else change)
        torch.testing.assert_close(found[:, i], want)


@given(columns=st.integers(1, 9), quiet=st.integers(0, 9))
def test_what_does_not_change_changes_nothing(columns, quiet):
    change, gain = torch.randn(2, 3, columns, 2)
    change[:, :quiet] = 0.0
    assert not chain(change, gain, None)[:, :quiet].any()
