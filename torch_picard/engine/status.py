"""How a solve ended, in words a user can act on."""

from __future__ import annotations

from enum import IntEnum


class Status(IntEnum):
    """Outcome of one segment of a solve.

    ``str(status)`` says what happened and what to try. A one-element tensor
    is accepted: ``Status(solution.status[0])``.
    """

    CONVERGED = 0
    MAX_ITER = 1
    DIVERGED = 2
    STAGNATED = 3
    NONFINITE = 4
    STOPPED = 5

    @classmethod
    def _missing_(cls, value):
        # Tensors hash by identity, so the lookup by value arrives here.
        try:
            number = int(value)
        except (TypeError, ValueError, RuntimeError):
            return None
        return cls._value2member_map_.get(number)

    def __str__(self) -> str:
        return f"{self.name}: {_MEANING[self]}"

    @property
    def failed(self) -> bool:
        """Neither converged nor stopped by the caller."""
        return self not in (Status.CONVERGED, Status.STOPPED)


_MEANING = {
    Status.CONVERGED: (
        "the measured residual |P(x) - x| passed atol + rtol*|P(x)|."
    ),
    Status.MAX_ITER: (
        "the evaluations ran out before the residual passed; the value is "
        "the last iterate. Try a larger max_iter, a looser rtol, or "
        "method=Anderson() or Broyden()."
    ),
    Status.DIVERGED: (
        "the residual kept growing; the value is the best iterate seen. "
        "The operator does not contract here: try a larger alpha, "
        "method=Adaptive() or Anderson(), or limit its Lipschitz constant."
    ),
    Status.STAGNATED: (
        "the residual stopped falling (a cycle, a drift, or the rounding "
        "floor); the value is the best iterate seen. Try alpha > 0 (0.5 "
        "breaks cycles), method=Anderson(), a looser rtol or a wider dtype."
    ),
    Status.NONFINITE: (
        "P(x) held a NaN or an infinity; the value is the best finite "
        "iterate seen. Check the operator's inputs and domain, or try a "
        "larger alpha."
    ),
    Status.STOPPED: (
        "the callback asked to stop; the value is the iterate it saw."
    ),
}

#: Instead, if the value shows it.
NONFINITE_START = (
    "NONFINITE: x0 itself held a NaN or an infinity; check what it is made "
    "of. Where it did not, P(x) did, and the value is the best finite iterate."
)


class ConvergenceWarning(UserWarning):
    """A solve failed and ``on_failure="warn"``."""


class ConvergenceError(RuntimeError):
    """A solve failed and ``on_failure="raise"``.

    Attributes:
        solution: the :class:`Solution`, as it would have been returned.
    """

    def __init__(self, message: str, solution=None):
        super().__init__(message)
        self.solution = solution

    def __reduce__(self):
        return type(self), (self.args[0], self.solution)
