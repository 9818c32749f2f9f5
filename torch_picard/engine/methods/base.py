"""What a method is: a small frozen dataclass with ``init`` and ``step``."""

from __future__ import annotations

import numbers
import operator
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from ..operator import Evaluator
from ..point import Point
from ..space import Leaves, Space


class Method:
    """One way to choose x_{k+1}. Subclasses are frozen dataclasses whose
    fields are the options; what changes during a solve is the *carry*, a
    structure of tensors.
    """

    #: non-finite evaluations in a row that ``step`` can take back
    patience: ClassVar[int] = 0
    #: whether every step makes no evaluation of its own
    lockstep: ClassVar[bool] = True

    @property
    def stride(self) -> float | None:
        """h with ``|x_{k+1} - x_k| <= h*r(x_k)`` always; None if none.
        Where it is known, the solve need not keep earlier iterates."""
        return None

    @property
    def smoothing(self) -> float | Tensor | None:
        """alpha, if every step is ``here.smoothed(alpha)`` and nothing else
        of the evaluation is looked at; a kernel may then do it at once."""
        return None

    @property
    def kind(self) -> str:
        """Its class, by name: a Solution that held a dataclass itself could
        not be rebuilt, as FSDP does with what a module returns."""
        return f"{type(self).__module__}.{type(self).__qualname__}"

    def init(self, space: Space) -> Any:
        """The carry before the first step."""
        return None

    def resume(self, carry: Any, space: Space) -> Any:
        """The carry of an earlier solve, made fit for a new one."""
        return carry

    def step(
        self, evaluate: Evaluator, here: Point, carry: Any, left: int
    ) -> tuple[Leaves, Any]:
        """x_{k+1} and the new carry, from x_k and P(x_k).

        ``left`` evaluations remain; a method that spends some itself keeps
        one for measuring the next residual.
        """
        raise NotImplementedError

    def report(self, carry: Any, here: Point) -> dict[str, Tensor]:
        """What goes to ``Solution.info``, after the last evaluation."""
        return {}

    # For methods with ``eq=False``, whose settings may be Tensors; those of
    # numbers have the same from their dataclass.

    def __eq__(self, other: object) -> bool:
        """By type and settings; Tensors by dtype and value."""
        if type(other) is not type(self):
            return NotImplemented
        mine, names = pytree.tree_flatten(vars(self))
        theirs, others = pytree.tree_flatten(vars(other))
        return names == others and all(map(_same, mine, theirs))

    def __hash__(self) -> int:
        return hash(type(self))  # a learned setting changes


def _same(a: Any, b: Any) -> bool:
    tensors = isinstance(a, Tensor), isinstance(b, Tensor)
    if not any(tensors):
        return bool(a == b)
    like = all(tensors) and (a.dtype, a.device) == (b.dtype, b.device)
    return like and torch.equal(a, b)


def check_alpha(alpha: float | Tensor) -> None:
    """0 <= alpha < 1, for a number or every entry of a tensor."""
    if isinstance(alpha, Tensor):
        if torch.compiler.is_compiling():
            return
        if not alpha.is_floating_point() or alpha.numel() == 0:
            raise ValueError(
                "alpha must be a number or a real floating Tensor that "
                f"broadcasts to the state, got {alpha.dtype} of shape "
                f"{list(alpha.shape)}"
            )
        low, high = alpha.min().item(), alpha.max().item()
        got = f"{low} to {high}" if low < high else low
    elif isinstance(alpha, (int, float)) and not isinstance(alpha, bool):
        low = high = got = alpha
    else:
        raise TypeError(
            f"alpha must be a number or a Tensor, got {type(alpha).__name__}"
        )
    if not (low >= 0 and high < 1):
        raise ValueError(
            "alpha weights the old state and must be in [0, 1), got "
            f"{got}; alpha = 1 would never move"
        )


def check_number(name: str, value: Any) -> None:
    """For options that nothing can be learned through."""
    if isinstance(value, Tensor):
        raise TypeError(
            f"{name} must be a number here, not a Tensor; Picard(alpha=...) "
            "takes one, and passes gradients to it"
        )


def as_int(name: str, value: Any) -> int:
    """An int, or what stands for one, as numpy's do; no bool."""
    if not isinstance(value, bool):
        try:
            return operator.index(value)
        except TypeError:
            pass
    kind = type(value).__name__
    raise TypeError(f"{name} must be an int, got {value!r} ({kind})")


def as_float(name: str, value: Any) -> float:
    """A real number, numpy's included; no bool."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        kind = type(value).__name__
        raise TypeError(f"{name} must be a number, got {value!r} ({kind})")
    return float(value)


def check_count(name: str, value: Any, least: int = 1) -> int:
    """An int that is at least ``least``."""
    value = as_int(name, value)
    if value < least:
        raise ValueError(f"{name} must be at least {least}, got {value}")
    return value


def check_positive(name: str, value: Any) -> None:
    """A finite number above 0."""
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not number:
        raise TypeError(f"{name} must be a number, got {type(value).__name__}")
    if not 0 < value < float("inf"):
        raise ValueError(f"{name} must be positive and finite, got {value}")
