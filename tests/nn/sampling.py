"""A random graph with weights and a contraction on it, to take batches of."""

import torch
import torch_geometric.transforms as T
from torch_geometric.data import Data
from torch_geometric.nn import GCNConv

from torch_picard import PicardConv

WIDTH = 5


def graph(nodes=40):
    draw = torch.Generator().manual_seed(0)
    data = Data(
        x=torch.randn(nodes, WIDTH, generator=draw),
        edge_index=torch.randint(nodes, (2, 120), generator=draw),
    )
    return T.GCNNorm()(data)


def picard(**options):
    torch.manual_seed(0)
    conv = GCNConv(WIDTH, WIDTH, normalize=False)
    with torch.no_grad():
        conv.lin.weight.mul_(0.5)
    options = {"rtol": 1e-7, "max_iter": 200} | options
    return PicardConv(conv, inject=True, activation="tanh", **options)
