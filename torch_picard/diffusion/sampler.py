"""All steps of a reverse chain at once, as a fixed point."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..engine import Solution, Status
from ..engine.methods.base import as_float, check_count
from ..engine.triangular import Front
from .affine import before, chain
from .chain import (
    check_callable,
    check_condition,
    checked_start,
    denoised,
    noise_of,
)
from .schedule import Schedule
from .schedulers import schedule_of
from .slopes import Slopes
from .trajectory import Trajectory, Window

METHODS = ("picard", "anderson")


class PicardSampler:
    r"""Samples in rounds: one call of the denoiser for a window of steps.

    The chain x_{i+1} = S_i(x_i), with its noise drawn once, is the fixed
    point of

    .. math::

       x_{i+1} \leftarrow x_f + \sum_{j=f}^{i} \bigl(S_j(x_j) - x_j\bigr),

    f the first step that is not settled. S_f sees what is final, so that its
    image is final; N rounds are enough, whatever the denoiser. Every sample
    has a window of its own, and leaves the batch when it is done.

    That sum passes every change on as it is. With ``method="anderson"`` a
    step passes on what it would: the slope :math:`g_j` of :math:`S_j`, a
    number for each element, is known but for that of the denoised image,
    which is fitted to the last two rounds,

    .. math::

       x_{i+1} \leftarrow S_i(x_i) + g_i (x_i^{new} - x_i).

    Args:
        denoiser, scheduler, num_steps, eta, prediction, spacing: as of
            :func:`reverse_chain`. The denoiser gets up to B * ``window`` rows
            in a call; spread them over devices as you like.
        window: steps of a sample in a round.
        tol: a step is settled when no element of its last change exceeds
            ``tol`` times half the standard deviation of the noise that it
            adds; with eta = 0, of the mean over all steps of what eta = 1
            would add. 0: the chain itself, to rounding.
        method: ``"picard"``, or ``"anderson"`` for fewer rounds at the price
            of two more windows.
        on_failure: ``"warn"``, ``"raise"`` or ``"ignore"``.
        max_rounds: None: as many as it takes.
        order: how many steps the sum spans. (default: all of the window)

    Raises:
        ValueError, TypeError: an option is out of range or of the wrong type.

    Source: Shih et al. 2023 (ParaDiGMS). After Tang et al. 2024 (ParaTAA),
    ``"anderson"`` is triangular; its coefficients are ours.
    """

    def __init__(
        self,
        denoiser: Callable[..., Any],
        scheduler: Any,
        num_steps: int,
        window: int = 100,
        tol: float = 0.1,
        method: str = "picard",
        *,
        eta: float = 0.0,
        on_failure: str = "warn",
        max_rounds: int | None = None,
        order: int | None = None,
        prediction: str | None = None,
        spacing: str | None = None,
    ):
        check_callable("denoiser", denoiser)
        window = check_count("window", window)
        if max_rounds is not None:
            max_rounds = check_count("max_rounds", max_rounds)
        if order is not None:
            order = check_count("order", order)
        tol = as_float("tol", tol)
        if not 0 <= tol < math.inf:
            raise ValueError(f"tol must be finite and not negative, got {tol}")
        if method not in METHODS:
            raise ValueError(
                f"method must be one of {METHODS}, got {method!r}"
            )
        if on_failure not in ("warn", "raise", "ignore"):
            raise ValueError(
                "on_failure must be 'warn', 'raise' or 'ignore', got "
                f"{on_failure!r}"
            )
        self.denoiser, self.window, self.tol = denoiser, window, tol
        self.method, self.on_failure = method, on_failure
        self.max_rounds, self.order = max_rounds, order
        self.schedule = schedule_of(
            scheduler, num_steps, eta, prediction=prediction, spacing=spacing
        )

    @torch.no_grad()
    def __call__(
        self,
        x: Tensor,
        *,
        noise: Tensor | None = None,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        condition: Any = None,
        start: Tensor | None = None,
        callback: Callable[[int, Tensor, Tensor], Any] | None = None,
    ) -> tuple[Tensor, Solution]:
        """The samples [B, ...], and how they were found.

        Args:
            x, noise, generator, condition: as of :func:`reverse_chain`. Each
                row of a call has the condition of its sample.
            start: [N+1, B, ...], a trajectory to start from, such as the
                ``value`` of a solution with another condition or denoiser.
            callback: (round, samples as they are now [B, ...], steps that
                are settled [B]); True stops.

        Returns:
            The samples, and a :class:`~torch_picard.Solution`: ``value`` the
            trajectory [N+1, B, ...]; ``status``, ``iterations`` (rounds of a
            sample) and ``residual`` [B]; ``rounds`` the calls of the
            denoiser, ``evaluations`` the rows it was given; in ``info``
            ``"residual_per_position"`` [B, N], what the input of a step
            changed by when it was settled, in units of that half. A sample
            that ended NONFINITE or DIVERGED is a last guess.

        Raises:
            ConvergenceError: under ``on_failure="raise"``.
            ValueError, TypeError: see :func:`reverse_chain`.
        """
        if callback is not None:
            check_callable("callback", callback)
        state = checked_start(x)
        check_condition(condition, len(state))
        drawn = noise_of(self.schedule, state, noise, generator)
        run = Trajectory(self.schedule, state, drawn, self.window, start)
        length = torch.full((len(x),), len(self.schedule), device=x.device)
        front = Front(length, self.window, self.max_rounds, state.dtype)
        evaluations = torch.zeros_like(length)
        judge = _Judge(self.schedule, state, self.tol)
        slopes = Slopes(run.rule) if self.method == "anderson" else None
        while front.running:
            window = run.window_of(front)
            output = denoised(
                self.denoiser,
                run.rule,
                run.x[window.row, window.step],
                run.times,
                window.step,
                x.dtype,
                condition,
                window.row,
            )
            old = run.images(window)
            step, x0 = run.steps(window, output)
            gain = None
            if slopes is not None:
                gain = slopes(window, run.inputs(window), x0)
            new = corrected(step, old, gain, self.order)
            residual, passed = judge(new - old, window)
            evaluations += window.inside.sum(1)
            moved = front.advance(
                before(residual),
                passed,
                torch.isfinite(step).flatten(2).all(2),
                judge.bounded(new, window),
            )
            run.store(window, new)
            run.extend(window, x0, moved, front.active)
            if callback is not None and callback(
                front.rounds, run.sample.to(x.dtype), front.at
            ):
                front.finish(front.active, Status.STOPPED)
        value = run.x.transpose(0, 1).to(x.dtype)
        solution = front.solution(value, int(evaluations.sum()))
        solution.info["evaluations"] = evaluations
        solution.report(self.on_failure, stacklevel=3)
        return value[-1], solution

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}(num_steps={len(self.schedule)}, "
            f"window={self.window}, tol={self.tol:g}, method={self.method!r})"
        )


def corrected(
    step: Tensor, old: Tensor, gain: Tensor | None, order: int | None
) -> Tensor:
    """The images, [B, W, ...], if those before them change the inputs of
    their steps by what they change themselves, and a step passes on ``gain``
    (None: 1) of that. Each looks back over ``order - 1`` columns; None: over
    all. A column behind none that change is that of ``step``, exactly."""
    if order == 1:
        return step
    span = None if order is None else order - 1
    shift = before(chain(step - old, gain, span))
    return step + (shift if gain is None else gain * shift)


class _Judge:
    """What is small, and what too large."""

    # times what a denoiser that sees no noise at all would let grow
    LIMIT = 100.0

    def __init__(self, schedule: Schedule, x: Tensor, tol: float):
        self.unit = schedule.tolerance().to(x)
        self.expected = schedule.expected().to(x)
        first = x.flatten(1).square().mean(1).sqrt() * schedule.scale[0].to(x)
        least = schedule.signal[0].clamp(min=1e-3).to(x)
        self.limit = self.LIMIT * first.clamp(min=1) / least
        self.tol = tol

    def __call__(
        self, change: Tensor, window: Window
    ) -> tuple[Tensor, Tensor]:
        """[B, W]: in units of the noise, and whether that is small. Of a NaN
        it is not."""
        size = change.flatten(2).abs().amax(2)
        residual = size / self.unit[window.index]
        passed = residual <= self.tol if self.tol else size == 0
        return residual, passed

    def bounded(self, image: Tensor, window: Window) -> Tensor:
        size = image.flatten(2).square().mean(2).sqrt()
        return ~(size > self.limit[:, None] * self.expected[window.index])
