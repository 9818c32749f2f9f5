"""The operators that torch.compile sees, ``torch.ops.torch_picard``: schemas,
fake kernels and gradients of smoothed_update and smoothed_propagate."""

from __future__ import annotations

from typing import Any

import torch

from . import propagation, updating
from .arguments import (
    ACTIVATIONS,
    REDUCTIONS,
    needs_grad,
    residual_of,
    to_keep,
)
from .library import LIBRARY

_OPS = torch.ops.torch_picard

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
    if needs_grad((value, h, x, alpha, bias, inject)):
        kept = to_keep(number, kind, alpha)
    y, stats, _, _ = _OPS._smoothed_propagate(
        rowptr, col, value, h, x, alpha, bias, inject,
        number, kind, ptr, active, True, *kept,
    )  # fmt: skip
    return y, residual_of(stats, x)


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
    """As an operator: no result is None or one of the inputs."""
    wanted, dtype = rest[-1], rest[-2]
    gvalue, gh, gx, galpha, gz = propagation.gradients(gy, *rest)
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
LIBRARY.impl("_smoothed_update", updating.forward, _EXPLICIT)
LIBRARY.impl("_smoothed_update_backward", updating.gradients, _EXPLICIT)
LIBRARY.impl("_smoothed_propagate", propagation.forward, _EXPLICIT)
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
    updating.backward,
    setup_context=updating.setup_context,
    lib=LIBRARY,
)
torch.library.register_autograd(
    "torch_picard::_smoothed_propagate",
    propagation.backward,
    setup_context=propagation.setup_context,
    lib=LIBRARY,
)
