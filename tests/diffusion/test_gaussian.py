"""D1: with Gaussian data every sampler is a known linear map."""

import pytest
import torch

from torch_picard import problems
from torch_picard.diffusion import PicardSampler, reverse_chain
from torch_picard.diffusion.schedule import spaced

PROBLEM = problems.gaussian_diffusion()
UNIT = torch.cat([torch.zeros(1, 4), torch.eye(4)]).double()


def affine(sample):
    """Gain [D, D] and shift [D] of an affine map, from what it does to the
    unit vectors."""
    out = sample(UNIT)
    return out[1:] - out[0], out[0]


@pytest.mark.parametrize("spacing", ["leading", "linspace", "trailing"])
@pytest.mark.parametrize("steps", [1, 7, 50])
def test_ddim_is_the_map_in_closed_form(spacing, steps):
    def sample(x):
        return reverse_chain(
            PROBLEM.denoiser,
            PROBLEM.alphas_cumprod,
            steps,
            x,
            spacing=spacing,
        )

    gain, shift = affine(sample)
    times = spaced(1000, steps, spacing)
    want, moved = PROBLEM.ddim(times)
    torch.testing.assert_close(gain, torch.diag(want), rtol=0, atol=1e-10)
    torch.testing.assert_close(shift, moved, rtol=0, atol=1e-10)


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("sampler", ["chain", "picard", "anderson"])
def test_moments_are_exact(eta, sampler):
    """Linear in x and in the noise: the variance is the sum of squares of
    what every unit of noise does."""
    steps = 20

    def sample(x, noise):
        given = (PROBLEM.denoiser, PROBLEM.alphas_cumprod, steps)
        if sampler == "chain":
            return reverse_chain(*given, x, noise=noise, eta=eta)
        solve = PicardSampler(*given, 8, 1e-12, sampler, eta=eta)
        return solve(x, noise=noise)[0]

    size = 4 * (steps + 1)
    units = torch.eye(size).double().view(size, steps + 1, 4)
    units = torch.cat([torch.zeros_like(units[:1]), units])
    out = sample(units[:, 0], units[:, 1:].transpose(0, 1))
    variance = (out[1:] - out[0]).square().sum(0)
    times = spaced(1000, steps, "leading")
    want = PROBLEM.sampled_variance(times, eta)
    torch.testing.assert_close(variance, want, rtol=1e-9, atol=0)


def test_the_variance_is_that_of_the_data_in_the_limit():
    times = spaced(1000, 1000, "leading")
    for eta in (0.0, 1.0):
        found = PROBLEM.sampled_variance(times, eta)
        torch.testing.assert_close(found, PROBLEM.variance, rtol=0.1, atol=0)
