"""NIE: an integral equation whose kernel is a network."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from ..contraction import Certificate, lipschitz_bound
from ..contraction.bounds import Bound, Context, register_bound
from ..engine.gradients import Gradient
from ..engine.methods import Method
from ..engine.methods.base import check_count
from .integral_equation import IntegralEquation, box
from .learned import LearnedEquation, check_points
from .quadrature import Points


class NIE(LearnedEquation):
    r"""The neural integral equation

    .. math::

       y(x) = f(x) + \int_\Omega G_\theta(x, t, y(t))\, dt

    with a network G, solved on the points of the data: the nodes are the
    same in every iteration, so that there is a fixed point to find. Each
    sample of a batch is a problem of its own.

    Args:
        channels: C, values a point.
        coord_dim: d, coordinates a point.
        hidden: width of G.
        layers: hidden layers of G.
        kernel: another G, a module called as :class:`IntegralEquation` calls
            its kernel.
        domain: (a, b), or one such pair an axis; its volume weighs the mean
            over the points. (default: the unit box)
        memory: bytes that the kernel's values may take at a time.
        alpha, max_iter, rtol, atol, gradient, on_failure, method: as in
            :class:`ANIE`.

    Raises:
        ValueError: an option is out of range.
        TypeError: an option is of the wrong type.

    Source: Zappala et al. 2023, Section 4.3; `"Neural Integral Equations"
    <https://arxiv.org/abs/2209.15190>`_.
    """

    def __init__(
        self,
        channels: int,
        coord_dim: int,
        *,
        hidden: int = 64,
        layers: int = 2,
        kernel: Callable[[Tensor, Tensor, Tensor], Tensor] | None = None,
        domain: Any = None,
        memory: int = 2**28,
        alpha: float | Tensor | None = None,
        max_iter: int = 8,
        rtol: float = 1e-5,
        atol: float = 0.0,
        gradient: Gradient | None = None,
        on_failure: str = "warn",
        method: Method | None = None,
    ):
        super().__init__(
            alpha=alpha,
            max_iter=max_iter,
            rtol=rtol,
            atol=atol,
            method=method,
            gradient=gradient,
            on_failure=on_failure,
        )
        for name, value in (
            ("channels", channels),
            ("coord_dim", coord_dim),
            ("hidden", hidden),
            ("layers", layers),
            ("memory", memory),
        ):
            check_count(name, value)
        if kernel is not None and not callable(kernel):
            raise TypeError(
                f"kernel must be callable as G(x, t, y), got {kernel!r}"
            )
        self.channels, self.coord_dim = channels, coord_dim
        self.domain = box(
            ((0.0, 1.0),) * coord_dim if domain is None else domain
        )
        if len(self.domain) != coord_dim:
            raise ValueError(
                f"domain must have coord_dim={coord_dim} axes, got {domain}"
            )
        # G's hidden values are what takes the room
        self.memory = memory if kernel is not None else memory // hidden
        if kernel is None:
            kernel = KernelNetwork(channels, coord_dim, hidden, layers)
        self.kernel = kernel

    def forward(
        self,
        f: Tensor,
        coords: Tensor,
        *,
        weights: Tensor | None = None,
        max_iter: int | None = None,
        return_solution: bool = False,
    ) -> Any:
        """Solves for y, started at f.

        Args:
            f: [B, N, C], its values at the points.
            coords: [N, d], the points.
            weights: [N], those of a quadrature rule with these nodes.
                (default: equal ones)
            max_iter: instead of the one of the module.
            return_solution: also return the :class:`Solution`.

        Returns:
            y [B, N, C].

        Raises:
            ValueError: a shape does not fit.
        """
        equation = self.equation(f, coords, weights=weights)
        solution = self.solve(equation, f, "leading", max_iter)
        value = solution.value
        return (value, solution) if return_solution else value

    def integral(
        self, y: Tensor, coords: Tensor, *, weights: Tensor | None = None
    ) -> Tensor:
        """T(y) [B, N, C] of y [B, N, C]."""
        return self.equation(y, coords, weights=weights).integral(y)

    def equation(
        self,
        f: Tensor | Callable[[Tensor], Tensor],
        coords: Tensor,
        *,
        weights: Tensor | None = None,
    ) -> IntegralEquation:
        """The equation as an :class:`IntegralEquation`, for a certificate,
        or with f as a callable for values between the points."""
        if isinstance(f, Tensor):
            check_points(f, coords, self.channels, self.coord_dim, "f")
            if isinstance(self.kernel, KernelNetwork):
                self.check_dtype("f", f)
            coords = coords.to(f)
        if coords.dim() != 2:
            raise ValueError(
                "coords must be [N, d], the same points for all samples, got "
                f"{list(coords.shape)}"
            )
        return IntegralEquation(
            self.kernel,
            f,
            Points(coords, weights),
            self.domain,
            memory=max(1, self.memory),
        )

    def certificate(self, norm: str = "l2") -> Certificate:
        """A Lipschitz constant of P, for any points with equal weights: the
        volume of the domain times that of G in y. Infinite for a kernel of
        one's own; :meth:`equation` has a certificate for given points, which
        is sharper, and may hold on a region only."""
        return lipschitz_bound(self, norm=norm)


class KernelNetwork(nn.Module):
    """G(x, t, u): a perceptron of both places and the value at t. Its first
    layer is taken for x, t and u apart, and only added pair by pair."""

    def __init__(
        self, channels: int, coord_dim: int, hidden: int, layers: int
    ):
        super().__init__()
        self.at_x = nn.Linear(coord_dim, hidden)
        self.at_t = nn.Linear(coord_dim, hidden, bias=False)
        self.of_u = nn.Linear(channels, hidden, bias=False)
        rest: list[nn.Module] = []
        for _ in range(layers - 1):
            rest += [nn.Tanh(), nn.Linear(hidden, hidden)]
        self.rest = nn.Sequential(
            *rest, nn.Tanh(), nn.Linear(hidden, channels)
        )

    def forward(self, x: Tensor, t: Tensor, u: Tensor) -> Tensor:
        return self.rest(self.at_x(x) + (self.at_t(t) + self.of_u(u)))

    def of_value(self) -> tuple[nn.Module, ...]:
        """What is applied to u, one after the other: x and t only shift."""
        return (self.of_u, *self.rest)


@register_bound(NIE)
def _nie(module: NIE, context: Context) -> Bound:
    """Of P: the mean over points of a map of each."""
    if context.depth > 1:
        raise ValueError(
            "module: as part of another module NIE is the whole solve, but "
            "lipschitz_bound(NIE) is about P, one application; ask for it "
            "by itself"
        )
    if not isinstance(module.kernel, KernelNetwork):
        return Bound(
            math.inf,
            reason="the kernel is given; equation(f, coords).certificate() "
            "encloses its slope",
        )
    volume = math.prod(b - a for a, b in module.domain)
    return context.chain(*module.kernel.of_value(), _Mean(volume))


class _Mean(nn.Module):
    """An average over points, times the volume."""

    def __init__(self, volume: float):
        super().__init__()
        self.volume = volume


@register_bound(_Mean)
def _mean(module: _Mean, context: Context) -> Bound:
    return Bound(
        module.volume,
        width=context.width,
        reason=f"mean over points, volume {module.volume:g}",
    )
