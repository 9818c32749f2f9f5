"""Intervals: what a function can be where its argument is in an interval."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


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
                times(self.low, o.low),
                times(self.low, o.high),
                times(self.high, o.low),
                times(self.high, o.high),
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

    def piecewise(
        self, f: Callable[[Tensor], Tensor], turns: tuple[float, ...]
    ) -> Interval:
        """The image under a function that rises and falls in turn, and is
        level beyond 40; ``turns`` are where it changes from one to the
        other."""
        ends = [f(t.clamp(-40.0, 40.0)) for t in (self.low, self.high)]
        low, high = torch.minimum(*ends), torch.maximum(*ends)
        for turn in turns:
            inside = (self.low <= turn + 1e-6) & (self.high >= turn - 1e-6)
            crest = f(torch.full_like(low, turn))
            low = torch.where(inside, torch.minimum(low, crest), low)
            high = torch.where(inside, torch.maximum(high, crest), high)
        return Interval(low, high)

    def matmul(self, matrix: Tensor) -> Interval:
        """Times a matrix, from the right; rounding errors are added."""
        up, down = matrix.clamp_min(0), matrix.clamp_max(0)
        finite = [t.nan_to_num(0.0, 0.0, 0.0) for t in (self.low, self.high)]
        low = finite[0] @ up + finite[1] @ down
        high = finite[1] @ up + finite[0] @ down
        size = torch.maximum(*(t.abs() for t in finite)) @ matrix.abs()
        slack = (len(matrix) + 2) * 2.3e-16 * size
        below, above = (self.low == -math.inf), (self.high == math.inf)
        if bool(below.any()) or bool(above.any()):
            plus, minus = (matrix > 0).double(), (matrix < 0).double()
            below, above = below.double(), above.double()
            low = torch.where(below @ plus + above @ minus > 0, -math.inf, low)
            high = torch.where(
                above @ plus + below @ minus > 0, math.inf, high
            )
        return Interval(low - slack, high + slack)

    def magnitude(self) -> Tensor:
        return torch.maximum(self.low.abs(), self.high.abs())


def times(a: Tensor, b: Tensor) -> Tensor:
    """0 times infinity is 0: the infinite end is never reached."""
    return torch.where((a == 0) | (b == 0), 0.0, a * b)


def sine(v: Interval) -> Interval:
    """sin over an interval: +-1 where a crest lies inside."""
    wide = ~((v.high - v.low) < 2 * math.pi)
    ends = torch.stack([v.low.sin(), v.high.sin()]).nan_to_num(0.0)

    def has(crest: float) -> Tensor:
        first = ((v.low - crest) / (2 * math.pi)).ceil()
        return wide | (crest + 2 * math.pi * first <= v.high)

    low = torch.where(has(-math.pi / 2), -1.0, ends.amin(0))
    return Interval(low, torch.where(has(math.pi / 2), 1.0, ends.amax(0)))


def cosine(v: Interval) -> Interval:
    return sine(v + math.pi / 2)


def power(v: Interval, n: int) -> Interval:
    if n == 0:
        one = torch.ones_like(v.low)
        return Interval(one, one)
    if n % 2:
        return v.rising(lambda t: t**n)
    return v.even(lambda t: t**n)
