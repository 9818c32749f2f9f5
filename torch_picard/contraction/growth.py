"""Upper bounds as numbers, or as polynomials of a common scale.

A bound is computed twice with the same rules: once as a number, for
:func:`lipschitz_bound`, and once as a polynomial of the factor s by which
:func:`contractive` is going to scale all weights, so that it can choose s.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor


class Growth:
    """sum_d c_d s^d, with coefficients that are not negative: an upper bound
    for every scale s >= 0.

    Args:
        terms: degree -> coefficient, a float or a 0-dim Tensor.
    """

    __slots__ = ("terms",)

    def __init__(self, terms: dict[int, Any]):
        self.terms = terms

    def __add__(self, other: Any) -> Growth:
        terms = dict(self.terms)
        for degree, c in _terms(other).items():
            terms[degree] = terms[degree] + c if degree in terms else c
        return Growth(terms)

    __radd__ = __add__

    def __mul__(self, other: Any) -> Growth:
        terms: dict[int, Any] = {}
        for a, b in self.terms.items():
            for degree, c in _terms(other).items():
                product = b * c
                known = terms.get(a + degree)
                terms[a + degree] = (
                    product if known is None else known + product
                )
        return Growth(terms)

    __rmul__ = __mul__

    def __pow__(self, power: int) -> Growth:
        out = Growth({0: 1.0})
        for _ in range(power):
            out = out * self
        return out

    def __truediv__(self, number: float) -> Growth:
        return self * (1 / number)

    def __repr__(self) -> str:
        return f"Growth({self.terms})"


Number = float | Tensor | Growth


def _terms(value: Any) -> dict[int, Any]:
    return value.terms if isinstance(value, Growth) else {0: value}


def hypot(*values: Any) -> Any:
    """sqrt(sum of squares); for polynomials by Minkowski's inequality, one
    coefficient at a time."""
    return _each(values, _root_of_squares)


def largest(*values: Any) -> Any:
    """The maximum; for polynomials that of each coefficient."""
    return _each(values, _maximum)


def smallest(*values: Any) -> Any:
    """Any of several bounds may be taken. Among numbers it is the least;
    polynomials that cross have no least, and the first one is taken."""
    if any(isinstance(v, Growth) for v in values):
        return values[0]
    out = values[0]
    for v in values[1:]:
        tensors = isinstance(out, Tensor) or isinstance(v, Tensor)
        out = (
            torch.minimum(torch.as_tensor(out), torch.as_tensor(v))
            if tensors
            else min(out, v)
        )
    return out


def is_infinite(value: Any) -> bool:
    """Whether a bound says nothing."""
    return any(
        not isinstance(c, Tensor) and c == math.inf
        for c in _terms(value).values()
    )


def _each(values: tuple, combine: Any) -> Any:
    if not any(isinstance(v, Growth) for v in values):
        return combine(values)
    degrees = sorted({d for v in values for d in _terms(v)})
    return Growth(
        {
            d: combine([t[d] for t in map(_terms, values) if d in t])
            for d in degrees
        }
    )


def _root_of_squares(values: Any) -> Any:
    if len(values) == 1:
        return values[0]
    if not any(isinstance(v, Tensor) for v in values):
        return math.hypot(*values)
    # unlike that of a root, its derivative at zero is finite
    like = next(v for v in values if isinstance(v, Tensor))
    parts = [torch.as_tensor(v, device=like.device) for v in values]
    return torch.linalg.vector_norm(torch.stack([p.double() for p in parts]))


def _maximum(values: Any) -> Any:
    out = values[0]
    for v in values[1:]:
        if isinstance(out, Tensor) or isinstance(v, Tensor):
            out = torch.maximum(torch.as_tensor(out), torch.as_tensor(v))
        else:
            out = max(out, v)
    return out
