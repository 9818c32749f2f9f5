"""Graph modules: any conv iterated, and a model ready to train."""

from . import bounds
from .history import StoredPicard
from .hops import num_hops
from .inference import picard_inference
from .picard_conv import PicardConv
from .pign import PIGN

__all__ = [
    "PIGN",
    "PicardConv",
    "StoredPicard",
    "bounds",
    "num_hops",
    "picard_inference",
]
