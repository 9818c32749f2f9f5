"""Chains of affine maps, all of their states at once."""

from __future__ import annotations

from torch import Tensor, zeros_like

Map = tuple[Tensor, Tensor | None]


def chain(change: Tensor, gain: Tensor | None, span: int | None) -> Tensor:
    """e_{j+1} = gain_j e_j + change_j from e_0 = 0: what comes out of every
    column, of [B, W, ...] like ``change``.

    Args:
        gain: to be broadcast with change; None: 1.
        span: each column looks back over so many, itself included; None:
            over all.

    Zeros give 0, exactly. By doubling: log2(W) products.
    """
    columns = change.size(1)
    if span is None or span >= columns:
        if gain is None:
            return change.cumsum(1)
        span = 1 << (columns - 1).bit_length()
    total: Map | None = None
    block: Map = (change, gain)
    size, behind = 1, 0
    while True:
        if span & 1:
            total = block if total is None else _after(total, block, behind)
            behind += size
        span >>= 1
        if not span:
            break
        block = _after(block, block, size)
        size *= 2
    assert total is not None
    return total[0]


def _after(last: Map, first: Map, columns: int) -> Map:
    """One behind the other; ``last`` is of so many columns."""
    change, gain = last
    early = before(first[0], columns)
    if gain is None or first[1] is None:
        return change + early, None
    return change + gain * early, gain * before(first[1], columns)


def before(values: Tensor, columns: int = 1) -> Tensor:
    """[B, W, ...]: of each column that of so many before; 0 for the first."""
    out = zeros_like(values)
    out[:, columns:] = values[:, : max(0, values.size(1) - columns)]
    return out
