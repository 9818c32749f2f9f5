"""The schedulers of diffusers, read as a :class:`Schedule`.

They are known by the names of their classes and by their configuration, so
diffusers itself is not imported. Only ``set_timesteps`` is called, on a copy.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ..engine.methods.base import as_float, check_count
from .schedule import (
    Schedule,
    checked_prediction,
    ddim,
    from_alphas,
)


def schedule_of(
    scheduler: Any,
    num_steps: int,
    eta: float = 0.0,
    *,
    prediction: str | None = None,
    spacing: str | None = None,
) -> Schedule:
    """Of a scheduler, or of alphas_cumprod.

    Raises:
        TypeError: not a scheduler that is known.
        ValueError: an option that its steps cannot have here.
    """
    num_steps = check_count("num_steps", num_steps)
    eta = as_float("eta", eta)
    if not 0 <= eta <= 1:
        raise ValueError(f"eta must be in [0, 1], got {eta}")
    read = _reader(scheduler)
    if read is None:
        return from_alphas(
            scheduler,
            num_steps,
            eta=eta,
            prediction=prediction or "eps",
            spacing=spacing or "leading",
        )
    for name, value in (("prediction", prediction), ("spacing", spacing)):
        if value is not None:
            raise ValueError(
                f"{name} belongs to alphas_cumprod; the scheduler's "
                f"configuration says its own, but {value!r} was given"
            )
    config = scheduler.config
    if getattr(config, "thresholding", False):
        raise ValueError(
            "scheduler has thresholding=True, which looks at all pixels of a "
            "sample and is not supported; use clip_sample=True or neither"
        )
    timed = copy.deepcopy(scheduler)
    timed.set_timesteps(num_steps)
    return replace(
        read(timed, config, eta),
        times=timed.timesteps.cpu(),
        prediction=checked_prediction(config.prediction_type),
    )


def _ddpm(scheduler: Any, config: Any, eta: float) -> Schedule:
    if eta not in (0, 1):
        raise ValueError(
            f"eta belongs to DDIM; DDPM adds all of its noise, got eta={eta}"
        )
    times = scheduler.timesteps.cpu()
    # in float32, as there: 1 - before / after is mostly rounding near t = 0
    before = scheduler.alphas_cumprod.detach().cpu()[times]
    after = torch.cat([before[1:], torch.ones_like(before[:1])])
    beta = 1 - before / after
    image = after.sqrt() * beta / (1 - before)
    state = (before / after).sqrt() * (1 - after) / (1 - before)
    posterior = (1 - after) / (1 - before) * beta
    small = posterior.clamp(min=1e-20)
    kind = scheduler.variance_type
    variances = {
        "fixed_small": small,
        "fixed_small_log": small,
        "fixed_large": beta,
        "learned": small,
        "learned_range": small,
    }
    if kind not in variances:
        raise ValueError(
            f"scheduler's variance_type must be one of {list(variances)}, "
            f"got {kind!r}"
        )
    return replace(
        ddim(before.double(), after.double(), 1.0),
        on_x=state.double(),
        on_x0=image.double(),
        on_eps=torch.zeros_like(state).double(),
        spread=torch.where(times > 0, variances[kind].sqrt(), 0.0).double(),
        clip=_clip(config),
        learned=kind if kind.startswith("learned") else None,
        log_range=torch.stack([small.log(), beta.log()]).double(),
        draws=int((times > 0).sum()),
    )


def _ddim(scheduler: Any, config: Any, eta: float) -> Schedule:
    times = scheduler.timesteps.cpu()
    table = _alphas(scheduler)
    # not the next of the times where these are not evenly spaced
    stride = config.num_train_timesteps // scheduler.num_inference_steps
    earlier = times - stride
    last = torch.as_tensor(scheduler.final_alpha_cumprod).to(table)
    after = torch.where(earlier >= 0, table[earlier.clamp(min=0)], last)
    return replace(ddim(table[times], after, eta), clip=_clip(config))


def _dpm_solver(scheduler: Any, config: Any, eta: float) -> Schedule:
    kind = config.algorithm_type
    if config.solver_order != 1:
        raise ValueError(
            "scheduler must have solver_order=1, a rule of one step, got "
            f"{config.solver_order}: make it with DPMSolverMultistepScheduler"
            ".from_config(scheduler.config, solver_order=1)"
        )
    if kind not in ("dpmsolver++", "sde-dpmsolver++"):
        raise ValueError(
            "scheduler's algorithm_type must be 'dpmsolver++' or "
            f"'sde-dpmsolver++', got {kind!r}"
        )
    if getattr(config, "use_flow_sigmas", False):
        raise ValueError("scheduler has use_flow_sigmas=True: not supported")
    stochastic = kind.startswith("sde")
    if eta not in (0, 1) or (eta == 1 and not stochastic):
        raise ValueError(f"eta belongs to DDIM, got eta={eta} with {kind!r}")
    sigmas = scheduler.sigmas.cpu().double()
    alphas = 1 / (1 + sigmas**2)
    base = ddim(alphas[:-1], alphas[1:], float(stochastic))
    ratio = sigmas[1:] / sigmas[:-1]  # exp(-h)
    noise = (sigmas * alphas.sqrt())[1:]
    damped = ratio if stochastic else torch.ones_like(ratio)
    free = 1 - ratio**2 if stochastic else torch.zeros_like(ratio)
    return replace(
        base,
        on_x=noise / base.noise * damped,
        on_x0=alphas[1:].sqrt() * (1 - ratio * damped),
        on_eps=torch.zeros_like(ratio),
        spread=noise * free.sqrt(),
        learned="ignored" if getattr(config, "variance_type", None) else None,
    )


def _euler(scheduler: Any, config: Any, eta: float) -> Schedule:
    if eta != 0:
        raise ValueError(f"eta belongs to DDIM, got eta={eta} with Euler's")
    sigmas = scheduler.sigmas.cpu().double()
    alphas = 1 / (1 + sigmas**2)
    zero = torch.zeros_like(sigmas[1:])
    return replace(
        ddim(alphas[:-1], alphas[1:], 0.0),
        on_x=torch.ones_like(zero),
        on_x0=zero,
        on_eps=sigmas.diff(),
        scale=alphas.sqrt(),
    )


_READERS: dict[str, Callable[[Any, Any, float], Schedule]] = {
    "DDPMScheduler": _ddpm,
    "DDPMParallelScheduler": _ddpm,
    "DDIMScheduler": _ddim,
    "DDIMParallelScheduler": _ddim,
    "DPMSolverMultistepScheduler": _dpm_solver,
    "EulerDiscreteScheduler": _euler,
}


def _reader(scheduler: Any) -> Callable[[Any, Any, float], Schedule] | None:
    if isinstance(scheduler, Tensor):
        return None
    for kind in type(scheduler).__mro__:
        if kind.__name__ in _READERS and hasattr(scheduler, "config"):
            return _READERS[kind.__name__]
    raise TypeError(
        "scheduler must be a Tensor alphas_cumprod [T] or one of diffusers' "
        f"{', '.join(_READERS)} (pip install torch-picard[diffusion]), got "
        f"{type(scheduler).__name__}"
    )


def _alphas(scheduler: Any) -> Tensor:
    return scheduler.alphas_cumprod.detach().cpu().double()


def _clip(config: Any) -> float | None:
    if not getattr(config, "clip_sample", False):
        return None
    return float(getattr(config, "clip_sample_range", 1.0))
