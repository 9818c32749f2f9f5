"""Diffusion sampling as the fixed point of a triangular map."""

from .chain import reverse_chain
from .sampler import PicardSampler

__all__ = ["PicardSampler", "reverse_chain"]
