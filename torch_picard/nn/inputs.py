"""Which argument was wrong, of a call that failed.

Looked for only then: a conv knows best what it takes, and a look at values
costs time.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch_geometric.nn import MessagePassing
from torch_geometric.utils import is_sparse

from .sharded import Sharded

_FLOATS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def fault(
    error: BaseException,
    conv: Any,
    x: Any,
    edge_index: Any,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    batch: Any,
) -> str | None:
    """The argument, what was given and what is allowed; None if nothing is
    found."""
    if torch.compiler.is_compiling():  # without values
        return None
    try:
        found = _faults(error, conv, x, edge_index, args, kwargs, batch)
        return next(found, None)
    except Exception:  # values hidden by a transform, a device that is lost
        return None


def unfit(module: Any, x: Any, error: BaseException) -> Iterator[str]:
    """Why the first layer with a width, or the weights, cannot take x."""
    if not isinstance(x, Tensor):
        yield f"x must be one Tensor [N, F], got {type(x).__name__}"
    if x.dim() < 2:
        yield (
            "x must be node features of shape [N, F], got shape "
            f"{list(x.shape)}; one feature a node is x.unsqueeze(-1)"
        )
    conv = isinstance(module, MessagePassing)
    width = _inside(module) or (_width(module) if conv else None)
    if width is None:
        # of a linear map that met x itself, not something made of it
        width = next((w for w in _widths(module) if _met(error, x, w)), None)
    if width is not None and x.size(-1) != width:
        yield (
            f"x must have {width} features a node, as {type(module).__name__} "
            f"takes, got shape {list(x.shape)}"
        )
    weights = [p for p in module.parameters() if p.is_floating_point()]
    if not weights:
        return
    if all(p.device != x.device for p in weights):
        yield f"x must be on {weights[0].device}, {_AS_WEIGHTS} {x.device}"
    cast = torch.is_autocast_enabled(x.device.type) and x.is_floating_point()
    other = all(p.dtype != x.dtype for p in weights) and not cast
    if other and _is_of_types(error):
        yield f"x must be of {weights[0].dtype}, {_AS_WEIGHTS} {x.dtype}"


def _widths(module: Any) -> Iterator[int]:
    """What the linear maps and convs in it take."""
    found = (_inside(m) or _width(m) for m in module.modules())
    return (width for width in found if width)


def _met(error: BaseException, t: Tensor, width: int | str = "") -> bool:
    """Whether a product with t was refused, by a map of that width."""
    return f"({len(t)}x{t.size(-1)} and {width}" in str(error)


def _is_of_types(error: BaseException) -> bool:
    """As the texts of torch have it: dtype, scalar type, Input type."""
    return "type" in str(error)


_AS_WEIGHTS = "as the weights are, got"


def resolved(
    name: str, query: Any, resolver: Callable[..., Any], *args: Any
) -> Any:
    """What the option ``name`` stands for, if it is one of PyG's names."""
    if query is None or (callable(query) and not isinstance(query, str)):
        return query
    allowed = f"{name} must be a name that PyG knows, a callable or None"
    if not isinstance(query, str):
        raise TypeError(f"{allowed}, got {query!r}")
    try:
        return resolver(query, *args)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{allowed}, got {query!r}: {error}") from None


def check_batch(name: str, batch: Any, x: Tensor) -> None:
    """As far as that can be told without a look at the entries."""
    if batch is None:
        return
    allowed = f"{name} must be a LongTensor [N] of sorted graph indices"
    if not isinstance(batch, Tensor):
        raise TypeError(f"{allowed}, got {type(batch).__name__}")
    if batch.dtype != torch.long or batch.shape != x.shape[:1]:
        raise ValueError(
            f"{allowed}, one a row of x {list(x.shape)}, got {batch.dtype} of "
            f"shape {list(batch.shape)}"
        )


def strays(edge_index: Tensor, num_nodes: int) -> str | None:
    """That it holds what no row of x has; None if it does not."""
    if edge_index.numel() == 0:
        return None
    low, high = map(int, edge_index.aminmax())
    if low >= 0 and high < num_nodes:
        return None
    return (
        f"edge_index must hold node indices in [0, {num_nodes}), the rows of "
        f"x, got {low} to {high}"
    )


def _faults(error, conv, x, edge_index, args, kwargs, batch) -> Iterator[str]:
    if isinstance(x, dict):
        for name, t in x.items():
            yield from _state(f"x[{name!r}]", t)
            if batch is not None and name in batch:
                yield from _batch(f"batch[{name!r}]", batch[name], t)
        return
    yield from _state("x", x)
    if batch is not None:
        yield from _batch("batch", batch, x)
    if not isinstance(edge_index, (Sharded, dict)):
        yield from _given(error, conv, x, edge_index, args, kwargs)
    if not isinstance(error, (ValueError, TypeError)):  # which say more
        yield from unfit(conv, x, error)


def _given(error, conv, x, edge_index, args, kwargs) -> Iterator[str]:
    call = inspect.signature(conv.forward).bind(x, edge_index, *args, **kwargs)
    if {"edge_index", "args"} & set(call.arguments):  # it may not be edges
        yield from _edges(edge_index, x)
    yield from _extras(conv, edge_index, call.arguments)
    call.apply_defaults()
    yield from _weights(error, conv, x, call.arguments)
    yield from _features(error, conv, x, call.arguments)


def _state(name: str, x: Tensor) -> Iterator[str]:
    if x.layout != torch.strided:
        yield f"{name} must be dense, got layout {x.layout}; use x.to_dense()"
    if x.is_meta:
        yield f"{name} must hold values, got a Tensor on the meta device"
    if x.dtype not in _FLOATS:
        allowed = ", ".join(str(t).removeprefix("torch.") for t in _FLOATS)
        yield (
            f"{name} must be a Tensor [N, F] of a floating dtype, {allowed}, "
            f"got {x.dtype}"
        )
    if x.dim() == 0 or x.size(-1) == 0:
        yield (f"{name} must have features, [N, F], got shape {list(x.shape)}")


def _width(module: Any) -> int | None:
    width = getattr(module, "in_channels", None)
    width = width[0] if isinstance(width, (tuple, list)) else width
    return width if isinstance(width, int) and width > 0 else None


def _inside(module: Any) -> int | None:
    return getattr(module, "in_features", None)


def _edges(edges: Any, x: Tensor) -> Iterator[str]:
    # of a signal [B, N, F] or [N, H, C] the conv knows where the nodes are
    plain, nodes = x.dim() == 2, x.size(0)
    if is_sparse(edges):
        sizes = [edges.size(0), edges.size(1)]
        if plain and sizes != [nodes, nodes]:
            yield (
                "edge_index must be a square adjacency of the rows of x, "
                f"[{nodes}, {nodes}], got {sizes}"
            )
        return
    got = type(edges).__name__
    if isinstance(edges, Tensor):
        got = f"{edges.dtype} of shape {list(edges.shape)}"
        whole = edges.dtype in (torch.int64, torch.int32)
        if whole and edges.dim() == 2 and edges.size(0) == 2:
            found = strays(edges, nodes) if plain else None
            if found is not None:
                yield found
            return
    yield (
        "edge_index must hold integers of shape [2, E], or be an adjacency "
        f"such as SparseTensor, got {got}"
    )


def _extras(conv, edges, named: dict[str, Any]) -> Iterator[str]:
    """Arguments named after edges have an entry for each."""
    for name, value in list(named.items())[2:]:
        if name == "size" and isinstance(value, Tensor):
            yield (
                f"{type(conv).__name__} takes no edge_weight: what follows "
                "edge_index is size, two ints, got a Tensor"
            )
        if name not in _OF_EDGES or value is None:
            continue
        if not isinstance(value, Tensor):
            kind = type(value).__name__
            yield f"{name} must be a Tensor, one entry an edge, got {kind}"
        elif not is_sparse(edges) and len(value) != edges.size(1):
            yield (
                f"{name} must have one entry an edge of edge_index, "
                f"{edges.size(1)}, got shape {list(value.shape)}"
            )


_OF_EDGES = ("edge_weight", "edge_attr", "edge_type", "edge_time")


def _weights(error, conv, x, named: dict[str, Any]) -> Iterator[str]:
    value = named.get("edge_weight")
    if value is None or x.dim() < 2 or _met(error, x):
        return
    if value.dim() > 1 and value.size(-1) > 1 and "size of" in str(error):
        yield (
            "edge_weight must be one number an edge, of shape [E], got shape "
            f"{list(value.shape)}"
        )
    yield from _type("edge_weight", value, error, conv, x)


def _features(error, conv, x, named: dict[str, Any]) -> Iterator[str]:
    """Of edges: as many as the conv takes."""
    width, kind = getattr(conv, "edge_dim", None), type(conv).__name__
    if "edge_attr" not in named:
        return
    value = named["edge_attr"]
    if value is None:
        silent = isinstance(error, AssertionError) and not str(error)
        if width is not None and silent:
            yield f"edge_attr must be given, as {kind} has edge_dim={width}"
        return
    if value.is_floating_point() and value.dim() > 1 and not _met(error, x):
        widths = [width] if width is not None else _widths(conv)
        given = value.size(-1)
        # a conv may have added loops, so not by the number of edges
        refused = (w for w in widths if f"x{given} and {w}x" in str(error))
        found = next(refused, given)
        if found != given:
            yield (
                f"edge_attr must have {found} features an edge, as {kind} "
                f"takes, got shape {list(value.shape)}"
            )
    yield from _type("edge_attr", value, error, conv, x)


def _type(name, value, error, conv, x) -> Iterator[str]:
    """If x is of the dtype of the weights, and this is not."""
    own = {p.dtype for p in conv.parameters() if p.is_floating_point()}
    fits = x.dtype in own or not own
    whole = name == "edge_weight" and not value.is_floating_point()
    other = value.is_floating_point() and value.dtype != x.dtype
    if fits and (whole or (other and _is_of_types(error))):
        yield f"{name} must be of {x.dtype}, as x is, got {value.dtype}"


def _batch(name: str, batch: Tensor, x: Tensor) -> Iterator[str]:
    if batch.device != x.device:
        yield f"{name} must be on {x.device}, as x is, got {batch.device}"
    if bool((batch < 0).any()):
        yield f"{name} must not be negative, got {int(batch.min())}"
    if bool((batch[1:] < batch[:-1]).any()):
        yield f"{name} must be sorted (non-decreasing), as PyG's batch is"
