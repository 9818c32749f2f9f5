"""How far a model looks."""

from __future__ import annotations

import torch
from torch_geometric.explain.algorithm import ExplainerAlgorithm
from torch_geometric.nn import (
    AntiSymmetricConv,
    ARMAConv,
    ChebConv,
    DirGNNConv,
    GatedGraphConv,
    HeteroConv,
    HypergraphConv,
    MessagePassing,
    MixHopConv,
    PANConv,
)

from .picard_conv import PicardConv


def num_hops(model: torch.nn.Module) -> int:
    """Hops that the output at a node can depend on, iterations counted: for
    a :class:`PicardConv` ``max_iter`` times the hops of its conv. A solve
    that stops earlier sees less.

    Degrees by which a conv normalises need one hop more: for a subgraph of
    so many hops, compute edge weights on the whole graph.

    Of a :class:`HypergraphConv` a hop is one entry of ``hyperedge_index``:
    two lead from a node to its neighbours.

    Modules are taken to be applied one after the other, once each; the convs
    of a :class:`HeteroConv` or of ``to_hetero``, side by side.

    Args:
        model: any module; 0 for one without message passing.

    Raises:
        TypeError: ``model`` is no module.

    PyG's explainers ask for it too, for models that hold a PicardConv:
    their own count, of message passing modules, sees one hop there, and
    masks everything beyond.
    """
    if not isinstance(model, torch.nn.Module):
        raise TypeError(
            f"model must be a torch.nn.Module, got {type(model).__name__}"
        )
    if isinstance(model, PicardConv):
        return model.max_iter * num_hops(model.conv)
    if isinstance(model, AntiSymmetricConv):
        return model.num_iters * num_hops(model.phi)
    if isinstance(model, torch.nn.ModuleDict) and _is_typed(model):
        return max(num_hops(child) for child in model.values())
    inner = [num_hops(child) for child in model.children()]
    if isinstance(model, (HeteroConv, DirGNNConv)):
        return max(_flat(model), default=0)
    own = _own(model) if isinstance(model, MessagePassing) else 0
    return own + sum(inner)


def _is_typed(convs: torch.nn.ModuleDict) -> bool:
    """Whether to_hetero has made it: one conv for every edge type, named
    a__to__b, side by side."""
    return len(convs) > 0 and all(name.count("__") == 2 for name in convs)


def _flat(model: torch.nn.Module) -> list[int]:
    """Of the convs that stand side by side."""
    convs = model.convs if isinstance(model, HeteroConv) else model.children()
    children = convs.values() if hasattr(convs, "values") else convs
    return [num_hops(child) for child in children]


def _own(conv: MessagePassing) -> int:
    if isinstance(conv, ChebConv):
        return len(conv.lins) - 1
    if isinstance(conv, (ARMAConv, GatedGraphConv)):
        return conv.num_layers
    if isinstance(conv, MixHopConv):
        return max(conv.powers)
    if isinstance(conv, HypergraphConv):
        return 2  # from nodes to hyperedges, and back
    if isinstance(conv, PANConv):
        return conv.filter_size
    hops = getattr(conv, "K", 1)
    return hops if isinstance(hops, int) else 1


_counted_by_pyg = ExplainerAlgorithm._num_hops


def _num_hops(model: torch.nn.Module) -> int:
    if any(isinstance(module, PicardConv) for module in model.modules()):
        return num_hops(model)
    return _counted_by_pyg(model)


ExplainerAlgorithm._num_hops = staticmethod(_num_hops)
