"""How much a structure changed between two passes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def ca_distance(prev: Tensor, cur: Tensor, mask: Tensor | None = None):
    r"""Root mean square change of all distances between CA atoms.

    .. math::
        d = \sqrt{\operatorname{mean}_{i,j}
            \left(|x_i - x_j| - |x'_i - x'_j|\right)^2}

    over all ordered pairs of residues, i = j included. It does not depend on
    how the two structures are placed in space.

    Args:
        prev, cur: CA coordinates [..., N, 3], in Angstrom.
        mask: [..., N], of the residues that count; others may hold anything
            finite.

    Returns:
        [...], detached, at least in float32; 0 where no residue counts.

    Raises:
        TypeError: not a Tensor.
        ValueError: not [..., N, 3], or shapes that differ.

    Source: Evans et al. 2021, "Protein complex prediction with
    AlphaFold-Multimer", whose recycling stops below 0.5 Angstrom.
    """
    for name, x in (("prev", prev), ("cur", cur)):
        _check_coordinates(name, x)
    if prev.shape != cur.shape:
        raise ValueError(
            "prev and cur must have one shape, got "
            f"{list(prev.shape)} and {list(cur.shape)}"
        )
    change = (_distances(prev) - _distances(cur)).square()
    if mask is None:
        pairs = max(1, change.size(-1) ** 2)
        return (change.sum((-1, -2)) / pairs).sqrt()
    _check_mask(mask, cur)
    counts = mask.to(change) != 0
    both = counts[..., :, None] & counts[..., None, :]
    # not a product: what does not count may be infinite
    total = torch.where(both, change, 0.0).sum((-1, -2))
    return (total / both.sum((-1, -2)).clamp(min=1)).sqrt()


def _distances(x: Tensor) -> Tensor:
    x = x.detach()
    x = x if x.dtype == torch.float64 else x.float()
    # by differences: |x|^2 + |y|^2 - 2 x.y would lose the small ones
    return torch.cdist(x, x, compute_mode="donot_use_mm_for_euclid_dist")


def _check_mask(mask: Any, x: Tensor) -> None:
    if not isinstance(mask, Tensor):
        raise TypeError(f"mask must be a Tensor, got {type(mask).__name__}")
    given, residues = mask.shape, x.shape[:-1]
    fits = given[-1:] == residues[-1:] and len(given) <= len(residues)
    # as expand() has it
    pairs = zip(given[::-1], residues[::-1])
    if not fits or any(m not in (1, n) for m, n in pairs):
        raise ValueError(
            "mask must be [..., N] like the residues, got "
            f"{list(given)} for coordinates {list(x.shape)}"
        )


def _check_coordinates(name: str, x: Any) -> None:
    if not isinstance(x, Tensor):
        raise TypeError(
            f"{name} must be CA coordinates [..., N, 3], got "
            f"{type(x).__name__}; where the state is a structure, say which "
            "part it is, as in distance=lambda prev, cur: "
            "ca_distance(prev['x'], cur['x'])"
        )
    if x.dim() < 2 or x.size(-1) != 3 or not x.is_floating_point():
        raise ValueError(
            f"{name} must be CA coordinates [..., N, 3] of a floating dtype, "
            f"got {x.dtype} of shape {list(x.shape)}; a state of another kind "
            "needs a distance of its own"
        )
