"""PicardSampler with the schedulers of diffusers: the chain itself."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from torch_picard.diffusion import PicardSampler, reverse_chain

diffusers = pytest.importorskip("diffusers")

SPACINGS = st.sampled_from(["leading", "linspace", "trailing"])
PREDICTIONS = st.sampled_from(["epsilon", "sample", "v_prediction"])
FIELD = torch.randn(1, 2, 3, 3, generator=torch.Generator().manual_seed(0))


def denoiser(x, t):
    late = t.view(-1, 1, 1, 1).to(x.dtype) / 1000
    return torch.tanh(0.7 * x + FIELD * late)


def configured(kind, **options):
    """Schedulers of this kind, with all spacings and predictions."""
    return st.builds(
        getattr(diffusers, kind),
        timestep_spacing=SPACINGS,
        prediction_type=PREDICTIONS,
        **{name: st.sampled_from(values) for name, values in options.items()},
    )


DDPM = configured(
    "DDPMScheduler",
    clip_sample=[True, False],
    variance_type=["fixed_small", "fixed_large"],
)
ENDS = {
    "final_sigmas_type": ["zero", "sigma_min"],
    "use_karras_sigmas": [False, True],
}
ODE = configured(
    "DPMSolverMultistepScheduler",
    solver_order=[1],
    algorithm_type=["dpmsolver++"],
    **ENDS,
)
SDE = configured(
    "DPMSolverMultistepScheduler",
    solver_order=[1],
    algorithm_type=["sde-dpmsolver++"],
    **ENDS,
)
EULER = configured("EulerDiscreteScheduler", **ENDS)

# where all noise is added, eta may say so once more
CHAINS = {
    "ddpm": st.tuples(DDPM, st.sampled_from([0.0, 1.0])),
    "sde": st.tuples(SDE, st.sampled_from([0.0, 1.0])),
    "ode": st.tuples(ODE, st.just(0.0)),
    "euler": st.tuples(EULER, st.just(0.0)),
}


@pytest.mark.parametrize("kind", CHAINS)
@given(
    data=st.data(),
    steps=st.integers(2, 25),
    window=st.integers(1, 30),
    rows=st.integers(1, 4),
    method=st.sampled_from(["picard", "anderson"]),
    seed=st.integers(0, 10**6),
)
def test_the_chain_in_at_most_as_many_rounds(
    kind, data, steps, window, rows, method, seed
):
    scheduler, eta = data.draw(CHAINS[kind])
    scheduler.set_timesteps(steps)
    draw = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, 2, 3, 3, generator=draw)
    x = x * scheduler.init_noise_sigma
    noise = torch.randn(steps, *x.shape, generator=draw)
    want = reverse_chain(denoiser, scheduler, steps, x, noise=noise, eta=eta)
    assert torch.isfinite(want).all()
    solve = PicardSampler(
        denoiser, scheduler, steps, window, 0.0, method, eta=eta
    )
    found, solution = solve(x, noise=noise)
    size = max(1.0, float(want.abs().max()))
    torch.testing.assert_close(found, want, rtol=0, atol=1e-5 * size)
    assert solution.converged.all()
    assert solution.rounds <= steps
