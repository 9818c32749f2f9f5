"""The bounds of known modules; importing this registers them."""

from . import activations, attention, convolutions, dense, graph

__all__ = ["activations", "attention", "convolutions", "dense", "graph"]
