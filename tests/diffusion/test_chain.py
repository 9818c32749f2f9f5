"""reverse_chain is the loop over diffusers' scheduler.step."""

import itertools

import pytest
import torch

from torch_picard.diffusion import reverse_chain
from torch_picard.diffusion.schedule import spaced

diffusers = pytest.importorskip("diffusers")

SPACINGS = ["leading", "linspace", "trailing"]
PREDICTIONS = ["epsilon", "sample", "v_prediction"]
FIELD = torch.randn(1, 2, 3, 3, generator=torch.Generator().manual_seed(0))


def denoiser(x, t):
    late = t.view(-1, 1, 1, 1).to(x.dtype) / 1000
    return torch.tanh(0.7 * x + FIELD * late)


def twice(x, t):
    out = denoiser(x, t)
    return torch.cat([out, 0.5 * out.abs()], 1)


def loop(scheduler, steps, x, seed, model=denoiser, **options):
    generator = torch.Generator().manual_seed(seed)
    scheduler.set_timesteps(steps)
    if "Euler" not in type(scheduler).__name__:
        options["generator"] = generator
    for t in scheduler.timesteps:
        u = scheduler.scale_model_input(x, t)
        output = model(u, t.expand(len(x)))
        x = scheduler.step(output, t, x, **options).prev_sample
    return x


def check(scheduler, steps, model=denoiser, **options):
    scheduler.set_timesteps(steps)
    draw = torch.Generator().manual_seed(7)
    x = torch.randn(2, 2, 3, 3, generator=draw) * scheduler.init_noise_sigma
    want = loop(scheduler, steps, x, 3, model, **options)
    found = reverse_chain(
        model,
        scheduler,
        steps,
        x,
        generator=torch.Generator().manual_seed(3),
        **options,
    )
    assert torch.isfinite(want).all()
    # theirs subtracts numbers of the size of the largest state
    size = max(1.0, float(want.abs().max()), float(x.abs().max()))
    assert float((found - want).abs().max()) <= 1e-5 * size


def schedulers():
    def option(name, *values):
        return [{name: value} for value in values]

    def cases(kind, *options, extra=({},)):
        for parts in itertools.product(*options):
            merged = {k: v for part in parts for k, v in part.items()}
            for call in extra:
                yield kind, merged, call

    clip = option("clip_sample", True, False)
    final = option("final_sigmas_type", "zero", "sigma_min")
    karras = option("use_karras_sigmas", False, True)
    variance = option(
        "variance_type", "fixed_small", "fixed_small_log", "fixed_large"
    )
    offset = option("steps_offset", 0, 1)
    solver = option("algorithm_type", "dpmsolver++", "sde-dpmsolver++")
    alpha = option("set_alpha_to_one", True, False)
    etas = option("eta", 0.0, 0.3, 1.0)
    yield from cases("DDPMScheduler", clip, variance, offset)
    yield from cases("DDIMScheduler", clip, alpha, offset, extra=etas)
    yield from cases(
        "DPMSolverMultistepScheduler", option("solver_order", 1), solver,
        final, karras,
    )  # fmt: skip
    yield from cases("EulerDiscreteScheduler", final, karras)


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_every_scheduler(spacing, prediction):
    for kind, options, call in schedulers():
        scheduler = getattr(diffusers, kind)(
            timestep_spacing=spacing, prediction_type=prediction, **options
        )
        check(scheduler, 7, **call)


@pytest.mark.parametrize("kind", ["DDPMScheduler", "DDIMScheduler"])
def test_many_steps(kind):
    check(getattr(diffusers, kind)(), 300)


@pytest.mark.parametrize("steps", [7, 10])
def test_no_signal_at_the_start(steps):
    for kind in ("DDPMScheduler", "DDIMScheduler"):
        scheduler = getattr(diffusers, kind)(
            rescale_betas_zero_snr=True,
            timestep_spacing="trailing",
            prediction_type="v_prediction",
        )
        check(scheduler, steps)


@pytest.mark.parametrize("variance", ["learned", "learned_range"])
def test_a_variance_that_is_learned(variance):
    scheduler = diffusers.DDPMScheduler(variance_type=variance)
    check(scheduler, 10, model=twice)


def test_an_output_with_a_variance_that_is_not_used():
    scheduler = diffusers.DPMSolverMultistepScheduler(
        solver_order=1, variance_type="learned_range", prediction_type="sample"
    )
    x = torch.randn(2, 2, 3, 3, generator=torch.Generator().manual_seed(1))
    found, want = (
        reverse_chain(model, scheduler, 5, x) for model in (twice, denoiser)
    )
    torch.testing.assert_close(found, want, rtol=0, atol=0)


def test_alphas_alone_are_ddim():
    x = torch.randn(2, 2, 3, 3, generator=torch.Generator().manual_seed(1))
    noise = torch.randn(10, *x.shape)
    for spacing, eta in itertools.product(SPACINGS, (0.0, 1.0)):
        scheduler = diffusers.DDIMScheduler(
            timestep_spacing=spacing, clip_sample=False
        )
        alphas = scheduler.alphas_cumprod
        found = reverse_chain(
            denoiser, alphas, 10, x, noise=noise, eta=eta, spacing=spacing
        )
        if spacing == "leading":
            want = reverse_chain(
                denoiser, scheduler, 10, x, noise=noise, eta=eta
            )
            torch.testing.assert_close(found, want, rtol=0, atol=1e-5)
        assert torch.isfinite(found).all()


def test_predictions_of_the_same_image():
    alphas = torch.linspace(0.99, 0.01, 50, dtype=torch.float64)

    def eps(x, t):
        return denoiser(x, t)

    def x0(x, t):
        a = alphas[t].view(-1, 1, 1, 1)
        return (x - (1 - a).sqrt() * eps(x, t)) / a.sqrt()

    def v(x, t):
        a = alphas[t].view(-1, 1, 1, 1)
        return a.sqrt() * eps(x, t) - (1 - a).sqrt() * x0(x, t)

    x = torch.randn(2, 2, 3, 3, dtype=torch.float64)
    want, *others = (
        reverse_chain(model, alphas, 12, x, prediction=name)
        for name, model in (("eps", eps), ("x0", x0), ("v", v))
    )
    for found in others:
        torch.testing.assert_close(found, want)


@pytest.mark.parametrize("spacing", SPACINGS)
def test_times_are_those_of_diffusers(spacing):
    scheduler = diffusers.DDPMScheduler(timestep_spacing=spacing)
    for steps in (1, 2, 3, 7, 10, 27, 333, 999, 1000):
        scheduler.set_timesteps(steps)
        assert torch.equal(spaced(1000, steps, spacing), scheduler.timesteps)


def test_the_scheduler_is_left_as_it_was():
    scheduler = diffusers.DDIMScheduler()
    scheduler.set_timesteps(17)
    reverse_chain(denoiser, scheduler, 5, torch.zeros(1, 2, 3, 3))
    assert scheduler.num_inference_steps == 17


def test_a_generator_for_each_sample():
    x = torch.zeros(3, 2, 3, 3)

    def chain(x, seeds):
        generators = [torch.Generator().manual_seed(s) for s in seeds]
        scheduler = diffusers.DDPMScheduler()
        return reverse_chain(denoiser, scheduler, 6, x, generator=generators)

    together = chain(x, [4, 5, 6])
    torch.testing.assert_close(chain(x[:1], [5]), together[1:2])
