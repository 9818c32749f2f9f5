"""Memory that is used again from one iteration to the next."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .library import is_compiled


class Workspace:
    """Memory for h = x W', which nobody needs any longer than a call: the
    next iteration, forward or backward, uses it again."""

    def __init__(self) -> None:
        self._kept: dict[Any, Tensor] = {}

    def empty(self, name: str, shape: Any, like: Tensor, dtype=None) -> Tensor:
        dtype = dtype or like.dtype
        kept = self._kept.get(name)
        if (
            kept is None
            or kept.shape != shape
            or kept.dtype != dtype
            or kept.device != like.device
        ):
            kept = torch.empty(shape, dtype=dtype, device=like.device)
            if like.device.type == "cpu" and is_compiled(like.device):
                torch.ops.torch_picard._prefer_huge_pages(kept)
            self._kept[name] = kept
        return kept
