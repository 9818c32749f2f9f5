"""Recycling, as in AlphaFold: iterated until the structure stops changing."""

from .distance import ca_distance
from .esmfold import recycle_esmfold
from .recycler import Recycler

__all__ = ["Recycler", "ca_distance", "recycle_esmfold"]
