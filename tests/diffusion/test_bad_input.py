"""Wrong calls: the error names the argument and what is allowed."""

import numpy as np
import pytest
import torch

from torch_picard.diffusion import Guided, PicardSampler, reverse_chain

diffusers = pytest.importorskip("diffusers")

ALPHAS = torch.linspace(0.99, 0.01, 20)
X = torch.zeros(2, 3, 4, 4)


def zero(x, t):
    return torch.zeros_like(x)


def sampler(**changed):
    given = {
        "denoiser": zero, "scheduler": ALPHAS, "num_steps": 5, "window": 3,
        "tol": 0.1,
    }  # fmt: skip
    return PicardSampler(**{**given, **changed})


@pytest.mark.parametrize(
    ("changed", "error", "said"),
    [
        ({"denoiser": 3}, TypeError, "denoiser must be callable, got int"),
        ({"scheduler": "ddim"}, TypeError, "alphas_cumprod .* got str"),
        ({"scheduler": X}, TypeError, r"a Tensor \[T\], got a Tensor"),
        ({"scheduler": ALPHAS.flip(0)}, ValueError, "must fall"),
        ({"scheduler": ALPHAS + 0.5}, ValueError, r"numbers in \[0, 1\]"),
        (
            {"scheduler": ALPHAS - 0.01, "spacing": "trailing"}, ValueError,
            "prediction must be 'x0' or 'v' where alphas_cumprod is 0",
        ),
        ({"num_steps": 0}, ValueError, "num_steps must be at least 1, got 0"),
        ({"num_steps": 21}, ValueError, "num_steps must be at most 20"),
        ({"num_steps": 2.0}, TypeError, "num_steps must be an int, got 2.0"),
        ({"window": 0}, ValueError, "window must be at least 1, got 0"),
        ({"window": True}, TypeError, "window must be an int, got True"),
        ({"window": np.float64(3)}, TypeError, "window must be an int"),
        ({"tol": -1.0}, ValueError, "tol must be .* not negative, got -1.0"),
        ({"tol": float("nan")}, ValueError, "tol must be finite"),
        ({"tol": True}, TypeError, "tol must be a number, got True"),
        ({"tol": "0.1"}, TypeError, "tol must be a number, got '0.1'"),
        ({"method": "newton"}, ValueError, "method must be one of"),
        ({"eta": 1.5}, ValueError, r"eta must be in \[0, 1\], got 1.5"),
        ({"eta": True}, TypeError, "eta must be a number, got True"),
        ({"on_failure": "no"}, ValueError, "on_failure must be 'warn'"),
        ({"max_rounds": 0}, ValueError, "max_rounds must be at least 1"),
        ({"order": 0}, ValueError, "order must be at least 1"),
        ({"prediction": "y"}, ValueError, "prediction must be one of"),
        ({"spacing": "even"}, ValueError, "spacing must be one of"),
    ],
)  # fmt: skip
def test_options(changed, error, said):
    with pytest.raises(error, match=said):
        sampler(**changed)


def scheduler(kind, **options):
    return getattr(diffusers, kind)(**options)


@pytest.mark.parametrize(
    ("kind", "options", "call", "said"),
    [
        ("DDPMScheduler", {"thresholding": True}, {}, "thresholding=True"),
        (
            "DDPMScheduler",
            {"variance_type": "fixed_large_log"},
            {},
            "variance_type must be one of",
        ),
        ("DDPMScheduler", {}, {"eta": 0.5}, "eta belongs to DDIM"),
        ("EulerDiscreteScheduler", {}, {"eta": 0.5}, "eta belongs to DDIM"),
        ("DPMSolverMultistepScheduler", {}, {}, "solver_order=1"),
        (
            "DPMSolverMultistepScheduler",
            {"solver_order": 1, "use_flow_sigmas": True},
            {},
            "use_flow_sigmas",
        ),
        (
            "DDIMScheduler",
            {},
            {"prediction": "v"},
            "prediction belongs to alphas_cumprod",
        ),
        (
            "DDIMScheduler",
            {},
            {"spacing": "leading"},
            "spacing belongs to alphas_cumprod",
        ),
    ],
)
def test_schedulers(kind, options, call, said):
    with pytest.raises(ValueError, match=said):
        sampler(scheduler=scheduler(kind, **options), **call)


def test_a_scheduler_that_is_not_known():
    with pytest.raises(TypeError, match="one of diffusers' DDPMScheduler"):
        sampler(scheduler=scheduler("PNDMScheduler"))


@pytest.mark.parametrize(
    ("call", "error", "said"),
    [
        ({"x": X.long()}, TypeError, "x must be a Tensor of floating point"),
        ({"x": [1.0]}, TypeError, "x must be .* got list"),
        ({"x": torch.zeros(3)}, ValueError, r"x must be \[B, ...\]"),
        ({"noise": X}, ValueError, r"noise must be a Tensor \[5, 2, 3, 4, 4"),
        ({"noise": 1.0}, ValueError, "steps first, got float"),
        (
            {"noise": X.expand(5, *X.shape), "generator": torch.Generator()},
            ValueError,
            "noise or generator",
        ),
        (
            {"noise": torch.ones(5, *X.shape).long()}, TypeError,
            "noise must be of floating point numbers, got torch.int64",
        ),
        ({"generator": [torch.Generator()]}, ValueError, "generator must be"),
        ({"generator": 3}, TypeError, "generator must be a .* got int"),
        ({"generator": [3, 4]}, TypeError, "generator must be a .* got int"),
        ({"condition": X[:1]}, ValueError, "condition must have 2 rows"),
        ({"condition": {"a": X[:1]}}, ValueError, "condition must have 2"),
        ({"condition": 3}, TypeError, "condition must be a Tensor"),
    ],
)  # fmt: skip
def test_calls(call, error, said):
    given = {"x": X, **call}
    with pytest.raises(error, match=said):
        sampler(eta=1.0)(given.pop("x"), **given)
    given = {"x": X, **call}
    with pytest.raises(error, match=said):
        reverse_chain(zero, ALPHAS, 5, given.pop("x"), eta=1.0, **given)


@pytest.mark.parametrize(
    ("start", "said"),
    [
        (X, r"start must be a trajectory \[6, 2, 3, 4, 4\]"),
        (torch.full((6, *X.shape), torch.nan), "start holds a NaN"),
    ],
)
def test_starts(start, said):
    with pytest.raises(ValueError, match=said):
        sampler()(X, start=start)


@pytest.mark.parametrize(
    ("denoiser", "error", "said"),
    [
        (lambda x, t: 3, TypeError, "denoiser must return a Tensor, got int"),
        (lambda x, t: x[:1], ValueError, r"must return \[2, 3, 4, 4\]"),
        (lambda x, t: x.sum(), ValueError, r"got \[\]"),
    ],
)
def test_denoisers(denoiser, error, said):
    with pytest.raises(error, match=said):
        reverse_chain(denoiser, ALPHAS, 5, X)
    with pytest.raises(error, match="denoiser must return"):
        sampler(denoiser=denoiser)(X)


def test_what_must_be_callable():
    with pytest.raises(TypeError, match="denoiser must be callable, got None"):
        reverse_chain(None, ALPHAS, 5, X)
    with pytest.raises(TypeError, match="callback must be callable, got int"):
        sampler()(X, callback=3)


@pytest.mark.parametrize(
    ("denoiser", "scale", "error", "said"),
    [
        (3, 1.0, TypeError, "denoiser must be callable"),
        (zero, "strong", TypeError, "scale must be a number"),
        (zero, True, TypeError, "scale must be a number, got True"),
        (zero, float("inf"), ValueError, "scale must be finite, got inf"),
    ],
)
def test_guidance(denoiser, scale, error, said):
    with pytest.raises(error, match=said):
        Guided(denoiser, scale, X[0])


def test_numbers_of_numpy():
    counts = {"num_steps": 5, "window": 3, "order": 2}
    numbers = {"tol": 0.25, "eta": 0.5}
    same = {name: np.int64(n) for name, n in counts.items()}
    same |= {name: np.float32(n) for name, n in numbers.items()}
    noise = torch.randn(5, *X.shape)
    want, _ = sampler(**counts, **numbers)(X, noise=noise)
    found, _ = sampler(**same)(X, noise=noise)
    assert torch.equal(found, want)


@pytest.mark.parametrize("kind", ["eps", "x0", "v"])
def test_a_first_time_without_noise(kind):
    """The image is there already: noise and velocity leave it as it is."""

    def denoiser(x, t):
        return torch.tanh(x + (t / 20).view(-1, 1, 1, 1))

    x = torch.randn(*X.shape, generator=torch.Generator().manual_seed(0))
    noise = torch.zeros(20, *X.shape)
    options = {"prediction": kind, "eta": 0.5}
    want = reverse_chain(
        lambda x, t: denoiser(x, t + 1), ALPHAS, 20, x, noise=noise, **options
    )
    if kind == "x0":
        want = denoiser(want, torch.zeros(len(x)))
    alphas = torch.cat([torch.ones(1), ALPHAS])
    noise = torch.cat([noise, noise[:1]])
    found = reverse_chain(denoiser, alphas, 21, x, noise=noise, **options)
    torch.testing.assert_close(found, want, rtol=0, atol=1e-6)
    solve = PicardSampler(denoiser, alphas, 21, 8, 0.0, **options)
    found, solution = solve(x, noise=noise)
    assert solution.converged.all()
    torch.testing.assert_close(found, want, rtol=0, atol=1e-5)
