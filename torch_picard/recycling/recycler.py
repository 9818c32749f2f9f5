"""A module that is fed its own output until that stops changing."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module
from torch.utils import _pytree as pytree

from ..engine import Picard, Solution
from ..engine.gradients import Gradient
from ..engine.held import held_weights
from ..engine.methods.base import as_float, check_count
from ..engine.solve import solve
from ..nn.solver import Solver
from .distance import ca_distance
from .verdict import Verdict


class Recycler(Solver):
    r"""Recycling: :math:`x_{k+1} = \text{step}(x_k)`, until the structure
    stops changing.

    The operator is ``step``, the state whatever it recycles, and the residual
    ``distance(x_k, step(x_k))``. Ends

    - CONVERGED where it is at most ``tol``. The value is the output of that
      pass, not its input: so a converged solve equals running ``step`` as
      often by hand.
    - STAGNATED where passes return to earlier structures without coming
      closer (a cycle of up to 4), DIVERGED where the distance keeps rising,
      NONFINITE at a NaN. The value is the output of the pass with the
      smallest distance.
    - MAX_ITER after ``max_recycles + 1`` passes, with the last state.

    Args:
        step: callable or module; takes a state, returns one of the same
            structure: a Tensor, or tuples, lists and dicts of Tensors.
            Integer Tensors (bins) are carried along, never smoothed.
        distance: ``distance(prev, cur)`` of two states, a Tensor without
            dimensions, or [B]: the members of a batch (dim 0 of every leaf)
            then end apart. (default: :func:`ca_distance`, for states that
            are coordinates [N, 3] or [B, N, 3])
        tol: in the units of ``distance``. (default: 0.5, in Angstrom that of
            AlphaFold-Multimer)
        max_recycles: passes after the first. (default: 20)
        alpha: weight of the *old* state in the next input,
            ``alpha*x + (1-alpha)*step(x)``. (default: 0, plain recycling)
        smooth: the parts of the state that ``alpha`` is for, by their keys or
            positions at its top level: representations take smoothing,
            coordinates and frames do not. (default: all floating ones)
        callback: ``callback(k, state, distance)`` after pass k = 0, 1, ...,
            with its output and distances [S]; returning True stops.
        on_failure: ``"warn"``, ``"raise"`` or ``"ignore"``.
        gradient: :obj:`None`: through the last pass only, as AlphaFold is
            trained; or one of :func:`fixed_point`.

    Calling it with the first state returns a :class:`Solution`; its
    ``residual_history`` holds the distances of all passes.

    Raises:
        ValueError, TypeError: an option, the state or what ``distance``
            returns is not as above.

    Source: Jumper et al. 2021, section 1.10 of the supplement; Zappala et al.
    2023, section on AlphaFold; stopping as in AlphaFold-Multimer.
    """

    alpha: float | Tensor

    def __init__(
        self,
        step: Callable[[Any], Any],
        *,
        distance: Callable[[Any, Any], Tensor] = ca_distance,
        tol: float = 0.5,
        max_recycles: int = 20,
        alpha: float | Tensor = 0.0,
        smooth: Iterable[Any] | None = None,
        callback: Callable[[int, Any, Tensor], Any] | None = None,
        on_failure: str = "warn",
        gradient: Gradient | None = None,
    ):
        for name, value in (("step", step), ("distance", distance)):
            if not callable(value):
                raise TypeError(f"{name} must be callable, got {value!r}")
        if callback is not None and not callable(callback):
            raise TypeError(f"callback must be callable, got {callback!r}")
        max_recycles = check_count("max_recycles", max_recycles, least=0)
        tol = as_float("tol", tol)
        if not 0 <= tol < float("inf"):
            raise ValueError(f"tol must be finite and not negative, got {tol}")
        super().__init__(
            alpha=alpha,
            max_iter=max_recycles + 1,
            rtol=0.0,
            atol=tol,
            method=None,
            gradient=gradient,
            on_failure=on_failure,
        )
        self.step = step
        self.distance = distance
        self.smooth = None if smooth is None else _names(smooth)
        self.callback = callback

    def forward(self, state: Any) -> Solution:
        """Recycle from ``state``, the input of the first pass."""
        form = _Form(state)
        first = form.enter(state)

        def distance(prev: Any, cur: Any) -> Tensor:
            return self.distance(form.leave(prev), form.leave(cur))

        segments = _segments(self.distance(state, state))
        verdict = Verdict(distance, self.atol, self.max_iter)

        def operator(x: Any) -> Any:
            verdict.output = form.enter(self.step(form.leave(x)))
            return verdict.output

        def callback(k: int, x: Any, residual: Tensor) -> Any:
            out = form.leave(verdict.output)
            if self.callback is not None and self.callback(k, out, residual):
                return True
            return verdict(k, residual)

        with held_weights(self):
            solution = solve(
                operator,
                first,
                method=Picard(alpha=form.weights(self.alpha, self.smooth)),
                max_iter=self.max_iter,
                rtol=0.0,
                atol=self.atol,
                segments=segments,
                gradient=self.gradient,
                on_failure="ignore",
                callback=callback,
                distance=distance,
                images=True,
                called="step",
            )
        solution.value = form.leave(solution.value)
        # past the two frames of Module.__call__
        solution.report(self.on_failure, stacklevel=4)
        return solution

    def extra_repr(self) -> str:
        name = getattr(self.step, "__name__", type(self.step).__name__)
        step = "" if isinstance(self.step, Module) else f"{name}, "
        return (
            f"{step}tol={self.atol}, max_recycles={self.max_iter - 1}, "
            f"alpha={self.alpha}"
        )


class _Form:
    """A state as the engine wants it: floating Tensors only.

    Integers up to 2^53 and bools go as float64 and come back as they were.
    """

    def __init__(self, state: Any):
        leaves, self.spec = pytree.tree_flatten(state)
        for t in leaves:
            if not isinstance(t, Tensor):
                raise TypeError(
                    "state must hold Tensors only (constants belong into "
                    f"step), got {type(t).__name__}"
                )
        self.dtypes = [t.dtype for t in leaves]

    def enter(self, state: Any) -> Any:
        if isinstance(state, Tensor):
            return _floating(state)
        return pytree.tree_map(_floating, state)

    def leave(self, state: Any) -> Any:
        leaves = self.spec.flatten_up_to(state)
        back = [
            t if t.dtype == dtype else t.to(dtype)
            for t, dtype in zip(leaves, self.dtypes)
        ]
        return pytree.tree_unflatten(back, self.spec)

    def weights(self, alpha: Any, smooth: list[Any] | None) -> Any:
        """alpha for every leaf, 0 where it is not smoothed."""
        each = [alpha if t.is_floating_point else 0.0 for t in self.dtypes]
        if self.spec.is_leaf():
            if smooth is not None:
                raise ValueError(
                    "smooth names parts of a state, but the state is a single "
                    "Tensor"
                )
            return each[0]
        tree = pytree.tree_unflatten(each, self.spec)
        if smooth is None:
            return tree
        paths, _ = pytree.tree_flatten_with_path(tree)
        names = list(dict.fromkeys(_name(path) for path, _ in paths))
        if unknown := [name for name in smooth if name not in names]:
            raise ValueError(
                f"smooth must name parts of the state, {names}, got {unknown}"
            )
        return pytree.tree_map_with_path(
            lambda path, a: a if _name(path) in smooth else 0.0, tree
        )


def _name(path: Any) -> Any:
    """Key, position or field at the top level."""
    top = path[0]
    for kind in ("key", "idx", "name"):
        if hasattr(top, kind):
            return getattr(top, kind)
    return top


def _floating(t: Any) -> Any:
    if isinstance(t, Tensor) and not t.is_floating_point():
        return t.to(torch.float64)
    return t


def _segments(distance: Any) -> str | None:
    """What distance of a state to itself says about the batch."""
    if not isinstance(distance, Tensor) or distance.dim() > 1:
        got = type(distance).__name__
        if isinstance(distance, Tensor):
            got = f"shape {list(distance.shape)}"
        raise ValueError(
            "distance must return a Tensor without dimensions, or [B] for a "
            f"batch, got {got}"
        )
    return "leading" if distance.dim() else None


def _names(smooth: Any) -> list[Any]:
    if isinstance(smooth, str) or not isinstance(smooth, Iterable):
        raise TypeError(
            "smooth must be a collection of keys or positions, such as "
            f"('s', 'z'), got {smooth!r}"
        )
    return list(smooth)
