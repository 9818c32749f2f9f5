"""What the engine uses of the kernels: whole states, several leaves, of the
dtypes that a state may have."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from . import updating
from .arguments import is_transformed
from .backends import choose


def is_native(backend: str | None, device: torch.device) -> bool:
    """Whether the compiled kernels are to be used."""
    if device.type not in ("cpu", "cuda"):
        return False
    return choose(backend, device, quiet=True) == "native"


def takes(x: Sequence[Tensor], alpha: float | Tensor = 0.0) -> bool:
    """A Tensor alpha must have one element and need no transfer."""
    if isinstance(alpha, Tensor):
        if alpha.numel() != 1 or alpha.device.type != "cpu":
            return False
    return not is_transformed(alpha, *x)


def update(
    x: Sequence[Tensor],
    z: Sequence[Tensor],
    alpha: float | Tensor,
    ptr: Sequence[Tensor | None],
    active: Tensor | None,
) -> tuple[tuple[Tensor, ...], Tensor]:
    """Leaves of alpha*x + (1-alpha)*z, and the sums over all of them."""
    y, total = [], None
    for a, b, offsets in zip(x, z, ptr):
        out, stats = updating.update(a, b, alpha, offsets, active)
        y.append(out)
        total = stats if total is None else total + stats
    assert total is not None
    return tuple(y), total
