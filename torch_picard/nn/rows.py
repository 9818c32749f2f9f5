"""A graph in compressed rows, remembered from call to call."""

from __future__ import annotations

import weakref
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch_geometric.utils import add_self_loops, is_torch_sparse_tensor

from ..ops.csr import check_csr, compress
from .forms import Form
from .inputs import strays
from .invariants import _norm, normalised_graph


class Rows:
    """Edges in compressed rows, row i the messages to node i."""

    def __init__(self, edge_index: Tensor, num_nodes: int):
        if is_torch_sparse_tensor(edge_index):
            self.rowptr = edge_index.crow_indices()
            self.col = edge_index.col_indices()
            self.perm = None
            check_csr(self.rowptr, self.col, num_nodes)
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


def rows_of(
    owner: Any, conv: Any, form: Form, x: Tensor, edge_index: Any, weight: Any
) -> tuple[Rows, Tensor | None]:
    """Normalised as the conv would, once for every pair of tensors."""
    learned = weight is not None and weight.requires_grad
    sparse = is_torch_sparse_tensor(edge_index)
    cached = form.normalised and getattr(conv, "cached", False)
    if cached and not sparse and owner is not None:
        # the conv keeps its graph, whatever it is called with
        _check_indices(edge_index, x.size(0))
        kept = normalised_graph(conv, x, edge_index, weight)
        return rows_of(owner, conv, replace(form, normalised=False), x, *kept)
    learned = learned or (sparse and edge_index.requires_grad)
    key = _key_of(conv, form, x, edge_index, weight)
    if owner is None:
        key = None
    if key is not None and torch.is_inference_mode_enabled():
        with torch.inference_mode(False):  # for training, too, later on
            return rows_of(owner, conv, form, x, edge_index, weight)
    known = None if key is None else _MEMORY.get(owner)
    if known is not None:
        if known.fits(key, edge_index, weight) and not learned:
            return known.graph, known.value
    edges, values = edge_index, weight
    if not sparse:
        _check_indices(edge_index, x.size(0))
    if form.normalised and owner is None:  # nothing may be left in the conv
        edges, values = _norm(conv, x, edge_index, weight)
    elif form.normalised:
        edges, values = normalised_graph(conv, x, edge_index, weight)
    elif form.loops:
        edges, values = add_self_loops(edges, values, num_nodes=x.size(0))
    if is_torch_sparse_tensor(edges):
        if edges.layout != torch.sparse_csr:
            edges = edges.to_sparse_csr()
        values = edges.values()
    graph = Rows(edges, x.size(0))
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
    if any(t.is_inference() for t in tensors):
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
    found = strays(edge_index, num_nodes)
    if found is not None:
        raise ValueError(found)


def _narrow(index: Tensor) -> Tensor:
    """int32 where that is enough: half the traffic."""
    return index.int() if index.numel() < 2**31 else index
