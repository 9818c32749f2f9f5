"""Gaussian data: a diffusion model without a network."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class GaussianDiffusion:
    r"""D1: data from :math:`N(\mu, \operatorname{diag} \lambda)`.

    At a noise level :math:`\bar\alpha` the data are again Gaussian, with
    variance :math:`v = \bar\alpha\lambda + 1 - \bar\alpha`, and the best
    denoiser is linear. So is every sampler that uses it; DDIM's map scales
    each direction by

    .. math::

       \sqrt{\lambda / v_0} \prod_i \cos(\phi_i - \phi_{i+1}), \qquad
       \tan\phi = \sqrt{(1-\bar\alpha) / (\bar\alpha\lambda)} .

    Attributes:
        mean, variance: of the data, [D].
        alphas_cumprod: [T].
    """

    mean: Tensor
    variance: Tensor
    alphas_cumprod: Tensor

    def denoiser(self, x: Tensor, t: Tensor) -> Tensor:
        """The expected noise in x [B, D] at the times t [B]."""
        alpha = self.alphas_cumprod.to(x)[t][:, None]
        total = alpha * self.variance + 1 - alpha
        return (1 - alpha).sqrt() * (x - alpha.sqrt() * self.mean) / total

    def ddim(self, times: Tensor) -> tuple[Tensor, Tensor]:
        """Gain and shift [D] of the map over these times, down to the data:
        x -> gain * x + shift."""
        alpha = self._levels(times)
        angle = torch.atan2(
            (1 - alpha).sqrt()[:, None],
            (alpha[:, None] * self.variance).sqrt(),
        )
        first = alpha[0] * self.variance + 1 - alpha[0]
        gain = (self.variance / first).sqrt() * angle.diff(dim=0).cos().prod(0)
        return gain, (1 - gain * alpha[0].sqrt()) * self.mean

    def sampled_variance(self, times: Tensor, eta: float = 0.0) -> Tensor:
        """[D], of the samples that start from N(0, 1)."""
        alpha = self._levels(times)
        variance = torch.ones_like(self.mean)
        for before, after in pairwise(alpha):
            total = before * self.variance + 1 - before
            added = eta**2 * (1 - after) / (1 - before) * (1 - before / after)
            by_image = (after * before).sqrt() * self.variance
            by_noise = ((1 - after - added) * (1 - before)).sqrt()
            factor = (by_image + by_noise) / total
            variance = factor**2 * variance + added
        return variance

    def _levels(self, times: Tensor) -> Tensor:
        """[N+1], ends at the data."""
        alpha = self.alphas_cumprod.to(self.mean)[times]
        return torch.cat([alpha, torch.ones_like(alpha[:1])])


def gaussian_diffusion(
    size: int = 4, steps: int = 1000, dtype: torch.dtype = torch.float64
) -> GaussianDiffusion:
    """D1 with the betas of DDPM, rescaled to ``steps``: means from -1 to 1,
    variances from 0.01 to 4."""
    beta = torch.linspace(0.1, 20, steps, dtype=torch.float64) / steps
    return GaussianDiffusion(
        mean=torch.linspace(-1, 1, size, dtype=dtype),
        variance=torch.logspace(-2, 0.6, size, dtype=dtype),
        alphas_cumprod=(1 - beta.clamp(max=0.999)).cumprod(0).to(dtype),
    )
