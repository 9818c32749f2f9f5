"""Methods: how the next iterate is made from the evaluations so far."""

from .adaptive import Adaptive
from .anderson import Anderson
from .base import Method
from .broyden import Broyden
from .newton_krylov import NewtonKrylov
from .picard import Picard

__all__ = [
    "Adaptive",
    "Anderson",
    "Broyden",
    "Method",
    "NewtonKrylov",
    "Picard",
]
