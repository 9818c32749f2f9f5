"""The compiled operators as functions: memory, gradients, fake kernels.

``propagate`` and ``update`` are what smoothed.py and the engine call. The
same code stands behind ``torch.ops.torch_picard.smoothed_propagate`` and
``smoothed_update``, which torch.compile sees.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from . import reference
from .csr import Csr, check_csr
from .library import LIBRARY, is_compiled
from .reference import accumulation_dtype

ACTIVATIONS = ("none", "relu", "tanh")
REDUCTIONS = ("sum", "mean", "max")
NONE, MAX = ACTIVATIONS.index("none"), REDUCTIONS.index("max")
MEAN = REDUCTIONS.index("mean")

_OPS = torch.ops.torch_picard


# -- propagate ---------------------------------------------------------------


def propagate(
    rowptr: Tensor,
    col: Tensor,
    value: Tensor | None,
    h: Tensor,
    x: Tensor,
    alpha: float | Tensor,
    bias: Tensor | None,
    inject: Tensor | None,
    activation: int,
    reduce: int,
    ptr: Tensor | None,
    active: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """y and stats [S, 2], with gradients; indices are taken as checked.

    ``h`` may be of half precision where ``x`` is float32.
    """
    if is_transformed(value, h, x, alpha, bias, inject):
        return _formulas(
            rowptr, col, value, h, x, alpha, bias, inject, activation, reduce,
            ptr, active,
        )  # fmt: skip
    if not _needs_grad((value, h, x, alpha, bias, inject)):
        y, stats, _, _ = _forward(
            rowptr, col, value, h, x, alpha, bias, inject, activation, reduce,
            ptr, active, False, False, False,
        )  # fmt: skip
        return y, stats
    y, stats, _, _ = _Propagate.apply(
        rowptr, col, value, h, x, _as_tensor(alpha), bias, inject, activation,
        reduce, ptr, active, False, *_kept(activation, reduce, alpha),
    )  # fmt: skip
    return y, stats


def _forward(
    rowptr: Tensor,
    col: Tensor,
    value: Tensor | None,
    h: Tensor,
    x: Tensor,
    alpha: float | Tensor,
    bias: Tensor | None,
    inject: Tensor | None,
    activation: int,
    reduce: int,
    ptr: Tensor | None,
    active: Tensor | None,
    check: bool,
    keep_z: bool,
    keep_arg: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """y, stats, and what the gradient needs: z and, for max, the entries."""
    if not is_compiled(x.device):
        return _forward_reference(
            rowptr, col, value, h, x, alpha, bias, inject, activation, reduce,
            ptr, active, check, keep_z,
        )  # fmt: skip
    exact = accumulation_dtype(h.dtype)
    x = x.contiguous()
    y = torch.empty_like(x)
    z = torch.empty_like(x) if keep_z else None
    arg = None
    if keep_arg:
        arg = torch.empty(x.shape, dtype=torch.int32, device=x.device)
    size = 1 if ptr is None else ptr.numel() - 1
    stats = torch.empty(size, 2, dtype=torch.float64, device=x.device)
    _OPS._propagate(
        rowptr.contiguous(),
        col.contiguous(),
        _plain(value, exact),
        h.contiguous(),
        x,
        float(alpha),
        _plain(bias, exact),
        _plain(inject, x.dtype),
        activation,
        reduce,
        *_segments(ptr, active),
        check,
        y,
        stats,
        z,
        arg,
    )
    return y, stats, _or_empty(z, x), _or_empty(arg, x, torch.int32)


def _forward_reference(
    rowptr, col, value, h, x, alpha, bias, inject, activation, reduce, ptr,
    active, check, keep_z,
):  # fmt: skip
    if check:
        check_csr(rowptr, col, h.size(0))
    name = ACTIVATIONS[activation]
    z = reference.aggregate(rowptr, col, value, h, REDUCTIONS[reduce])
    z = reference.image(z, x, bias, inject, name, ptr, active)
    y, stats = reference.update(x, z, alpha, ptr, active)
    y = y.clone() if y is x else y
    return (
        y,
        stats,
        z.to(x.dtype) if keep_z else x.new_empty(0),
        x.new_empty(0, dtype=torch.int32),
    )


def _setup(ctx: Any, inputs: tuple, output: tuple) -> None:
    (rowptr, col, value, h, x, alpha, bias, inject, activation, reduce, ptr,
     active, _, _, _) = inputs  # fmt: skip
    _, _, z, arg = output
    ctx.mark_non_differentiable(output[1], z, arg)
    ctx.set_materialize_grads(False)
    ctx.options = activation, reduce
    ctx.sources, ctx.dtype = h.size(0), h.dtype
    # An affine map needs nothing of h and x for its derivatives.
    needs = ctx.needs_input_grad
    affine = activation == NONE and reduce != MAX and not needs[5]
    if affine and not needs[2]:
        h = None
    if affine:
        x = inject = bias = None
    ctx.save_for_backward(
        rowptr, col, value, h, x, alpha, bias, inject, ptr, active, z, arg
    )


def _backward(ctx: Any, gy: Tensor | None, *_: Any) -> tuple:
    none = (None,) * 15
    if gy is None:
        return none
    needs = ctx.needs_input_grad
    (rowptr, col, value, h, x, alpha, bias, inject, ptr, active, z, arg) = (
        ctx.saved_tensors
    )
    activation, reduce = ctx.options
    wanted = [needs[i] for i in (2, 3, 4, 5)]
    wanted.append(needs[6] or needs[7])
    if torch.is_grad_enabled():
        return _differentiable_backward(
            gy, needs, ctx.sources, ctx.dtype, rowptr, col, value, h, x,
            alpha, bias, inject, activation, reduce, ptr, active,
        )  # fmt: skip
    compute = (
        _OPS._smoothed_propagate_backward
        if type(gy) is not Tensor  # while it is traced
        else _gradients
    )
    gvalue, gh, gx, galpha, gz = compute(
        gy, rowptr, col, value, h, x, alpha, bias, inject, activation, reduce,
        ptr, active, z, arg, ctx.sources, ctx.dtype, wanted,
    )  # fmt: skip
    gbias = gz.sum(0) if needs[6] and gz is not None else None
    return (
        None,
        None,
        gvalue if needs[2] else None,
        gh if needs[3] else None,
        gx if needs[4] else None,
        galpha if needs[5] else None,
        gbias,
        gz if needs[7] else None,
        *none[8:],
    )


def _gradients(
    gy: Tensor,
    rowptr: Tensor,
    col: Tensor,
    value: Tensor | None,
    h: Tensor | None,
    x: Tensor | None,
    alpha: Tensor,
    bias: Tensor | None,
    inject: Tensor | None,
    activation: int,
    reduce: int,
    ptr: Tensor | None,
    active: Tensor | None,
    z: Tensor,
    arg: Tensor,
    sources: int,
    dtype: torch.dtype,
    wanted: list[bool],
    work: Workspace | None = None,
) -> tuple[Tensor | None, ...]:
    """Of value, h, x, alpha, and gz, that of bias and inject."""
    if not is_compiled(gy.device):
        return _gradients_reference(
            gy, rowptr, col, value, h, x, alpha, bias, inject, activation,
            reduce, ptr, active, sources, dtype, wanted,
        )  # fmt: skip
    want_value, want_h, want_x, want_alpha, _ = wanted
    exact = accumulation_dtype(gy.dtype)
    gy = gy.contiguous()
    rowptr, col = rowptr.contiguous(), col.contiguous()
    weight = float(alpha)
    gz, gx, galpha = gy, None, None
    if activation != NONE or weight or active is not None or want_alpha:
        gz = torch.empty_like(gy)
        gx = torch.empty_like(gy) if want_x else None
        galpha = gy.new_empty((), dtype=torch.float64) if want_alpha else None
        _OPS._update_backward(
            gy,
            z if z.numel() else None,
            None if x is None else x.contiguous(),
            weight,
            activation,
            *_segments(ptr, active),
            gx,
            gz,
            galpha,
        )
    elif want_x:
        gx = torch.zeros_like(gy)
    message = gz.to(dtype)
    gvalue = gh = None
    if want_h:
        transposed = Csr.of(rowptr, col, sources).transposed(rowptr, col)
        weights = transposed.weights(value, reduce == MEAN, dtype)
        shape = (sources, gy.size(1))
        if work is None:
            gh = torch.empty(shape, dtype=dtype, device=gy.device)
        else:
            gh = work.empty("gh", shape, gy, dtype)
        if reduce == MAX:
            _OPS._max_backward(
                transposed.colptr,
                transposed.row,
                transposed.perm,
                weights,
                message,
                arg,
                gh,
            )
        else:
            _OPS._propagate(
                transposed.colptr, transposed.row, weights, message, None,
                0.0, None, None, NONE, 0, None, None, False, gh, None, None,
                None,
            )  # fmt: skip
    if want_value:
        assert value is not None and h is not None
        gvalue = torch.empty(col.numel(), dtype=exact, device=gy.device)
        _OPS._sampled(
            rowptr,
            col,
            message,
            h.contiguous(),
            arg if reduce == MAX else None,
            reduce,
            gvalue,
        )
        gvalue = gvalue.to(value.dtype)
    if galpha is not None:
        galpha = galpha.to(alpha).reshape(alpha.shape)
    return gvalue, gh, gx, galpha, gz


def _gradients_reference(
    gy, rowptr, col, value, h, x, alpha, bias, inject, activation, reduce,
    ptr, active, sources, dtype, wanted,
):  # fmt: skip
    shape = sources, gy.size(1)
    h = gy.new_zeros(shape, dtype=dtype) if h is None else h
    x = torch.zeros_like(gy) if x is None else x
    with torch.enable_grad():
        leaves = [
            None if t is None else t.detach().requires_grad_()
            for t in (value, h, x, alpha)
        ]
        offset = torch.zeros_like(x, requires_grad=True)
        total = offset if inject is None else offset + inject.detach()
        out = _value(
            rowptr, col, leaves[0], leaves[1], leaves[2], leaves[3], bias,
            total, activation, reduce, ptr, active,
        )  # fmt: skip
        leaves.append(offset)
        chosen = [
            t for t, want in zip(leaves, wanted) if want and t is not None
        ]
        grads = iter(torch.autograd.grad(out, chosen, gy, allow_unused=True))
    return tuple(
        next(grads) if want and t is not None else None
        for t, want in zip(leaves, wanted)
    )


def _differentiable_backward(
    gy, needs, sources, dtype, rowptr, col, value, h, x, alpha, bias, inject,
    activation, reduce, ptr, active,
):  # fmt: skip
    """Second derivatives, through the formulas of reference.py."""
    width = gy.size(1)
    # Where the map is affine these were not kept, nor does it matter.
    h = gy.new_zeros(sources, width, dtype=dtype) if h is None else h
    x = torch.zeros_like(gy) if x is None else x
    if needs[6] and bias is None:
        bias = gy.new_zeros(width)
    if needs[7] and inject is None:
        inject = torch.zeros_like(gy)
    inputs = [value, h, x, alpha, bias, inject]
    inputs = [
        t if t is None or t.requires_grad or not need else t.requires_grad_()
        for t, need in zip(inputs, needs[2:8])
    ]
    out = _value(rowptr, col, *inputs, activation, reduce, ptr, active)  # type: ignore[call-arg]
    chosen = [t for t, need in zip(inputs, needs[2:8]) if need]
    grads = iter(
        torch.autograd.grad(
            out, chosen, gy, create_graph=True, allow_unused=True
        )
    )
    out = [next(grads) if need else None for need in needs[2:8]]
    return (None, None, *out, *(None,) * 7)


def _value(
    rowptr, col, value, h, x, alpha, bias, inject, activation, reduce, ptr,
    active,
):  # fmt: skip
    z = reference.aggregate(rowptr, col, value, h, REDUCTIONS[reduce])
    name = ACTIVATIONS[activation]
    z = reference.image(z, x, bias, inject, name, ptr, active)
    return reference.update(x, z, alpha, ptr, active)[0]


class _Propagate(torch.autograd.Function):
    forward = staticmethod(_forward)
    setup_context = staticmethod(_setup)
    backward = staticmethod(_backward)


def _formulas(
    rowptr, col, value, h, x, alpha, bias, inject, activation, reduce, ptr,
    active,
):  # fmt: skip
    z = reference.aggregate(rowptr, col, value, h, REDUCTIONS[reduce])
    name = ACTIVATIONS[activation]
    z = reference.image(z, x, bias, inject, name, ptr, active)
    return reference.update(x, z, alpha, ptr, active)


# -- a dense map, then propagate ---------------------------------------------


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
                _OPS._prefer_huge_pages(kept)
            self._kept[name] = kept
        return kept


def linear_propagate(
    rowptr: Tensor,
    col: Tensor,
    value: Tensor | None,
    u: Tensor,
    weight: Tensor | None,
    x: Tensor,
    alpha: float | Tensor,
    bias: Tensor | None,
    inject: Tensor | None,
    activation: int,
    reduce: int,
    ptr: Tensor | None,
    active: Tensor | None,
    low: torch.dtype | None,
    work: Workspace,
) -> tuple[Tensor, Tensor]:
    """:func:`propagate` of h = u W', which is not kept. ``low``: the dtype
    that h is rounded to, its product being taken in that of u."""
    inputs = (value, u, weight, x, alpha, bias, inject)
    if weight is None or is_transformed(*inputs):
        h = u if weight is None else torch.nn.functional.linear(u, weight)
        h = h if low is None else h.to(low)
        return propagate(
            rowptr, col, value, h, x, alpha, bias, inject, activation, reduce,
            ptr, active,
        )  # fmt: skip
    arguments = (
        rowptr, col, value, u, weight, x, _as_tensor(alpha), bias, inject,
        activation, reduce, ptr, active, low, work,
    )  # fmt: skip
    if not _needs_grad(inputs):
        return _linear_forward(*arguments, False, False)[:2]
    kept = _kept(activation, reduce, alpha)
    return _LinearPropagate.apply(*arguments, *kept)[:2]


def runs_whole(x: Tensor, *inputs: Any) -> bool:
    """Whether :func:`steps` can take over: there is a compiled loop, and no
    derivative is wanted."""
    if x.device.type != "cpu" or not is_compiled(x.device):
        return False
    return not (_needs_grad((x, *inputs)) or is_transformed(x, *inputs))


def steps(
    rowptr: Tensor,
    col: Tensor,
    value: Tensor | None,
    weight: Tensor | None,
    x: Tensor,
    alpha: float,
    bias: Tensor | None,
    inject: Tensor | None,
    activation: int,
    reduce: int,
    ptr: Tensor | None,
    count: int,
    low: torch.dtype | None,
    work: Workspace,
) -> tuple[Tensor, Tensor]:
    """``count`` times :func:`linear_propagate` of the state itself, without
    coming back to Python: x_count and the stats [count, S, 2]. Only where
    :func:`runs_whole` says so."""
    x = x.contiguous()
    size = 1 if ptr is None else ptr.numel() - 1
    stats = torch.empty(count, size, 2, dtype=torch.float64)
    y = torch.empty_like(x)
    _loop(
        rowptr, col, value, weight, x, alpha, bias, inject, activation,
        reduce, ptr, count, low, work, y, stats,
    )  # fmt: skip
    return y, stats


def hops(
    rowptr: Tensor,
    col: Tensor,
    value: Tensor | None,
    x: Tensor,
    inject: Tensor | None,
    reduce: int,
    count: int,
    work: Workspace,
) -> Tensor:
    """``count`` propagations with nothing but ``inject`` added, as
    :func:`steps` without smoothing and residuals. What comes back is memory
    of ``work``."""
    x = x.contiguous()
    y = work.empty("hop", x.shape, x)
    _loop(
        rowptr, col, value, None, x, 0.0, None, inject, NONE, reduce, None,
        count, None, work, y, None,
    )  # fmt: skip
    return y


def _loop(
    rowptr, col, value, weight, x, alpha, bias, inject, activation, reduce,
    ptr, count, low, work, y, stats,
):  # fmt: skip
    other = work.empty("other", x.shape, x) if count > 1 else None
    h = None
    if weight is not None or low is not None:
        h = work.empty("h", x.shape, x, low)
    exact = accumulation_dtype(x.dtype)
    with torch.no_grad(), torch.autocast(x.device.type, enabled=False):
        _OPS._steps(
            rowptr, col, _plain(value, exact),
            None if weight is None else weight.t(), x, alpha,
            _plain(bias, exact), _plain(inject, x.dtype), activation, reduce,
            ptr, count, y, other, h, stats,
        )  # fmt: skip


def _product(u: Tensor, weight: Tensor, low: Any, work: Workspace) -> Tensor:
    """u W', taken in the dtype of u and kept in ``low``."""
    shape = (u.size(0), weight.size(0))
    h = work.empty("h", shape, u, low)
    with torch.autocast(u.device.type, enabled=False):
        if low is None:
            return torch.mm(u, weight.t(), out=h)
        if u.device.type == "cpu" and is_compiled(u.device):
            _OPS._product(u, weight.t(), h)
            return h
        return h.copy_(torch.mm(u, weight.t()))


def _linear_forward(
    rowptr, col, value, u, weight, x, alpha, bias, inject, activation, reduce,
    ptr, active, low, work, keep_z, keep_arg,
):  # fmt: skip
    with torch.no_grad():
        h = _product(u, weight, low, work)
    return _forward(
        rowptr, col, value, h, x, alpha, bias, inject, activation, reduce,
        ptr, active, False, keep_z, keep_arg,
    )  # fmt: skip


class _LinearPropagate(torch.autograd.Function):
    @staticmethod
    def forward(*arguments):
        return _linear_forward(*arguments)

    @staticmethod
    def setup_context(ctx, inputs, output):
        (rowptr, col, value, u, weight, x, alpha, bias, inject, activation,
         reduce, ptr, active, low, work, _, _) = inputs  # fmt: skip
        _, stats, z, arg = output
        ctx.mark_non_differentiable(stats, z, arg)
        ctx.set_materialize_grads(False)
        ctx.options = activation, reduce, low, work
        affine = activation == NONE and reduce != MAX
        if affine and not ctx.needs_input_grad[6]:
            x = inject = bias = None
        ctx.save_for_backward(
            rowptr, col, value, u, weight, x, alpha, bias, inject, ptr,
            active, z, arg,
        )  # fmt: skip

    @staticmethod
    def backward(ctx, gy, *_):
        none = (None,) * 17
        if gy is None:
            return none
        needs = ctx.needs_input_grad
        (rowptr, col, value, u, weight, x, alpha, bias, inject, ptr, active,
         z, arg) = ctx.saved_tensors  # fmt: skip
        activation, reduce, low, work = ctx.options
        if torch.is_grad_enabled():
            return _linear_differentiable(
                gy, needs, rowptr, col, value, u, weight, x, alpha, bias,
                inject, activation, reduce, ptr, active, low,
            )  # fmt: skip
        want_h = needs[3] or needs[4]
        h = _product(u, weight, low, work) if needs[2] else None
        gvalue, gh, gx, galpha, gz = _gradients(
            gy, rowptr, col, value, h, x, alpha, bias, inject, activation,
            reduce, ptr, active, z, arg, u.size(0), low or u.dtype,
            [needs[2], want_h, needs[5], needs[6], needs[7] or needs[8]],
            work,
        )  # fmt: skip
        gu = gweight = None
        if gh is not None:
            gh = gh.to(u.dtype)
            gu = gh @ weight if needs[3] else None
            gweight = gh.t() @ u if needs[4] else None
        return (
            None, None, gvalue if needs[2] else None, gu, gweight,
            gx if needs[5] else None, galpha if needs[6] else None,
            gz.sum(0) if gz is not None and needs[7] else None,
            gz if needs[8] else None,
            *none[9:],
        )  # fmt: skip


def _linear_differentiable(
    gy, needs, rowptr, col, value, u, weight, x, alpha, bias, inject,
    activation, reduce, ptr, active, low,
):  # fmt: skip
    x = torch.zeros_like(gy) if x is None else x
    if needs[7] and bias is None:
        bias = gy.new_zeros(gy.size(1))
    if needs[8] and inject is None:
        inject = torch.zeros_like(gy)
    inputs = [
        t if t is None or t.requires_grad or not need else t.requires_grad_()
        for t, need in zip(
            (value, u, weight, x, alpha, bias, inject), needs[2:9]
        )
    ]
    value, u, weight, x, alpha, bias, inject = inputs
    h = torch.nn.functional.linear(u, weight)
    h = h if low is None else h.to(low)
    out = _formulas(
        rowptr, col, value, h, x, alpha, bias, inject, activation, reduce,
        ptr, active,
    )[0]  # fmt: skip
    chosen = [t for t, need in zip(inputs, needs[2:9]) if need]
    grads = iter(
        torch.autograd.grad(
            out, chosen, gy, create_graph=True, allow_unused=True
        )
    )
    found = [next(grads) if need else None for need in needs[2:9]]
    return (None, None, *found, *(None,) * 8)


# -- update ------------------------------------------------------------------


def update(
    x: Tensor,
    z: Tensor,
    alpha: float | Tensor,
    ptr: Tensor | None,
    active: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """y and stats [S, 2], with gradients."""
    if not _needs_grad((x, z, alpha)):
        return _update_forward(x, z, alpha, ptr, active)
    return _Update.apply(x, z, _as_tensor(alpha), ptr, active)


def _update_forward(x, z, alpha, ptr, active):
    if not is_compiled(x.device):
        y, stats = reference.update(x, z, alpha, ptr, active)
        return (y.clone() if y is x or y is z else y), stats
    x, z = x.contiguous(), z.contiguous()
    y = torch.empty_like(x)
    size = 1 if ptr is None else ptr.numel() - 1
    stats = torch.empty(size, 2, dtype=torch.float64, device=x.device)
    _OPS._update(x, z, float(alpha), *_segments(ptr, active), y, stats)
    return y, stats


def _update_setup(ctx: Any, inputs: tuple, output: tuple) -> None:
    x, z, alpha, ptr, active = inputs
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)
    learned = alpha.requires_grad
    ctx.save_for_backward(
        x if learned else None, z if learned else None, alpha, ptr, active
    )


def _update_backward(ctx: Any, gy: Tensor | None, *_: Any) -> tuple:
    if gy is None:
        return (None,) * 5
    x, z, alpha, ptr, active = ctx.saved_tensors
    needs = ctx.needs_input_grad
    if torch.is_grad_enabled():
        x = torch.zeros_like(gy) if x is None else x
        z = torch.zeros_like(gy) if z is None else z
        inputs = [
            t if t.requires_grad or not need else t.requires_grad_()
            for t, need in zip((x, z, alpha), needs)
        ]
        a, b, c = inputs
        out = reference.update(a, b, c, ptr, active)[0]
        chosen = [t for t, need in zip(inputs, needs) if need]
        grads = iter(
            torch.autograd.grad(
                out, chosen, gy, create_graph=True, allow_unused=True
            )
        )
        found = [next(grads) if need else None for need in needs[:3]]
        return (*found, None, None)
    compute = (
        _OPS._smoothed_update_backward
        if type(gy) is not Tensor  # while it is traced
        else _update_gradients
    )
    gx, gz, galpha = compute(gy, x, z, alpha, ptr, active)
    return (
        gx if needs[0] else None,
        gz if needs[1] else None,
        galpha if needs[2] else None,
        None,
        None,
    )


def _update_gradients(gy, x, z, alpha, ptr, active):
    if not is_compiled(gy.device):
        learned = x is not None
        with torch.enable_grad():
            a, b = (
                (torch.zeros_like(gy) if t is None else t.detach())
                .clone()
                .requires_grad_()
                for t in (x, z)
            )
            c = alpha.detach().clone().requires_grad_(learned)
            out = reference.update(a, b, c, ptr, active)[0]
            leaves = (a, b, c) if learned else (a, b)
            grads = torch.autograd.grad(out, leaves, gy)
        return grads if learned else (*grads, torch.zeros_like(alpha))
    gy = gy.contiguous()
    gx, gz = torch.empty_like(gy), torch.empty_like(gy)
    galpha = None
    if x is not None:
        x, z = x.contiguous(), z.contiguous()
        galpha = gy.new_empty((), dtype=torch.float64)
    _OPS._update_backward(
        gy, z, x, float(alpha), NONE, *_segments(ptr, active), gx, gz, galpha
    )
    if galpha is None:
        return gx, gz, torch.zeros_like(alpha)
    return gx, gz, galpha.to(alpha).reshape(alpha.shape)


class _Update(torch.autograd.Function):
    forward = staticmethod(_update_forward)
    setup_context = staticmethod(_update_setup)
    backward = staticmethod(_update_backward)


# -- for torch.compile -------------------------------------------------------

_ARGUMENTS = (
    "Tensor rowptr, Tensor col, Tensor? value, Tensor h, Tensor x, "
    "Tensor alpha, Tensor? bias{0}, Tensor? inject{0}, {1}, "
    "Tensor? ptr{0}, Tensor? active{0}"
)
_NAMES = 'str activation="none", str reduce="sum"'
_NUMBERS = "int activation, int reduce"

LIBRARY.define(
    "smoothed_update(Tensor x, Tensor z, Tensor alpha, Tensor? ptr=None, "
    "Tensor? active=None) -> (Tensor y, Tensor residual_sq)"
)
LIBRARY.define(
    f"smoothed_propagate({_ARGUMENTS.format('=None', _NAMES)}) "
    "-> (Tensor y, Tensor residual_sq)"
)
LIBRARY.define(
    "_smoothed_update(Tensor x, Tensor z, Tensor alpha, Tensor? ptr, "
    "Tensor? active) -> (Tensor y, Tensor stats)"
)
LIBRARY.define(
    "_smoothed_update_backward(Tensor gy, Tensor? x, Tensor? z, "
    "Tensor alpha, Tensor? ptr, Tensor? active) -> (Tensor, Tensor, Tensor)"
)
LIBRARY.define(
    f"_smoothed_propagate({_ARGUMENTS.format('', _NUMBERS)}, bool check, "
    "bool keep_z, bool keep_arg) "
    "-> (Tensor y, Tensor stats, Tensor z, Tensor arg)"
)
LIBRARY.define(
    "_smoothed_propagate_backward(Tensor gy, Tensor rowptr, Tensor col, "
    "Tensor? value, Tensor? h, Tensor? x, Tensor alpha, Tensor? bias, "
    "Tensor? inject, int activation, int reduce, Tensor? ptr, "
    "Tensor? active, Tensor z, Tensor arg, SymInt sources, "
    "ScalarType dtype, bool[] wanted) "
    "-> (Tensor, Tensor, Tensor, Tensor, Tensor)"
)


def _public_update(x, z, alpha, ptr=None, active=None):
    y, stats = _OPS._smoothed_update(x, z, alpha, ptr, active)
    return y, residual_of(stats, x)


def _public_propagate(
    rowptr, col, value, h, x, alpha, bias=None, inject=None,
    activation="none", reduce="sum", ptr=None, active=None,
):  # fmt: skip
    number, kind = ACTIVATIONS.index(activation), REDUCTIONS.index(reduce)
    kept = (False, False)
    if _needs_grad((value, h, x, alpha, bias, inject)):
        kept = _kept(number, kind, alpha)
    y, stats, _, _ = _OPS._smoothed_propagate(
        rowptr, col, value, h, x, alpha, bias, inject,
        number, kind, ptr, active, True, *kept,
    )  # fmt: skip
    return y, residual_of(stats, x)


def residual_of(stats: Tensor, x: Tensor) -> Tensor:
    return stats[:, 0].to(accumulation_dtype(x.dtype))


def _fake_update(x, z, alpha, ptr, active):
    size = 1 if ptr is None else ptr.size(0) - 1
    stats = x.new_empty(size, 2, dtype=torch.float64)
    return torch.empty_like(x, memory_format=torch.contiguous_format), stats


def _fake_update_backward(gy, x, z, alpha, ptr, active):
    return gy.new_empty(gy.shape), gy.new_empty(gy.shape), alpha.clone()


def _fake_propagate(
    rowptr, col, value, h, x, alpha, bias, inject, activation, reduce, ptr,
    active, check, keep_z, keep_arg,
):  # fmt: skip
    size = 1 if ptr is None else ptr.size(0) - 1

    return (
        x.new_empty(x.shape),
        x.new_empty(size, 2, dtype=torch.float64),
        x.new_empty(x.shape if keep_z else 0),
        x.new_empty(x.shape if keep_arg else 0, dtype=torch.int32),
    )


def _fake_propagate_backward(
    gy, rowptr, col, value, h, x, alpha, bias, inject, activation, reduce,
    ptr, active, z, arg, sources, dtype, wanted,
):  # fmt: skip
    want_value, want_h, want_x, want_alpha, _ = wanted
    return (
        torch.empty_like(value) if want_value else gy.new_empty(0),
        gy.new_empty(sources if want_h else 0, gy.size(1), dtype=dtype),
        gy.new_empty(gy.shape) if want_x else gy.new_empty(0),
        torch.empty_like(alpha) if want_alpha else gy.new_empty(0),
        gy.new_empty(gy.shape),
    )


def _fresh_gradients(gy, *rest):
    """_gradients as an operator: no result is None or one of the inputs."""
    wanted, dtype = rest[-1], rest[-2]
    gvalue, gh, gx, galpha, gz = _gradients(gy, *rest)
    empty = gy.new_empty(0)
    if gz is None:
        gz = torch.zeros_like(gy)
    if gh is None:
        gh = gy.new_empty(0, gy.size(1), dtype=dtype)
    return (
        empty if gvalue is None else gvalue,
        gh,
        (torch.zeros_like(gy) if wanted[2] else empty) if gx is None else gx,
        empty.clone() if galpha is None else galpha,
        gz.clone() if gz is gy else gz,
    )


_EXPLICIT = "CompositeExplicitAutograd"
LIBRARY.impl("smoothed_update", _public_update, "CompositeImplicitAutograd")
LIBRARY.impl(
    "smoothed_propagate", _public_propagate, "CompositeImplicitAutograd"
)
LIBRARY.impl("_smoothed_update", _update_forward, _EXPLICIT)
LIBRARY.impl("_smoothed_update_backward", _update_gradients, _EXPLICIT)
LIBRARY.impl("_smoothed_propagate", _forward, _EXPLICIT)
LIBRARY.impl("_smoothed_propagate_backward", _fresh_gradients, _EXPLICIT)
_FAKES: dict[str, Any] = {
    "_smoothed_update": _fake_update,
    "_smoothed_update_backward": _fake_update_backward,
    "_smoothed_propagate": _fake_propagate,
    "_smoothed_propagate_backward": _fake_propagate_backward,
}
for _name, _fake in _FAKES.items():
    torch.library.register_fake(f"torch_picard::{_name}", _fake, lib=LIBRARY)
torch.library.register_autograd(
    "torch_picard::_smoothed_update",
    _update_backward,
    setup_context=_update_setup,
    lib=LIBRARY,
)
torch.library.register_autograd(
    "torch_picard::_smoothed_propagate",
    _backward,
    setup_context=_setup,
    lib=LIBRARY,
)


# -- small things ------------------------------------------------------------


def is_transformed(*inputs: Any) -> bool:
    """Forward-mode derivatives and torch.func transforms take the formulas:
    their operators know those rules."""
    if forward_ad._current_level >= 0:
        return True
    wrapped = torch._C._functorch.is_functorch_wrapped_tensor
    return any(isinstance(t, Tensor) and wrapped(t) for t in inputs)


def _needs_grad(inputs: tuple) -> bool:
    return torch.is_grad_enabled() and any(
        isinstance(t, Tensor) and t.requires_grad for t in inputs
    )


def _kept(
    activation: int, reduce: int, alpha: float | Tensor
) -> tuple[bool, bool]:
    """Whether the gradient needs z, and the entries of the maxima."""
    learned = isinstance(alpha, Tensor) and alpha.requires_grad
    return activation != NONE or learned, reduce == MAX


def _as_tensor(alpha: float | Tensor) -> Tensor:
    if isinstance(alpha, Tensor):
        return alpha
    return torch.full((), alpha, dtype=torch.float64)


def _plain(t: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    return None if t is None else t.to(dtype).contiguous()


def _segments(
    ptr: Tensor | None, active: Tensor | None
) -> tuple[Tensor | None, Tensor | None]:
    return (
        None if ptr is None else ptr.contiguous(),
        None if active is None else active.contiguous(),
    )


def _or_empty(
    t: Tensor | None, like: Tensor, dtype: torch.dtype | None = None
) -> Tensor:
    return like.new_empty(0, dtype=dtype) if t is None else t
