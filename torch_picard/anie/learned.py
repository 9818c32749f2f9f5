"""What the learned equations have in common."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..nn.solver import Solver


class LearnedEquation(Solver):
    """A solver whose parameters are all in its parts."""

    def reset_parameters(self) -> None:
        """Resets all learnable parameters of the module."""
        for module in self.modules():
            if module is not self and hasattr(module, "reset_parameters"):
                module.reset_parameters()  # type: ignore[operator]
        self.reset_alpha()

    def check_dtype(self, name: str, value: Tensor) -> None:
        """
        Raises:
            TypeError: value is in another dtype than the parameters.
        """
        for which, parameter in self.named_parameters():
            if which == "alpha" or not parameter.is_floating_point():
                continue
            wrong = value.dtype != parameter.dtype
            if wrong and not torch.is_autocast_enabled(value.device.type):
                raise TypeError(
                    f"{name} must be of {parameter.dtype}, as the "
                    f"parameters, got {value.dtype}"
                )
            return


def check_points(
    y: Any, coords: Any, channels: int, coord_dim: int, name: str
) -> None:
    """y [B, N, C] at coords [N, d] or [B, N, d]."""
    if not isinstance(y, Tensor) or not y.is_floating_point():
        raise TypeError(
            f"{name} must be a floating Tensor [B, N, {channels}], got "
            f"{_kind(y)}"
        )
    if y.dim() != 3 or y.size(-1) != channels:
        raise ValueError(
            f"{name} must be of shape [B, N, {channels}], got {list(y.shape)}"
        )
    if not isinstance(coords, Tensor):
        raise TypeError(
            f"coords must be a Tensor [N, {coord_dim}], got {_kind(coords)}"
        )
    rows = (y.size(1), coord_dim)
    if tuple(coords.shape) not in (rows, (y.size(0), *rows)):
        raise ValueError(
            f"coords must be of shape {list(rows)} (the points of {name}, in "
            f"its order), or that with a batch in front, got "
            f"{list(coords.shape)}"
        )


def _kind(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"a Tensor of {value.dtype}"
    return type(value).__name__
