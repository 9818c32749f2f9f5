"""Graphs, convs and Algorithm 1, for the tests of this folder."""

import torch
from torch import Tensor
from torch_geometric.nn import (
    APPNP,
    ChebConv,
    DirGNNConv,
    GATConv,
    GATv2Conv,
    GCNConv,
    GINConv,
    GINEConv,
    GPSConv,
    GraphConv,
    InstanceNorm,
    LGConv,
    MessagePassing,
    PairNorm,
    SAGEConv,
    SGConv,
    TAGConv,
    TransformerConv,
)
from torch_geometric.utils import degree

#: node 3 has no incoming edge, node 0 a self-loop, 1 -> 2 is there twice
EDGES = torch.tensor([[0, 0, 1, 1, 2, 2, 3], [0, 1, 2, 2, 1, 0, 2]])


def features(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


class Own(MessagePassing):
    """What a user might write: messages depend on both ends and the edge."""

    def __init__(self, channels: int):
        super().__init__(aggr="mean")
        self.lin = torch.nn.Linear(2 * channels, channels)

    def forward(self, x, edge_index, edge_weight=None):
        return self.propagate(edge_index, x=x, edge_weight=edge_weight)

    def message(self, x_i, x_j, edge_weight):
        out = self.lin(torch.cat([x_i, x_j - x_i], dim=-1))
        return out if edge_weight is None else edge_weight[:, None] * out


def _mlp(channels: int) -> torch.nn.Module:
    return torch.nn.Sequential(
        torch.nn.Linear(channels, channels),
        torch.nn.ReLU(),
        torch.nn.Linear(channels, channels),
    )


#: conv by name, from the number of channels, divisible by 2
CONVS = {
    "gcn": lambda c: GCNConv(c, c),
    "gat": lambda c: GATConv(c, c // 2, heads=2),
    "gat mean": lambda c: GATConv(c, c, heads=3, concat=False),
    "gatv2": lambda c: GATv2Conv(c, c // 2, heads=2),
    "sage": lambda c: SAGEConv(c, c),
    "sage max": lambda c: SAGEConv(c, c, aggr="max"),
    "graph": lambda c: GraphConv(c, c),
    "gin": lambda c: GINConv(_mlp(c), train_eps=True),
    "transformer": lambda c: TransformerConv(c, c // 2, heads=2, beta=True),
    "sg": lambda c: SGConv(c, c, K=2),
    "lg": lambda c: LGConv(),
    "tag": lambda c: TAGConv(c, c, K=2),
    "appnp": lambda c: APPNP(K=2, alpha=0.1),
    "own": lambda c: Own(c),
}

#: convs that take an edge weight [E], by their name in CONVS
WEIGHTED = ["gcn", "graph", "sg", "lg", "tag", "appnp", "own"]

#: convs that take edge features [E, 3]
ATTRIBUTED = {
    "gat": lambda c: GATConv(c, c // 2, heads=2, edge_dim=3),
    "gatv2": lambda c: GATv2Conv(c, c // 2, heads=2, edge_dim=3),
    "transformer": lambda c: TransformerConv(c, c, edge_dim=3),
    "gine": lambda c: GINEConv(_mlp(c), edge_dim=3),
}


def make(factory, channels: int = 4, seed: int = 0, scale: float = 1.0):
    """A conv in float64, the same for the same seed."""
    if isinstance(factory, str):
        factory = CONVS[factory]
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        conv = factory(channels).double()
        with torch.no_grad():
            for parameter in conv.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
                parameter.mul_(scale)
    return conv


def gentle(z: Tensor) -> Tensor:
    """An activation under which every conv here contracts."""
    return 0.5 * torch.tanh(z)


def algorithm_1(conv, x, *args, alpha=0.5, n, activation=None, f=None):
    """The loop as printed in the paper, alpha on the old state."""
    for _ in range(n):
        z = conv(x, *args)
        z = z if f is None else z + f
        z = z if activation is None else activation(z)
        x = alpha * x + (1 - alpha) * z
    return x


class TwoHops(torch.nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.conv = SAGEConv(channels, channels)

    def forward(self, x, edge_index):
        return self.conv(self.conv(x, edge_index), edge_index)


class Centred(torch.nn.Module):
    """Minus the mean over all nodes, which no part of the graph knows."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = SAGEConv(channels, channels)

    def forward(self, x, edge_index):
        return self.conv(x - x.mean(0), edge_index)


class RandomWalk(MessagePassing):
    """Messages divided by the number of the source's outgoing edges."""

    def __init__(self, channels: int):
        super().__init__(aggr="add")

    def forward(self, x, edge_index):
        count = degree(edge_index[0], x.size(0), x.dtype).clamp(min=1)
        return self.propagate(edge_index, x=x / count[:, None])

    def message(self, x_j):
        return x_j


class Owned(torch.nn.Module):
    """With a parameter for each of the first ten nodes."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = SAGEConv(channels, channels)
        self.own = torch.nn.Parameter(torch.ones(10, channels))

    def forward(self, x, edge_index):
        more = torch.nn.functional.pad(self.own, (0, 0, 0, x.size(0)))
        return self.conv(x, edge_index) + more[: x.size(0)]


#: what looks further than the neighbours that a node hears from
FAR = {
    "two hops": TwoHops,
    "a mean over all": Centred,
    "attention to all": lambda c: GPSConv(
        c, SAGEConv(c, c), heads=1, norm=None
    ),
    "outgoing edges": lambda c: DirGNNConv(SAGEConv(c, c)),
    "degrees of outgoing edges": lambda c: ChebConv(c, c, K=2),
    "norms of outgoing edges": lambda c: DirGNNConv(GCNConv(c, c)),
    "a random walk": RandomWalk,
    "a parameter for each node": Owned,
}


def centred(x: Tensor) -> Tensor:
    """Looks at all rows."""
    return x - x.mean(0)


class Numbered(torch.nn.Module):
    """Adds its number to each row."""

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.arange(x.size(0), dtype=x.dtype)[:, None]


class OneEach(torch.nn.Module):
    """With a parameter for each of 60 nodes."""

    def __init__(self):
        super().__init__()
        self.own = torch.nn.Parameter(torch.ones(60, 1))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.own


#: what does not map each row by itself, and what is said of it
ACROSS = [
    ({"activation": PairNorm()}, "activation holds PairNorm"),
    ({"activation": centred}, "activation must map each row by itself"),
    ({"activation": torch.nn.Softmax(0)}, "activation must map each row"),
    ({"inject": Numbered()}, "inject must map each row by itself"),
    ({"inject": OneEach()}, "inject must map each row by itself"),
    ({"inject": InstanceNorm(4)}, "inject holds InstanceNorm"),
]
