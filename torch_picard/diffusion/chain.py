"""The reverse chain, one step after the other, and what every way through it
needs: the denoiser called on rows, the noise drawn up front."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from .schedule import Schedule
from .schedulers import schedule_of


@torch.no_grad()
def reverse_chain(
    denoiser: Callable[..., Any],
    scheduler: Any,
    num_steps: int,
    x: Tensor,
    *,
    noise: Tensor | None = None,
    generator: torch.Generator | Sequence[torch.Generator] | None = None,
    eta: float = 0.0,
    condition: Any = None,
    prediction: str | None = None,
    spacing: str | None = None,
) -> Tensor:
    r"""Samples one step after the other: the reference of
    :class:`PicardSampler`.

    Args:
        denoiser: (x [B, ...], t [B]) -> [B, ...], or diffusers' model. With
            a ``condition`` it is called with that as third argument.
        scheduler: ``alphas_cumprod`` [T], for which the sampler is DDIM, or a
            scheduler of diffusers: DDPM, DDIM, DPM-Solver++ of order 1,
            Euler. Of the latter each step is ``scheduler.step``.
        num_steps: N, the steps to make.
        x: [B, ...], times ``init_noise_sigma``.
        noise: [N, B, ...], standard normal; None: drawn. A chain without
            noise has no use for it.
        generator: for the noise, one, or one a sample; gives the numbers that
            ``scheduler.step`` would draw.
        eta: 0: no noise, 1: all of it. Of DDIM and ``alphas_cumprod``.
        condition: Tensor, or tuple, list or dict of Tensors, dim 0 is B.
        prediction: with ``alphas_cumprod``, what the denoiser predicts:
            ``"eps"`` (default), ``"x0"`` or ``"v"``.
        spacing: with ``alphas_cumprod``, ``"leading"`` (default),
            ``"linspace"`` or ``"trailing"``, as in diffusers.

    Returns:
        [B, ...], without gradients.

    Raises:
        ValueError, TypeError: an argument or the denoiser's output is not as
            said.
    """
    check_callable("denoiser", denoiser)
    schedule = schedule_of(
        scheduler, num_steps, eta, prediction=prediction, spacing=spacing
    )
    state = checked_start(x)
    drawn = noise_of(schedule, state, noise, generator)
    rule, times = schedule.to(state), schedule.times.to(x.device)
    rows = torch.arange(len(x), device=x.device)
    check_condition(condition, len(x))
    for k in range(len(schedule)):
        step = torch.full_like(rows, k)
        output = denoised(
            denoiser, rule, state, times, step, x.dtype, condition, None
        )
        z = None if drawn is None else drawn[k]
        state, _ = rule.step(state, output, step, z)
    return state.to(x.dtype)


def denoised(
    denoiser: Callable[..., Any],
    rule: Schedule,
    x: Tensor,
    times: Tensor,
    step: Tensor,
    dtype: torch.dtype,
    condition: Any,
    rows: Tensor | None,
) -> Tensor:
    """The denoiser's output for x [M, ...] at the steps [M]; ``rows`` [M]:
    whose condition each has, None: one each."""
    column = (-1,) + (1,) * (x.dim() - 1)
    u = (rule.scale[step].view(column) * x).to(dtype)
    given = [u, times[step]]
    if condition is not None:
        given.append(condition if rows is None else pick(condition, rows))
    output = output_of(denoiser(*given))
    shape = list(u.shape)
    double = [shape[0], 2 * shape[1], *shape[2:]] if u.dim() > 1 else shape
    allowed = [shape]
    if rule.learned is not None:
        allowed = [shape, double] if rule.learned == "ignored" else [double]
    if list(output.shape) not in allowed:
        raise ValueError(
            f"denoiser must return {' or '.join(map(str, allowed))} for "
            f"x {shape}, got {list(output.shape)}"
        )
    return output.to(x.dtype)


def output_of(returned: Any) -> Tensor:
    """A Tensor; diffusers' models return it as ``sample`` or in a tuple."""
    output = getattr(returned, "sample", returned)
    if isinstance(output, tuple):
        output = output[0]
    if not isinstance(output, Tensor):
        raise TypeError(
            f"denoiser must return a Tensor, got {type(output).__name__}"
        )
    return output


def pick(condition: Any, rows: Tensor) -> Any:
    if isinstance(condition, Tensor):
        return condition[rows]
    if isinstance(condition, dict):
        return {name: pick(part, rows) for name, part in condition.items()}
    return type(condition)(pick(part, rows) for part in condition)


def check_callable(name: str, value: Any) -> None:
    if not callable(value):
        raise TypeError(f"{name} must be callable, got {type(value).__name__}")


def checked_start(x: Any) -> Tensor:
    """In float32 at least: sums of many small steps."""
    if not isinstance(x, Tensor) or not x.is_floating_point():
        raise TypeError(
            "x must be a Tensor of floating point numbers, got "
            f"{getattr(x, 'dtype', type(x).__name__)}"
        )
    if x.dim() < 2:
        raise ValueError(f"x must be [B, ...], got {list(x.shape)}")
    return x.detach().to(torch.promote_types(x.dtype, torch.float32))


def check_condition(condition: Any, size: int) -> None:
    if isinstance(condition, Tensor):
        if condition.dim() < 1 or condition.size(0) != size:
            raise ValueError(
                f"condition must have {size} rows, those of x, got "
                f"{list(condition.shape)}"
            )
    elif isinstance(condition, (tuple, list, dict)):
        parts = (
            condition.values() if isinstance(condition, dict) else condition
        )
        for part in parts:
            check_condition(part, size)
    elif condition is not None:
        raise TypeError(
            "condition must be a Tensor, or a tuple, list or dict of these, "
            f"got {type(condition).__name__}"
        )


def noise_of(
    schedule: Schedule, x: Tensor, noise: Any, generator: Any
) -> Tensor | None:
    """[N, B, ...], or None where no step adds any."""
    _check_generator(generator, len(x))
    shape = [len(schedule), *x.shape]
    if noise is not None:
        if generator is not None:
            raise ValueError("noise or generator must be given, not both")
        if not isinstance(noise, Tensor) or list(noise.shape) != shape:
            found = getattr(noise, "shape", type(noise).__name__)
            raise ValueError(
                f"noise must be a Tensor {shape}, steps first, got {found}"
            )
        if not noise.is_floating_point():
            raise TypeError(
                f"noise must be of floating point numbers, got {noise.dtype}"
            )
        return noise.to(x) if schedule.draws else None
    if not schedule.draws:
        return None
    drawn = [_draw(x, generator) for _ in range(schedule.draws)]
    rest = len(schedule) - schedule.draws
    return torch.stack(drawn + [torch.zeros_like(x)] * rest)


def _check_generator(generator: Any, rows: int) -> None:
    many = isinstance(generator, (list, tuple))
    for one in generator if many else [generator]:
        if not isinstance(one, torch.Generator | None):
            raise TypeError(
                "generator must be a torch.Generator, or a list of these, "
                f"one a sample, got {type(one).__name__}"
            )
    if many and len(generator) != rows:
        raise ValueError(
            f"generator must be one, or {rows} for as many samples, got "
            f"{len(generator)}"
        )


def _draw(x: Tensor, generator: Any) -> Tensor:
    """As diffusers draws: on the generator's device, for all samples at once
    or for each by its own."""
    if isinstance(generator, (list, tuple)):
        parts = [_draw(part[None], g) for part, g in zip(x, generator)]
        return torch.cat(parts)
    device = x.device if generator is None else generator.device
    drawn = torch.randn(
        x.shape, generator=generator, device=device, dtype=x.dtype
    )
    return drawn.to(x.device)
