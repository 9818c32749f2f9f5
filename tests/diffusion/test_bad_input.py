"""Wrong calls: the error names the argument and what is allowed."""

import importlib
import sys

import pytest
import torch

import torch_picard
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
        ({"scheduler": ALPHAS + 0.5}, ValueError, r"numbers in \[0, 1\)"),
        ({"num_steps": 0}, ValueError, "num_steps must be at least 1, got 0"),
        ({"num_steps": 21}, ValueError, "num_steps must be at most 20"),
        ({"num_steps": 2.0}, TypeError, "num_steps must be an int, got 2.0"),
        ({"window": 0}, ValueError, "window must be at least 1, got 0"),
        ({"window": True}, TypeError, "window must be an int, got True"),
        ({"tol": -1.0}, ValueError, "tol must be a number >= 0, got -1.0"),
        ({"tol": float("nan")}, ValueError, "tol must be a number >= 0"),
        ({"method": "newton"}, ValueError, "method must be one of"),
        ({"eta": 1.5}, ValueError, r"eta must be a number in \[0, 1\]"),
        ({"on_failure": "no"}, ValueError, "on_failure must be 'warn'"),
        ({"max_rounds": 0}, ValueError, "max_rounds must be at least 1"),
        ({"order": 0}, ValueError, "order must be at least 1"),
        ({"memory": 0}, ValueError, "memory must be at least 1"),
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
        ({"generator": [torch.Generator()]}, ValueError, "generator must be"),
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


def test_guidance():
    with pytest.raises(TypeError, match="denoiser must be callable"):
        Guided(3, 1.0, X[0])
    with pytest.raises(TypeError, match="scale must be a number"):
        Guided(zero, "strong", X[0])


def test_diffusers_is_not_needed(monkeypatch):
    """Nor loaded, before a part of it is given."""
    for name in list(sys.modules):
        if name.startswith(("torch_picard.diffusion", "diffusers.")):
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "diffusers", None)
    # the one there is to be back afterwards
    monkeypatch.setattr(torch_picard, "diffusion", torch_picard.diffusion)
    fresh = importlib.import_module("torch_picard.diffusion")
    x = torch.zeros(2, 3)
    fresh.reverse_chain(zero, ALPHAS, 5, x)
    fresh.PicardSampler(zero, ALPHAS, 5, 3, 0.1)(x)
