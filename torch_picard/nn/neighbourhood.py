"""What a conv sees of a graph, when it is computed piece by piece."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import torch
from torch_geometric import nn as pyg
from torch_geometric.nn import MessagePassing

from .invariants import _set

#: Their messages depend on the two nodes and the edge alone. All others are
#: given the neighbours of the halo as well, whose number they may look at.
_PLAIN = (
    pyg.GATConv, pyg.GATv2Conv, pyg.SAGEConv, pyg.GraphConv, pyg.GINConv,
    pyg.GINEConv, pyg.TransformerConv, pyg.SimpleConv, pyg.ResGatedGraphConv,
    pyg.EdgeConv, pyg.NNConv, pyg.LEConv, pyg.GeneralConv, pyg.CGConv,
)  # fmt: skip
_GLOBAL = (
    pyg.InstanceNorm, pyg.GraphNorm, pyg.PairNorm, pyg.MeanSubtractionNorm,
    pyg.GraphSizeNorm, pyg.DiffGroupNorm,
)  # fmt: skip


def is_plain(conv: Any) -> bool:
    """Whether the images of some rows follow from the edges to them alone."""
    return all(
        type(m) in _PLAIN
        for m in conv.modules()
        if isinstance(m, MessagePassing)
    )


def is_normalised(conv: Any) -> bool:
    """Whether the graph can be normalised for it beforehand."""
    return type(conv) is pyg.GCNConv and conv.normalize and not conv.cached


def options_set(conv: Any, options: dict[str, Any]) -> ExitStack:
    stack = ExitStack()
    for name, value in options.items():
        stack.enter_context(_set(conv, name, value))
    return stack


def check_pieces(conv: Any, where: str) -> None:
    """Refuses what cannot be computed piece by piece, ``where`` it is
    tried: "on a PartitionedGraph".

    Raises:
        ValueError: says what, and what to use instead.
    """
    for module in conv.modules():
        kind = type(module).__name__
        graphwise = isinstance(module, pyg.LayerNorm)
        graphwise = graphwise and module.mode == "graph"
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
            graphwise = module.training or module.running_mean is None
        if isinstance(module, _GLOBAL) or graphwise:
            raise ValueError(
                f"conv holds {kind}, whose statistics are over all nodes; "
                f"{where} use a norm of each row, such as "
                "LayerNorm(mode='node')"
            )
        if not isinstance(module, MessagePassing):
            continue
        if module.flow != "source_to_target":
            raise ValueError(
                f"conv must have flow='source_to_target' {where}, got "
                f"{module.flow!r}"
            )
        if getattr(module, "cached", False):
            raise ValueError(
                f"conv {module} was made with cached=True, and would keep one "
                "piece of the graph for another; use cached=False (it is "
                "computed once a solve anyway)"
            )
        hops = getattr(module, "K", getattr(module, "num_layers", 1))
        if isinstance(hops, int) and hops > 1:
            raise ValueError(_TOO_FAR.format(kind))


_TOO_FAR = (
    "conv looks further than one hop in one evaluation ({}); piece by piece "
    "only direct neighbours are at hand: iterate a conv of one hop"
)


class Hops:
    """An error if a conv propagates more than once for a piece."""

    def __init__(self, conv: Any, pieces: int):
        self._allowed = pieces
        self._convs = [
            m for m in conv.modules() if isinstance(m, MessagePassing)
        ]
        self._count, self._handles = 0, []  # type: ignore[var-annotated]
        self._done = False

    def __enter__(self) -> None:
        if self._done:
            return

        def count(module, inputs) -> None:
            self._count += 1
            if self._count > self._allowed:
                raise ValueError(_TOO_FAR.format(type(module).__name__))

        self._handles = [
            m.register_propagate_forward_pre_hook(count) for m in self._convs
        ]

    def __exit__(self, *error: Any) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles, self._done = [], True
