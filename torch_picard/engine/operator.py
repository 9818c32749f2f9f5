"""The operator as the engine sees it: leaves in, leaves out, counted."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn.utils import parametrize
from torch.utils.checkpoint import checkpoint

from ..ops import fused
from .held import are_in_place, held_now, put_in_place
from .point import Point, Smoothed
from .randomness import FrozenRandomness, ReplayedDraws
from .space import Leaves, Space


class Evaluator:
    """Evaluates P on leaves under the caller's autocast and
    ``parametrize.cached()``, with randomness frozen, checks what comes back,
    and counts.

    Args:
        operator: the user's x -> P(x). One that can do the smoothing itself
            has a method ``smoothed(x, alpha, ptr, active)`` that returns y
            and ``stats`` as :class:`Smoothed` has them; one with a whole
            loop of its own, ``steps(x, alpha, ptr, count)``.
        space: structure of the state.
        checkpointed: recompute P in the backward pass instead of storing
            what is inside it.
        counted: values decide nothing, so they may be hidden.
    """

    def __init__(
        self,
        operator: Callable[[Any], Any],
        space: Space,
        checkpointed: bool = False,
        counted: bool = False,
    ):
        self.operator = operator
        self.space = space
        self.checkpointed = checkpointed
        self.counted = counted
        #: evaluations of P, each jvp and vjp included
        self.count = 0
        self.compiling = torch.compiler.is_compiling()
        self._autocast = None
        self._weights = None
        backend = getattr(operator, "backend", None)
        # the kernels measure in l2, and what is here
        self._fused = (
            not self.compiling
            and space.distance is None
            and space.local
            and fused.is_native(backend, space.device)
        )
        self._smooth = getattr(operator, "smoothed", None)
        if self.compiling:
            self._draws = ReplayedDraws()
        else:
            self._frozen = FrozenRandomness(space.device)
            if torch.is_autocast_enabled(space.device.type):
                self._autocast = _autocast(space.device.type)
            if parametrize._cache_enabled:
                self._weights = parametrize._cache
            self._held = held_now()

    def __call__(self, x: Leaves) -> Leaves:
        """P(x)."""
        first = self.count == 0
        self.count += 1
        if self.compiling:
            self._draws.begin(first)
            with self._draws:
                return self._image(x)
        if self.checkpointed and torch.is_grad_enabled():
            return checkpoint(
                self._apply, *x, use_reentrant=False, preserve_rng_state=False
            )
        return self._apply(*x)

    def point(
        self,
        x: Leaves,
        alpha: float | Tensor | None,
        active: Tensor | None,
    ) -> Point:
        """P(x) with its residual; smoothed already if the method has said
        its ``alpha`` and a kernel can do that. ``active`` are the segments
        that matter."""
        space = self.space
        if alpha is None or not self._fused:
            return Point(space, x, self(x))
        if self._smooth is not None and fused.takes(x, alpha):
            y, stats = self._smoothed(self._smooth, x, alpha, active)
            return Smoothed(space, x, y, stats, active, lambda: self._again(x))
        z = self(x)
        if not fused.takes((*x, *z), alpha):
            return Point(space, x, z)
        y, stats = fused.update(x, z, alpha, space.ptr, active)
        return Smoothed(space, x, y, stats, active, lambda: z)

    @torch.no_grad()
    def _again(self, x: Leaves) -> Leaves:
        """P(x), where a kernel has left nothing of it. It is not counted:
        what others in the batch are must not cost a segment its updates."""
        z = self(x)
        self.count -= 1
        return z

    def steps(
        self, x: Leaves, alpha: float | Tensor | None, count: int
    ) -> tuple[Leaves, Tensor] | None:
        """x_count and the stats of every update, [count, S, 2], if the
        operator has a loop of its own for them."""
        loop = getattr(self.operator, "steps", None)
        if loop is None or not self._fused or isinstance(alpha, Tensor):
            return None
        if alpha is None or self.checkpointed or not fused.takes(x):
            return None
        with ExitStack() as stack:
            self._enter(stack)
            done = loop(x[0], alpha, self.space.ptr[0], count)
        if done is None:
            return None
        self.count += count
        return (done[0],), done[1]

    def _smoothed(
        self,
        smoothed: Callable,
        x: Leaves,
        alpha: float | Tensor,
        active: Tensor | None,
    ) -> tuple[Leaves, Tensor]:
        self.count += 1

        def step(x: Tensor) -> tuple[Tensor, Tensor]:
            with ExitStack() as stack:
                self._enter(stack)
                return smoothed(x, alpha, self.space.ptr[0], active)

        if self.checkpointed and torch.is_grad_enabled():
            y, stats = checkpoint(
                step, *x, use_reentrant=False, preserve_rng_state=False
            )
        else:
            y, stats = step(*x)
        return (y,), stats

    def _enter(self, stack: ExitStack) -> None:
        stack.enter_context(self._frozen())
        if self._autocast is not None:
            stack.enter_context(self._autocast())
        if self._weights is not None:
            stack.enter_context(_cached(self._weights))
        if not are_in_place(self._held):  # in the backward pass
            stack.enter_context(put_in_place(self._held))

    def _apply(self, *x: Tensor) -> Leaves:
        plain = self._frozen.idle and self._autocast is self._weights is None
        if plain and are_in_place(self._held):
            return self._guarded(x)
        with ExitStack() as stack:
            self._enter(stack)
            return self._guarded(x)

    def _guarded(self, x: Leaves) -> Leaves:
        """An operator that writes into x would make the residual a lie."""
        if any(t.is_inference() for t in x):
            return self._image(x)
        versions = [t._version for t in x]
        z = self._image(x)
        if versions != [t._version for t in x]:
            raise ValueError(
                f"{self.space.called} changed its argument in place; it must "
                "return a new Tensor (replace x.add_(y) by x + y, and buffers "
                "that are reused between calls by fresh ones)"
            )
        return z

    def _image(self, x: Leaves) -> Leaves:
        space = self.space
        z = space.image(self.operator(space.pack(x)))
        if not self.compiling:
            refuse_transforms(z, self.counted)
        return z

    def linearize(
        self, x: Leaves, differentiable: bool = True
    ) -> Callable[[Leaves], Leaves]:
        """v -> P'(x) v. One evaluation a product. ``differentiable``: does
        P(x) depend on anything that asks for a gradient?"""
        if torch.is_grad_enabled() and differentiable:
            return _DoubleBackward(self, x)
        return _ForwardMode(self, x)


#: torch has one level of forward mode for all threads. Reentrant: a solve
#: within P is then told that levels do not nest, and takes reverse passes.
_DUAL_LEVEL = threading.RLock()


class _ForwardMode:
    """P'(x) v by dual numbers; by two reverse passes where an operation of
    P has no forward derivative."""

    def __init__(self, evaluate: Evaluator, x: Leaves):
        self.evaluate = evaluate
        # a copy: entries of an expanded x share memory, those of dual
        # numbers must not
        self.x = tuple(t.detach().clone() for t in x)
        self._fallback: _DoubleBackward | None = None

    def __call__(self, v: Leaves) -> Leaves:
        if self._fallback is None:
            try:
                return self._dual(v)
            except (NotImplementedError, RuntimeError) as error:
                if not _lacks_forward_mode(error):
                    raise
                with torch.enable_grad():
                    self._fallback = _DoubleBackward(self.evaluate, self.x)
        return tuple(t.detach() for t in self._fallback(v))

    def _dual(self, v: Leaves) -> Leaves:
        v = self.evaluate.space.lower(v)
        with _DUAL_LEVEL, forward_ad.dual_level():
            dual = tuple(forward_ad.make_dual(a, b) for a, b in zip(self.x, v))
            out = [forward_ad.unpack_dual(t) for t in self.evaluate(dual)]
            tangents = [
                torch.zeros_like(t.primal) if t.tangent is None else t.tangent
                for t in out
            ]
        return self.evaluate.space.lift(tuple(tangents))


class _DoubleBackward:
    """P'(x) v as the derivative of w -> P'(x)^T w, differentiable again."""

    def __init__(self, evaluate: Evaluator, x: Leaves):
        self.evaluate = evaluate
        self.differentiable = any(t.requires_grad for t in x)
        with torch.enable_grad():
            # x + 0 keeps the graph of x and gives a point to derive at
            self.x = tuple(
                t + 0 if t.requires_grad else t.detach().requires_grad_()
                for t in x
            )
            self.z = evaluate(self.x)
            evaluate.count -= 1  # paid for by the first product
            self.w = tuple(
                torch.zeros_like(t, requires_grad=True) for t in self.z
            )
            self.transposed = pullback(self.z, self.x, self.w, True)

    def __call__(self, v: Leaves) -> Leaves:
        self.evaluate.count += 1
        space = self.evaluate.space
        with torch.enable_grad():
            out = pullback(self.transposed, self.w, space.lower(v), True)
        return space.lift(out)


def pullback(
    z: Leaves, x: Leaves, w: Leaves, create_graph: bool = False
) -> Leaves:
    """(dz/dx)^T w, with zeros where z does not depend on x."""
    pairs = [(a, b) for a, b in zip(z, w) if a.requires_grad]
    if not pairs:
        return tuple(torch.zeros_like(t) for t in x)
    grads = torch.autograd.grad(
        [a for a, _ in pairs],
        x,
        [b for _, b in pairs],
        retain_graph=True,
        create_graph=create_graph,
        allow_unused=True,
    )
    return tuple(
        torch.zeros_like(t) if g is None else g for t, g in zip(x, grads)
    )


def _autocast(device: str) -> Callable[[], torch.autocast]:
    """The caller's autocast, to be entered around P wherever it is called."""
    dtype = torch.get_autocast_dtype(device)
    cache = torch.is_autocast_cache_enabled()
    return lambda: torch.autocast(device, dtype=dtype, cache_enabled=cache)


@contextmanager
def _cached(weights: dict) -> Iterator[None]:
    """Parametrised weights as they were in the caller's
    ``parametrize.cached()``, which has ended when a backward pass asks for
    P again."""
    before = parametrize._cache
    parametrize._cache_enabled += 1
    parametrize._cache = weights
    try:
        yield
    finally:
        parametrize._cache_enabled -= 1
        parametrize._cache = before


def refuse_transforms(leaves: Leaves, counted: bool = False) -> None:
    """Those of torch.func that a solve cannot take part in. grad and jvp can
    see through a fixed count of steps."""
    for t in leaves:
        while torch._C._functorch.is_functorch_wrapped_tensor(t):
            if not counted or torch._C._functorch.is_batchedtensor(t):
                raise NotImplementedError(
                    "fixed_point decides by values, which torch.func's "
                    "transforms hide from it: use segments='leading' in place "
                    "of vmap, torch.autograd in place of grad and jvp, or a "
                    "fixed number of Picard steps (rtol=0, atol=0), which "
                    "grad and jvp can transform"
                )
            t = torch._C._functorch.get_unwrapped(t)


def _lacks_forward_mode(error: Exception) -> bool:
    text = str(error).lower()
    return any(
        hint in text
        for hint in ("forward ad", "forward-mode", "forward mode", "jvp")
    )
