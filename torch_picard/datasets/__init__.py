"""Built-in and generated data, and feature transforms."""

from .chains import ChainGraphs
from .darcy import Darcy, darcy_coefficients, solve_darcy
from .digits import DigitsGraph
from .navier_stokes import (
    NavierStokes2D,
    gaussian_random_field,
    solve_navier_stokes,
)
from .transforms import Centre, DropInNoise

__all__ = [
    "Centre",
    "ChainGraphs",
    "Darcy",
    "DigitsGraph",
    "DropInNoise",
    "NavierStokes2D",
    "darcy_coefficients",
    "gaussian_random_field",
    "solve_darcy",
    "solve_navier_stokes",
]
