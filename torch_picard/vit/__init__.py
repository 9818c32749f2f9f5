"""Vision transformers, iterated."""

from .dense import DenseReadout
from .masked import MaskedPicardViT, patch_mask
from .picard_vit import PicardViT
from .split import Split, split

__all__ = [
    "DenseReadout",
    "MaskedPicardViT",
    "PicardViT",
    "Split",
    "patch_mask",
    "split",
]
