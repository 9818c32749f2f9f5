"""Integral equations of the second kind, solved on the nodes of a rule."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..contraction import Ball, Certificate
from ..contraction.certificate import check_norm
from ..contraction.norms import operator_norm
from ..engine import Solution, fixed_point
from .enclosures import NoRule, slope_bounds
from .quadrature import Attention, Domain, Quadrature

Kernel = Callable[[Tensor, Tensor, Tensor], Tensor]


class IntegralEquation:
    r"""The integral equation

    .. math::

       u(x) = f(x) + \lambda \int_\Omega K(x, t, u(t))\, dt

    with any kernel: linear (Fredholm), Hammerstein, Urysohn; with
    ``volterra=True`` the integral ends at x. The integral is replaced by a
    quadrature rule (Nystrom's method), and the system at its nodes is solved
    by :func:`~torch_picard.fixed_point`. Callable as the operator :math:`P`,
    u [N, c] or [B, N, c] at ``nodes``.

    Args:
        kernel: K, called as ``kernel(x, t, u)`` with x [M, 1, d], t [1, N,
            d] and u [..., 1, N, c]; returns [..., M, N, c], u included for
            linear kernels too. Parameters inside get gradients.
        free: f, a callable [N, d] -> [N, c], asked again at every solve, or
            a Tensor [N, c] or [B, N, c] with its values at ``nodes``.
        quadrature: :class:`GaussLegendre`, :class:`Trapezoid`,
            :class:`MonteCarlo` or :class:`Attention`.
        domain: (a, b), or one such pair an axis.
        volterra: whether to integrate from the lower corner up to x.
        lam: :math:`\lambda`, a number or a 0-dim Tensor.
        memory: bytes that the kernel's values and weights may take at a
            time; rows are worked on in blocks that fit.

    Attributes:
        nodes: [N, d], in the dtype and on the device of f.

    Raises:
        ValueError: an argument is out of range or of a wrong shape.
        TypeError: an argument is of the wrong type.

    Source: Zappala et al. 2023, equation (1) and Section 4.3; Nystrom's
    method, Atkinson 1997.
    """

    def __init__(
        self,
        kernel: Kernel,
        free: Callable[[Tensor], Tensor] | Tensor,
        quadrature: Quadrature,
        domain: Any,
        *,
        volterra: bool = False,
        lam: float | Tensor = 1.0,
        memory: int = 2**28,
    ):
        if not callable(kernel):
            raise TypeError(
                f"kernel must be callable as K(x, t, u), got {kernel!r}"
            )
        if not isinstance(quadrature, Quadrature):
            raise TypeError(
                "quadrature must be a rule such as GaussLegendre(16), got "
                f"{quadrature!r}"
            )
        _check_lam(lam)
        if not isinstance(volterra, bool):
            raise TypeError(
                f"volterra must be True or False, got {volterra!r}"
            )
        if isinstance(memory, bool) or not isinstance(memory, int):
            raise TypeError(f"memory must be an integer, got {memory!r}")
        if memory < 1:
            raise ValueError(f"memory must be positive, got {memory}")
        self.kernel, self.quadrature = kernel, quadrature
        self.domain = box(domain)
        self.volterra, self.lam, self.memory = volterra, lam, memory
        if not callable(free) and not isinstance(free, Tensor):
            raise TypeError(f"free must be callable or a Tensor, got {free!r}")
        self._free = free
        self.nodes = _nodes(quadrature, self.domain, free)
        _check_free(self.f, self.nodes)
        self._rule: Tensor | None = None

    @property
    def f(self) -> Tensor:
        """The values of ``free`` at the nodes, as it is now."""
        free = self._free
        return free if isinstance(free, Tensor) else free(self.nodes)

    def __call__(self, u: Tensor) -> Tensor:
        """P(u) = f + lam * integral, at the nodes."""
        return self.f + self.lam * self.integral(u)

    def integral(self, u: Tensor, x: Tensor | None = None) -> Tensor:
        """The integral of K(x, t, u(t)) over t.

        Args:
            u: [..., N, c], at ``nodes``.
            x: [M, d], where to take it. (default: ``nodes``)

        Returns:
            [..., M, c].

        Raises:
            ValueError: ``u`` or what the kernel returns has a wrong shape.
        """
        _check_values(u, self.nodes)
        x = self.nodes if x is None else x
        rows = self._rows(u)
        if rows >= x.size(0):
            return self._block(x, u)
        if not torch.is_grad_enabled():
            # in one piece: small results between large temporaries would
            # keep an allocator from using the same room again
            whole = u.new_empty(*u.shape[:-2], x.size(0), u.size(-1))
            parts = x.split(rows), whole.split(rows, dim=-2)
            for part, out in zip(*parts):
                out.copy_(self._block(part, u))
            return whole
        # Blocks are computed again for the gradient: kept, all of them
        # together would be what the blocks are to avoid.
        blocks = [
            checkpoint(self._block, part, u, use_reentrant=False)
            for part in x.split(rows)
        ]
        return torch.cat(blocks, dim=-2)

    def solve(self, u0: Tensor | None = None, **options: Any) -> Solution:
        """:func:`~torch_picard.fixed_point` of this equation; each element
        of a batch is a problem of its own.

        Args:
            u0: where to start. (default: f)
            **options: those of :func:`~torch_picard.fixed_point`.

        Returns:
            A :class:`~torch_picard.Solution` with value [N, c] or
            [B, N, c].
        """
        f = self.f
        if u0 is None:
            u0 = f
        value = u0.value if isinstance(u0, Solution) else u0
        _check_values(value, self.nodes, "u0")
        if value.dim() == 3:
            options.setdefault("segments", "leading")

        def operator(u: Tensor) -> Tensor:
            return f + self.lam * self.integral(u)

        return fixed_point(operator, u0, **options)

    def evaluate(self, u: Tensor | Solution, x: Tensor) -> Tensor:
        """The solution between the nodes, by the equation itself (Nystrom's
        interpolation).

        Args:
            u: [..., N, c], a solution at ``nodes``.
            x: [M, d].

        Returns:
            [..., M, c].

        Raises:
            ValueError: ``free`` was given as a Tensor, so that f is unknown
                at x, or x lies outside of the domain.
            TypeError: x or u is no floating Tensor.
        """
        values = u.value if isinstance(u, Solution) else u
        if isinstance(self._free, Tensor):
            raise ValueError(
                "free must be a callable to evaluate between the nodes; it "
                "is known there only, as a Tensor"
            )
        _check_values(values, self.nodes)
        x = self._inside(x)
        return self._free(x) + self.lam * self.integral(values, x)

    def certificate(
        self,
        region: Ball | None = None,
        norm: str = "linf",
        *,
        beta: float = 0.0,
    ) -> Certificate:
        r"""A Lipschitz constant of P at the nodes.

        The derivative of the kernel in u is enclosed by interval arithmetic,
        entry by entry: :math:`|\lambda|` times the norm of
        :math:`(w_j \sup_u |\partial_u K(x_i, t_j, u)|)_{ij}`. For kernels
        that are linear in u the enclosure is exact.

        Args:
            region: the values to stay in, :math:`|u_j - c_j| \le R` for
                every node; needed by kernels whose slope is not bounded.
            norm: ``"l2"``, ``"l1"`` or ``"linf"``, of the vector of values
                at the nodes.
            beta: for Volterra equations in one dimension: the constant is
                that in the norm :math:`\max_i e^{-\beta x_i} |u_i|`
                (Bielecki), about :math:`|\lambda| \sup |K_u| / \beta`, so
                that it contracts for any :math:`\lambda`. Residuals and
                errors are then measured in it as well. (default: 0)

        Returns:
            A :class:`~torch_picard.contraction.Certificate`: ``"certified"``
            if it holds for all u, ``"local"`` on ``region``. Where the
            kernel does something that has no enclosure the constant is
            infinite, and the reason names it.

        Raises:
            ValueError: the region's center is of another shape.
            TypeError: region is no :class:`Ball`.
        """
        if region is not None and not isinstance(region, Ball):
            raise TypeError(f"region must be a Ball or None, got {region!r}")
        check_norm(norm)
        _check_beta(beta, norm, len(self.domain))
        _bounds(region, self.nodes, self.f.size(-1))
        lam = abs(float(torch.as_tensor(self.lam).detach()))
        constant, why = self._constant(None, norm, beta)
        if constant < math.inf or region is None:
            text = why or "slope of the kernel, for all u"
            if constant == math.inf and not why:
                text = "the slope of the kernel is unbounded: give a region"
            return Certificate(lam * constant, norm, reason=text)
        constant, why = self._constant(region, norm, beta)
        text = why or "slope of the kernel"
        if constant == math.inf and not why:
            text = (
                "the enclosure of the kernel's slope is unbounded on the "
                "region; it may be finite on a smaller one"
            )
        return Certificate(lam * constant, norm, "local", region, text)

    # -- parts ------------------------------------------------------------

    def _inside(self, x: Any) -> Tensor:
        """x, checked, in the dtype of the nodes."""
        if not isinstance(x, Tensor) or not x.is_floating_point():
            kind = x.dtype if isinstance(x, Tensor) else type(x).__name__
            raise TypeError(f"x must be a floating Tensor [M, d], got {kind}")
        if x.dim() != 2 or len(x) == 0 or x.size(1) != len(self.domain):
            raise ValueError(
                f"x must be of shape [M, d] with M at least 1 and d = "
                f"{len(self.domain)} columns, got {list(x.shape)}"
            )
        for i, (a, b) in enumerate(self.domain):
            slack = 1e-6 * (b - a)
            low, high = float(x[:, i].min()), float(x[:, i].max())
            if not (low >= a - slack and high <= b + slack):
                raise ValueError(
                    f"x must lie in the domain, [{a:g}, {b:g}] along axis "
                    f"{i}, got {low:g} to {high:g}"
                )
        return x.to(self.nodes)

    def _constant(
        self, region: Ball | None, norm: str, beta: float
    ) -> tuple[float, str]:
        """The norm of the matrix of slopes, and why there is none."""
        nodes = self.nodes.double()
        width = self.f.size(-1)
        low, high = _bounds(region, nodes, width)
        kernel = self.kernel
        if isinstance(kernel, nn.Module):
            kernel = copy.deepcopy(kernel).double()
        total = None
        rows = max(1, self.memory // (8 * 8 * nodes.size(0) * width**2))
        blocks = []
        with torch.no_grad():
            for start in range(0, nodes.size(0), rows):
                x = nodes[start : start + rows, None]
                try:
                    slope = slope_bounds(kernel, x, nodes[None], low, high)
                except NoRule as missing:
                    return math.inf, f"no enclosure of {missing}"
                except (TypeError, AttributeError, RuntimeError) as error:
                    return math.inf, f"no enclosure of the kernel: {error}"
                w = self._weights(self.nodes[start : start + rows])
                w = w.double().abs()
                if beta:
                    w = w * torch.exp(beta * (nodes[:, 0] - x[..., 0]))
                slope = slope * w[..., None, None]
                if not bool(torch.isfinite(slope).all()):
                    return math.inf, ""
                if norm == "linf":
                    top = float(slope.sum((1, 3)).max())
                    total = max(total or 0.0, top)
                else:
                    blocks.append(slope)
        if norm == "linf":
            return float(total or 0.0) * (1 + 1e-12), ""
        matrix = torch.cat(blocks).permute(0, 2, 1, 3)
        size = nodes.size(0) * width
        return operator_norm(matrix.reshape(size, size), norm), ""

    def _weights(self, x: Tensor) -> Tensor:
        """[N], or [M, N] where they depend on x."""
        rule = self.quadrature
        if isinstance(rule, Attention):
            if self.volterra:
                return rule.running_weights(self.domain, x)
            return rule.matrix(self.domain, x)
        if self.volterra and x is not self.nodes:
            return rule.running_weights(self.domain, x)
        # the same in every iteration
        if self._rule is None:
            if self.volterra:
                self._rule = rule.running_weights(self.domain, x)
            else:
                weights = rule.weights(self.domain, self.nodes.dtype)
                self._rule = weights.to(self.nodes.device)
        return self._rule

    def _rows(self, u: Tensor) -> int:
        """Rows of a block: the kernel's values and two temporaries; where
        weights depend on x, those in double precision, too."""
        a_row = 3 * u.numel() * u.element_size()
        if self.volterra or isinstance(self.quadrature, Attention):
            a_row += 12 * 8 * self.nodes.size(0)
        return max(1, self.memory // max(1, a_row))

    def _block(self, x: Tensor, u: Tensor) -> Tensor:
        weights = self._weights(x)
        values = self.kernel(x[:, None], self.nodes[None], u.unsqueeze(-3))
        shape = (*u.shape[:-2], x.size(0), *u.shape[-2:])
        if not isinstance(values, Tensor):
            raise TypeError(
                f"kernel must return a Tensor, got {type(values).__name__}"
            )
        try:
            if values.dim() in (1, 2):  # [M, N] is no [N, c]
                raise RuntimeError
            values = torch.broadcast_to(values, shape)
        except RuntimeError:
            raise ValueError(
                f"kernel must return values of shape {list(shape)}, got "
                f"{list(values.shape)}"
            ) from None
        if weights.dim() == 1:
            return torch.einsum("...mnc,n->...mc", values, weights)
        return torch.einsum("...mnc,mn->...mc", values, weights)

    def __repr__(self) -> str:
        kind = "Volterra" if self.volterra else "Fredholm"
        return (
            f"{type(self).__name__}({kind}, {self.quadrature}, "
            f"domain={self.domain}, lam={self.lam})"
        )


def _nodes(quadrature: Quadrature, domain: Domain, free: Any) -> Tensor:
    """In the dtype and on the device of f, not rounded to another first."""
    if isinstance(free, Tensor):
        _check_floating(free)
        return quadrature.nodes(domain, free.dtype).to(free.device)
    nodes = quadrature.nodes(domain)
    f = free(nodes)
    _check_floating(f)
    if f.dtype == nodes.dtype and f.device == nodes.device:
        return nodes
    return quadrature.nodes(domain, f.dtype).to(f.device)


def _bounds(
    region: Ball | None, nodes: Tensor, width: int
) -> tuple[Tensor, Tensor]:
    """[1, N, c] each: the ends of u."""
    center = nodes.new_zeros(1, nodes.size(0), width)
    if region is None:
        return center - math.inf, center + math.inf
    if region.center is not None:
        given = region.center.detach().to(center)
        if given.shape not in (center.shape[1:], (), center.shape):
            raise ValueError(
                f"region must have a center of shape "
                f"{list(center.shape[1:])}, got {list(given.shape)}"
            )
        center = center + given
    return center - region.radius, center + region.radius


def box(domain: Any) -> Domain:
    """Intervals (a, b), one an axis.

    Raises:
        ValueError: domain is no such thing.
    """
    single = (
        isinstance(domain, Sequence)
        and len(domain) == 2
        and all(isinstance(v, (int, float)) for v in domain)
    )
    axes = (domain,) if single else domain
    try:
        box = tuple((float(a), float(b)) for a, b in axes)
    except (TypeError, ValueError):
        raise ValueError(
            f"domain must be (a, b) or one such pair an axis, got {domain!r}"
        ) from None
    for a, b in box:
        if not (math.isfinite(a) and math.isfinite(b) and a < b):
            raise ValueError(
                f"domain must have finite a < b, got ({a:g}, {b:g})"
            )
    if not box:
        raise ValueError("domain must have at least one axis")
    return box


def _check_lam(lam: Any) -> None:
    number = isinstance(lam, (int, float)) and not isinstance(lam, bool)
    if number and math.isfinite(lam):
        return
    if isinstance(lam, Tensor) and lam.dim() == 0:
        if not lam.is_complex() and math.isfinite(float(lam.detach())):
            return
    raise ValueError(
        f"lam must be a finite number or a 0-dim Tensor, got {lam!r}"
    )


def _check_floating(f: Any) -> None:
    if isinstance(f, Tensor) and not f.is_floating_point():
        raise TypeError(f"free must give floating values, got {f.dtype}")


def _check_free(f: Any, nodes: Tensor) -> None:
    if not isinstance(f, Tensor) or f.dim() not in (2, 3):
        shape = list(f.shape) if isinstance(f, Tensor) else f
        raise ValueError(
            "free must give [N, c] or [B, N, c] at the nodes, got "
            f"{shape!r}; keep the last dimension also where c is 1"
        )
    if f.size(-2) != nodes.size(0):
        raise ValueError(
            f"free must have one row a node, {nodes.size(0)}, got "
            f"{list(f.shape)}"
        )


def _check_values(u: Any, nodes: Tensor, name: str = "u") -> None:
    if not isinstance(u, Tensor) or u.dtype != nodes.dtype:
        kind = u.dtype if isinstance(u, Tensor) else type(u).__name__
        raise TypeError(
            f"{name} must be a Tensor of {nodes.dtype}, as the nodes, got "
            f"{kind}"
        )
    if u.dim() not in (2, 3) or u.size(-2) != nodes.size(0):
        raise ValueError(
            f"{name} must be [N, c] or [B, N, c] with N = {nodes.size(0)} "
            f"nodes, got {list(u.shape)}"
        )


def _check_beta(beta: Any, norm: str, axes: int) -> None:
    number = isinstance(beta, (int, float)) and not isinstance(beta, bool)
    if not number or not 0 <= beta < math.inf:
        raise ValueError(f"beta must be a finite number >= 0, got {beta!r}")
    if beta and (norm != "linf" or axes > 1):
        raise ValueError(
            "beta weights the norm 'linf' of equations in one dimension, got "
            f"norm={norm!r} in {axes}"
        )
