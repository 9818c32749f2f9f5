"""The models of the node classification examples, by name.

    GCN, GAT                  two layers, no iteration
    GCN-matched, GAT-matched  the same, as many parameters as PIGN
    IterGNN-GCN, IterGNN-GAT  iterated, learned soft stop
    PIGN-GCN, PIGN-GAT        iterated to a fixed point

Every model starts with the same kind of layer (FeatureLinear), so sparse
features and their dropout are treated alike everywhere.
"""

from functools import partial

import torch
import torch.nn.functional as F
from itergnn import IterGNN
from torch import Tensor
from torch.nn import Module
from torch_geometric.nn import (
    GATConv,
    GCNConv,
    GraphNorm,
    MeanSubtractionNorm,
    PairNorm,
)

from torch_picard.nn.feature_linear import FeatureLinear
from torch_picard.nn.pign import PIGN

MODELS = [
    "GCN",
    "GAT",
    "GCN-matched",
    "GAT-matched",
    "IterGNN-GCN",
    "IterGNN-GAT",
    "PIGN-GCN",
    "PIGN-GAT",
]

# All of these treat training and evaluation alike and use no labels.
NORMS = {
    None: None,
    "mean": lambda channels: MeanSubtractionNorm(),
    "graph": GraphNorm,
    "pair": lambda channels: PairNorm(),
}


class GNN(Module):
    """Two layers of GCN or GAT, as their papers have them."""

    def __init__(
        self,
        in_channels: int,
        hidden_channels: int,
        out_channels: int,
        conv: str,
        *,
        heads: int = 1,
        input_dropout: float = 0.5,
        dropout: float = 0.5,
        norm: str | None = None,
    ) -> None:
        super().__init__()
        width = hidden_channels
        if conv == "gcn":
            self.conv1 = GCNConv(width, width, cached=True)
            self.conv2 = GCNConv(width, out_channels, cached=True)
        else:
            if width % heads:
                raise ValueError(f"{heads} heads do not divide {width}")
            self.conv1 = GATConv(
                width, width // heads, heads=heads, dropout=dropout
            )
            self.conv2 = GATConv(width, out_channels, dropout=dropout)
        self.conv1.lin = FeatureLinear(
            in_channels, width, bias=False, dropout=input_dropout
        )
        self.norm = NORMS[norm](width) if norm else torch.nn.Identity()
        self.activation = torch.relu if conv == "gcn" else F.elu
        self.dropout = dropout

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        x = self.activation(self.norm(self.conv1(x, edge_index)))
        x = F.dropout(x, self.dropout, self.training)
        return self.conv2(x, edge_index)


def square_conv(name: str, channels: int) -> Module:
    if name == "gcn":
        return GCNConv(channels, channels, cached=True)
    return GATConv(channels, channels)


def num_parameters(model: Module) -> int:
    return sum(p.numel() for p in model.parameters())


def matched_width(target: int, build) -> int:
    """The width whose parameter count is nearest to `target`."""
    width = 1
    while num_parameters(build(width)) < target:
        width += 1
    if width > 1:
        over = num_parameters(build(width)) - target
        under = target - num_parameters(build(width - 1))
        width = width if over <= under else width - 1
    return width


def build(name: str, settings: dict, in_channels: int, out_channels: int):
    """The model `name`; `settings` are the options of its class.

    For a matched model, settings["match"] holds the settings of the PIGN
    whose parameter count it is given.
    """
    options = dict(settings)
    kind, _, conv = name.lower().rpartition("-")
    if conv == "matched":
        target = build(
            f"PIGN-{kind.upper()}",
            options.pop("match"),
            in_channels,
            out_channels,
        )
        make = partial(
            GNN,
            in_channels,
            out_channels=out_channels,
            conv=kind,
            **options,
        )
        return make(matched_width(num_parameters(target), make))
    width = options.pop("hidden_channels")
    sizes = (in_channels, width, out_channels)
    if kind == "":
        return GNN(*sizes, conv, **options)
    norm = NORMS[options.pop("norm", None)]
    square = partial(square_conv, conv)
    if kind == "itergnn":
        return IterGNN(*sizes, square, norm=norm, **options)
    if kind == "pign":
        return PIGN(*sizes, conv, norm=norm, **options)
    raise ValueError(f"unknown model {name!r}, choose from {MODELS}")
