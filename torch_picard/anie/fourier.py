"""Fourier neural operators: in one pass, and as a fixed point."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..contraction.bounds import Bound, Context, is_scaled, register_bound
from ..contraction.norms import gram_bound
from ..engine.gradients import Gradient
from ..engine.methods import Method
from ..engine.methods.base import check_count
from .learned import LearnedEquation

#: The largest slope of GELU.
_SLOPE = 1.129
#: By how much the bound of a norm may be above it.
_EXCESS = 0.05


class SpectralConv(nn.Module):
    r"""A convolution with a periodic kernel of few waves, times a matrix:

    .. math::

       (Kz)(x) = \sum_{|k_1|, |k_2| < m} R_k \hat z_k\, e^{2\pi i k x}

    with :math:`R_{-k} = \bar R_k`. A grid of n points along an axis has the
    waves below n/2; on a grid that lacks some of the m, those are left out.
    Between grids that have them all, the values at common points agree.

    Args:
        in_channels, out_channels: C and C'.
        modes: m.

    Shapes:
        z [B, C, n1, n2] -> [B, C', n1, n2]; float32 or float64.
        weight [2m-1, m, C, C', 2]: k1 = 0, ..., m-1, 1-m, ..., -1; k2 = 0,
        ..., m-1; real and imaginary part. At k2 = 0 only the part with
        :math:`R_{-k} = \bar R_k` counts.

    Source: Li et al. 2021, "Fourier Neural Operator for Parametric Partial
    Differential Equations", Section 4.
    """

    def __init__(self, in_channels: int, out_channels: int, modes: int):
        super().__init__()
        check_count("in_channels", in_channels)
        check_count("out_channels", out_channels)
        check_count("modes", modes)
        self.modes = modes
        self.weight = nn.Parameter(
            torch.empty(2 * modes - 1, modes, in_channels, out_channels, 2)
        )
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Each R_k at random, of a norm about 1."""
        nn.init.normal_(self.weight, std=0.35 / math.sqrt(self.weight.size(2)))

    def forward(self, z: Tensor) -> Tensor:
        n1, n2 = z.shape[-2:]
        m1, m2 = (min(self.modes, (n + 1) // 2) for n in (n1, n2))
        zhat = torch.fft.rfft2(z, norm="forward")[..., :m2]
        kept = _low(zhat, -2, m1)
        weight = _low(torch.view_as_complex(self.weight), 0, m1)[:, :m2]
        out = torch.einsum("bixy,xyio->boxy", kept, weight)
        gap = out.new_zeros(*out.shape[:2], n1 - 2 * m1 + 1, m2)
        full = torch.cat([out[:, :, :m1], gap, out[:, :, m1:]], -2)
        # the waves of larger k2 are filled up with zeros
        return torch.fft.irfft2(full, s=(n1, n2), norm="forward")

    def extra_repr(self) -> str:
        _, _, channels, out, _ = self.weight.shape
        return f"{channels}, {out}, modes={self.modes}"


def _low(x: Tensor, dim: int, modes: int) -> Tensor:
    """Of waves 0, 1, ..., -2, -1 along ``dim``, those below ``modes``."""
    n = x.size(dim)
    if n == 2 * modes - 1:
        return x
    first = x.narrow(dim, 0, modes)
    return torch.cat([first, x.narrow(dim, n - modes + 1, modes - 1)], dim)


class FourierLayer(nn.Module):
    """z -> W z + K z, with a matrix W [C, C], a bias and a
    :class:`SpectralConv` K."""

    def __init__(self, width: int, modes: int):
        super().__init__()
        self.local = nn.Conv2d(width, width, 1)
        self.spectral = SpectralConv(width, width, modes)

    def forward(self, z: Tensor, scale: Tensor | None = None) -> Tensor:
        """[B, C, n1, n2]; ``scale`` multiplies W and K."""
        if scale is None:
            return self.local(z) + self.spectral(z)
        z = scale * z
        return self.local(z) + self.spectral(z)

    def norm(self) -> Tensor:
        """An upper bound of the l2 norm of W + K, on any grid: waves do not
        mix, so it is the largest one of W + R_k and W."""
        local = self.local.weight[:, :, 0, 0]
        spectral = torch.view_as_complex(self.spectral.weight).mT
        full = gram_bound(local + spectral, excess=_EXCESS)
        return torch.maximum(full, gram_bound(local, excess=_EXCESS))


class _Lift(nn.Module):
    """A matrix, of the input with the coordinates i/n of its grid."""

    def __init__(self, in_channels: int, width: int):
        super().__init__()
        self.in_channels = in_channels
        self.map = nn.Conv2d(in_channels + 2, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        if not isinstance(x, Tensor) or not x.is_floating_point():
            kind = x.dtype if isinstance(x, Tensor) else type(x).__name__
            raise TypeError(
                f"x must be a floating Tensor [B, {self.in_channels}, n1, "
                f"n2], got {kind}"
            )
        if x.dim() != 4 or x.size(1) != self.in_channels or x.numel() == 0:
            raise ValueError(
                f"x must be of shape [B, {self.in_channels}, n1, n2], got "
                f"{list(x.shape)}"
            )
        axes = [
            torch.arange(n, dtype=x.dtype, device=x.device) / n
            for n in x.shape[-2:]
        ]
        grid = torch.stack(torch.meshgrid(*axes, indexing="ij"))
        grid = grid.expand(len(x), *grid.shape)
        return self.map(torch.cat([x, grid], 1))


def _project(width: int, out_channels: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(width, 2 * width, 1),
        nn.GELU(),
        nn.Conv2d(2 * width, out_channels, 1),
    )


class FNO(nn.Module):
    r"""The Fourier neural operator in two dimensions: ``layers`` times
    :math:`z \mapsto \mathrm{GELU}(Wz + Kz)` (the last without GELU), between
    a lift and a projection that act on each point.

    Args:
        in_channels: C; the coordinates of the grid are appended.
        out_channels: C'.
        width: channels inside.
        modes: waves along each axis, see :class:`SpectralConv`.
        layers: how many.

    Shapes:
        x [B, C, n1, n2] -> [B, C', n1, n2], at any resolution.

    Raises:
        ValueError: an option is out of range, or x of a wrong shape.
        TypeError: an option or x is of the wrong type.

    Source: `"Fourier Neural Operator for Parametric Partial Differential
    Equations" <https://arxiv.org/abs/2010.08895>`_ (Li et al. 2021).
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        width: int = 32,
        modes: int = 8,
        layers: int = 4,
    ):
        super().__init__()
        _check_counts(in_channels, out_channels, width, modes, layers)
        self.lift = _Lift(in_channels, width)
        self.layers = nn.ModuleList(
            FourierLayer(width, modes) for _ in range(layers)
        )
        self.project = _project(width, out_channels)

    def forward(self, x: Tensor) -> Tensor:
        z = self.lift(x)
        *first, last = self.layers
        for layer in first:
            z = F.gelu(layer(z))
        return self.project(last(z))


class FNODEQ(LearnedEquation):
    r"""A Fourier neural operator of infinite depth: its layer is iterated to
    a fixed point,

    .. math::

       z = \mathrm{GELU}(Wz + Kz + f)

    with f the lifted input, in every iteration; a projection reads z out.
    The steady states of physics are fixed points themselves. Each sample of
    a batch is a problem of its own, with its own stopping, started at f.

    As it is initialised, the map contracts in practice. Training to a good
    fit may take that away: a
    :class:`~torch_picard.contraction.JacobianPenalty` in the loss keeps it,
    and ``bound`` guarantees it. The :class:`Solution` tells.

    Args:
        in_channels: C; the coordinates of the grid are appended.
        out_channels: C'.
        width: channels inside.
        modes: waves along each axis, see :class:`SpectralConv`.
        layers: Fourier layers of one iteration; f enters each.
        bound: the l2 Lipschitz constant not to exceed, on any grid: W and K
            are scaled down where they would. Below 1 there is exactly one
            fixed point. (default: no bound)
        alpha: weight of the *old* state, in [0, 1), or a Tensor. Belongs to
            ``method=None``. (default: 0.5)
        max_iter: evaluations of the map allowed.
        rtol, atol: tolerances; both 0: exactly ``max_iter`` iterations.
        gradient: how to differentiate. (default: :class:`Unrolled`)
        on_failure: ``"warn"``, ``"raise"`` or ``"ignore"``.
        method: another method of :func:`fixed_point`.

    Raises:
        ValueError: an option is out of range.
        TypeError: an option is of the wrong type.

    Source: `"Deep Equilibrium Based Neural Operators for Steady-State PDEs"
    <https://arxiv.org/abs/2312.00234>`_ (Marwah et al. 2023).
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        width: int = 32,
        modes: int = 8,
        layers: int = 1,
        bound: float | None = None,
        alpha: float | Tensor | None = None,
        max_iter: int = 32,
        rtol: float = 1e-4,
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
        _check_counts(in_channels, out_channels, width, modes, layers)
        number = isinstance(bound, (int, float)) and bound is not True
        if bound is not None and not number:
            raise TypeError(f"bound must be a number or None, got {bound!r}")
        if bound is not None and not 0 < bound < math.inf:
            raise ValueError(f"bound must be positive and finite, got {bound}")
        self.bound = bound
        self.lift = _Lift(in_channels, width)
        self.layers = nn.ModuleList(
            FourierLayer(width, modes) for _ in range(layers)
        )
        self.project = _project(width, out_channels)

    def forward(
        self,
        x: Tensor,
        *,
        max_iter: int | None = None,
        return_solution: bool = False,
    ) -> Any:
        """The projection of the fixed point.

        Args:
            x: [B, C, n1, n2], at any resolution.
            max_iter: instead of the one of the module.
            return_solution: also return the :class:`Solution`, whose value
                is z [B, width, n1, n2].

        Returns:
            [B, C', n1, n2].

        Raises:
            ValueError: a shape does not fit.
            TypeError: x is no floating Tensor.
        """
        if isinstance(x, Tensor) and x.is_floating_point():
            self.check_dtype("x", x)
        f = self.lift(x)
        solution = self.solve(self.operator(f), f, "leading", max_iter)
        out = self.project(solution.value)
        return (out, solution) if return_solution else out

    def operator(self, f: Tensor) -> Any:
        """The map z -> P(z) of [B, width, n1, n2], for the lifted input f."""
        scales = [self._scale(layer, f) for layer in self.layers]

        def operator(z: Tensor) -> Tensor:
            for layer, scale in zip(self.layers, scales):
                z = F.gelu(layer(z, scale) + f)
            return z

        return operator

    def _scale(self, layer: Any, f: Tensor) -> Tensor | None:
        """An equal share of the bound, for each layer with its GELU."""
        if self.bound is None:
            return None
        share = self.bound ** (1 / len(self.layers)) / _SLOPE
        return (share / layer.norm()).clamp(max=1.0).to(f)

    def constant(self) -> float:
        """An upper bound of the l2 Lipschitz constant of P, on any grid."""
        share = math.inf
        if self.bound is not None:
            share = self.bound ** (1 / len(self.layers)) / _SLOPE
        total = 1.0
        for layer in self.layers:
            norm = float(layer.norm().detach())  # type: ignore[operator]
            total *= _SLOPE * min(share, norm)
        return total

    def extra_repr(self) -> str:
        bound = "" if self.bound is None else f", bound={self.bound}"
        return super().extra_repr() + bound


def _check_counts(
    in_channels: Any, out_channels: Any, width: Any, modes: Any, layers: Any
) -> None:
    for name, value in (
        ("in_channels", in_channels),
        ("out_channels", out_channels),
        ("width", width),
        ("modes", modes),
        ("layers", layers),
    ):
        check_count(name, value)


@register_bound(FNODEQ)
def _fnodeq(module: FNODEQ, context: Context) -> Bound:
    """Of P, one application: f is added."""
    if context.depth > 1:
        raise ValueError(
            "module: as part of another module FNODEQ is the whole solve, "
            "but lipschitz_bound(FNODEQ) is about P, one application; ask "
            "for it by itself"
        )
    if is_scaled(context):
        raise ValueError(
            "module: FNODEQ bounds itself; use FNODEQ(..., bound=0.95)"
        )
    if context.norm != "l2":
        return Bound(math.inf, reason="a Fourier layer is known in l2 only")
    how = "no bound set" if module.bound is None else f"bound={module.bound}"
    return Bound(
        module.constant(), width=context.width,
        reason=f"norms of W + R_k, GELU, {how}",
    )  # fmt: skip
