"""Integral equations, given and learned."""

from .integral_equation import IntegralEquation
from .quadrature import Attention, GaussLegendre, MonteCarlo, Trapezoid

__all__ = [
    "Attention",
    "GaussLegendre",
    "IntegralEquation",
    "MonteCarlo",
    "Trapezoid",
]
