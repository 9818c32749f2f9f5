"""ANIE: an integral equation whose integral is attention."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..contraction import (
    Certificate,
    L2TransformerLayer,
    lipschitz_bound,
)
from ..contraction.bounds import Bound, Context, register_bound
from ..engine import Solution, Status
from ..engine.gradients import Gradient
from ..engine.methods import Method
from ..engine.methods.base import check_count
from .learned import LearnedEquation, check_points

_ATTENTIONS = ("softmax", "galerkin", "l2")


class ANIE(LearnedEquation):
    r"""The attentional neural integral equation

    .. math::

       y(x) = f(x) + \int_\Omega K_\theta(x, t, y)\, dt

    whose integral T is a stack of attention blocks over all points. f stays
    in the equation, in every iteration. Each sample of a batch is a problem
    of its own, with its own stopping.

    The points are mixed by means over them (softmax weights sum to 1,
    Galerkin attention divides by N), so that the map is one of functions:
    finer points of the same distribution give the same values in the limit.
    Places enter as waves of about one period a unit, with learned
    frequencies: scale coordinates to a range of order 1.

    Args:
        channels: C, values a point.
        coord_dim: d, coordinates a point.
        embed_dim: features inside, divisible by ``heads``.
        heads: attention heads.
        blocks: attention blocks.
        attention: ``"softmax"``: pre-norm transformer blocks;
            ``"galerkin"``: linear attention, of cost N; ``"l2"``:
            :class:`~torch_picard.contraction.L2TransformerLayer`, which has
            a Lipschitz constant, so :meth:`certificate` and
            :func:`~torch_picard.contraction.contractive` apply.
        alpha: weight of the *old* state, in [0, 1), or a Tensor. Belongs to
            ``method=None``.
        max_iter: evaluations of P(y) = f + T(y) allowed.
        rtol, atol: tolerances; both 0: exactly ``max_iter`` iterations.
            (default: 1e-5 and 0)
        upstream: the published loop: tolerances are about the batch as a
            whole (by default ``rtol=0, atol=1e-6``, as published), and after
            m = ``max_iter`` smoothings, or when they are met, it is the
            unsmoothed image f + T(y_m), evaluation m + 1, that is returned;
            no iterate is given up, whatever the residual does.
        gradient: how to differentiate. (default: :class:`Unrolled`)
        on_failure: ``"warn"``, ``"raise"`` or ``"ignore"``.
        method: another method of :func:`fixed_point`.

    Raises:
        ValueError: an option is out of range.
        TypeError: an option is of the wrong type.

    Source: Zappala et al. 2023, Section 4.3; `"Neural Integral Equations"
    <https://arxiv.org/abs/2209.15190>`_; Galerkin attention from `"Choose a
    Transformer: Fourier or Galerkin" <https://arxiv.org/abs/2105.14995>`_.
    """

    def __init__(
        self,
        channels: int,
        coord_dim: int,
        *,
        embed_dim: int = 64,
        heads: int = 4,
        blocks: int = 1,
        attention: str = "softmax",
        alpha: float | Tensor | None = None,
        max_iter: int = 8,
        rtol: float | None = None,
        atol: float | None = None,
        upstream: bool = False,
        gradient: Gradient | None = None,
        on_failure: str = "warn",
        method: Method | None = None,
    ):
        published = upstream is True
        if rtol is None:
            rtol = 0.0 if published else 1e-5
        if atol is None:
            atol = 1e-6 if published else 0.0
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
            ("embed_dim", embed_dim),
            ("heads", heads),
            ("blocks", blocks),
        ):
            check_count(name, value)
        if embed_dim % heads:
            raise ValueError(
                f"embed_dim must be divisible by heads, got {embed_dim} and "
                f"{heads}"
            )
        if attention not in _ATTENTIONS:
            raise ValueError(
                f"attention must be one of {', '.join(_ATTENTIONS)}, got "
                f"{attention!r}"
            )
        if not isinstance(upstream, bool):
            raise TypeError(
                f"upstream must be True or False, got {upstream!r}"
            )
        if upstream and method is not None:
            raise ValueError(
                "upstream is a loop of its own and takes method=None, got "
                f"{method}"
            )
        self.channels, self.coord_dim = channels, coord_dim
        self.attention, self.upstream = attention, upstream
        self.lift = nn.Linear(channels, embed_dim, bias=False)
        self.position = nn.Sequential(
            _Waves(coord_dim, embed_dim), nn.Linear(embed_dim, embed_dim)
        )
        self.blocks = nn.ModuleList(
            L2TransformerLayer(embed_dim, heads)
            if attention == "l2"
            else _Block(embed_dim, heads, attention)
            for _ in range(blocks)
        )
        self.project = nn.Linear(embed_dim, channels)

    def forward(
        self,
        f: Tensor,
        coords: Tensor,
        *,
        max_iter: int | None = None,
        return_solution: bool = False,
    ) -> Any:
        """Solves for y, started at f.

        Args:
            f: [B, N, C], its values at the points.
            coords: [N, d] or [B, N, d], the points.
            max_iter: instead of the one of the module.
            return_solution: also return the :class:`Solution`.

        Returns:
            y [B, N, C].

        Raises:
            ValueError: a shape does not fit.
        """
        check_points(f, coords, self.channels, self.coord_dim, "f")
        self.check_dtype("f", f)
        where = self.position(coords.to(f.dtype))

        def operator(y: Tensor) -> Tensor:
            return f + self._integral(y, where)

        if self.upstream:
            out, solution = self._published(operator, f, max_iter)
        else:
            solution = self.solve(operator, f, "leading", max_iter)
            out = solution.value
        return (out, solution) if return_solution else out

    def _published(
        self,
        operator: Callable[[Tensor], Tensor],
        f: Tensor,
        max_iter: int | None,
    ) -> tuple[Tensor, Solution]:
        """Counted, so that no safeguard replaces y_m by a better iterate;
        the tolerances stop it from outside."""

        def enough(k: int, y: Tensor, residual: Tensor) -> bool:
            size = torch.linalg.vector_norm(y.detach())
            return bool(residual.amax() <= self.atol + self.rtol * size)

        solution = self.solve(
            operator, f, None, max_iter, rtol=0.0, atol=0.0,
            callback=None if self.counted else enough,
        )  # fmt: skip
        if not self.counted:
            if not bool(torch.isfinite(solution.value).all()):
                solution.status[:] = int(Status.NONFINITE)
            elif bool((solution.status == int(Status.STOPPED)).all()):
                solution.status[:] = int(Status.CONVERGED)
            solution.report(self.on_failure, stacklevel=4)
        out = operator(solution.value)
        solution.evaluations += 1
        return out, solution

    def integral(self, y: Tensor, coords: Tensor) -> Tensor:
        """T(y) [B, N, C] of y [B, N, C]."""
        check_points(y, coords, self.channels, self.coord_dim, "y")
        return self._integral(y, self.position(coords.to(y.dtype)))

    def certificate(self, num_points: int, norm: str = "l2") -> Certificate:
        """A Lipschitz constant of P on so many points, at any coordinates.
        Finite for ``attention="l2"``; the reason says why others have
        none."""
        return lipschitz_bound(self, num_nodes=num_points, norm=norm)

    def _integral(self, y: Tensor, where: Tensor) -> Tensor:
        h = self.lift(y) + where
        for block in self.blocks:
            h = block(h)
        return self.project(h)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, attention={self.attention!r}"


class _Waves(nn.Linear):
    """sin(W x + b), random at first; a perceptron of plain coordinates
    learns what is near to what very slowly (Tancik et al. 2020)."""

    def reset_parameters(self) -> None:
        nn.init.normal_(self.weight, std=2 * math.pi)
        nn.init.uniform_(self.bias, 0.0, 2 * math.pi)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).sin()


class _Block(nn.Module):
    """Attention, then a feed-forward net, each after a norm and added."""

    def __init__(self, embed_dim: int, heads: int, attention: str):
        super().__init__()
        self.heads, self.attention = heads, attention
        self.norm1 = nn.LayerNorm(embed_dim)
        self.mix = nn.Linear(embed_dim, 3 * embed_dim)
        self.out = nn.Linear(embed_dim, embed_dim)
        self.norm2 = nn.LayerNorm(embed_dim)
        self.feed = nn.Sequential(
            nn.Linear(embed_dim, 2 * embed_dim),
            nn.GELU(),
            nn.Linear(2 * embed_dim, embed_dim),
        )
        if attention == "galerkin":
            self.norm_key = nn.LayerNorm(embed_dim // heads)
            self.norm_value = nn.LayerNorm(embed_dim // heads)

    def forward(self, h: Tensor) -> Tensor:
        mixed = self.mix(self.norm1(h))
        size = mixed.size(-1) // (3 * self.heads)
        mixed = mixed.view(*mixed.shape[:-1], 3, self.heads, size)
        # [3, B, heads, N, size]
        q, k, v = mixed.movedim(-3, 0).transpose(-3, -2)
        if self.attention == "softmax":
            mean = F.scaled_dot_product_attention(q, k, v)
        else:
            k, v = self.norm_key(k), self.norm_value(v)
            mean = q @ (k.mT @ v / k.size(-2))
        h = h + self.out(mean.transpose(-3, -2).flatten(-2))
        return h + self.feed(self.norm2(h))


@register_bound(ANIE)
def _anie(module: ANIE, context: Context) -> Bound:
    """Of P, one application: f is added, coordinates shift."""
    if context.depth > 1:
        raise ValueError(
            "module: as part of another module ANIE is the whole solve, but "
            "lipschitz_bound(ANIE) is about P, one application; ask for it "
            "by itself"
        )
    if module.attention != "l2":
        return Bound(
            math.inf,
            reason=f"{module.attention} attention has no Lipschitz constant "
            "on the whole space: attention='l2' has one",
        )
    return context.chain(module.lift, _shift, *module.blocks, module.project)


def _shift(h: Tensor) -> Tensor:
    """Positions are added: what they are does not matter to a difference."""
    return h


@register_bound(_shift)
def _shift_bound(module: Any, context: Context) -> Bound:
    return Bound(1.0, math.inf, False, False, context.width, "positions")
