"""A fixed point needs P(x) to be as wide as x."""

from __future__ import annotations

from typing import Any

from torch import Tensor


def check_widths(conv: Any) -> None:
    """As far as the attributes of PyG's convs tell."""
    width, out = (
        getattr(conv, name, None) for name in ("in_channels", "out_channels")
    )
    if isinstance(width, (tuple, list)):
        width = width[0]
    if not isinstance(width, int) or not isinstance(out, int) or width < 1:
        return
    if getattr(conv, "concat", False):
        out *= getattr(conv, "heads", 1)
    out *= len(getattr(conv, "powers", [1]))  # MixHopConv concatenates them
    if width != out:
        raise ValueError(_changes_width(conv, width, out))


def check_shape(conv: Any, x: Tensor, z: Any) -> None:
    if isinstance(z, Tensor) and z.shape[:-1] == x.shape[:-1]:
        if z.size(-1) != x.size(-1):
            raise ValueError(_changes_width(conv, x.size(-1), z.size(-1)))


def _changes_width(conv: Any, width: int, out: int) -> str:
    return (
        f"conv must keep the width of x, but {conv} maps {width} features to "
        f"{out}. Change the width outside the iteration: "
        f"Linear({width}, {out}) before a conv from {out} to {out} (with "
        "attention heads, heads*out_channels or concat=False counts), or "
        "use PIGN, which has an encoder and a decoder"
    )
