"""Rules that turn an integral into a weighted sum over nodes."""

from __future__ import annotations

import functools
import math
from typing import Any

import numpy as np
import torch
from numpy.polynomial.legendre import legvander
from torch import Tensor, nn

from .gauss import gauss_legendre

Domain = tuple[tuple[float, float], ...]


class Quadrature:
    """An integration rule on a box.

    ``nodes(domain)`` are [N, d]; ``weights(domain)`` [N] integrate over all
    of it; ``running_weights(domain, x)`` [M, N] integrate from its lower
    corner up to each x [M, d], in the dtype of x. Nodes and weights are in
    ``dtype``, by default torch's, exact to its rounding.
    """

    def nodes(
        self, domain: Domain, dtype: torch.dtype | None = None
    ) -> Tensor:
        raise NotImplementedError

    def weights(
        self, domain: Domain, dtype: torch.dtype | None = None
    ) -> Tensor:
        raise NotImplementedError

    def running_weights(self, domain: Domain, x: Tensor) -> Tensor:
        raise NotImplementedError


class _Product(Quadrature):
    """A rule on an interval, and its product on a box; n nodes per axis."""

    least = 1

    def __init__(self, n: int):
        _check_count("n", n, self.least)
        self.n = n

    def _points(self) -> tuple[np.ndarray, np.ndarray]:
        """Nodes and weights on [0, 1]."""
        raise NotImplementedError

    def _running(self, x: np.ndarray) -> np.ndarray:
        """[M, n]: integrals from 0 to each x in [0, 1]."""
        raise NotImplementedError

    def nodes(
        self, domain: Domain, dtype: torch.dtype | None = None
    ) -> Tensor:
        points, _ = self._points()
        axes = [_tensor(a + (b - a) * points, dtype) for a, b in domain]
        grid = torch.meshgrid(*axes, indexing="ij")
        return torch.stack([g.flatten() for g in grid], dim=1)

    def weights(
        self, domain: Domain, dtype: torch.dtype | None = None
    ) -> Tensor:
        _, weights = self._points()
        out = torch.ones(1, dtype=torch.float64)
        for a, b in domain:
            axis = torch.from_numpy((b - a) * weights)
            out = torch.outer(out, axis).flatten()
        return _tensor(out, dtype)

    def running_weights(self, domain: Domain, x: Tensor) -> Tensor:
        out = torch.ones(x.size(0), 1, dtype=torch.float64)
        for i, (a, b) in enumerate(domain):
            at = (x[:, i].detach().double().cpu().numpy() - a) / (b - a)
            axis = torch.from_numpy((b - a) * self._running(at))
            out = (out[:, :, None] * axis[:, None, :]).flatten(1)
        return out.to(x)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.n})"


class GaussLegendre(_Product):
    r"""Gauss-Legendre nodes: exact for polynomials of degree 2n-1.

    Running integrals integrate the polynomial through the nodes, so they are
    exact for degree n-1; for analytic integrands both errors fall
    geometrically in n.

    Args:
        n: nodes per axis.
    """

    #: of which running integrals are offered: their matrix is n x n
    most = 4096

    def _points(self):
        points, weights = gauss_legendre(self.n)
        return (points + 1) / 2, weights / 2

    def _running(self, x):
        if self.n > self.most:
            raise ValueError(
                f"n of GaussLegendre must be at most {self.most} for "
                f"running integrals (volterra=True), got {self.n}; so many "
                "nodes are better placed by Trapezoid"
            )
        at = legvander(2 * x - 1, self.n)
        integrals = np.empty((len(x), self.n))
        integrals[:, 0] = at[:, 1] + 1
        for k in range(1, self.n):
            integrals[:, k] = (at[:, k + 1] - at[:, k - 1]) / (2 * k + 1)
        return integrals @ _coefficients(self.n) / 2


@functools.lru_cache(maxsize=4)
def _coefficients(n: int) -> np.ndarray:
    """[n, n]: those of the polynomials that are 1 at one node and 0 at the
    others; the rule is exact for the products that give them."""
    points, weights = gauss_legendre(n)
    values = legvander(points, n - 1)
    return (np.arange(n) + 0.5)[:, None] * (values * weights[:, None]).T


class Trapezoid(_Product):
    """Equidistant nodes, ends included; second order.

    Args:
        n: nodes per axis, at least 2.
    """

    least = 2

    def _points(self):
        weights = np.full(self.n, 1.0)
        weights[0] = weights[-1] = 0.5
        return np.linspace(0.0, 1.0, self.n), weights / (self.n - 1)

    def _running(self, x):
        h = 1 / (self.n - 1)
        cell = np.clip(np.floor(x / h + 1e-9).astype(int), 0, self.n - 2)
        part = np.clip(x / h - cell, 0.0, 1.0)
        index = np.arange(self.n)
        whole = index[None, :] <= cell[:, None]
        out = np.where(whole, 1.0, 0.0)
        out[:, 0] = 0.5
        rows = np.arange(len(x))
        # up to the last node before x, then the part of a cell, in which
        # the integrand is linear
        out[rows, cell] = np.where(cell == 0, 0.0, 0.5)
        out[rows, cell] += part * (1 - part / 2)
        out[rows, cell + 1] += part**2 / 2
        return h * out


class MonteCarlo(Quadrature):
    """Uniform random nodes, drawn once: the equation is the same in every
    iteration of a solve. Error of order 1/2.

    Args:
        n: nodes in total.
        seed: of the draw.
    """

    def __init__(self, n: int, seed: int = 0):
        _check_count("n", n, 1)
        _check_count("seed", seed, 0)
        self.n, self.seed = n, seed

    def nodes(
        self, domain: Domain, dtype: torch.dtype | None = None
    ) -> Tensor:
        generator = torch.Generator().manual_seed(self.seed)
        unit = torch.rand(
            self.n, len(domain), generator=generator, dtype=torch.float64
        )
        low = torch.tensor([a for a, _ in domain], dtype=torch.float64)
        high = torch.tensor([b for _, b in domain], dtype=torch.float64)
        return _tensor(low + (high - low) * unit, dtype)

    def weights(
        self, domain: Domain, dtype: torch.dtype | None = None
    ) -> Tensor:
        volume = math.prod(b - a for a, b in domain)
        share = np.full(self.n, volume / self.n)
        return _tensor(share, dtype)

    def running_weights(self, domain: Domain, x: Tensor) -> Tensor:
        nodes = self.nodes(domain, x.dtype).to(x.device)
        weights = self.weights(domain, x.dtype).to(x.device)
        return _before(nodes, x) * weights

    def __repr__(self) -> str:
        return f"MonteCarlo({self.n}, seed={self.seed})"


class Points(Quadrature):
    """Points that are given, such as those of a data set.

    Args:
        nodes: [N, d].
        weights: [N], what each counts in an integral. (default: the same
            share of the domain's volume for all)

    Raises:
        ValueError: a shape does not fit.
    """

    def __init__(self, nodes: Tensor, weights: Tensor | None = None):
        if not isinstance(nodes, Tensor) or nodes.dim() != 2:
            raise ValueError(f"nodes must be a Tensor [N, d], got {nodes!r}")
        if weights is not None and not isinstance(weights, Tensor):
            raise TypeError(
                f"weights must be a Tensor [{nodes.size(0)}] or None, got "
                f"{type(weights).__name__}"
            )
        if weights is not None and weights.shape != nodes.shape[:1]:
            raise ValueError(
                f"weights must be of shape [{nodes.size(0)}], got "
                f"{list(weights.shape)}"
            )
        self._nodes, self._weights = nodes, weights

    def nodes(
        self, domain: Domain, dtype: torch.dtype | None = None
    ) -> Tensor:
        if self._nodes.size(1) != len(domain):
            raise ValueError(
                f"nodes must have the {len(domain)} columns of the domain, "
                f"got {self._nodes.size(1)}"
            )
        return self._nodes if dtype is None else self._nodes.to(dtype)

    def weights(
        self, domain: Domain, dtype: torch.dtype | None = None
    ) -> Tensor:
        weights = self._weights
        if weights is None:
            volume = math.prod(b - a for a, b in domain)
            count = len(self._nodes)
            weights = self._nodes.new_full((count,), volume / count)
        return weights if dtype is None else weights.to(dtype)

    def running_weights(self, domain: Domain, x: Tensor) -> Tensor:
        return _before(self._nodes.to(x), x) * self.weights(domain).to(x)

    def __repr__(self) -> str:
        return f"Points({len(self._nodes)})"


class Attention(Quadrature, nn.Module):
    r"""Learned weights: :math:`\int K(x,t)\,dt \approx |\Omega| \sum_j
    p_j(x) K(x, t_j)` with the attention of x over the nodes,
    :math:`p(x) = \mathrm{softmax}_j(q(x) \cdot k(t_j)/\sqrt{m})`.

    The nodes are the midpoints of n equal cells per axis. Untrained, all
    scores are 0, and it is the midpoint rule.

    Args:
        n: nodes per axis.
        coord_dim: d.
        embed_dim: m, features of queries and keys.
    """

    def __init__(self, n: int, coord_dim: int = 1, embed_dim: int = 16):
        nn.Module.__init__(self)
        _check_count("n", n, 1)
        _check_count("coord_dim", coord_dim, 1)
        _check_count("embed_dim", embed_dim, 1)
        self.n, self.embed_dim = n, embed_dim
        self.query = nn.Linear(coord_dim, embed_dim)
        self.key = nn.Linear(coord_dim, embed_dim, bias=False)
        nn.init.zeros_(self.query.weight)
        nn.init.zeros_(self.query.bias)

    def nodes(
        self, domain: Domain, dtype: torch.dtype | None = None
    ) -> Tensor:
        if len(domain) != self.query.in_features:
            raise ValueError(
                f"coord_dim must be the {len(domain)} of the domain, got "
                f"{self.query.in_features}"
            )
        middle = (np.arange(self.n) + 0.5) / self.n
        axes = [_tensor(a + (b - a) * middle, dtype) for a, b in domain]
        grid = torch.meshgrid(*axes, indexing="ij")
        return torch.stack([g.flatten() for g in grid], dim=1)

    def matrix(self, domain: Domain, x: Tensor) -> Tensor:
        """[M, N]: the weights for each x."""
        own = self.query.weight
        query = self.query(x.to(own))
        key = self.key(self.nodes(domain, own.dtype).to(own.device))
        scores = query @ key.T / math.sqrt(self.embed_dim)
        volume = math.prod(b - a for a, b in domain)
        return (volume * scores.softmax(-1)).to(x)

    def weights(
        self, domain: Domain, dtype: torch.dtype | None = None
    ) -> Tensor:
        raise ValueError(
            "quadrature Attention weights the nodes for each x on its own; "
            "ask matrix(domain, x)"
        )

    def running_weights(self, domain: Domain, x: Tensor) -> Tensor:
        t = self.nodes(domain, x.dtype).to(x.device)
        # a node stands for its cell; part of it may lie beyond x
        parts = x.new_ones(x.size(0), t.size(0))
        for i, (a, b) in enumerate(domain):
            width = (b - a) / self.n
            share = (x[:, None, i] - t[None, :, i]) / width + 0.5
            parts = parts * share.clamp(0, 1)
        return parts * self.matrix(domain, x)

    def extra_repr(self) -> str:
        return f"{self.n}"


def _before(nodes: Tensor, x: Tensor) -> Tensor:
    """[M, N]: which nodes [N, d] lie below x [M, d] in all coordinates."""
    inside = nodes[None, :, 0] <= x[:, None, 0]
    for i in range(1, x.size(1)):
        inside = inside & (nodes[None, :, i] <= x[:, None, i])
    return inside


def _tensor(values: Any, dtype: torch.dtype | None) -> Tensor:
    return torch.as_tensor(values).to(dtype or torch.get_default_dtype())


def _check_count(name: str, value: Any, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(
            f"{name} must be an integer, got {type(value).__name__}"
        )
    if value < least:
        raise ValueError(f"{name} must be at least {least}, got {value}")
