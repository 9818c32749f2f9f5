"""The points of all chains of a batch, and the window that each is in."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..engine.triangular import Front
from .affine import chain
from .schedule import Schedule


class Window:
    """The steps of a round. Column j of row b is step at[b] + j.

    Attributes:
        at, width: long [B].
        inside: [B, W] bool.
        index: long [B, W], the step; 0 outside.
        row, column, step: long [M], those inside.
    """

    def __init__(self, at: Tensor, width: Tensor, columns: int):
        column = torch.arange(columns, device=at.device)
        self.at, self.width = at.clone(), width
        self.inside = column < width[:, None]
        self.index = torch.where(self.inside, at[:, None] + column, 0)
        self.row, self.column = self.inside.nonzero(as_tuple=True)
        self.step = self.index[self.row, self.column]

    def within(self, other: Window) -> tuple[Tensor, Tensor]:
        """[B, W], the column there of every step, and whether it was
        there."""
        column = self.index - other.at[:, None]
        both = self.inside & (column >= 0) & (column < other.width[:, None])
        return column.clamp(0, self.inside.size(1) - 1), both

    def dense(self, values: Tensor) -> Tensor:
        """[M, ...] -> [B, W, ...], 0 outside."""
        out = values.new_zeros(*self.inside.shape, *values.shape[1:])
        out[self.row, self.column] = values
        return out


class Trajectory:
    """x_0 ... x_N of every sample, ``x`` [B, N+1, ...].

    Where nothing is known yet, a step is guessed: it goes where the sampler
    would, with the noise that is drawn, if the denoised image stayed what it
    is at the end of the window (at first: 0).
    """

    def __init__(
        self,
        schedule: Schedule,
        x: Tensor,
        noise: Tensor | None,
        window: int,
        start: Any,
    ):
        self.rule, self.noise = schedule.to(x), noise
        self.times = schedule.times.to(x.device)
        self._window = min(window, len(schedule))
        self._given: Tensor | None = None
        if start is None:
            shape = (len(x), len(schedule) + 1, *x.shape[1:])
            self.x = x.new_zeros(shape)
            self.x[:, 0] = x
            first = Window(*_span(x, 0, self._window), self._window)
            self._guess(first, torch.zeros_like(x))
        else:
            self._given = _checked_trajectory(start, schedule, x)
            self.x = self._given.clone()
            self.x[:, 0] = x

    @property
    def sample(self) -> Tensor:
        return self.x[:, -1]

    def window_of(self, front: Front) -> Window:
        return Window(front.at, front.width, self._window)

    def images(self, window: Window) -> Tensor:
        """[B, W, ...], x_{i+1} of step i; 0 outside."""
        return window.dense(self.x[window.row, window.step + 1])

    def inputs(self, window: Window) -> Tensor:
        """[B, W, ...], x_i of step i; 0 outside."""
        return window.dense(self.x[window.row, window.step])

    def steps(self, window: Window, output: Tensor) -> tuple[Tensor, Tensor]:
        """S_i(x_i) and the denoised images, each [B, W, ...]."""
        step, x0 = self.rule.step(
            self.x[window.row, window.step],
            output,
            window.step,
            self._noise_of(window),
        )
        return window.dense(step), window.dense(x0)

    def store(self, window: Window, new: Tensor) -> None:
        """Keeps what is finite."""
        values = new[window.row, window.column]
        finite = torch.isfinite(values).flatten(1).all(1)
        row, step = window.row[finite], window.step[finite]
        self.x[row, step + 1] = values[finite]

    def extend(
        self, window: Window, x0: Tensor, moved: Tensor, active: Tensor
    ) -> None:
        """Guesses the steps that come into the window. Those of a trajectory
        that was given change by what has become of the end of the window."""
        end = window.at + window.width
        more = torch.minimum(moved, len(self.rule) - end) * active
        fresh = Window(end, more, self._window)
        if not len(fresh.row):
            return
        rows = torch.arange(len(end), device=end.device)
        last = (window.width - 1).clamp(min=0)
        image = torch.nan_to_num(x0[rows, last], posinf=0.0, neginf=0.0)
        if self._given is None:
            self._guess(fresh, image)
            return
        was, showed = self._given_at(end)
        by_image = self._of(fresh, self.rule.affine()[1])
        change = self._follow(
            fresh,
            torch.nan_to_num(self.x[rows, end] - was),
            by_image * (image - showed)[:, None],
        )
        self.store(fresh, self.images(fresh) + change)

    def _given_at(self, end: Tensor) -> tuple[Tensor, Tensor]:
        """x_end of the trajectory that was given, and the denoised image of
        the step before it."""
        assert self._given is not None
        step = Window((end - 1).clamp(min=0), torch.ones_like(end), 1)
        by_x, by_image = (self._of(step, part) for part in self.rule.affine())
        rows = step.row
        x = self._given[rows, step.step + 1]
        plain = by_x * self._given[rows, step.step][:, None]
        plain = plain + self._kicks(step)
        return x, (x - plain[:, 0]) / by_image[:, 0]

    def _guess(self, window: Window, x0: Tensor) -> None:
        by_image = self._of(window, self.rule.affine()[1])
        push = by_image * x0[:, None] + self._kicks(window)
        rows = torch.arange(len(x0), device=x0.device)
        begin = self.x[rows, window.at.clamp(max=len(self.rule))]
        self.store(window, self._follow(window, begin, push))

    def _kicks(self, window: Window) -> Tensor:
        """[B, W, ...], or 0"""
        z = self._noise_of(window)
        if z is None:
            return self.x.new_zeros(())
        spread = self.rule.spread[window.step]
        return window.dense(spread.view((-1,) + (1,) * (z.dim() - 1)) * z)

    def _follow(self, window: Window, begin: Tensor, push: Tensor) -> Tensor:
        """[B, W, ...], x_{i+1} from x of the window's first step, if the
        denoised image added ``push`` to what the step makes of x alone."""
        by_x = self._of(window, self.rule.affine()[0])
        first = by_x[:, 0] * begin
        change = torch.cat([push[:, :1] + first[:, None], push[:, 1:]], 1)
        return chain(change, by_x, None)

    def _of(self, window: Window, table: Tensor) -> Tensor:
        """[N] -> [B, W, 1, ...]"""
        return table[window.index].view(
            *window.index.shape, *[1] * (self.x.dim() - 2)
        )

    def _noise_of(self, window: Window) -> Tensor | None:
        return (
            None if self.noise is None else self.noise[window.step, window.row]
        )


def _span(x: Tensor, at: int, width: int) -> tuple[Tensor, Tensor]:
    return tuple(
        torch.full((len(x),), value, device=x.device) for value in (at, width)
    )  # type: ignore[return-value]


def _checked_trajectory(start: Any, schedule: Schedule, x: Tensor) -> Tensor:
    shape = [len(schedule) + 1, *x.shape]
    if not isinstance(start, Tensor) or list(start.shape) != shape:
        found = getattr(start, "shape", type(start).__name__)
        raise ValueError(
            f"start must be a trajectory {shape}, steps first, got {found}"
        )
    if not bool(torch.isfinite(start).all()):
        raise ValueError("start holds a NaN or an infinity")
    return start.detach().to(x).transpose(0, 1)
