"""Rounds and differences of the parallel samplers, on a trained network."""

from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch

from torch_picard.diffusion import PicardSampler, reverse_chain

SAMPLES, WINDOW, TOL = 16, 100, 0.1


@cache
def network():
    """The digits' DDPM of the example, trained for a shorter time."""
    from parallel_sampling import SCALES, trained

    setting = SCALES["small"] | {"updates": 3000}
    with TemporaryDirectory() as folder:
        return trained(setting, Path(folder), "cpu", 0)


def chain(steps, eta, seed):
    """The chain, its samples, and those of both methods with their rounds."""
    from parallel_sampling import STEPS, noise_level

    draw = torch.Generator().manual_seed(seed)
    x = torch.randn(SAMPLES, 1, 8, 8, generator=draw)
    noise = torch.randn(steps, *x.shape, generator=draw)
    given = (network(), noise_level(STEPS, rescaled=False), steps)
    want = reverse_chain(*given, x, noise=noise, eta=eta)
    found = {}
    for method in ("picard", "anderson"):
        solve = PicardSampler(*given, WINDOW, TOL, method, eta=eta)
        samples, solution = solve(x, noise=noise)
        assert solution.converged.all()
        difference = float((samples - want).abs().max())
        found[method] = (solution.rounds, difference)
    return want, found


@pytest.mark.slow
@pytest.mark.parametrize("steps, eta", [(1000, 1.0), (100, 0.0)])
def test_anderson_takes_two_thirds_of_the_rounds(steps, eta):
    found = [chain(steps, eta, seed)[1] for seed in range(3)]
    picard, anderson = (
        sum(one[method][0] for one in found)
        for method in ("picard", "anderson")
    )
    # one round more for the three of them: they are whole numbers
    assert 3 * (anderson - 1) <= 2 * picard, found


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_ddpm_of_a_thousand_steps(seed):
    _, found = chain(1000, 1.0, seed)
    for method, most in (("picard", 45), ("anderson", 45 * 2 // 3)):
        rounds, difference = found[method]
        assert rounds <= most, found
        assert difference <= 1e-2, found


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_ddim_of_a_hundred_steps(seed):
    want, found = chain(100, 0.0, seed)
    for method, most in (("picard", 16), ("anderson", 16 * 2 // 3)):
        rounds, difference = found[method]
        assert rounds <= most, found
        assert difference <= 3e-2 * float(want.std()), found
