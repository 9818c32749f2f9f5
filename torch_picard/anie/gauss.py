"""Nodes and weights of Gauss and Legendre, for any number of them."""

from __future__ import annotations

import functools
import math

import numpy as np

#: From here on by asymptotic formulas instead of an eigenvalue problem,
#: whose matrix would be n x n.
LARGE = 256
#: Nodes at an end that the formula for the interior is not asked for, and its
#: terms: the first left out is below 1e-18 there.
_EDGE, _TERMS = 30, 14


@functools.lru_cache(maxsize=32)
def gauss_legendre(n: int) -> tuple[np.ndarray, np.ndarray]:
    """Nodes and weights on [-1, 1], read-only.

    Source: Hale and Townsend, SIAM J. Sci. Comput. 35, 2013: Newton's method
    in the angle, on an asymptotic series of Legendre's polynomial in the
    interior and on its recurrence at the ends.
    """
    if n < LARGE:
        nodes, weights = np.polynomial.legendre.leggauss(n)
    else:
        nodes, weights = _asymptotic(n)
    nodes.setflags(write=False)
    weights.setflags(write=False)
    return nodes, weights


def _asymptotic(n: int) -> tuple[np.ndarray, np.ndarray]:
    half = (n + 1) // 2
    theta = _guess(n, half)
    slope = np.empty(half)
    for part, formula in (
        (slice(0, _EDGE), _recurrence),
        (slice(_EDGE, half), _interior),
    ):
        at = theta[part]
        for _ in range(3):  # the guess has 6 digits, Newton doubles them
            value, derivative = formula(n, at)
            at = at - value / derivative
        theta[part], slope[part] = at, formula(n, at)[1]
    nodes, weights = np.cos(theta), 2 / slope**2
    if n % 2:
        nodes[-1] = 0.0
    rest = slice(n % 2, None)
    nodes = np.concatenate([-nodes, nodes[::-1][rest]])
    weights = np.concatenate([weights, weights[::-1][rest]])
    return nodes, weights * (2 / weights.sum())


def _guess(n: int, count: int) -> np.ndarray:
    """Angles of the first zeros, by those of Bessel's function (Olver)."""
    b = (np.arange(1, count + 1) - 0.25) * math.pi
    bessel = b + 1 / (8 * b) - 124 / (3 * (8 * b) ** 3)
    phi = bessel / (n + 0.5)
    shift = (phi / np.tan(phi) - 1) / (8 * phi * (n + 0.5) ** 2)
    return phi + shift


def _interior(n: int, theta: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """P_n(cos theta) and its derivative in theta, by Stieltjes' series."""
    j = np.arange(1, n + 1)
    scale = 4 / math.pi * math.exp(-np.log1p(1 / (2 * j)).sum())
    cotangent, wide = 1 / np.tan(theta), 2 * np.sin(theta)
    factor = scale / np.sqrt(wide)
    value, derivative = np.zeros_like(theta), np.zeros_like(theta)
    for m in range(_TERMS):
        angle = (n + m + 0.5) * theta - (m + 0.5) * (math.pi / 2)
        cosine, sine = np.cos(angle), np.sin(angle)
        value += factor * cosine
        derivative -= factor * (
            (n + m + 0.5) * sine + (m + 0.5) * cotangent * cosine
        )
        factor = factor * (m + 0.5) ** 2 / ((m + 1) * (n + m + 1.5)) / wide
    return value, derivative


def _recurrence(n: int, theta: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The same by the recurrence, in differences: 1 - cos(theta) is exact
    where cos(theta) is not."""
    y = 2 * np.sin(theta / 2) ** 2
    value, step = np.ones_like(theta), np.zeros_like(theta)
    for k in range(n):
        step = (k * step - (2 * k + 1) * y * value) / (k + 1)
        value = value + step
    # sin(theta) P_n' = n (P_{n-1} - cos(theta) P_n) / sin(theta)
    return value, -n * (y * value - step) / np.sin(theta)
