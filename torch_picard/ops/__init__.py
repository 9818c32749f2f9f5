"""Fused smoothed updates, on compiled, torch-scatter and plain backends."""

from . import registration  # noqa: F401  (defines torch.ops.torch_picard)
from .smoothed import smoothed_propagate, smoothed_update

__all__ = ["smoothed_propagate", "smoothed_update"]
