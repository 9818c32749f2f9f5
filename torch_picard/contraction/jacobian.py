"""The derivative of an operator at a point, as products."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from ..engine.operator import Evaluator, pullback
from ..engine.space import Leaves, Space, detach, tree_map


class Jacobian:
    """J = P'(x): v -> Jv and w -> J'w on leaves, in the dtype of the algebra.

    Randomness is frozen: every product is of the same map.

    Args:
        operator: x -> P(x), which keeps structure, shapes and dtypes.
        x: the point, a Tensor or a tuple, list or dict of Tensors.
        segments: as in :func:`torch_picard.fixed_point`.
        graph: keep the dependence of the point on whatever made it.
    """

    def __init__(
        self,
        operator: Callable[[Any], Any],
        x: Any,
        segments: Any = None,
        graph: bool = False,
    ):
        if not callable(operator):
            raise TypeError(
                f"operator must be callable as x -> P(x), got {operator!r}"
            )
        self.space = state_space(x, segments)
        evaluate = Evaluator(operator, self.space)
        start = self.space.start
        with differentiable(), torch.enable_grad():
            self.point = tuple(
                # + 0 keeps the graph and gives a tensor to derive by
                t + 0 if graph and t.requires_grad else _leaf(t)
                for t in start
            )
            # Before any evaluation without a graph: autocast would keep the
            # weights that such a one had cast, and lose their gradient.
            self.image = evaluate(self.point)
        with differentiable(), torch.no_grad():
            self._times = evaluate.linearize(detach(self.point))

    def times(self, v: Leaves) -> Leaves:
        """Jv, outside the graph."""
        with differentiable(), torch.no_grad():
            return self._times(v)

    def transposed(self, w: Leaves, create_graph: bool = False) -> Leaves:
        """J'w."""
        low = self.space.lower(w)
        out = pullback(self.image, self.point, low, create_graph)
        return self.space.lift(out)

    def check(self, v: Leaves) -> None:
        """Raise if P(x) or J is not finite, or if forward and reverse mode
        are not each other's transpose, as when P has a ``torch.no_grad()``
        inside. A norm made of both would belong to neither."""
        space = self.space
        b, a = self.times(v), self.transposed(v)
        parts = (detach(space.start), detach(self.image), a, b)
        refuse_nonfinite(torch.stack([space.norm(t) for t in parts]).sum(0))
        tolerance = min(0.2, max(1e-6, 1e5 * rounding(space)))
        # <v, J'Jv> = |Jv|^2 misses what is orthogonal to the range of
        # J, and <v, JJ'v> = |J'v|^2 the other way round
        for u, back in ((b, self.transposed(b)), (a, self.times(a))):
            square, product = space.dot(u, u), space.dot(v, back)
            if bool(((square - product).abs() > tolerance * square).any()):
                raise RuntimeError(
                    "operator has one derivative in forward mode and another "
                    "in reverse mode; look for torch.no_grad() inside it, or "
                    "a custom autograd.Function whose backward is not the "
                    "derivative"
                )


def state_space(x: Any, segments: Any) -> Space:
    """The space of a state that users know by the name x."""
    x = tree_map(lambda t: t.clone() if t.is_inference() else t, x)
    try:
        return Space(x, segments)
    except (TypeError, ValueError) as error:
        raise type(error)(str(error).replace("x0", "x")) from None


@contextmanager
def differentiable() -> Iterator[None]:
    """Attention by operations that can be derived twice and in forward mode;
    the fused kernels cannot."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


def rounding(space: Space) -> float:
    """The coarsest epsilon that P computes with."""
    dtypes = list(space.dtypes)
    kind = space.device.type
    if torch.is_autocast_enabled(kind):
        dtypes.append(torch.get_autocast_dtype(kind))
    return max(torch.finfo(d).eps for d in dtypes)


def refuse_nonfinite(values: Tensor) -> None:
    """values [S], one a segment."""
    bad = (~torch.isfinite(values)).nonzero().flatten().tolist()
    if bad:
        where = f" in segments {bad[:10]}" if values.numel() > 1 else ""
        raise ValueError(
            f"operator: x, P(x) or the derivative at x is not finite{where}"
        )


def normal(space: Space, generator: torch.Generator | None) -> Leaves:
    """A random vector, the same on every device."""
    device = "cpu" if generator is None else generator.device
    return tuple(
        torch.randn(
            shape, generator=generator, dtype=space.dtype, device=device
        ).to(space.device)
        for shape in space.shapes
    )


def unit(space: Space, v: Leaves) -> Leaves:
    """v over its norm, segment by segment; 0 stays 0."""
    return space.scale(reciprocal(space.norm(v)), v)


def reciprocal(c: Tensor) -> Tensor:
    """1/c, and 0 for 0. NaN stays NaN."""
    return torch.where(c == 0, c, 1 / c)


def _leaf(t: Tensor) -> Tensor:
    return t.detach().requires_grad_()
