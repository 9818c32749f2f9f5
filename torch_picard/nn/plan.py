"""How a PicardConv computes P(x): a planning step before the iteration.

For the convs named here P(x) is one sparse product with a few terms around
it. What depends on the graph alone (normalisation, self-loops, the order of
the edges) is then hoisted out of the iteration, and an iteration is one dense
map and one call of the fused kernel. All other convs, and these too whenever
somebody looks into their message passing, run their own forward.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.parametrize import (
    is_parametrized,
    type_before_parametrizations,
)
from torch_geometric.nn import (
    APPNP,
    GCNConv,
    GINConv,
    GraphConv,
    LGConv,
    MessagePassing,
    SAGEConv,
    SGConv,
    SimpleConv,
)
from torch_geometric.nn.aggr import (
    MaxAggregation,
    MeanAggregation,
    SumAggregation,
)
from torch_geometric.nn.dense.linear import Linear as PyGLinear
from torch_geometric.utils import add_self_loops, is_torch_sparse_tensor

from ..ops import capture, loop, scatter
from ..ops.arguments import ACTIVATIONS, REDUCTIONS, is_transformed
from ..ops.backends import choose
from ..ops.csr import compress
from ..ops.linear import linear_propagate
from ..ops.propagation import propagate
from ..ops.workspace import Workspace
from .invariants import bind, hooked, normalised_graph
from .width import check_shape

_AGGREGATIONS = {
    SumAggregation: "sum",
    MeanAggregation: "mean",
    MaxAggregation: "max",
}
_ACTIVATIONS: dict[Any, str] = {
    torch.nn.ReLU: "relu",
    torch.nn.Tanh: "tanh",
    torch.relu: "relu",
    torch.tanh: "tanh",
    torch.nn.functional.relu: "relu",
    torch.nn.functional.tanh: "tanh",
}
_FLOATS = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


# -- what a conv computes -----------------------------------------------------


@dataclass(frozen=True)
class Form:
    """s = reduce_j(a_ij*h_j) + bias + root(x) with h = weight*pre(x), then
    z = after(s, x).

    Attributes:
        reduce: how messages are combined.
        weights: whether a call may bring edge weights.
        normalised: whether the graph is normalised first.
        loops: self-loops that SimpleConv adds.
        pre: a map of x before ``weight``.
        weight: a matrix [F, F] applied to what is gathered.
        bias: [F].
        root: x -> what is added to the sum.
        after: a map of the sum and x; the rest then cannot be fused.
        hops, restart: x_{k+1} = (1-restart)*A x_k + restart*x_0, so often.
    """

    reduce: str = "sum"
    weights: bool = False
    normalised: bool = False
    loops: bool = False
    pre: Callable[[Tensor], Tensor] | None = None
    weight: Tensor | None = None
    bias: Tensor | None = None
    root: Callable[[Tensor], Tensor] | None = None
    after: Callable[[Tensor, Tensor], Tensor] | None = None
    hops: int = 1
    restart: float = 0.0


def _reduce(conv: MessagePassing, *allowed: str) -> str:
    reduce = _AGGREGATIONS.get(type(conv.aggr_module))
    if reduce is None or (allowed and reduce not in allowed):
        raise _Unknown(f"it aggregates by {conv.aggr_module}")
    return reduce


def _gcn(conv: GCNConv) -> Form:
    pre, weight, _ = _dense(conv.lin)
    return Form(
        _reduce(conv),
        weights=True,
        normalised=conv.normalize,
        pre=pre,
        weight=weight,
        bias=conv.bias,
    )


def _sgc(conv: SGConv) -> Form:
    # lin(A^K x) = A^K (x W') + b
    pre, weight, bias = _linear(conv.lin)
    return Form(
        _reduce(conv, "sum"),
        weights=True,
        normalised=True,
        pre=pre,
        weight=weight,
        bias=bias,
        hops=conv.K,
    )


def _sage(conv: SAGEConv) -> Form:
    if conv.normalize:
        raise _Unknown("it normalises its output")
    reduce = _reduce(conv)
    pool = None
    if conv.project:
        pool = lambda x: conv.lin(x).relu()  # noqa: E731
    root = conv.lin_r if conv.root_weight else None
    if reduce == "max":
        return Form(reduce, pre=pool, after=_plus(conv.lin_l, root))
    pre, weight, bias = _linear(conv.lin_l, pool)
    return Form(reduce, pre=pre, weight=weight, bias=bias, root=root)


def _graph(conv: GraphConv) -> Form:
    reduce = _reduce(conv)
    if reduce == "max":
        after = _plus(conv.lin_rel, conv.lin_root)
        return Form(reduce, weights=True, after=after)
    pre, weight, bias = _linear(conv.lin_rel)
    return Form(
        reduce,
        weights=True,
        pre=pre,
        weight=weight,
        bias=bias,
        root=conv.lin_root,
    )


def _gin(conv: GINConv) -> Form:
    reduce = _reduce(conv)
    eps = conv.eps

    def root(x: Tensor) -> Tensor:
        if not eps.requires_grad and float(eps) == 0:
            return x
        return (1 + eps) * x

    return Form(reduce, root=root, after=lambda s, x: conv.nn(s))


def _simple(conv: SimpleConv) -> Form:
    reduce = _reduce(conv)
    if conv.combine_root == "cat":
        raise _Unknown("it concatenates the root's features")
    return Form(
        reduce,
        weights=True,
        loops=conv.combine_root == "self_loop",
        root=(lambda x: x) if conv.combine_root == "sum" else None,
    )


def _lg(conv: LGConv) -> Form:
    return Form(_reduce(conv), weights=True, normalised=conv.normalize)


def _appnp(conv: APPNP) -> Form:
    if conv.dropout > 0 and conv.training:
        raise _Unknown("it drops edges")
    return Form(
        _reduce(conv, "sum"),
        weights=True,
        normalised=conv.normalize,
        hops=conv.K,
        restart=conv.alpha,
    )


FORMS: dict[type, Callable[[Any], Form]] = {
    GCNConv: _gcn,
    SGConv: _sgc,
    SAGEConv: _sage,
    GraphConv: _graph,
    GINConv: _gin,
    SimpleConv: _simple,
    LGConv: _lg,
    APPNP: _appnp,
}


def _plus(first: Callable, second: Callable | None) -> Callable:
    def after(s: Tensor, x: Tensor) -> Tensor:
        return first(s) if second is None else first(s) + second(x)

    return after


def _dense(lin: Any) -> tuple[Any, Tensor | None, Tensor | None]:
    """A plain matrix where ``lin`` is nothing else, or the module. A
    parametrised weight is a matrix, too: it is computed once a solve."""
    computed = isinstance(lin, torch.nn.Module) and is_parametrized(lin)
    kind = type_before_parametrizations(lin) if computed else type(lin)
    plain = kind in (torch.nn.Linear, PyGLinear)
    plain = plain and not hooked(lin) and "forward" not in vars(lin)
    if plain:
        weight = lin.weight
        matrix = type(weight) in (torch.nn.Parameter, Tensor)
        if matrix and weight.dim() == 2:
            return None, weight, lin.bias
    return lin, None, None


def _linear(lin: Any, before: Any = None) -> tuple[Any, Any, Any]:
    """The same for a map after a linear aggregation: it is moved in front,
    all but its bias."""
    pre, weight, bias = _dense(lin)
    if pre is None:
        return before, weight, bias
    raise _Unknown(f"{type(lin).__name__} is no plain matrix")


class _Unknown(Exception):
    """The reason why a conv is not planned."""


# -- the graph ----------------------------------------------------------------


class Graph:
    """Edges in compressed rows, row i the messages to node i."""

    def __init__(self, edge_index: Tensor, num_nodes: int):
        if is_torch_sparse_tensor(edge_index):
            self.rowptr = edge_index.crow_indices()
            self.col = edge_index.col_indices()
            self.perm = None
        else:
            _check_indices(edge_index, num_nodes)
            source, target = _narrow(edge_index).unbind(0)
            self.rowptr, self.perm = compress(target, num_nodes)
            self.col = source[self.perm]

    def value(self, weight: Tensor | None, dtype: torch.dtype):
        if weight is None:
            return None
        weight = weight.reshape(-1).to(dtype)
        return weight if self.perm is None else weight[self.perm]


class _Remembered:
    """The graph of the last call: the same tensors need no second look."""

    def __init__(self, key, edge_index, weight, graph, value):
        self.key = key
        self.edge_index = weakref.ref(edge_index)
        self.weight = None if weight is None else weakref.ref(weight)
        self.graph, self.value = graph, value

    def fits(self, key, edge_index, weight) -> bool:
        return (
            self.key == key
            and self.edge_index() is edge_index
            and (None if self.weight is None else self.weight()) is weight
        )


_MEMORY: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()


def _graph_of(
    owner: Any, conv: Any, form: Form, x: Tensor, edge_index: Any, weight: Any
) -> tuple[Graph, Tensor | None]:
    """Normalised as the conv would, once for every pair of tensors."""
    learned = weight is not None and weight.requires_grad
    sparse = is_torch_sparse_tensor(edge_index)
    learned = learned or (sparse and edge_index.requires_grad)
    key = _key_of(conv, form, x, edge_index, weight)
    if owner is None:
        key = None
    known = None if key is None else _MEMORY.get(owner)
    if known is not None:
        if known.fits(key, edge_index, weight) and not learned:
            return known.graph, known.value
    edges, values = edge_index, weight
    if form.normalised:
        edges, values = normalised_graph(conv, x, edge_index, weight)
    elif form.loops:
        edges, values = add_self_loops(edges, values, num_nodes=x.size(0))
    if is_torch_sparse_tensor(edges):
        if edges.layout != torch.sparse_csr:
            edges = edges.to_sparse_csr()
        values = edges.values()
    graph = Graph(edges, x.size(0))
    value = graph.value(values, x.dtype)
    if key is not None and not learned:
        _MEMORY[owner] = _Remembered(key, edge_index, weight, graph, value)
    return graph, value


def _key_of(conv, form, x, edge_index, weight) -> tuple | None:
    """What the graph depends on besides the identity of the tensors; None
    where writes to them cannot be noticed."""
    tensors = [edge_index] if weight is None else [edge_index, weight]
    if is_torch_sparse_tensor(edge_index):
        return None
    if getattr(conv, "cached", False) or any(
        t.is_inference() for t in tensors
    ):
        return None
    options = [
        getattr(conv, name, None)
        for name in ("add_self_loops", "improved", "normalize")
    ]
    versions = [t._version for t in tensors]
    return (
        x.size(0), x.dtype, x.device, form.normalised, form.loops,
        tuple(options), tuple(versions),
    )  # fmt: skip


def _check_indices(edge_index: Tensor, num_nodes: int) -> None:
    if edge_index.numel() == 0:
        return
    low, high = edge_index.aminmax()
    if int(low) < 0 or int(high) >= num_nodes:
        raise ValueError(
            f"edge_index must hold node indices in [0, {num_nodes}), the "
            f"rows of x, got {int(low)} to {int(high)}"
        )


def _narrow(index: Tensor) -> Tensor:
    """int32 where that is enough: half the traffic."""
    return index.int() if index.numel() < 2**31 else index


# -- the operators ------------------------------------------------------------


class Step:
    """P as one dense map and one fused sparse pass; an operator for
    :func:`fixed_point` that smooths by itself."""

    backend = "native"

    def __init__(self, conv, form, graph, value, f, activation: str):
        self.conv, self.form, self.f = conv, form, f
        self.rowptr, self.col, self.value = graph.rowptr, graph.col, value
        self.activation = ACTIVATIONS.index(activation)
        self.reduce = REDUCTIONS.index(form.reduce)
        if form.restart:
            self.value = _scaled(value, 1 - form.restart, graph.col)
        self.work = Workspace()

    def __call__(self, x: Tensor) -> Tensor:
        # y = z: the old state serves for a residual that nobody looks at
        return self._run(x, x.detach(), 0.0, None, None)[0]

    def smoothed(self, x, alpha, ptr, active) -> tuple[Tensor, Tensor]:
        return self._run(x, x, alpha, ptr, active)

    def steps(self, x, alpha, ptr, count: int):
        """So many updates at once, or None; see :func:`loop.steps`."""
        form = self.form
        more = form.pre is not None or form.root is not None
        if more or form.hops > 1 or form.restart:
            return None
        inputs = (alpha, self.value, form.weight, form.bias, self.f)
        if capture.applies(x, *inputs):
            return self._recorded(x, alpha, ptr, count)
        if not loop.runs_whole(x, *inputs):
            return None
        return loop.steps(
            self.rowptr, self.col, self.value, form.weight, x, alpha,
            form.bias, self.f, self.activation, self.reduce, ptr, count,
            _low(x), self.work,
        )  # fmt: skip

    def _recorded(self, x, alpha, ptr, count):
        """The same on CUDA, where the launches are recorded."""
        form, low = self.form, _low(x)

        def run(x, inject):
            work, stats = Workspace(), []
            for _ in range(count):
                x, squares = linear_propagate(
                    self.rowptr, self.col, self.value, x, form.weight, x,
                    alpha, form.bias, inject, self.activation, self.reduce,
                    ptr, None, low, work,
                )  # fmt: skip
                stats.append(squares)
            return x, torch.stack(stats)

        options = (alpha, count, low, self.activation, self.reduce)
        kept = (
            self.rowptr, self.col, self.value, form.weight, form.bias, ptr
        )  # fmt: skip
        with torch.no_grad():
            return capture.steps(
                run, self.rowptr, options, kept, x.contiguous(), self.f
            )

    def _whole(self, x: Tensor) -> bool:
        form = self.form
        return loop.runs_whole(x, self.value, form.weight, form.bias, self.f)

    def _hops(self, h: Tensor, again: Tensor | None, count: int) -> Tensor:
        """Propagations before the one that is smoothed."""
        if self._whole(h):
            return loop.hops(
                self.rowptr, self.col, self.value, h, again, self.reduce,
                count, self.work,
            )  # fmt: skip
        for _ in range(count):
            h, _ = propagate(
                self.rowptr, self.col, self.value, h, h.detach(), 0.0, None,
                again, 0, self.reduce, None, None,
            )  # fmt: skip
        return h

    def _again(self, x: Tensor) -> Tensor | None:
        """What every hop starts from anew."""
        restart = self.form.restart
        if not restart:
            return None
        if not self._whole(x):
            return restart * x
        return torch.mul(x, restart, out=self.work.empty("again", x.shape, x))

    def _run(self, x, old, alpha, ptr, active):
        form = self.form
        h = x
        if form.pre is not None:
            h = form.pre(x)
            check_shape(self.conv, x, h)
        inject = self.f
        if form.root is not None:
            inject = _sum(form.root(x), inject)
        weight = form.weight
        again = self._again(x)
        if form.hops > 1:
            if weight is not None:
                h, weight = torch.nn.functional.linear(h, weight), None
            h = self._hops(h, again, form.hops - 1)
        if again is not None:
            inject = _sum(again, inject)
        return linear_propagate(
            self.rowptr, self.col, self.value, h, weight, old, alpha,
            form.bias, inject, self.activation, self.reduce, ptr, active,
            _low(x), self.work,
        )  # fmt: skip


class Aggregated:
    """P whose aggregation alone is a kernel: a dense map comes after it, or
    an activation the kernel does not know, or torch-scatter does it."""

    def __init__(self, conv, form, graph, value, f, activation, backend):
        self.form, self.f, self.activation = form, f, activation
        self.graph, self.value, self.backend = graph, value, backend
        self.step = Step(conv, form, graph, value, None, "none")

    def __call__(self, x: Tensor) -> Tensor:
        z = self.step(x) if self.backend == "native" else self._scattered(x)
        if self.form.after is not None:
            z = self.form.after(z, x)
        z = _sum(z, self.f)
        return z if self.activation is None else self.activation(z)

    def _scattered(self, x: Tensor) -> Tensor:
        form, graph = self.form, self.graph
        h = x if form.pre is None else form.pre(x)
        if form.weight is not None:
            h = torch.nn.functional.linear(h, form.weight)
        for _ in range(form.hops):
            h = scatter.aggregate(
                graph.rowptr, graph.col, self.value, h, form.reduce
            ).to(h.dtype)
            if form.restart:
                h = (1 - form.restart) * h + form.restart * x
        h = h if form.bias is None else h + form.bias
        return h if form.root is None else h + form.root(x)


def _scaled(value: Tensor | None, factor: float, col: Tensor) -> Tensor:
    if value is None:
        return torch.full((col.numel(),), factor, device=col.device)
    return factor * value


def _sum(a: Tensor, b: Tensor | None) -> Tensor:
    return a if b is None else a + b


def _low(x: Tensor) -> torch.dtype | None:
    """What autocast would have messages in."""
    kind = x.device.type
    if x.dtype != torch.float32 or not torch.is_autocast_enabled(kind):
        return None
    return torch.get_autocast_dtype(kind)


# -- the plan -----------------------------------------------------------------


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
        graph, value = _graph_of(owner, conv, form, x, edge_index, weight)
    except _Unknown as unknown:
        return _own(conv, x, edge_index, args, kwargs, f, activation,
                    str(unknown), chosen)  # fmt: skip
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
    """What this call computes; raises _Unknown with the reason if that is
    not known."""
    make = FORMS.get(type(conv))
    if make is None:
        known = ", ".join(kind.__name__ for kind in FORMS)
        raise _Unknown(f"{type(conv).__name__} is none of {known}")
    if chosen == "torch":
        raise _Unknown("the torch backend runs convs as they are")
    if torch.compiler.is_compiling():
        raise _Unknown("torch.compile fuses by itself")
    if conv.decomposed_layers > 1:
        raise _Unknown("its layers are decomposed")
    if _watched(conv):
        raise _Unknown("its message passing is hooked, patched or explained")
    if conv.flow != "source_to_target" or conv.node_dim != -2:
        raise _Unknown(
            f"flow={conv.flow!r}, node_dim={conv.node_dim} is not the default"
        )
    if x.dim() != 2 or x.dtype not in _FLOATS:
        raise _Unknown(f"x is {x.dtype} of shape {list(x.shape)}")
    if is_transformed(x):
        raise _Unknown("a torch.func transform is in play")
    form = make(conv)
    weight = _weight_of(form, args, kwargs)
    sparse = isinstance(edge_index, Tensor) and is_torch_sparse_tensor(
        edge_index
    )
    if sparse:
        if edge_index.layout != torch.sparse_csr or form.loops:
            raise _Unknown(f"edge_index has layout {edge_index.layout}")
        if weight is not None:
            raise _Unknown("there are weights beside a sparse adjacency")
        if edge_index.size(0) != x.size(0):
            raise _Unknown("the adjacency is not square in x")
    elif not isinstance(edge_index, Tensor) or edge_index.dim() != 2:
        raise _Unknown(f"edge_index is a {type(edge_index).__name__}")
    elif edge_index.is_floating_point() or edge_index.size(0) != 2:
        raise _Unknown("edge_index is not [2, E] of integers")
    if weight is not None and weight.numel() != edge_index.size(1):
        raise _Unknown("edge_weight is not one number an edge")
    if form.weight is not None:
        width = x.size(1)
        if form.weight.dtype != x.dtype or form.weight.device != x.device:
            raise _Unknown(f"weights are {form.weight.dtype}, x {x.dtype}")
        if form.weight.shape != (width, width):
            raise _Unknown("it changes the width")
    return form, weight


def _weight_of(form: Form, args: tuple, kwargs: dict) -> Tensor | None:
    more = dict(kwargs)
    weight = args[0] if args else more.pop("edge_weight", None)
    if len(args) > 1 or more or (weight is not None and not form.weights):
        raise _Unknown("it was called with further arguments")
    if weight is not None and not isinstance(weight, Tensor):
        raise _Unknown(f"edge_weight is a {type(weight).__name__}")
    return weight


_STEPS = ("message", "aggregate", "update", "message_and_aggregate")
_METHODS = (*_STEPS, "forward", "propagate", "edge_update")


def _watched(conv: MessagePassing) -> bool:
    """Somebody wants to see, or changed, what goes on inside."""
    if conv.explain or hooked(conv):
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
