"""What all modules that solve x = P(x) have in common."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module, Parameter

from ..engine import Picard, Solution, Unrolled, fixed_point
from ..engine.gradients import Gradient
from ..engine.held import held_weights
from ..engine.methods import Method
from ..engine.methods.base import check_alpha, check_count
from ..engine.solve import check_on_failure, check_tolerances


class Solver(Module):
    """A module with the options of :func:`fixed_point`, checked.

    Args:
        alpha: weight of the *old* state, in [0, 1), or a Tensor. Belongs to
            ``method=None``. (default: 0.5)
        max_iter: evaluations of P allowed.
        rtol, atol: tolerances; both 0: exactly ``max_iter`` iterations.
        method: another method than Picard.
        gradient: how to differentiate. (default: :class:`Unrolled`)
        on_failure: ``"warn"``, ``"raise"`` or ``"ignore"``.
    """

    #: ConvergenceMonitor watches modules that say so.
    solves_fixed_point = True

    alpha: float | Tensor | None
    initial_alpha: Tensor

    def __init__(
        self,
        *,
        alpha: float | Tensor | None,
        max_iter: int,
        rtol: float,
        atol: float,
        method: Method | None,
        gradient: Gradient | None,
        on_failure: str,
    ):
        super().__init__()
        if method is not None and not isinstance(method, Method):
            raise TypeError(
                f"method must be an instance such as Anderson(), got "
                f"{method!r}"
            )
        if method is not None and alpha is not None:
            raise ValueError(
                f"alpha={alpha} belongs to method=None; give it to the "
                f"method instead, as in {type(method).__name__}(alpha=...)"
            )
        if gradient is not None and not isinstance(gradient, Gradient):
            raise TypeError(
                f"gradient must be an instance such as Implicit(), got "
                f"{gradient!r}"
            )
        alpha = 0.5 if method is None and alpha is None else alpha
        if alpha is not None:
            check_alpha(alpha)
        check_count("max_iter", max_iter)
        check_tolerances(rtol, atol)
        check_on_failure(on_failure)
        if isinstance(alpha, Parameter):
            self.alpha = alpha
            initial = alpha.detach().clone()
            self.register_buffer("initial_alpha", initial, persistent=False)
        elif isinstance(alpha, Tensor):
            self.register_buffer("alpha", alpha)
        else:
            self.alpha = alpha
        self.max_iter = max_iter
        self.rtol = rtol
        self.atol = atol
        self.method = method
        self.gradient = gradient
        self.on_failure = on_failure

    @property
    def counted(self) -> bool:
        """Whether exactly ``max_iter`` iterations are made."""
        return self.rtol == self.atol == 0

    def reset_alpha(self) -> None:
        """A learned alpha becomes what it was."""
        if isinstance(self.alpha, Parameter):
            with torch.no_grad():
                self.alpha.copy_(self.initial_alpha)

    def solve(
        self,
        operator: Callable[[Any], Any],
        x: Any,
        segments: Any,
        max_iter: int | None = None,
        **options: Any,
    ) -> Solution:
        """:func:`fixed_point` with the options of this module."""
        if max_iter is not None:
            check_count("max_iter", max_iter)
        options = {
            "method": self.iteration(),
            "max_iter": self.max_iter if max_iter is None else max_iter,
            "rtol": self.rtol,
            "atol": self.atol,
            "segments": segments,
            "gradient": self.gradient or Unrolled(),
            "on_failure": self.on_failure,
        } | options
        if torch.compiler.is_exporting():
            _check_counted(options["rtol"], options["atol"])
        with held_weights(self):
            return fixed_point(operator, x, **options)

    def iteration(self) -> Method:
        """The method of :func:`fixed_point`."""
        if self.method is not None:
            return self.method
        assert self.alpha is not None
        return Picard(alpha=self.alpha)

    def extra_repr(self) -> str:
        how = f"method={self.method}"
        if self.method is None:
            how = f"alpha={self.alpha}"
            if isinstance(self.alpha, Parameter):
                how = "alpha=learned"
            elif isinstance(self.alpha, Tensor):
                how = f"alpha={self.alpha.tolist()}"
        return f"{how}, max_iter={self.max_iter}"


def _check_counted(rtol: float, atol: float) -> None:
    if rtol != 0 or atol != 0:
        raise ValueError(
            "torch.export takes a fixed number of iterations: make the "
            f"module with rtol=0 and atol=0, got rtol={rtol} and atol={atol}"
        )
