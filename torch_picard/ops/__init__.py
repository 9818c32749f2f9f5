"""Fused smoothed updates, on compiled, torch-scatter and plain backends."""

from .smoothed import smoothed_propagate, smoothed_update

__all__ = ["smoothed_propagate", "smoothed_update"]
