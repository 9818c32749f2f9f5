"""Vision transformers, iterated."""

from .picard_vit import PicardViT
from .split import Split, split

__all__ = ["PicardViT", "Split", "split"]
