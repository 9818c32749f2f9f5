"""Enclosures: what a function and its derivative can be on an interval.

A kernel K(x, t, u) is a Python function. Called with an enclosure in place
of u it returns bounds of its value and of its derivative in u, valid for
every u in the interval: a proof, where sampling would be a guess. Operations
without a rule raise :class:`NoRule`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


class NoRule(Exception):
    """An operation that has no enclosure here."""


class Interval:
    """Entries in [low, high]; both may be infinite."""

    __slots__ = ("high", "low")

    def __init__(self, low: Tensor, high: Tensor):
        self.low, self.high = low, high

    @classmethod
    def of(cls, value: Any) -> Interval:
        if isinstance(value, Interval):
            return value
        t = torch.as_tensor(value, dtype=torch.float64)
        return cls(t, t)

    def map(self, f: Callable[[Tensor], Tensor]) -> Interval:
        """Shapes change, values do not."""
        return Interval(f(self.low), f(self.high))

    def __add__(self, other: Any) -> Interval:
        o = Interval.of(other)
        return Interval(self.low + o.low, self.high + o.high)

    def __neg__(self) -> Interval:
        return Interval(-self.high, -self.low)

    def __sub__(self, other: Any) -> Interval:
        return self + -Interval.of(other)

    def __mul__(self, other: Any) -> Interval:
        o = Interval.of(other)
        corners = torch.stack(
            torch.broadcast_tensors(
                _times(self.low, o.low),
                _times(self.low, o.high),
                _times(self.high, o.low),
                _times(self.high, o.high),
            )
        )
        return Interval(corners.amin(0), corners.amax(0))

    def reciprocal(self) -> Interval:
        """Everything where 0 is inside."""
        inside = (self.low <= 0) & (self.high >= 0)
        low = torch.where(inside, -math.inf, 1 / self.high)
        return Interval(low, torch.where(inside, math.inf, 1 / self.low))

    def rising(self, f: Callable[[Tensor], Tensor]) -> Interval:
        """The image under a function that does not fall."""
        return Interval(f(self.low), f(self.high))

    def even(self, f: Callable[[Tensor], Tensor]) -> Interval:
        """The image under a function of |u| that does not fall in it."""
        near = torch.maximum(self.low, -self.high).clamp_min(0)
        far = torch.maximum(self.low.abs(), self.high.abs())
        return Interval(f(near), f(far))

    def hull(self, other: Interval) -> Interval:
        return Interval(
            torch.minimum(self.low, other.low),
            torch.maximum(self.high, other.high),
        )

    def magnitude(self) -> Tensor:
        return torch.maximum(self.low.abs(), self.high.abs())


def _times(a: Tensor, b: Tensor) -> Tensor:
    """0 times infinity is 0: the infinite end is never reached."""
    return torch.where((a == 0) | (b == 0), 0.0, a * b)


def _sine(v: Interval) -> Interval:
    """sin over an interval: +-1 where a crest lies inside."""
    wide = ~((v.high - v.low) < 2 * math.pi)
    ends = torch.stack([v.low.sin(), v.high.sin()]).nan_to_num(0.0)

    def has(crest: float) -> Tensor:
        first = ((v.low - crest) / (2 * math.pi)).ceil()
        return wide | (crest + 2 * math.pi * first <= v.high)

    low = torch.where(has(-math.pi / 2), -1.0, ends.amin(0))
    return Interval(low, torch.where(has(math.pi / 2), 1.0, ends.amax(0)))


def _cosine(v: Interval) -> Interval:
    return _sine(v + math.pi / 2)


def _power(v: Interval, n: int) -> Interval:
    if n == 0:
        one = torch.ones_like(v.low)
        return Interval(one, one)
    if n % 2:
        return v.rising(lambda t: t**n)
    return v.even(lambda t: t**n)


class Enclosure:
    """A value and its derivative with respect to u, as intervals."""

    def __init__(self, value: Interval, slope: Interval):
        self.value, self.slope = value, slope

    # -- arithmetic -------------------------------------------------------

    def __add__(self, other: Any) -> Enclosure:
        o = _enclosed(other)
        return Enclosure(self.value + o.value, self.slope + o.slope)

    __radd__ = __add__

    def __neg__(self) -> Enclosure:
        return Enclosure(-self.value, -self.slope)

    def __sub__(self, other: Any) -> Enclosure:
        return self + -_enclosed(other)

    def __rsub__(self, other: Any) -> Enclosure:
        return _enclosed(other) - self

    def __mul__(self, other: Any) -> Enclosure:
        o = _enclosed(other)
        slope = self.slope * o.value + self.value * o.slope
        return Enclosure(self.value * o.value, slope)

    __rmul__ = __mul__

    def reciprocal(self) -> Enclosure:
        inverse = self.value.reciprocal()
        square = inverse.even(lambda t: t * t)
        return Enclosure(inverse, -(square * self.slope))

    def __truediv__(self, other: Any) -> Enclosure:
        return self * _enclosed(other).reciprocal()

    def __rtruediv__(self, other: Any) -> Enclosure:
        return _enclosed(other) * self.reciprocal()

    def __pow__(self, power: Any) -> Enclosure:
        whole = isinstance(power, (int, float)) and float(power).is_integer()
        if not whole:
            raise NoRule(f"a power of {power}")
        n = int(power)
        if n < 0:
            return (self**-n).reciprocal()
        if n == 0:
            return _enclosed(torch.ones_like(self.value.low))
        slope = _power(self.value, n - 1) * float(n)
        return Enclosure(_power(self.value, n), slope * self.slope)

    # -- functions --------------------------------------------------------

    def chain(self, image: Interval, slope: Interval) -> Enclosure:
        return Enclosure(image, slope * self.slope)

    def exp(self) -> Enclosure:
        image = self.value.rising(torch.exp)
        return self.chain(image, image)

    def sin(self) -> Enclosure:
        return self.chain(_sine(self.value), _cosine(self.value))

    def cos(self) -> Enclosure:
        return self.chain(_cosine(self.value), -_sine(self.value))

    def tanh(self) -> Enclosure:
        image = self.value.rising(torch.tanh)
        square = image.even(lambda t: t * t)
        return self.chain(image, -(square - 1.0))

    def sigmoid(self) -> Enclosure:
        image = self.value.rising(torch.sigmoid)
        # s(1-s) = 1/4 - (s - 1/2)^2
        square = (image - 0.5).even(lambda t: t * t)
        return self.chain(image, -(square - 0.25))

    def log(self) -> Enclosure:
        if not bool((self.value.low > 0).all()):
            raise NoRule("a logarithm of what may be 0 or less")
        image = self.value.rising(torch.log)
        return self.chain(image, self.value.reciprocal())

    def sqrt(self) -> Enclosure:
        if not bool((self.value.low > 0).all()):
            raise NoRule("a root of what may be 0 or less")
        image = self.value.rising(torch.sqrt)
        return self.chain(image, image.reciprocal() * 0.5)

    def relu(self) -> Enclosure:
        image = self.value.rising(torch.relu)
        low = (self.value.low > 0).double()
        return self.chain(image, Interval(low, (self.value.high > 0).double()))

    def abs(self) -> Enclosure:
        image = self.value.even(lambda t: t)
        low = torch.where(self.value.low >= 0, 1.0, -1.0).double()
        high = torch.where(self.value.high <= 0, -1.0, 1.0).double()
        return self.chain(image, Interval(low, high))

    def square(self) -> Enclosure:
        return self**2

    # -- shapes -----------------------------------------------------------

    def __getitem__(self, index: Any) -> Enclosure:
        return self._shaped(lambda t: t[index])

    def unsqueeze(self, dim: int) -> Enclosure:
        return self._shaped(lambda t: t.unsqueeze(dim))

    def sum(self, dim: int, keepdim: bool = False) -> Enclosure:
        return self._shaped(lambda t: t.sum(dim, keepdim))

    def _shaped(self, f: Callable[[Tensor], Tensor]) -> Enclosure:
        return Enclosure(self.value.map(f), self.slope.map(f))

    @property
    def shape(self) -> torch.Size:
        return self.value.low.shape

    # -- from the side of torch -------------------------------------------

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        rule = _FUNCTIONS.get(getattr(func, "__name__", ""))
        if rule is None:
            raise NoRule(getattr(func, "__name__", str(func)))
        return rule(*args, **(kwargs or {}))


def _enclosed(value: Any) -> Enclosure:
    if isinstance(value, Enclosure):
        return value
    if not isinstance(value, (int, float, Tensor)):
        raise NoRule(f"a {type(value).__name__}")
    constant = Interval.of(value)
    zero = torch.zeros_like(constant.low)
    return Enclosure(constant, Interval(zero, zero))


def _method(name: str) -> Callable:
    return lambda a, *rest, **more: getattr(_enclosed(a), name)(*rest, **more)


_FUNCTIONS: dict[str, Callable] = {
    name: _method(name)
    for name in ("exp", "sin", "cos", "tanh", "sigmoid", "log", "sqrt",
                 "relu", "abs", "square", "reciprocal", "unsqueeze", "sum")
}  # fmt: skip
_OPERATORS: dict[tuple[str, ...], Callable] = {
    ("add", "__add__", "__radd__"): lambda a, b: _enclosed(a) + b,
    ("sub", "__sub__"): lambda a, b: _enclosed(a) - b,
    ("rsub", "__rsub__"): lambda a, b: _enclosed(b) - a,
    ("mul", "multiply", "__mul__", "__rmul__"): lambda a, b: _enclosed(a) * b,
    ("div", "true_divide", "__truediv__"): lambda a, b: _enclosed(a) / b,
    ("__rtruediv__", "__rdiv__"): lambda a, b: _enclosed(b) / a,
    ("pow", "__pow__"): lambda a, b: _enclosed(a) ** b,
    ("neg", "__neg__"): lambda a: -_enclosed(a),
}
for _names, _f in _OPERATORS.items():
    for _name in _names:
        _FUNCTIONS[_name] = _f


def slope_bounds(
    kernel: Callable, x: Tensor, t: Tensor, low: Tensor, high: Tensor
) -> Tensor:
    """sup |dK_i/du_j| over u in the box [low, high].

    Args:
        kernel: K(x, t, u).
        x: [M, 1, d] and t: [1, N, d], in float64.
        low, high: [1, N, c], ends of u.

    Returns:
        [M, N, c, c]: rows are components of K, columns those of u.

    Raises:
        NoRule: the kernel does what cannot be enclosed.
    """
    size = low.size(-1)
    columns = []
    for j in range(size):
        seed = torch.zeros_like(low)
        seed[..., j] = 1.0
        u = Enclosure(Interval(low, high), Interval(seed, seed))
        out = kernel(x, t, u)
        if not isinstance(out, Enclosure):
            out = _enclosed(torch.zeros(()).double())
        slope = out.slope.magnitude()
        shape = (x.size(0), t.size(1), size)
        columns.append(torch.broadcast_to(slope, shape))
    return torch.stack(columns, -1) * (1 + 1e-12)
