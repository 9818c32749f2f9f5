"""The iteration: one loop, five methods, four gradients, one result."""

from .equation import OperatorEquation
from .gradients import Gradient, Implicit, OneStep, Phantom, Unrolled
from .methods import (
    Adaptive,
    Anderson,
    Broyden,
    Method,
    NewtonKrylov,
    Picard,
)
from .solution import Solution
from .solve import fixed_point
from .status import ConvergenceError, ConvergenceWarning, Status

__all__ = [
    "Adaptive",
    "Anderson",
    "Broyden",
    "ConvergenceError",
    "ConvergenceWarning",
    "Gradient",
    "Implicit",
    "Method",
    "NewtonKrylov",
    "OneStep",
    "OperatorEquation",
    "Phantom",
    "Picard",
    "Solution",
    "Status",
    "Unrolled",
    "fixed_point",
]
