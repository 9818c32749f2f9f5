"""Integral equations, given and learned."""

from .attention_equation import ANIE
from .fourier import FNO, FNODEQ
from .integral_equation import IntegralEquation
from .integro_differential import NIDE
from .neural_equation import NIE
from .quadrature import (
    Attention,
    GaussLegendre,
    MonteCarlo,
    Points,
    Trapezoid,
)

__all__ = [
    "ANIE",
    "Attention",
    "FNO",
    "FNODEQ",
    "GaussLegendre",
    "IntegralEquation",
    "MonteCarlo",
    "NIDE",
    "NIE",
    "Points",
    "Trapezoid",
]
