"""A reverse chain as numbers: one affine rule a step.

Source: Ho et al. 2020 (DDPM), Song et al. 2021 (DDIM), Lu et al. 2022
(DPM-Solver++), Karras et al. 2022 (Euler).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

PREDICTIONS = {
    "eps": "eps",
    "epsilon": "eps",
    "x0": "x0",
    "sample": "x0",
    "original_sample": "x0",
    "v": "v",
    "v_prediction": "v",
}
SPACINGS = ("leading", "linspace", "trailing")


@dataclass(frozen=True, eq=False)
class Schedule:
    r"""What the N steps of a sampler do. With :math:`\hat x` the denoised
    image and :math:`\hat\epsilon` the noise, both by the denoiser,

    .. math::

       x_{i+1} = a_i x_i + b_i \hat x + c_i \hat\epsilon + s_i z_i,
       \qquad u_i = \kappa_i x_i
                 = \sqrt{\bar\alpha_i} \hat x
                   + \sqrt{1 - \bar\alpha_i} \hat\epsilon .

    Tensors [N] unless said otherwise, in float64.

    Attributes:
        times: what the denoiser is told.
        signal, noise: :math:`\sqrt{\bar\alpha}`, :math:`\sqrt{1-\bar\alpha}`.
        on_x, on_x0, on_eps, spread: a, b, c and s.
        scale: [N+1], kappa; the denoiser sees u.
        posterior: variance of :math:`u_{i+1}` given :math:`u_i` and the
            image, with eta = 1.
        prediction: ``"eps"``, ``"x0"`` or ``"v"``: the denoiser's output.
        clip: the image is clamped to [-clip, clip]; None: it is not.
        eta: weight of the noise in ``posterior``, for the tolerance.
        learned: how the second half of the denoiser's channels gives the
            variance (``"learned"``, ``"learned_range"``, ``"ignored"``).
        log_range: [2, N], logarithms between which ``"learned_range"``
            interpolates.
        draws: of how many steps, from the first, noise is drawn.
    """

    times: Tensor
    signal: Tensor
    noise: Tensor
    on_x: Tensor
    on_x0: Tensor
    on_eps: Tensor
    spread: Tensor
    scale: Tensor
    posterior: Tensor
    prediction: str = "eps"
    clip: float | None = None
    eta: float = 0.0
    learned: str | None = None
    log_range: Tensor | None = None
    draws: int = 0

    def __len__(self) -> int:
        return len(self.times)

    def to(self, x: Tensor) -> Schedule:
        """In the dtype of x and on its device."""
        moved: dict[str, Any] = {
            field.name: value.to(
                x.device, None if field.name == "times" else x.dtype
            )
            for field in fields(self)
            if isinstance(value := getattr(self, field.name), Tensor)
        }
        return replace(self, **moved)

    def tolerance(self) -> Tensor:
        r"""[N], against which a change of x_{i+1} is small or not: half the
        standard deviation of the noise of step i, for what is still to come
        is of the size of the last change. What eta takes from that noise is
        replaced by the mean of all steps, since then nothing washes an error
        out: the variance is :math:`\eta^2 \tilde\beta_i + (1 - \eta^2)
        \operatorname{mean} \tilde\beta`."""
        share = self.eta**2
        variance = share * self.posterior + (1 - share) * self.posterior.mean()
        return variance.sqrt().clamp(min=1e-12) / (2 * self.scale[1:])

    def expected(self) -> Tensor:
        """[N], the root mean square of x_{i+1}, up to the factor of data
        that are not of unit size."""
        return 1.0 / self.scale[1:]

    def affine(self) -> tuple[Tensor, Tensor]:
        r"""[N] each, how x_{i+1} depends on x_i and on the denoised image,
        where :math:`\hat\epsilon` is what is left of u without it."""
        share = self.on_eps / self.noise
        return (
            self.on_x + share * self.scale[:-1],
            self.on_x0 - share * self.signal,
        )

    def step(
        self, x: Tensor, output: Tensor, i: Tensor, z: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """x_{i+1} and the denoised image.

        Args:
            x, output, z: [M, ...]; i: long [M], the step of each row.
        """
        column = (-1,) + (1,) * (x.dim() - 1)

        def of(table: Tensor) -> Tensor:
            return table[i].view(column)

        spread = of(self.spread)
        if self.learned and output.size(1) == 2 * x.size(1):
            output, said = output.chunk(2, 1)
            spread = self._learned_spread(said, of, spread)
        u = of(self.scale) * x
        signal, noise = of(self.signal), of(self.noise)
        if self.prediction == "eps":
            x0, eps = (u - noise * output) / signal, output
        elif self.prediction == "x0":
            x0, eps = output, (u - signal * output) / noise
        else:
            x0 = signal * u - noise * output
            eps = signal * output + noise * u
        if self.clip is not None:
            x0 = x0.clamp(-self.clip, self.clip)
        new = of(self.on_x) * x + of(self.on_x0) * x0 + of(self.on_eps) * eps
        if z is not None:
            new = new + spread * z
        return new, x0

    def _learned_spread(
        self, said: Tensor, of: Callable[[Tensor], Tensor], spread: Tensor
    ) -> Tensor:
        if self.learned == "ignored":
            return spread
        if self.learned == "learned":
            found = said.sqrt()
        else:
            assert self.log_range is not None
            low, high = of(self.log_range[0]), of(self.log_range[1])
            share = (said + 1) / 2
            found = torch.exp((share * high + (1 - share) * low) / 2)
        return torch.where(spread > 0, found, torch.zeros_like(found))


def from_alphas(
    alphas_cumprod: Tensor,
    num_steps: int,
    *,
    eta: float = 0.0,
    prediction: str = "eps",
    spacing: str = "leading",
    clip: float | None = None,
) -> Schedule:
    """DDIM over ``num_steps`` of the times 0 ... T-1; with ``eta=1`` that is
    DDPM with the posterior's variance. The last step ends at the image."""
    table = checked_alphas(alphas_cumprod)
    times = spaced(len(table), num_steps, spacing)
    before = table[times]
    prediction = checked_prediction(prediction)
    if prediction == "eps" and not bool(before.all()):
        raise ValueError(
            "prediction must be 'x0' or 'v' where alphas_cumprod is 0: from "
            "noise alone, 'eps' says nothing of the image"
        )
    after = torch.cat([before[1:], torch.ones_like(before[:1])])
    return replace(
        ddim(before, after, eta),
        times=times,
        prediction=prediction,
        clip=clip,
    )


def ddim(before: Tensor, after: Tensor, eta: float) -> Schedule:
    r"""Equation (12) of Song et al., from :math:`\bar\alpha` before and after
    a step, each [N] in float64."""
    posterior = posterior_variance(before, after)
    spread = eta * posterior.sqrt()
    zero = torch.zeros_like(before)
    return Schedule(
        times=zero,
        signal=before.sqrt(),
        # where there is none, what it is divided from has the weight 0
        noise=(1 - before).sqrt().clamp(min=1e-12),
        on_x=zero,
        on_x0=after.sqrt(),
        on_eps=(1 - after - spread**2).clamp(min=0).sqrt(),
        spread=spread,
        scale=torch.ones(len(before) + 1, dtype=before.dtype),
        posterior=posterior,
        eta=eta,
        draws=len(before) if eta > 0 else 0,
    )


def posterior_variance(before: Tensor, after: Tensor) -> Tensor:
    variance = (1 - after) / (1 - before) * (1 - before / after)
    return torch.nan_to_num(variance).clamp(min=0)


def spaced(total: int, num_steps: int, spacing: str) -> Tensor:
    """Times, falling: every (T // N)-th from 0; evenly from T-1 to 0; every
    (T / N)-th from T-1."""
    if num_steps > total:
        raise ValueError(
            f"num_steps must be at most {total}, the steps that the model was "
            f"trained with, got {num_steps}"
        )
    if spacing == "leading":
        return torch.arange(num_steps - 1, -1, -1) * (total // num_steps)
    if spacing == "linspace":
        even = np.linspace(0, total - 1, num_steps).round()
        return torch.from_numpy(even).long().flip(0)
    if spacing == "trailing":
        k = torch.arange(num_steps, dtype=torch.float64)
        return (total - k * total / num_steps).round().long() - 1
    raise ValueError(f"spacing must be one of {SPACINGS}, got {spacing!r}")


def checked_prediction(name: Any) -> str:
    if name not in PREDICTIONS:
        raise ValueError(
            f"prediction must be one of {', '.join(map(repr, PREDICTIONS))}, "
            f"got {name!r}"
        )
    return PREDICTIONS[name]


def checked_alphas(alphas_cumprod: Any) -> Tensor:
    if not isinstance(alphas_cumprod, Tensor) or alphas_cumprod.dim() != 1:
        raise TypeError(
            f"alphas_cumprod must be a Tensor [T], got {_kind(alphas_cumprod)}"
        )
    table = alphas_cumprod.detach().to("cpu", torch.float64)
    inside = (table >= 0) & (table <= 1)
    if not len(table) or not bool(inside.all()):
        raise ValueError(
            "alphas_cumprod must hold numbers in [0, 1], at least one, got "
            f"{table.tolist()[:4]}..."
        )
    if bool((table.diff() > 0).any()):
        raise ValueError(
            "alphas_cumprod must fall from the first time to the last: that "
            "of the least noise comes first"
        )
    return table


def _kind(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"a Tensor {list(value.shape)}"
    return type(value).__name__
