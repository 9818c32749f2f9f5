"""What a solve returns."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from .space import tree_map
from .status import (
    NONFINITE_START,
    ConvergenceError,
    ConvergenceWarning,
    Status,
)


@dataclass
class Ending:
    """The last own entry of every segment in the history, and its last
    update as by :func:`secant`; all [S]. ``moved``: an earlier iterate was
    returned, which the error bound is not about."""

    last: Tensor
    step: Tensor
    slope: Tensor
    moved: Tensor | None = None


class Later:
    """What ``backward()`` finds out about a solve. The copies of a
    :class:`Solution` share it: FSDP returns one in place of each dataclass
    that a module returns, which is why this is none."""

    backward: Solution | None = None


@dataclass(repr=False, eq=False)
class Solution:
    """Result of :func:`fixed_point`. S segments, K recorded evaluations.

    A deep copy, and what is pickled, is detached: it has the values, not the
    graph behind ``value``. ``copy.copy`` keeps that.

    Attributes:
        value: the state, in the structure of ``x0``.
        status: [S] long, values of :class:`Status`.
        iterations: [S] long, updates behind the returned iterate: k if
            ``value`` is x_k.
        evaluations: evaluations of P that were spent, each Jacobian product
            included, and the one that attaches an implicit or truncated
            gradient.
        residual: [S], ``|P(x) - x|`` in l2, of ``value``. For MAX_ITER
            the last one measured, r(x_{n-1}).
        residual_history: [K, S], r(x_k). A finished segment repeats its
            last value.
        rate: [S], observed factor per iteration, the geometric mean of the
            last (up to 5) ratios of residuals. NaN after one evaluation.
        error_bound: [S], estimate of ``|x - x*|``: the larger of the
            a-posteriori bound of Banach's theorem (Theorem 2 of the paper)
            with the last ratio of residuals as the contraction factor, and
            the residual times the last ``|dx|/|df|``, f = P(x) - x.
            Infinite where nothing supports a bound. It is an estimate, not a
            certificate.
        info: what the method has to report, by name, each [S]; see there.
        rounds: of a sequence that is solved in parallel, the batched calls
            made one after the other; None elsewhere.
        backward: the :class:`Solution` of the linear solve behind the
            implicit gradient (``value=None``), after ``backward()``.
    """

    value: Any
    status: Tensor
    iterations: Tensor
    evaluations: int
    residual: Tensor
    residual_history: Tensor
    ending: Ending | None = None
    info: dict[str, Tensor] = field(default_factory=dict)
    method_state: Any = None
    rounds: int | None = None
    later: Later | None = None
    #: what was solved
    title: str = field(default="fixed_point", repr=False)

    @property
    def rate(self) -> Tensor:
        """[S], see the attributes."""
        ending = self._known_ending()
        return observed_rate(self.residual_history, ending.last)

    @property
    def error_bound(self) -> Tensor:
        """[S], see the attributes."""
        ending = self._known_ending()
        bound = error_estimate(
            self.residual_history,
            ending.last,
            self.residual,
            ending.step,
            ending.slope,
        )
        if ending.moved is not None:
            bound[ending.moved] = torch.inf
        return bound

    @property
    def backward(self) -> Solution | None:
        """See the attributes."""
        return None if self.later is None else self.later.backward

    def _known_ending(self) -> Ending:
        if self.ending is None:
            raise AttributeError("this Solution was made without its ending")
        return self.ending

    @property
    def converged(self) -> Tensor:
        """[S] bool."""
        return self.status == Status.CONVERGED

    def raise_for_status(self) -> Solution:
        """Raise :class:`ConvergenceError` unless every segment converged or
        was stopped by the callback; otherwise return ``self``."""
        if self._failed().any():
            raise ConvergenceError(self.describe(), self)
        return self

    def describe(self) -> str:
        """One line an outcome: how many segments, the worst residual, what
        to try."""
        lines = []
        for code in self.status.unique().tolist():
            mask = self.status == code
            residual = self.residual[mask].max().item()
            meaning = str(Status(code))
            if code == Status.NONFINITE and not self._finite():
                meaning = NONFINITE_START  # no iterate was better
            lines.append(
                f"{int(mask.sum())} of {mask.numel()} "
                f"(residual up to {residual:.3g}): {meaning}"
            )
        return (
            f"{self.title}, {self.evaluations} evaluations:\n  "
            + "\n  ".join(lines)
        )

    def __repr__(self) -> str:
        return f"<Solution {self.describe()}>"

    def _finite(self) -> bool:
        leaves = pytree.tree_leaves(self.value)
        tensors = (t for t in leaves if isinstance(t, Tensor))
        return all(bool(t.isfinite().all()) for t in tensors)

    def __getstate__(self) -> dict[str, Any]:
        """Of deep copies and pickles: a graph cannot be copied."""
        return tree_map(torch.detach, vars(self))

    def __copy__(self) -> Solution:
        return replace(self)

    def _failed(self) -> Tensor:
        done = self.status == Status.STOPPED
        return ~(done | self.converged)

    def report(self, on_failure: str, stacklevel: int) -> None:
        """Carry out ``on_failure``."""
        if on_failure == "ignore" or not self._failed().any():
            return
        if on_failure == "raise":
            raise ConvergenceError(self.describe(), self)
        warnings.warn(
            self.describe(), ConvergenceWarning, stacklevel=stacklevel + 1
        )


def observed_rate(history: Tensor, last: Tensor) -> Tensor:
    """Geometric mean of the last (up to 5) ratios of residuals, [S].

    Args:
        history: [K, S] residuals.
        last: [S] long, index of each segment's last own entry.
    """
    span = last.clamp(max=5)
    end = history.gather(0, last[None])[0]
    start = history.gather(0, (last - span)[None])[0]
    rate = (end / start) ** (1.0 / span.clamp(min=1))
    rate = torch.where(end == 0, torch.zeros_like(rate), rate)
    return torch.where(span == 0, torch.full_like(rate, torch.nan), rate)


def error_estimate(
    history: Tensor,
    last: Tensor,
    residual: Tensor,
    step: Tensor,
    slope: Tensor,
) -> Tensor:
    """See ``Solution.error_bound``. ``step`` and ``slope`` as by
    :func:`secant`, [S]; the others as in :func:`observed_rate`."""
    end = history.gather(0, last[None])[0]
    ratio = end / history.gather(0, (last - 1).clamp(min=0)[None])[0]
    bound = torch.maximum(step * ratio / (1 - ratio), residual * slope)
    known = (last > 0) & (ratio < 1) & torch.isfinite(bound)
    bound = torch.where(known, bound, torch.full_like(bound, torch.inf))
    return torch.where(residual == 0, torch.zeros_like(bound), bound)
