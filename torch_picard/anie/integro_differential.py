"""NIDE: an integro-differential equation, a differential solver inside."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ..contraction import Certificate, lipschitz_bound
from ..contraction.bounds import Bound, Context, register_bound
from ..engine.gradients import Gradient
from ..engine.methods import Method
from ..engine.methods.base import check_count
from .learned import LearnedEquation
from .neural_equation import KernelNetwork

#: stages c, rows of a, weights b
_RUNGE_KUTTA: dict[str, tuple[list, list[list], list]] = {
    "rk4": (
        [0, 1 / 2, 1 / 2, 1],
        [[], [1 / 2], [0, 1 / 2], [0, 0, 1]],
        [1 / 6, 1 / 3, 1 / 3, 1 / 6],
    ),
    # Dormand and Prince 1980, the weights of order 5
    "dopri5": (
        [0, 1 / 5, 3 / 10, 4 / 5, 8 / 9, 1],
        [
            [],
            [1 / 5],
            [3 / 40, 9 / 40],
            [44 / 45, -56 / 15, 32 / 9],
            [19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729],
            [9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656],
        ],
        [35 / 384, 0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84],
    ),
}


class NIDE(LearnedEquation):
    r"""The neural integro-differential equation

    .. math::

       y'(t) = F_\theta(t, y(t)) + \int_{t_0}^{T} G_\theta(t, s, y(s))\, ds,
       \qquad y(t_0) = y_0

    or with the integral up to t (``volterra=True``). Iterated is the whole
    trajectory: each evaluation of P takes the integral over the last one and
    solves the differential equation that is left. Each sample of a batch is
    a problem of its own.

    The integral is taken by the trapezoidal rule on ``times``, second order;
    between them the last trajectory is linear.

    Args:
        channels: C, values of y.
        hidden: width of the networks.
        layers: hidden layers of the networks.
        derivative: another F, called as ``F(t, y)`` with t 0-dim and y
            [B, C].
        kernel: another G, called as ``G(t, s, y)`` with t [M, 1, 1], s
            [1, T, 1] and y [B, 1, T, C]; returns [B, M, T, C].
        volterra: whether the integral ends at t.
        solver: ``"rk4"`` or ``"dopri5"`` (Dormand and Prince, order 5), with
            fixed steps; ``"torchdiffeq"``: its adaptive dopri5, whose steps
            are those of the batch as a whole: there alone a sample depends
            on the others, within the solver's tolerance of 1e-7.
        substeps: steps from one time to the next.
        alpha, max_iter, rtol, atol, gradient, on_failure, method: as in
            :class:`ANIE`. (default alpha: 0)

    Raises:
        ValueError: an option is out of range.
        TypeError: an option is of the wrong type.
        ImportError: ``solver="torchdiffeq"`` without torchdiffeq.

    Source: Zappala et al. 2023, Section 4.3; `"Neural Integro-Differential
    Equations" <https://arxiv.org/abs/2206.14282>`_.
    """

    def __init__(
        self,
        channels: int,
        *,
        hidden: int = 64,
        layers: int = 2,
        derivative: Callable[[Tensor, Tensor], Tensor] | None = None,
        kernel: Callable[[Tensor, Tensor, Tensor], Tensor] | None = None,
        volterra: bool = False,
        solver: str = "rk4",
        substeps: int = 1,
        alpha: float | Tensor | None = None,
        max_iter: int = 16,
        rtol: float = 1e-5,
        atol: float = 0.0,
        gradient: Gradient | None = None,
        on_failure: str = "warn",
        method: Method | None = None,
    ):
        if method is None and alpha is None:
            alpha = 0.0
        super().__init__(
            alpha=alpha,
            max_iter=max_iter,
            rtol=rtol,
            atol=atol,
            method=method,
            gradient=gradient,
            on_failure=on_failure,
        )
        for name, count in (
            ("channels", channels),
            ("hidden", hidden),
            ("layers", layers),
            ("substeps", substeps),
        ):
            check_count(name, count)
        for name, value in (("derivative", derivative), ("kernel", kernel)):
            if value is not None and not callable(value):
                raise TypeError(f"{name} must be callable, got {value!r}")
        names = (*_RUNGE_KUTTA, "torchdiffeq")
        if solver not in names:
            raise ValueError(
                f"solver must be one of {', '.join(names)}, got {solver!r}"
            )
        if solver == "torchdiffeq":
            _odeint()  # says now if it is missing
        self.channels, self.volterra = channels, bool(volterra)
        self.solver, self.substeps = solver, substeps
        if derivative is None:
            derivative = _Derivative(channels, hidden, layers)
        if kernel is None:
            kernel = KernelNetwork(channels, 1, hidden, layers)
        self.derivative, self.kernel = derivative, kernel

    def forward(
        self,
        y0: Tensor,
        times: Tensor,
        *,
        max_iter: int | None = None,
        return_solution: bool = False,
    ) -> Any:
        """Solves for the trajectory, started at the one that stays at y0.

        Args:
            y0: [B, C], at the first of the times.
            times: [T], increasing.
            max_iter: instead of the one of the module.
            return_solution: also return the :class:`Solution`.

        Returns:
            y [B, T, C], y0 included.

        Raises:
            ValueError: a shape does not fit, or times do not increase.
        """
        times = _check(y0, times, self.channels)
        own = isinstance(self.kernel, KernelNetwork)
        if own and isinstance(self.derivative, _Derivative):
            self.check_dtype("y0", y0)
        start = y0[:, None].expand(-1, times.numel(), -1).contiguous()

        def operator(y: Tensor) -> Tensor:
            return self._trajectory(y, y0, times)

        solution = self.solve(operator, start, "leading", max_iter)
        value = solution.value
        return (value, solution) if return_solution else value

    def certificate(self, times: Tensor) -> Certificate:
        """A Lipschitz constant of P on these times, in the largest norm
        (``"linf"``): how far trajectories move apart under the solver's own
        steps, by the constants of F and G. Infinite, with the reason, where
        F or G is given or the steps are adaptive.

        Raises:
            ValueError: times do not increase.
        """
        times = _check_times(times).double()
        if self.solver == "torchdiffeq":
            return _unknown("the steps of torchdiffeq depend on the state")
        if not isinstance(self.derivative, _Derivative):
            return _unknown("derivative is given, its constant not known")
        if not isinstance(self.kernel, KernelNetwork):
            return _unknown("kernel is given, its constant not known")
        f = lipschitz_bound(self.derivative.net, norm="linf").constant
        inner = nn.Sequential(*self.kernel.of_value())
        g = lipschitz_bound(inner, norm="linf").constant
        c, rows, b = _RUNGE_KUTTA[self.solver]
        apart = 0.0
        for left, right in zip(times[:-1].tolist(), times[1:].tolist()):
            h = (right - left) / self.substeps
            for i in range(self.substeps):
                slopes: list[float] = []
                for row, part in zip(rows, c):
                    end = left + h * (i + part)
                    end = end if self.volterra else float(times[-1])
                    at = apart + h * sum(
                        abs(a) * k for a, k in zip(row, slopes)
                    )
                    slopes.append(f * at + g * (end - float(times[0])))
                apart += h * sum(abs(w) * k for w, k in zip(b, slopes))
        reason = f"F {f:.3g} and G {g:.3g}, along {len(times)} times"
        return Certificate(apart * (1 + 1e-9), "linf", reason=reason)

    def integral(self, y: Tensor, times: Tensor, at: Tensor) -> Tensor:
        """The integral term [B, M, C] of y [B, T, C] at the times [M]."""
        if self.volterra:
            weights = _running(times, at)
        else:
            weights = _running(times, times[-1:]).expand(at.numel(), -1)
        values = self.kernel(
            at[:, None, None], times[None, :, None], y.unsqueeze(1)
        )
        shape = (y.size(0), at.numel(), times.numel(), self.channels)
        if not isinstance(values, Tensor):
            raise TypeError(
                f"kernel must return a Tensor, got {type(values).__name__}"
            )
        try:
            values = torch.broadcast_to(values, shape)
        except RuntimeError:
            raise ValueError(
                f"kernel must return values of shape {list(shape)}, got "
                f"{list(values.shape)}"
            ) from None
        return torch.einsum("bmtc,mt->bmc", values, weights)

    def _trajectory(self, y: Tensor, y0: Tensor, times: Tensor) -> Tensor:
        """P(y): the differential equation with the integral of y."""
        if self.solver == "torchdiffeq":

            def slope(t: Tensor, z: Tensor) -> Tensor:
                t = t.to(times)
                return self._slope(
                    t, z, self.integral(y, times, t[None])[:, 0]
                )

            path = _odeint()(slope, y0, times, rtol=1e-7, atol=1e-9)
            return path.transpose(0, 1)
        c, rows, b = _RUNGE_KUTTA[self.solver]
        fraction = torch.arange(self.substeps).to(times) / self.substeps
        begin = (times[:-1, None] + times.diff()[:, None] * fraction).flatten()
        size = (times.diff() / self.substeps).repeat_interleave(self.substeps)
        stages = begin[:, None] + size[:, None] * times.new_tensor(c)
        forcing = self.integral(y, times, stages.flatten())
        forcing = forcing.unflatten(1, stages.shape)
        path, z = [y0], y0
        for i in range(len(begin)):
            slopes: list[Tensor] = []
            for j, row in enumerate(rows):
                at = z
                for weight, k in zip(row, slopes):
                    if weight:
                        at = at + size[i] * weight * k
                slopes.append(self._slope(stages[i, j], at, forcing[:, i, j]))
            for weight, k in zip(b, slopes):
                if weight:
                    z = z + size[i] * weight * k
            if (i + 1) % self.substeps == 0:
                path.append(z)
        return torch.stack(path, 1)

    def _slope(self, t: Tensor, z: Tensor, forcing: Tensor) -> Tensor:
        slope = self.derivative(t, z)
        if not isinstance(slope, Tensor) or slope.shape != z.shape:
            shape = list(slope.shape) if isinstance(slope, Tensor) else slope
            raise ValueError(
                f"derivative must return the shape of y {list(z.shape)}, got "
                f"{shape}"
            )
        return slope + forcing

    def extra_repr(self) -> str:
        kind = "Volterra" if self.volterra else "Fredholm"
        return f"{super().extra_repr()}, {kind}, solver={self.solver!r}"


class _Derivative(nn.Module):
    """F(t, y), a perceptron."""

    def __init__(self, channels: int, hidden: int, layers: int):
        super().__init__()
        parts: list[nn.Module] = [nn.Linear(1 + channels, hidden), nn.Tanh()]
        for _ in range(layers - 1):
            parts += [nn.Linear(hidden, hidden), nn.Tanh()]
        self.net = nn.Sequential(*parts, nn.Linear(hidden, channels))

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        return self.net(torch.cat([t.expand(*y.shape[:-1], 1), y], -1))


def _running(times: Tensor, at: Tensor) -> Tensor:
    """[M, T]: weights that integrate the linear interpolation of values at
    ``times`` from the first of them up to each of ``at``."""
    left, right = times[:-1], times[1:]
    width = right - left
    inside = ((at[:, None] - left) / width).clamp(0, 1)
    # of a cell: the value on its right counts s^2/2, that on its left the
    # rest of s
    to_right = width * inside.square() / 2
    to_left = width * inside - to_right
    none = to_left.new_zeros(at.numel(), 1)
    return torch.cat([to_left, none], 1) + torch.cat([none, to_right], 1)


def _odeint() -> Callable:
    try:
        from torchdiffeq import odeint
    except ImportError:
        raise ImportError(
            "solver='torchdiffeq' needs torchdiffeq: pip install "
            "'torch_picard[ode]', or use solver='dopri5'"
        ) from None
    return odeint


def _check(y0: Any, times: Any, channels: int) -> Tensor:
    if not isinstance(y0, Tensor) or not y0.is_floating_point():
        raise TypeError(f"y0 must be a floating Tensor, got {y0!r}")
    if y0.dim() != 2 or y0.size(1) != channels:
        raise ValueError(
            f"y0 must be of shape [B, {channels}], got {list(y0.shape)}"
        )
    return _check_times(times).to(y0)


def _check_times(times: Any) -> Tensor:
    if not isinstance(times, Tensor) or times.is_complex():
        kind = times.dtype if isinstance(times, Tensor) else repr(times)
        raise TypeError(f"times must be a real Tensor [T], got {kind}")
    if times.dim() != 1 or times.numel() < 2:
        raise ValueError(
            f"times must be [T] with at least 2 of them, got "
            f"{list(times.shape)}"
        )
    if not bool((times.diff() > 0).all() & times.isfinite().all()):
        raise ValueError("times must increase and be finite")
    return times


def _unknown(why: str) -> Certificate:
    return Certificate(math.inf, "linf", reason=why)


@register_bound(NIDE)
def _nide(module: NIDE, context: Context) -> Bound:
    raise ValueError(
        "module: the constant of NIDE depends on its times; ask "
        "NIDE.certificate(times)"
    )
