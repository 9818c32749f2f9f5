"""Enclosures: what a kernel and its derivative can be on an interval.

A kernel K(x, t, u) is a Python function. Called with an enclosure in place
of u it returns bounds of its value and of its derivative in u, valid for
every u in the interval: a proof, where sampling would be a guess. Operations
without a rule raise :class:`NoRule`.

u has the axes [M, N, c]. The derivative is that at each node, in the value
at that node: an operation that mixes nodes, or takes one for another, has no
rule.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from .intervals import Interval, cosine, power, sine


class NoRule(Exception):
    """An operation that has no enclosure here."""


class Enclosure:
    """A value and its derivative with respect to u, as intervals."""

    def __init__(self, value: Interval, slope: Interval):
        self.value, self.slope = value, slope

    # -- arithmetic -------------------------------------------------------

    def __add__(self, other: Any) -> Enclosure:
        o = self._beside(other)
        return Enclosure(self.value + o.value, self.slope + o.slope)

    __radd__ = __add__

    def __neg__(self) -> Enclosure:
        return Enclosure(-self.value, -self.slope)

    def __sub__(self, other: Any) -> Enclosure:
        return self + -enclosed(other)

    def __rsub__(self, other: Any) -> Enclosure:
        return enclosed(other) - self

    def __mul__(self, other: Any) -> Enclosure:
        if other is self:
            return self**2
        o = self._beside(other)
        slope = self.slope * o.value + self.value * o.slope
        return Enclosure(self.value * o.value, slope)

    __rmul__ = __mul__

    def reciprocal(self) -> Enclosure:
        inverse = self.value.reciprocal()
        square = inverse.even(lambda t: t * t)
        return Enclosure(inverse, -(square * self.slope))

    def __truediv__(self, other: Any) -> Enclosure:
        return self * enclosed(other).reciprocal()

    def __rtruediv__(self, other: Any) -> Enclosure:
        return enclosed(other) * self.reciprocal()

    def __pow__(self, exponent: Any) -> Enclosure:
        if not isinstance(exponent, (int, float)):
            raise NoRule(f"a power of {exponent}")
        if not float(exponent).is_integer():
            return self._root(float(exponent))
        n = int(exponent)
        if n < 0:
            return (self**-n).reciprocal()
        if n == 0:
            return enclosed(torch.ones_like(self.value.low))
        slope = power(self.value, n - 1) * float(n)
        return Enclosure(power(self.value, n), slope * self.slope)

    def _root(self, p: float) -> Enclosure:
        if not bool((self.value.low > 0).all()):
            raise NoRule(f"a power of {p:g} of what may be 0 or less")

        def image(exponent: float) -> Interval:
            ends = [t**exponent for t in (self.value.low, self.value.high)]
            return Interval(torch.minimum(*ends), torch.maximum(*ends))

        return self.chain(image(p), image(p - 1) * p)

    def __matmul__(self, matrix: Any) -> Enclosure:
        if not isinstance(matrix, Tensor) or matrix.dim() != 2:
            raise NoRule("a product with what is no constant matrix")
        self._axes(-1)
        matrix = matrix.detach().double()
        return Enclosure(self.value.matmul(matrix), self.slope.matmul(matrix))

    def __rmatmul__(self, matrix: Any) -> Enclosure:
        raise NoRule("matrix @ u, which would mix nodes; write u @ matrix.T")

    # -- comparisons: only where all of the interval agrees ---------------

    def __gt__(self, other: Any) -> Tensor:
        o = self._beside(other).value
        yes, no = self.value.low > o.high, self.value.high <= o.low
        if not bool((yes | no).all()):
            raise NoRule("a comparison whose outcome depends on u")
        return yes

    def __lt__(self, other: Any) -> Tensor:
        return -self > -enclosed(other)

    def __ge__(self, other: Any) -> Tensor:
        return ~(self < other)

    def __le__(self, other: Any) -> Tensor:
        return ~(self > other)

    __hash__ = None  # type: ignore[assignment]

    def __eq__(self, other: Any) -> Any:
        raise NoRule("a comparison with ==")

    # -- functions --------------------------------------------------------

    def chain(self, image: Interval, slope: Interval) -> Enclosure:
        return Enclosure(image, slope * self.slope)

    def exp(self) -> Enclosure:
        image = self.value.rising(torch.exp)
        return self.chain(image, image)

    def sin(self) -> Enclosure:
        return self.chain(sine(self.value), cosine(self.value))

    def cos(self) -> Enclosure:
        return self.chain(cosine(self.value), -sine(self.value))

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
        return self**0.5

    def relu(self) -> Enclosure:
        return self.leaky_relu(0.0)

    def leaky_relu(
        self, negative_slope: float = 0.01, inplace: bool = False
    ) -> Enclosure:
        if not 0 <= negative_slope <= 1:
            raise NoRule(f"leaky_relu with a slope of {negative_slope}")
        image = self.value.rising(lambda t: F.leaky_relu(t, negative_slope))
        ends = [
            torch.where(t > 0, 1.0, negative_slope).double()
            for t in (self.value.low, self.value.high)
        ]
        return self.chain(image, Interval(*ends))

    def elu(self, alpha: float = 1.0, inplace: bool = False) -> Enclosure:
        if alpha != 1:
            raise NoRule(f"elu with alpha={alpha}")
        image = self.value.rising(F.elu)
        return self.chain(
            image, self.value.rising(lambda t: t.clamp_max(0.0).exp())
        )

    def softplus(self, beta: float = 1.0, threshold: float = 20) -> Enclosure:
        if not beta > 0:
            raise NoRule(f"softplus with beta={beta}")
        image = self.value.rising(lambda t: F.softplus(t, beta, threshold))
        low = torch.sigmoid(beta * self.value.low)
        high = torch.sigmoid(beta * self.value.high)
        # linear beyond the threshold
        high = torch.where(beta * self.value.high > threshold, 1.0, high)
        return self.chain(image, Interval(low, high))

    def gelu(self, approximate: str = "none") -> Enclosure:
        if approximate != "none":
            raise NoRule(f"gelu with approximate={approximate!r}")
        slope = self.value.piecewise(_gelu_slope, (-_ROOT2, _ROOT2))
        return self.chain(self._tailed(F.gelu, -0.7517915246935645), slope)

    def silu(self, inplace: bool = False) -> Enclosure:
        turn = 2.399357280520326
        slope = self.value.piecewise(_silu_slope, (-turn, turn))
        return self.chain(self._tailed(F.silu, -1.2784645427610738), slope)

    def _tailed(self, f: Callable[[Tensor], Tensor], least: float) -> Interval:
        """The image under a function that falls from 0 to its least value
        and then rises without end."""
        image = self.value.piecewise(f, (least,))
        far = self.value.high > 40
        return Interval(
            torch.where(self.value.low > 40, f(self.value.low), image.low),
            torch.where(far, f(self.value.high), image.high),
        )

    def abs(self) -> Enclosure:
        image = self.value.even(lambda t: t)
        low = torch.where(self.value.low >= 0, 1.0, -1.0).double()
        high = torch.where(self.value.high <= 0, -1.0, 1.0).double()
        return self.chain(image, Interval(low, high))

    def square(self) -> Enclosure:
        return self**2

    def maximum(self, other: Any) -> Enclosure:
        o = self._beside(other)
        image = Interval(
            torch.maximum(self.value.low, o.value.low),
            torch.maximum(self.value.high, o.value.high),
        )
        both = self.slope.hull(o.slope)
        mine = self.value.low >= o.value.high
        theirs = o.value.low >= self.value.high
        ends = [
            torch.where(mine, a, torch.where(theirs, b, c))
            for a, b, c in (
                (self.slope.low, o.slope.low, both.low),
                (self.slope.high, o.slope.high, both.high),
            )
        ]
        return Enclosure(image, Interval(*ends))

    def minimum(self, other: Any) -> Enclosure:
        return -((-self).maximum(-enclosed(other)))

    def clamp(self, min: Any = None, max: Any = None) -> Enclosure:
        out = self if min is None else self.maximum(min)
        return out if max is None else out.minimum(max)

    def clamp_min(self, min: Any) -> Enclosure:
        return self.maximum(min)

    def clamp_max(self, max: Any) -> Enclosure:
        return self.minimum(max)

    # -- shapes: the axes behind M and N ----------------------------------

    def __getitem__(self, index: Any) -> Enclosure:
        parts = index if isinstance(index, tuple) else (index,)
        if parts[:2] == (slice(None), slice(None)):
            rest = parts[2:]
        elif parts[0] is Ellipsis:
            rest = parts[1:]
        else:
            raise NoRule("indexing of nodes; write u[..., i]")
        taken = [part for part in rest if part is not None]
        fits = len(taken) <= len(self.shape) - 2
        if not fits or not all(isinstance(p, (int, slice)) for p in taken):
            raise NoRule("indexing of nodes; write u[..., i]")
        return self._shaped(lambda t: t[index])

    def unsqueeze(self, dim: int) -> Enclosure:
        if dim + (len(self.shape) + 1 if dim < 0 else 0) < 2:
            raise NoRule(f"unsqueeze({dim}), in front of the nodes")
        return self._shaped(lambda t: t.unsqueeze(dim))

    def sum(self, dim: Any = None, keepdim: bool = False) -> Enclosure:
        axes = self._axes(dim)
        return self._shaped(lambda t: t.sum(axes, keepdim))

    def mean(self, dim: Any = None, keepdim: bool = False) -> Enclosure:
        count = math.prod(self.shape[axis] for axis in self._axes(dim))
        return self.sum(dim, keepdim) / float(count)

    def flip(self, *dims: Any) -> Enclosure:
        axes = self._axes(dims[0] if len(dims) == 1 else dims)
        return self._shaped(lambda t: t.flip(axes))

    def _axes(self, dim: Any) -> tuple[int, ...]:
        """As numbers from the front, none of them M or N."""
        count = len(self.shape)
        given = (dim,) if isinstance(dim, int) else tuple(dim or ())
        axes = tuple(d + count if d < 0 else d for d in given)
        if not axes or min(axes) < 2:
            raise NoRule("an operation over nodes")
        return axes

    def _beside(self, other: Any) -> Enclosure:
        """The other operand; numbers of axes that differ would set nodes
        against components."""
        o = enclosed(other)
        mine, theirs = len(self.shape), len(o.shape)
        # with one axis or none it is a constant
        if mine != theirs and min(mine, theirs) > 1:
            raise NoRule(f"operands with {mine} and {theirs} axes")
        return o

    def _shaped(self, f: Callable[[Tensor], Tensor]) -> Enclosure:
        value = self.value
        ends = torch.broadcast_tensors(
            value.low, value.high, self.slope.low, self.slope.high
        )
        low, high, *slope = (f(t) for t in ends)
        return Enclosure(Interval(low, high), Interval(*slope))

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


def enclosed(value: Any) -> Enclosure:
    if isinstance(value, Enclosure):
        return value
    if not isinstance(value, (int, float, Tensor)):
        raise NoRule(f"a {type(value).__name__}")
    constant = Interval.of(value)
    zero = torch.zeros_like(constant.low)
    return Enclosure(constant, Interval(zero, zero))


_ROOT2 = math.sqrt(2)


def _gelu_slope(t: Tensor) -> Tensor:
    density = torch.exp(-t * t / 2) / math.sqrt(2 * math.pi)
    return torch.special.ndtr(t) + t * density


def _silu_slope(t: Tensor) -> Tensor:
    s = torch.sigmoid(t)
    return s * (1 + t * (1 - s))


def _linear(x: Any, weight: Any, bias: Any = None) -> Enclosure:
    if not isinstance(weight, Tensor):
        raise NoRule("linear with a weight that depends on u")
    out = enclosed(x) @ weight.T
    return out if bias is None else out + bias.detach()


def _matmul(a: Any, b: Any) -> Enclosure:
    return a @ b if isinstance(a, Enclosure) else b.__rmatmul__(a)


def _where(condition: Any, a: Any, b: Any) -> Enclosure:
    if isinstance(condition, Enclosure):
        raise NoRule("where with a condition that is no comparison")
    a, b = enclosed(a), enclosed(b)
    count = len(condition.shape)
    if any(len(v.shape) not in (0, count) for v in (a, b)):
        raise NoRule("where over different numbers of axes")

    def choose(x: Interval, y: Interval) -> Interval:
        return Interval(
            torch.where(condition, x.low, y.low),
            torch.where(condition, x.high, y.high),
        )

    return Enclosure(choose(a.value, b.value), choose(a.slope, b.slope))


def _cat(parts: Any, dim: int = 0) -> Enclosure:
    all_parts = [enclosed(part) for part in parts]
    counts = {len(part.shape) for part in all_parts}
    if len(counts) != 1 or dim not in (-1, max(counts) - 1):
        raise NoRule("cat along other axes than the last")
    if max(counts) < 3:
        raise NoRule("cat over nodes")

    def joined(pick: Callable[[Enclosure], Interval]) -> Interval:
        return Interval(
            torch.cat([_full(pick(p).low, p) for p in all_parts], -1),
            torch.cat([_full(pick(p).high, p) for p in all_parts], -1),
        )

    return Enclosure(joined(lambda p: p.value), joined(lambda p: p.slope))


def _full(t: Tensor, part: Enclosure) -> Tensor:
    return t.expand(part.shape)


def _plus(a: Any, b: Any, alpha: float = 1) -> Enclosure:
    return enclosed(a) + (b if alpha == 1 else b * alpha)


def _minus(a: Any, b: Any, alpha: float = 1) -> Enclosure:
    return enclosed(a) - (b if alpha == 1 else b * alpha)


def _method(name: str) -> Callable:
    return lambda a, *rest, **more: getattr(enclosed(a), name)(*rest, **more)


_FUNCTIONS: dict[str, Callable] = {
    name: _method(name)
    for name in (
        "exp", "sin", "cos", "tanh", "sigmoid", "log", "sqrt", "relu",
        "leaky_relu", "elu", "softplus", "gelu", "silu", "abs", "square",
        "reciprocal", "maximum", "minimum", "clamp", "clamp_min",
        "clamp_max", "unsqueeze", "sum", "mean", "flip",
    )
}  # fmt: skip
_OPERATORS: dict[tuple[str, ...], Callable] = {
    ("add", "__add__", "__radd__"): _plus,
    ("sub", "subtract", "__sub__"): _minus,
    ("rsub", "__rsub__"): lambda a, b: enclosed(b) - a,
    ("mul", "multiply", "__mul__", "__rmul__"): lambda a, b: enclosed(a) * b,
    ("div", "divide", "true_divide", "__truediv__"): (
        lambda a, b: enclosed(a) / b
    ),
    ("__rtruediv__", "__rdiv__"): lambda a, b: enclosed(b) / a,
    ("pow", "__pow__"): lambda a, b: enclosed(a) ** b,
    ("neg", "negative", "__neg__"): lambda a: -enclosed(a),
    ("matmul", "__matmul__"): _matmul,
    ("__rmatmul__",): lambda a, b: _matmul(b, a),
    ("gt", "__gt__"): lambda a, b: enclosed(a) > b,
    ("lt", "__lt__"): lambda a, b: enclosed(a) < b,
    ("ge", "__ge__"): lambda a, b: enclosed(a) >= b,
    ("le", "__le__"): lambda a, b: enclosed(a) <= b,
    ("linear",): _linear,
    ("where",): _where,
    ("cat", "concat"): _cat,
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
            out = enclosed(torch.zeros_like(low))
        if len(out.shape) != 3:
            raise NoRule(f"a kernel whose values have {len(out.shape)} axes")
        slope = out.slope.magnitude()
        shape = (x.size(0), t.size(1), size)
        columns.append(torch.broadcast_to(slope, shape))
    return torch.stack(columns, -1) * (1 + 1e-12)
