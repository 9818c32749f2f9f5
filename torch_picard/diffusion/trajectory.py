"""The points of all chains of a batch, and the window that each is in."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..engine.triangular import Front
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
        self._frozen = _Frozen(schedule, x)
        if start is None:
            shape = (len(x), len(schedule) + 1, *x.shape[1:])
            self.x = x.new_zeros(shape)
            self.x[:, 0] = x
            first = Window(*_span(x, 0, self._window), self._window)
            self._guess(first, torch.zeros_like(x))
        else:
            self.x = _checked_trajectory(start, schedule, x)
            self.x[:, 0] = x

    @property
    def sample(self) -> Tensor:
        return self.x[:, -1]

    def window_of(self, front: Front) -> Window:
        return Window(front.at, front.width, self._window)

    def images(self, window: Window) -> Tensor:
        """[B, W, ...], x_{i+1} of step i; 0 outside."""
        return window.dense(self.x[window.row, window.step + 1])

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
        """Guesses the steps that come into the window."""
        end = window.at + window.width
        more = torch.minimum(moved, len(self.rule) - end) * active
        fresh = Window(end, more, self._window)
        last = (window.width - 1).clamp(min=0)
        image = x0[torch.arange(len(x0), device=x0.device), last]
        self._guess(fresh, torch.nan_to_num(image, posinf=0.0, neginf=0.0))

    def _guess(self, window: Window, x0: Tensor) -> None:
        if not len(window.row):
            return
        kicks = torch.zeros_like(x0)[:, None].expand(
            -1, window.inside.size(1), *x0.shape[1:]
        )
        z = self._noise_of(window)
        if z is not None:
            column = (-1,) + (1,) * (x0.dim() - 1)
            kicks = window.dense(
                self.rule.spread[window.step].view(column) * z
            )
        rows = torch.arange(len(x0), device=x0.device)
        begin = self.x[rows, window.at.clamp(max=len(self.rule))]
        path = self._frozen(window, begin, x0, kicks)
        self.store(window, path)

    def _noise_of(self, window: Window) -> Tensor | None:
        return (
            None if self.noise is None else self.noise[window.step, window.row]
        )


class _Frozen:
    r"""The chain if the denoised image were constant: x_{i+1} = c_i x_i +
    k_i x0 + s_i z_i, all at once."""

    def __init__(self, schedule: Schedule, x: Tensor):
        per_noise = schedule.on_eps / schedule.noise
        c = schedule.on_x + per_noise * schedule.scale[:-1]
        k = schedule.on_x0 - per_noise * schedule.signal
        # of a step that forgets its input, c = 0, no quotient may be taken
        logs = c.clamp(min=1e-30).log().cumsum(0)
        self.log = torch.cat([logs.new_zeros(1), logs]).to(x.device)
        self.k = k.to(x)

    def __call__(
        self, window: Window, begin: Tensor, x0: Tensor, kicks: Tensor
    ) -> Tensor:
        """x_{i+1} of the steps of the window, [B, W, ...]."""
        after = self.log[window.index + 1]
        # [B, W, W]: what a kick at one step is worth after another
        worth = (after[:, :, None] - after[:, None]).tril().exp()
        worth = (worth.tril() * window.inside[:, None]).to(begin)
        first = (after - self.log[window.at][:, None]).exp().to(begin)
        push = self.k[window.index][..., None] * x0.flatten(1)[:, None]
        path = first[..., None] * begin.flatten(1)[:, None]
        path = path + worth @ (push + kicks.flatten(2))
        return path.view(*window.inside.shape, *begin.shape[1:])


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
    return start.detach().to(x).transpose(0, 1).clone()
