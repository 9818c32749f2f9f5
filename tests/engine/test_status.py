"""A result that does not lie: what each status means, and when it is given."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from torch_picard import (
    Anderson,
    Broyden,
    NewtonKrylov,
    Picard,
    Status,
    fixed_point,
)

QUIET = {"on_failure": "ignore", "max_iter": 200}


def zeros(n=4, dtype=torch.float64):
    return torch.zeros(n, dtype=dtype)


def is_best_iterate(operator, s):
    """The value's measured residual is the least of the history."""
    history = s.residual_history
    least = torch.where(history.isfinite(), history, torch.inf).min(0).values
    torch.testing.assert_close(s.residual, least)
    measured = (operator(s.value) - s.value).norm()
    torch.testing.assert_close(measured, s.residual[0], rtol=1e-6, atol=0)


@pytest.mark.parametrize("status", Status)
def test_every_status_says_what_happened_and_what_to_try(status):
    text = str(status)
    assert text.startswith(f"{status.name}: ")
    assert text.endswith(".")
    remedy = "Try" in text or "try" in text or "Check" in text
    assert remedy == status.failed


def test_a_status_is_found_by_a_tensor():
    assert Status(torch.tensor(2)) is Status.DIVERGED
    assert Status(torch.tensor([0])) is Status.CONVERGED
    with pytest.raises(ValueError, match="valid"):
        Status(torch.tensor([0, 1]))


@pytest.mark.parametrize(
    ("shift", "rtol"), [(2.0, 0.0391), (1.0, 0.0625), (1.0, 0.094)]
)
def test_a_drift_in_half_precision_never_converges(shift, rtol):
    """Rounding makes its residuals differ by a unit, from below and above."""
    x0 = torch.zeros(1, dtype=torch.bfloat16)
    s = fixed_point(
        lambda x: x + shift, x0, method=Picard(0.3), rtol=rtol,
        max_iter=600, on_failure="ignore",
    )  # fmt: skip
    assert not s.converged.any()


@given(
    shift=st.floats(1e-6, 1e6),
    start=st.floats(-1e3, 1e9),
    rtol=st.sampled_from([1e-5, 1e-3, 1e-2]),
)
def test_a_drift_never_converges(method, shift, start, rtol):
    """x + 1 has no fixed point, though |P(x) - x|/|P(x)| goes to 0."""
    x0 = torch.tensor([start], dtype=torch.float64)
    if abs(shift) <= 2 * rtol * abs(start):
        x0 = torch.zeros_like(x0)
    s = fixed_point(lambda x: x + shift, x0, method=method, rtol=rtol, **QUIET)
    assert s.status.item() == Status.STAGNATED
    assert s.residual.item() == pytest.approx(shift)


@given(rate=st.floats(0.5, 0.9999), rtol=st.sampled_from([1e-1, 1e-2, 1e-3]))
def test_growth_that_leads_somewhere_converges_as_rtol_says(rate, rtol):
    """rate*x + 1 from 0 grows like a drift, but its residual falls."""
    s = fixed_point(
        lambda x: rate * x + 1,
        zeros(1),
        method=Picard(0.0),
        rtol=rtol,
        max_iter=20_000,
    )
    # rate^k <= rtol (1 - rate^(k+1))/(1 - rate)
    least = rtol / (1 - rate + rtol * rate)
    expected = max(0, math.ceil(math.log(least) / math.log(rate) - 1e-6))
    assert s.iterations.item() == expected


@given(
    size=st.floats(0.001, 0.5),
    wavelength=st.floats(0.5, 10.0),
    phase=st.floats(0.0, 6.3),
    rtol=st.sampled_from([1e-2, 1e-3]),
)
def test_a_drift_with_ripples_never_converges(
    method, size, wavelength, phase, rtol
):
    """x + 1 + a sin(x/w), a <= 1/2, whose residual falls and rises again.
    (One that only falls for all the way to |P(x)| = r/rtol is no other than
    a slow convergence, to all that can be seen.)"""
    s = fixed_point(
        lambda x: x + 1 + size * torch.sin(x / wavelength + phase),
        zeros(1),
        method=method,
        rtol=rtol,
        max_iter=500,
        on_failure="ignore",
    )
    assert not s.converged.any()


@given(length=st.integers(2, 80), size=st.floats(1e-3, 1e3))
def test_a_pulse_along_a_chain_is_no_stall(length, size):
    """It is never farther from where it was, nor nearer, until it leaves."""
    start = size * torch.eye(length, dtype=torch.float64)[0]
    s = fixed_point(
        lambda x: torch.cat([zeros(1), x[:-1]]),
        start,
        method=Picard(0.0),
        max_iter=100,
    )
    assert s.iterations.item() == length and (s.value == 0).all()


@given(seed=st.integers(0, 1000), slow=st.floats(0.9, 1.0))
def test_what_stalls_does_not_depend_on_its_mates(seed, slow):
    """The logistic map, beside one that descends slowly, or drifts."""

    def logistic(x):
        return 3.9 * x * (1 - x)

    rng = torch.Generator().manual_seed(seed)
    x0 = torch.rand(1, 1, generator=rng, dtype=torch.float64)
    options = {**QUIET, "segments": "leading", "rtol": 1e-8}
    alone = fixed_point(logistic, x0, method=Picard(0.0), **options)
    both = fixed_point(
        lambda x: torch.cat([logistic(x[:1]), slow * x[1:] + 1]),
        torch.cat([x0, zeros(1)[None]]),
        method=Picard(0.0),
        **options,
    )
    assert both.status[0] == alone.status and both.value[0] == alone.value
    assert both.iterations[0] == alone.iterations


def test_a_slow_descent_in_float32_is_no_jitter():
    """In steps of rounding, as the loop written by hand goes."""
    k, x = 0, torch.zeros(2)
    while True:
        z = 0.9997 * x + 1
        if (z - x).norm() <= 1e-5 * z.norm():
            break
        k, x = k + 1, z
    s = fixed_point(
        lambda x: 0.9997 * x + 1,
        torch.zeros(2),
        method=Picard(0.0),
        max_iter=100_000,
    )
    assert s.iterations.item() == k > 10_000


@pytest.mark.parametrize(
    "dtype", [torch.float16, torch.bfloat16, torch.float32]
)
@pytest.mark.parametrize("rtol", [1e-5, 1e-2, 0.1])
def test_a_drift_of_low_precision_never_converges(method, dtype, rtol):
    """It ends where x + 1 rounds to x, or before."""
    s = fixed_point(
        lambda x: x + 1,
        torch.tensor([0.4, 0.7], dtype=dtype),
        method=method,
        rtol=rtol,
        max_iter=3000,
        on_failure="ignore",
    )
    assert not s.converged.any()


@pytest.mark.parametrize("length", [25, 60, 300])
def test_a_wave_along_a_chain_is_no_stall(method, length):
    """A shift is nilpotent (E11): the residual is 1 until the wave arrives,
    after ``length`` steps of the plain iteration."""
    if isinstance(method, Broyden):
        pytest.skip("forgets, at its memory's end, how far it was")
    start = torch.zeros(length, dtype=torch.float64)
    start[0] = 1.0
    s = fixed_point(
        lambda x: torch.cat([start[:1], x[:-1]]),
        start,
        method=method,
        max_iter=3000,
    )
    assert s.converged.all()
    torch.testing.assert_close(
        s.value, torch.ones_like(start), rtol=0, atol=1e-3
    )
    if method == Picard(0.0):
        assert s.iterations.item() == length - 1


@given(
    shift=st.floats(1e-6, 1e6),
    start=st.sampled_from([0.0, 1.0, -100.0]),
    size=st.sampled_from([1, 2, 50]),
    ripple=st.sampled_from([0.0, 0.1, 1.0, 3.0]),
    dtype=st.sampled_from([torch.float64, torch.float32]),
    segments=st.sampled_from([None, "leading"]),
)
@pytest.mark.parametrize(
    "accelerator", [Anderson(), Anderson(alpha=0.5), Broyden()], ids=repr
)
def test_no_leap_on_a_drift(
    accelerator, shift, start, size, ripple, dtype, segments
):
    """The secants of x + c are rounding noise; so are those of a drift that
    varies by some rounding units. An accelerator may not extrapolate them:
    it goes no farther than Picard."""
    rng = torch.Generator().manual_seed(0)
    eps = torch.finfo(dtype).eps
    c = (shift * torch.randn(size, generator=rng).exp()).to(dtype)
    x0 = (shift * start * torch.randn(size, generator=rng)).to(dtype)
    seen = []

    def operator(x):
        seen.append(x.abs().max().item())
        return x + c * (1 + ripple * eps * torch.sin(x))

    options = {"segments": segments, "rtol": 10 * eps, **QUIET}
    s = fixed_point(operator, x0, method=accelerator, **options)
    assert s.status.eq(Status.STAGNATED).all()
    farthest = max(seen)
    seen.clear()
    options["max_iter"] = s.evaluations
    fixed_point(operator, x0, method=Picard(0.0), **options)
    assert farthest <= 10 * max(seen)


@settings(max_examples=20)
@given(
    seed=st.integers(0, 1000),
    size=st.sampled_from([1, 2, 20]),
    variation=st.sampled_from([1e-10, 1e-6, 1e-3, 0.1, 0.5, 0.9]),
    wavelength=st.floats(0.1, 10.0),
    dtype=st.sampled_from([torch.float64, torch.float32]),
)
@pytest.mark.parametrize(
    ("accelerator", "farthest"),
    [
        (Anderson(), 1e3),
        (Anderson(alpha=0.5), 1e3),
        (Broyden(), 1e3),
        (NewtonKrylov(), 1e5),
    ],
    ids=repr,
)
def test_a_drift_that_varies_does_not_lead_away(
    accelerator, farthest, seed, size, variation, wavelength, dtype
):
    """x + c(1 + a sin x), |a| < 1, has no fixed point, but secants that
    foresee one at a distance of |c|/a. Nobody may believe that they got
    there, nor go there: the value is at most 100 times as far as the first
    trust region, not 10^15 plain steps."""
    rng = torch.Generator().manual_seed(seed)
    c = 0.3 * torch.randn(size, generator=rng).exp().to(dtype)
    x0, phase = torch.randn(2, size, generator=rng).to(dtype)

    def operator(x):
        return x + c * (1 + variation * torch.sin(x / wavelength + phase))

    options = {**QUIET, "max_iter": 60}
    s = fixed_point(operator, x0, method=accelerator, **options)
    assert not s.converged.any()
    path = s.residual_history.sum().item()
    assert (s.value - x0).norm().item() <= farthest * path


@given(rate=st.floats(0.5, 0.9999), size=st.sampled_from([1, 3]))
@pytest.mark.parametrize(
    "accelerator", [Anderson(), Broyden(), NewtonKrylov()], ids=repr
)
def test_a_leap_that_leads_somewhere_is_made(accelerator, rate, size):
    """The fixed point of rate*x + 1 is 1/(1 - rate) plain steps away."""
    s = fixed_point(
        lambda x: rate * x + 1,
        zeros(size),
        method=accelerator,
        rtol=1e-8,
        max_iter=12,
    )
    assert s.converged.all()
    torch.testing.assert_close(s.value, zeros(size) + 1 / (1 - rate))


def test_a_residual_beside_an_overflow_is_not_the_best():
    """At 1e308 the drift measures 0, and the norm of x is infinite."""
    x0 = torch.zeros(4, dtype=torch.float64)

    def operator(x):
        return torch.where(x == 0, 1e308, x + 1)

    s = fixed_point(operator, x0, method=Picard(0.0), **QUIET)
    assert s.status.item() == Status.NONFINITE
    assert torch.equal(s.value, x0)
    assert s.iterations.item() == 0


@pytest.mark.parametrize("period", range(2, 7))
def test_plain_picard_on_a_permutation_is_a_cycle(period):
    x0 = torch.arange(period, dtype=torch.float64)
    s = fixed_point(lambda x: x.roll(1), x0, method=Picard(0.0), **QUIET)
    assert s.status.item() == Status.STAGNATED
    assert s.evaluations <= 60


@pytest.mark.parametrize("r", [3.2, 3.5, 3.83, 3.63])
def test_the_logistic_map_cycles_with_period_2_4_3_6(r):
    def operator(x):
        return r * x * (1 - x)

    x0 = torch.tensor([0.3], dtype=torch.float64)
    s = fixed_point(operator, x0, method=Picard(0.0), **QUIET)
    assert s.status.item() == Status.STAGNATED
    is_best_iterate(operator, s)


def test_smoothing_and_acceleration_break_the_cycle(method):
    if isinstance(method, Picard) and method.alpha == 0:
        return
    s = fixed_point(lambda x: 1 - x, zeros(), method=method, **QUIET)
    assert s.converged.all()
    torch.testing.assert_close(s.value, torch.full_like(s.value, 0.5))


def test_chaos_is_not_convergence():
    x0 = torch.tensor([0.3], dtype=torch.float64)
    s = fixed_point(
        lambda x: 3.99 * x * (1 - x),
        x0,
        method=Picard(0.0),
        rtol=1e-8,
        max_iter=1000,
        on_failure="ignore",
    )
    assert s.status.item() == Status.STAGNATED


@pytest.mark.parametrize("factor", [1.5, 3.0, -4.0, 40.0])
@pytest.mark.parametrize("alpha", [0.0, 0.5])
def test_divergence(factor, alpha):
    if abs(alpha + (1 - alpha) * factor) <= 1:
        return

    def operator(x):
        return factor * x + 1

    s = fixed_point(operator, zeros(), method=Picard(alpha), **QUIET)
    assert s.status.item() == Status.DIVERGED
    assert torch.equal(s.value, zeros())  # the best iterate: the first
    assert s.iterations.item() == 0
    is_best_iterate(operator, s)


@pytest.mark.parametrize("height", [50.0, 200.0])
def test_transient_growth_is_not_divergence(method, height):
    """A non-normal matrix of spectral radius .5."""
    matrix = torch.tensor([[0.5, height], [0.0, 0.5]], dtype=torch.float64)
    b = torch.ones(2, dtype=torch.float64)
    s = fixed_point(
        lambda x: matrix @ x + b, zeros(2), method=method, rtol=1e-10, **QUIET
    )
    assert s.converged.all()
    exact = torch.linalg.solve(torch.eye(2).double() - matrix, b)
    torch.testing.assert_close(s.value, exact)


def test_a_long_transient_is_not_divergence():
    """Ten coupled modes: the residual grows a thousandfold first."""
    n = 10
    matrix = 0.5 * torch.eye(n, dtype=torch.float64)
    matrix += torch.diag(torch.full((n - 1,), 2.0).double(), 1)
    b = torch.zeros(n, dtype=torch.float64)
    b[-1] = 1.0
    s = fixed_point(
        lambda x: matrix @ x + b, zeros(n), rtol=1e-9, max_iter=2000
    )
    assert s.converged.all()
    assert s.residual_history.max() > 500 * s.residual_history[0]


def test_the_logarithm_leaves_its_domain(method):
    """x = log x has no real solution."""
    x0 = torch.tensor([3.0], dtype=torch.float64)
    s = fixed_point(torch.log, x0, method=method, **QUIET)
    assert s.status.item() in (Status.NONFINITE, Status.STAGNATED)
    assert s.value.isfinite().all()
    is_best_iterate(torch.log, s)
    if isinstance(method, Picard):
        assert s.status.item() == Status.NONFINITE


@pytest.mark.parametrize("accelerator", [Anderson(), Broyden()], ids=repr)
def test_values_that_are_not_finite_are_counted_in_a_row(accelerator):
    """One may be taken back, and after a finite one another."""
    calls = 0

    def operator(x):
        nonlocal calls
        calls += 1
        return (0.9 * x + 1) * (math.nan if calls in (3, 5) else 1)

    s = fixed_point(operator, zeros(), method=accelerator, rtol=1e-9, **QUIET)
    assert s.converged.all()
    torch.testing.assert_close(s.value, zeros() + 10)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("after", [0, 3])
def test_a_value_that_is_not_finite(method, bad, after):
    calls = 0

    def operator(x):
        nonlocal calls
        calls += 1
        z = 0.9 * x + 1
        return z if calls <= after else z * bad

    s = fixed_point(operator, zeros() + 1, method=method, rtol=1e-9, **QUIET)
    if s.converged.all():  # an accelerator may be there by then
        assert after
        torch.testing.assert_close(s.value, zeros() + 10)
        return
    assert s.status.item() == Status.NONFINITE
    assert s.value.isfinite().all()
    if not after:
        assert torch.equal(s.value, zeros() + 1)
        assert s.iterations.item() == 0
    assert not bool(s.residual < 0) and s.error_bound.item() == math.inf


def test_one_bad_evaluation_need_not_be_the_end():
    """Accelerators overshoot out of a domain, and step back into it."""
    for method in (Anderson(), Broyden()):
        calls = 0

        def operator(x):
            nonlocal calls
            calls += 1
            z = torch.tanh(0.9 * x) + 1
            return z * math.nan if calls == 4 else z

        x0 = torch.linspace(-2, 2, 4, dtype=torch.float64)
        s = fixed_point(operator, x0, method=method, rtol=1e-9, **QUIET)
        assert s.converged.all()


@given(seed=st.integers(0, 1000))
def test_the_rounding_floor_of_float32_is_a_stall(method, contraction, seed):
    p = contraction(seed, lipschitz=0.8)
    for name in "qrcb":
        setattr(p, name, getattr(p, name).float())
    s = fixed_point(
        p,
        p.x0.float(),
        method=method,
        rtol=1e-12,
        max_iter=1000,
        on_failure="ignore",
    )
    # or it met the fixed point of the rounded map exactly
    assert s.status.item() in (Status.STAGNATED, Status.CONVERGED)
    if s.converged.all():
        assert torch.equal(p(s.value), s.value)
    assert s.residual.item() <= 1e-5
    assert s.evaluations < 1000


def test_max_iter_is_the_last_iterate():
    s = fixed_point(
        lambda x: 0.99 * x + 1, zeros(), max_iter=7, on_failure="ignore"
    )
    assert s.status.item() == Status.MAX_ITER
    assert s.iterations.item() == 7
    expected = 100 * (1 - 0.995**7)
    torch.testing.assert_close(s.value, torch.full_like(s.value, expected))


@given(
    factor=st.floats(-20, 20),
    alpha=st.floats(0.0, 0.9),
    budget=st.integers(1, 80),
)
def test_whatever_happens_the_report_is_about_the_value(factor, alpha, budget):
    def operator(x):
        return factor * x + 1

    s = fixed_point(
        operator,
        zeros(),
        method=Picard(alpha),
        max_iter=budget,
        rtol=1e-7,
        on_failure="ignore",
    )
    assert s.value.isfinite().all()
    z = operator(s.value)
    passes = (z - s.value).norm() <= 1e-7 * z.norm()
    status = Status(s.status)
    if status is Status.CONVERGED:
        assert passes
    if status in (Status.DIVERGED, Status.STAGNATED, Status.NONFINITE):
        is_best_iterate(operator, s)
        assert s.error_bound.item() == math.inf


def test_a_constant_map_converges(method):
    s = fixed_point(
        lambda x: torch.ones_like(x), zeros(), method=method, rtol=1e-9
    )
    assert s.converged.all() and s.evaluations <= 60
    torch.testing.assert_close(s.value, torch.ones_like(s.value))


def test_the_identity_converges_where_it_starts(method):
    s = fixed_point(lambda x: x.clone(), zeros() + 3, method=method)
    assert s.converged.all() and s.evaluations == 1


@pytest.mark.parametrize("scale", [1e-30, 1e-6, 1e6, 1e30])
def test_the_scale_of_the_problem_does_not_matter(method, scale):
    def solve(c):
        return fixed_point(
            lambda x: c * torch.tanh(0.8 * x / c) + 0.3 * c,
            zeros(),
            method=method,
            rtol=1e-9,
            max_iter=200,
        )

    small, plain = solve(scale), solve(1.0)
    assert small.converged.all()
    assert abs(small.evaluations - plain.evaluations) <= 1
    torch.testing.assert_close(
        small.value / scale, plain.value, rtol=1e-7, atol=0
    )


def test_squares_of_which_the_dtype_holds_some():
    """The first entry's is, of float32, and a million others' are not."""
    x0 = torch.full((1_000_000,), 5.2e-23)
    x0[0] = 2e-22
    s = fixed_point(lambda x: 0.5 * x, x0, rtol=0.0, atol=1e-21)
    true = (0.5 * s.value.double()).norm()
    assert s.converged.all() and true <= 1e-21
    torch.testing.assert_close(s.residual[0].double(), true)


@pytest.mark.parametrize("segments", [None, "leading"])
@pytest.mark.parametrize(
    ("scale", "dtype"),
    [(scale, torch.float32) for scale in (1e-30, 1e-25, 1e20, 1e25)]
    + [(scale, torch.float64) for scale in (1e-290, 1e-200, 1e160, 1e290)],
)
def test_squares_that_the_dtype_does_not_hold(method, scale, dtype, segments):
    """CONVERGED is said of what was measured, and finite is not NONFINITE."""
    s = fixed_point(
        lambda x: 0.5 * x + scale, torch.zeros(3, dtype=dtype), method=method,
        segments=segments, max_iter=100, on_failure="ignore",
    )  # fmt: skip
    assert not (s.status == Status.NONFINITE).any()
    x = s.value.double() / scale
    image = 0.5 * x + 1
    true, size = (image - x).abs(), image.abs()
    if segments is None:
        true, size = true.norm()[None], size.norm()[None]
    torch.testing.assert_close(
        s.residual.double() / scale, true, rtol=0.05, atol=1e-6
    )
    passed = true <= 1.001e-5 * size
    assert passed[s.converged].all()
    if not isinstance(method, NewtonKrylov):
        assert s.converged.all()
