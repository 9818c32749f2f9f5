"""Convolutions on grids, through their transfer function."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from ..bounds import Bound, Context, register_bound, times


@register_bound(nn.Conv1d)
@register_bound(nn.Conv2d)
def _conv(module: Any, context: Context) -> Bound:
    weight = context.weight(module, "weight")
    copies = _copies(module, context.input_size)
    size = _image_size(module, context.input_size)
    image: Any = {"width": None if size is None else size[-1], "size": size}
    if context.norm != "l2":
        # [O, I*k] has the row sums, [O*k, I] the column sums; groups are
        # blocks of rows
        if context.norm == "linf":
            constant = context.matrix_norm(weight.flatten(1))
            return Bound(constant, **image)
        blocks = weight.unflatten(0, (module.groups, -1))
        columns = blocks.transpose(1, 2).flatten(2).mT
        constant = times(copies, context.matrix_norm(columns))
        return Bound(constant, **image)
    exact = module.padding_mode == "circular" and context.input_size
    if exact:
        sizes = _sizes(module, context.input_size)
        grown = 1.0
    else:
        sizes, grown = _grid(weight.shape[2:])
    spectrum = _transfer(module, weight, sizes, dilated=bool(exact))
    constant = context.matrix_norm(spectrum)
    return Bound(times(grown * math.sqrt(copies), constant), **image)


def _transfer(
    module: Any, weight: Tensor, sizes: list[int], dilated: bool
) -> Tensor:
    """sum_k W_k e^{-i w k} on a grid of frequencies [*, groups, O/g, I/g].
    Opposite frequencies of a real kernel are conjugates: half of the last
    axis is enough."""
    out = weight.unflatten(0, (module.groups, -1))  # [g, O/g, I/g, *k]
    dtype = torch.complex128
    for axis, (taps, size) in enumerate(zip(weight.shape[2:], sizes)):
        steps = module.dilation[axis] if dilated else 1
        last = axis == len(sizes) - 1
        count = size // 2 + 1 if last else size
        turns = torch.outer(torch.arange(count), steps * torch.arange(taps))
        angle = -2 * math.pi / size * (turns % size).double()
        wave = torch.polar(torch.ones_like(angle), angle)
        wave = wave.to(weight.device, dtype)
        # contracts the first remaining tap axis; frequencies come last
        out = torch.tensordot(out.to(dtype), wave, dims=([3], [1]))
    dims = range(3, out.dim())
    return out.permute(*dims, 0, 1, 2)


def _grid(taps: Any) -> tuple[list[int], float]:
    r"""Frequencies for the supremum over all of them, whatever the size of
    the image: a trigonometric polynomial of degree K is nowhere larger than
    its maximum on M > 2K equidistant points times :math:`1/\cos(\pi K/M)`
    (Ehlich and Zeller 1964)."""
    sizes, grown = [], 1.0
    for count in taps:
        degree = count // 2
        size = max(1, 32 * degree)
        sizes.append(size)
        grown /= math.cos(math.pi * degree / size)
    return sizes, grown


def _sizes(module: Any, input_size: Any) -> list[int]:
    dims = len(module.kernel_size)
    if len(input_size) not in (1, dims):
        raise ValueError(
            f"input_size must have {dims} entries for "
            f"{type(module).__name__}, got {tuple(input_size)}"
        )
    return list(input_size) * (dims // len(input_size))


def _image_size(module: Any, input_size: Any) -> tuple[int, ...] | None:
    if input_size is None:
        return None
    found = []
    for axis, size in enumerate(_sizes(module, input_size)):
        span = module.dilation[axis] * (module.kernel_size[axis] - 1)
        room = size + _padding(module, axis) - span - 1
        found.append(max(0, room) // module.stride[axis] + 1)
    return tuple(found)


def _padding(module: Any, axis: int) -> int:
    """What torch puts on the two sides together."""
    return sum(module._reversed_padding_repeated_twice[-2 * axis - 2 :][:2])


def _copies(module: Any, input_size: Any) -> float:
    """How often padding may repeat one entry of the input; the norm of that
    map is its root in l2, and itself in l1."""
    mode = module.padding_mode
    if mode == "zeros":
        return 1.0
    copies = 1.0
    for axis, taps in enumerate(module.kernel_size):
        span = module.dilation[axis] * (taps - 1)
        pad = _padding(module, axis)
        if mode == "circular":
            # the result is periodic, too: it repeats where it is longer
            # than the input
            extra = pad - span
            if extra > 0:
                if input_size is None:
                    return math.inf
                size = _sizes(module, input_size)[axis]
                copies *= math.ceil((size + extra) / size)
        elif mode == "reflect":
            copies *= 3.0 if pad else 1.0
        else:
            copies *= 1.0 + pad
    return copies
