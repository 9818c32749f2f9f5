"""Layers of GraphGym: import this module, and a configuration may name
``picard_gcnconv``, ``picard_sageconv`` and ``picard_gatconv``.

A layer that changes the width has a linear map in front, and iterates behind
it, with the input of the iteration injected. Every graph of a batch stops by
itself.
"""

from __future__ import annotations

from typing import Any

import torch
from torch_geometric import nn as pyg
from torch_geometric.graphgym.register import register_layer

from .picard_conv import PicardConv

_CONVS = {
    "picard_gcnconv": pyg.GCNConv,
    "picard_sageconv": pyg.SAGEConv,
    "picard_gatconv": pyg.GATConv,
}


class PicardLayer(torch.nn.Module):
    """A :class:`PicardConv` of ``conv`` as GraphGym calls it."""

    conv: Any = pyg.GCNConv

    def __init__(self, layer_config: Any, **kwargs: Any):
        super().__init__()
        width = layer_config.dim_out
        self.lift: torch.nn.Module = torch.nn.Identity()
        if layer_config.dim_in != width:
            self.lift = torch.nn.Linear(layer_config.dim_in, width)
        self.model = PicardConv(
            self.conv(width, width, bias=layer_config.has_bias),
            inject=True,
            activation="tanh",
            **kwargs,
        )

    def forward(self, batch: Any) -> Any:
        x = self.lift(batch.x)
        graph = getattr(batch, "batch", None)
        batch.x = self.model(x, batch.edge_index, batch=graph)
        return batch


for _name, _conv in _CONVS.items():
    register_layer(_name, type(_name, (PicardLayer,), {"conv": _conv}))
