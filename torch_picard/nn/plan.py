"""How a PicardConv computes P(x): a planning step before the iteration.

For the convs named here P(x) is one sparse product with a few terms around
it. What depends on the graph alone (normalisation, self-loops, the order of
the edges) is then hoisted out of the iteration, and an iteration is one dense
map and one call of the fused kernel. All other convs, and these too whenever
somebody looks into their message passing, run their own forward.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch_geometric.nn import MessagePassing
from torch_geometric.utils import is_torch_sparse_tensor

from ..ops.arguments import is_transformed
from ..ops.backends import choose
from .forms import FORMS, Form, Unknown
from .invariants import bind, hooked
from .rows import rows_of
from .step import Aggregated, Step
from .width import check_shape

_ACTIVATIONS: dict[Any, str] = {
    torch.nn.ReLU: "relu",
    torch.nn.Tanh: "tanh",
    torch.relu: "relu",
    torch.tanh: "tanh",
    torch.nn.functional.relu: "relu",
    torch.nn.functional.tanh: "tanh",
}
_FLOATS = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


@dataclass
class Plan:
    """P, and how it is computed: ``fused``, ``aggregated`` or ``conv``."""

    path: str
    reason: str
    operator: Callable[[Tensor], Tensor]
    backend: str


def plan(
    owner: Any,
    conv: Any,
    x: Tensor,
    edge_index: Any,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    *,
    f: Tensor | None,
    activation: Callable[[Tensor], Tensor] | None,
    backend: str,
) -> Plan:
    """The fastest way to compute x -> activation(conv(x, ...) + f)."""
    quiet = backend in (None, "auto") and type(conv) not in FORMS
    chosen = choose(backend, x.device, quiet=quiet)
    try:
        form, weight = _form(conv, x, edge_index, args, kwargs, chosen)
        graph, value = rows_of(owner, conv, form, x, edge_index, weight)
    except Unknown as unknown:
        return _own(conv, x, edge_index, args, kwargs, f, activation,
                    unknown.args[0], chosen)  # fmt: skip
    if form.restart and value is None:
        value = x.new_ones(graph.col.numel())
    name = "none" if activation is None else _name_of(activation)
    rows = f"{graph.col.numel()} entries in compressed rows"
    if form.after is None and name is not None and chosen == "native":
        step = Step(conv, form, graph, value, f, name)
        return Plan("fused", f"one kernel an iteration, {rows}", step, chosen)
    operator = Aggregated(conv, form, graph, value, f, activation, chosen)
    why = "torch-scatter is to do it"
    if chosen == "native":
        why = "a dense map follows it"
        if form.after is None:
            why = f"the kernel does not know the activation {activation}"
    reason = f"one kernel aggregates, {rows}; not fused: {why}"
    return Plan("aggregated", reason, operator, chosen)


def _own(conv, x, edge_index, args, kwargs, f, activation, reason, chosen):
    call = bind(conv, x, edge_index, args, kwargs)

    def operator(y: Tensor) -> Tensor:
        z = call(y)
        check_shape(conv, y, z)
        if f is not None:
            z = z + f
        return z if activation is None else activation(z)

    operator.backend = chosen  # type: ignore[attr-defined]
    return Plan("conv", reason, operator, chosen)


def _form(conv, x, edge_index, args, kwargs, chosen) -> tuple[Form, Any]:
    """What this call computes; raises Unknown with the reason if that is
    not known."""
    make = FORMS.get(type(conv))
    if make is None:
        known = ", ".join(kind.__name__ for kind in FORMS)
        raise Unknown(f"{type(conv).__name__} is none of {known}")
    if chosen == "torch":
        raise Unknown("the torch backend runs convs as they are")
    if torch.compiler.is_compiling():
        raise Unknown("torch.compile fuses by itself")
    if conv.decomposed_layers > 1:
        raise Unknown("its layers are decomposed")
    if _watched(conv):
        raise Unknown("its message passing is hooked, patched or explained")
    if conv.flow != "source_to_target" or conv.node_dim != -2:
        raise Unknown(
            f"flow={conv.flow!r}, node_dim={conv.node_dim} is not the default"
        )
    if x.dim() != 2 or x.dtype not in _FLOATS:
        raise Unknown(f"x is {x.dtype} of shape {list(x.shape)}")
    if is_transformed(x):
        raise Unknown("a torch.func transform is in play")
    form = make(conv)
    weight = _weight_of(form, args, kwargs)
    sparse = isinstance(edge_index, Tensor) and is_torch_sparse_tensor(
        edge_index
    )
    if sparse:
        if edge_index.layout != torch.sparse_csr or form.loops:
            raise Unknown(f"edge_index has layout {edge_index.layout}")
        if weight is not None:
            raise Unknown("there are weights beside a sparse adjacency")
        if edge_index.shape != (x.size(0), x.size(0)):
            raise Unknown("the adjacency is not square in x")
    elif not isinstance(edge_index, Tensor) or edge_index.dim() != 2:
        raise Unknown(f"edge_index is a {type(edge_index).__name__}")
    elif edge_index.is_floating_point() or edge_index.size(0) != 2:
        raise Unknown("edge_index is not [2, E] of integers")
    if weight is not None and weight.numel() != edge_index.size(1):
        raise Unknown("edge_weight is not one number an edge")
    if form.weight is not None:
        width = x.size(1)
        if form.weight.dtype != x.dtype or form.weight.device != x.device:
            raise Unknown(f"weights are {form.weight.dtype}, x {x.dtype}")
        if form.weight.shape != (width, width):
            raise Unknown("it changes the width")
    return form, weight


def _weight_of(form: Form, args: tuple, kwargs: dict) -> Tensor | None:
    more = dict(kwargs)
    weight = args[0] if args else more.pop("edge_weight", None)
    if len(args) > 1 or more or (weight is not None and not form.weights):
        raise Unknown("it was called with further arguments")
    if weight is not None and not isinstance(weight, Tensor):
        raise Unknown(f"edge_weight is a {type(weight).__name__}")
    return weight


_STEPS = ("message", "aggregate", "update", "message_and_aggregate")
_METHODS = (*_STEPS, "forward", "propagate", "edge_update")


def _watched(conv: MessagePassing) -> bool:
    """Somebody wants to see, or changed, what goes on inside."""
    aggregation = conv.aggr_module
    if conv.explain or hooked(conv) or hooked(aggregation):
        return True
    if "forward" in vars(aggregation):
        return True
    if any(name in vars(conv) for name in _METHODS):
        return True
    return any(
        hooks
        for name, hooks in vars(conv).items()
        if name.endswith("_hooks") and isinstance(hooks, dict)
    )


def _name_of(activation: Callable) -> str | None:
    """relu or tanh, if that is what it is."""
    if isinstance(activation, torch.nn.Module):
        if hooked(activation) or "forward" in vars(activation):
            return None
        return _ACTIVATIONS.get(type(activation))
    try:
        return _ACTIVATIONS.get(activation)
    except TypeError:
        return None
