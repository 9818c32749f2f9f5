"""Diffusion sampling as the fixed point of a triangular map."""

from .chain import reverse_chain
from .guidance import Guided
from .pipeline import ParallelPipeline
from .sampler import PicardSampler

__all__ = ["Guided", "ParallelPipeline", "PicardSampler", "reverse_chain"]
