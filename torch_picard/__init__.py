"""Solve x = P(x) for neural operators, with graphs as first-class citizens."""

from ._version import __version__
from .engine import (
    Adaptive,
    Anderson,
    Broyden,
    ConvergenceError,
    ConvergenceWarning,
    Implicit,
    NewtonKrylov,
    OneStep,
    OperatorEquation,
    Phantom,
    Picard,
    Solution,
    Status,
    Unrolled,
    fixed_point,
)
from .nn import PIGN, PicardConv, picard_inference

__all__ = [
    "Adaptive",
    "Anderson",
    "Broyden",
    "ConvergenceError",
    "ConvergenceWarning",
    "Implicit",
    "NewtonKrylov",
    "OneStep",
    "OperatorEquation",
    "PIGN",
    "Phantom",
    "Picard",
    "PicardConv",
    "Solution",
    "Status",
    "Unrolled",
    "__version__",
    "fixed_point",
    "picard_inference",
]
