"""Built-in and generated graphs, and feature transforms."""

from torch_picard.datasets.chains import ChainGraphs
from torch_picard.datasets.digits import DigitsGraph
from torch_picard.datasets.transforms import Centre, DropInNoise

__all__ = ["Centre", "ChainGraphs", "DigitsGraph", "DropInNoise"]
