"""Known pixels, put back into the denoised image."""

import pytest
import torch

from torch_picard.diffusion import PicardSampler, reverse_chain

STEPS, SIDE = 100, 6
ALPHAS = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000), 0)
DRAW = torch.Generator().manual_seed(0)
X = torch.randn(3, 1, SIDE, SIDE, generator=DRAW)
# means of the images that there are
MODES = torch.randn(5, 1, SIDE, SIDE, generator=DRAW)
PICTURE = MODES[:3] + 0.05 * torch.randn(*X.shape, generator=DRAW)
ROW = torch.arange(SIDE)[:, None].expand(SIDE, SIDE)


def image(x, t):
    """The mean of what the image may be, of five kinds of images."""
    alpha = ALPHAS[t].view(-1, 1, 1, 1)
    variance = 0.25
    total = variance * alpha + 1 - alpha
    off = x[:, None] - alpha.sqrt()[:, None] * MODES
    far = off.square().flatten(2).sum(2) / (2 * total.flatten(1))
    kind = torch.softmax(-far, 1).view(len(x), -1, 1, 1, 1)
    gain = (variance * alpha.sqrt() / total)[:, None]
    return (kind * (MODES + gain * off)).sum(1)


def inpainting(x, t, known):
    return torch.where(known.isnan(), image(x, t), known)


def known(rows):
    """The uppermost rows of the pictures."""
    return PICTURE.where(ROW < rows, torch.nan)


def sampler(tol, method="picard", window=STEPS):
    return PicardSampler(
        inpainting, ALPHAS, STEPS, window, tol, method, prediction="x0"
    )


def chain(condition):
    return reverse_chain(
        inpainting, ALPHAS, STEPS, X, condition=condition, prediction="x0"
    )


def test_known_pixels_are_kept_and_the_others_fit_them():
    kept = ROW < 4

    def kinds(samples):
        """Which image the pixels that were not known are of."""
        hidden = (part[..., ~kept].flatten(1) for part in (samples, MODES))
        return torch.cdist(*hidden).argmin(1).tolist()

    found, _ = sampler(0.01)(X, condition=known(4))
    torch.testing.assert_close(
        found[..., kept], PICTURE[..., kept], rtol=0, atol=1e-3
    )
    assert kinds(found) == [0, 1, 2]
    free, _ = sampler(0.01)(X, condition=known(0))
    assert kinds(free) != [0, 1, 2]


@pytest.mark.parametrize("method", ["picard", "anderson"])
@pytest.mark.parametrize("window", [30, STEPS])
@pytest.mark.parametrize("rows", [1, 5])
def test_another_mask_from_the_trajectory_of_the_first(method, window, rows):
    _, first = sampler(0.1)(X, condition=known(3))
    exact = sampler(0.0, method, window)
    found, solution = exact(X, condition=known(rows), start=first.value)
    assert solution.converged.all()
    torch.testing.assert_close(found, chain(known(rows)), rtol=0, atol=1e-5)


def test_a_mask_that_gives_pixels_back_takes_fewer_rounds():
    solve = sampler(0.1)
    _, first = solve(X, condition=known(3))
    _, cold = solve(X, condition=known(2))
    found, warm = solve(X, condition=known(2), start=first.value)
    assert warm.converged.all()
    assert warm.rounds < cold.rounds
    want = chain(known(2))
    torch.testing.assert_close(found, want, rtol=0, atol=3e-2)
    # another picture, not a copy of the first
    assert float((want - chain(known(3))).abs().max()) > 0.5


@pytest.mark.parametrize("window", [20, 30, 50, STEPS])
def test_a_start_that_turns_into_another_image_costs_few_rounds(window):
    solve = sampler(0.1, "anderson", window)
    _, first = solve(X, condition=known(3))
    for rows in (1, 2, 4):
        _, cold = solve(X, condition=known(rows))
        found, warm = solve(X, condition=known(rows), start=first.value)
        assert warm.rounds <= cold.rounds + 2
        want = chain(known(rows))
        torch.testing.assert_close(found, want, rtol=0, atol=3e-2)
