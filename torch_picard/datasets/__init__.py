"""Built-in and generated data, and feature transforms."""

from .chains import ChainGraphs
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
    "DigitsGraph",
    "DropInNoise",
    "NavierStokes2D",
    "gaussian_random_field",
    "solve_navier_stokes",
]
