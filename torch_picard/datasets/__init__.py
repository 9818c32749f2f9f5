"""Built-in and generated graphs, and feature transforms."""

from .chains import ChainGraphs
from .digits import DigitsGraph
from .transforms import Centre, DropInNoise

__all__ = ["Centre", "ChainGraphs", "DigitsGraph", "DropInNoise"]
