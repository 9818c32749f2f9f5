"""Every form of a graph gives what edge_index gives."""

import pytest
import torch
import torch_geometric.typing
from torch_geometric import EdgeIndex
from torch_geometric.nn import GATConv, GCNConv
from torch_geometric.typing import SparseTensor
from torch_geometric.utils import to_torch_csc_tensor, to_torch_csr_tensor

from tests.nn.graphs import CONVS, EDGES, WEIGHTED, features, make
from torch_picard import PicardConv

NO_SPARSE = pytest.mark.skipif(
    not torch_geometric.typing.WITH_TORCH_SPARSE,
    reason="SparseTensor needs torch-sparse, which is not installed",
)

# No edge is there twice, which a matrix would add up, and none is a
# self-loop: to those PyG adds 1 in a matrix, but not in an edge_index.
SIMPLE = torch.tensor([[0, 1, 2, 2, 3, 1], [1, 2, 1, 0, 2, 3]])


def csr(edge_index, weight=None):
    """The transposed adjacency: row = target."""
    return to_torch_csr_tensor(edge_index.flip(0), weight, size=(4, 4))


def transposed_csc(edge_index, weight=None):
    return to_torch_csc_tensor(edge_index, weight, size=(4, 4)).t()


def csc(edge_index, weight=None):
    """The layout that PyG's convs convert in every call, or refuse."""
    return to_torch_csc_tensor(edge_index.flip(0), weight, size=(4, 4))


def sparse_tensor(edge_index, weight=None):
    row, col = edge_index
    adj = SparseTensor(row=row, col=col, value=weight, sparse_sizes=(4, 4))
    return adj.t()


def sorted_edge_index(edge_index, weight=None):
    assert weight is None
    edges = EdgeIndex(edge_index, sparse_size=(4, 4))
    return edges.sort_by("col").values


MATRICES = [
    csr,
    transposed_csc,
    csc,
    pytest.param(sparse_tensor, marks=NO_SPARSE),
]


def solve(name, inject=True):
    return PicardConv(
        make(name), max_iter=6, rtol=0.0, inject=inject, activation="tanh"
    )


# Attention convs know no sparse matrices of torch's own, see below.
@pytest.mark.parametrize("name", [*WEIGHTED[:-2], "appnp", "gin", "sage max"])
@pytest.mark.parametrize("form", MATRICES)
def test_matrix(name, form):
    x, picard = features(4, 4), solve(name)
    weight = torch.ones(SIMPLE.size(1), dtype=x.dtype)
    torch.testing.assert_close(
        picard(x, form(SIMPLE, weight)), picard(x, SIMPLE)
    )


@pytest.mark.parametrize("name", WEIGHTED[:-2])
@pytest.mark.parametrize("form", MATRICES)
def test_weights_in_a_matrix(name, form):
    x, picard = features(4, 4), solve(name)
    weight = features(SIMPLE.size(1)).square() + 0.1
    torch.testing.assert_close(
        picard(x, form(SIMPLE, weight)), picard(x, SIMPLE, weight)
    )


@pytest.mark.parametrize("form", [csr, transposed_csc, csc])
@pytest.mark.parametrize("name", WEIGHTED[:-2])
def test_gradients_to_weights_in_a_matrix(name, form):
    x, picard, grads = features(4, 4), solve(name), []
    for build in (lambda w: (form(SIMPLE, w),), lambda w: (SIMPLE, w)):
        weight = features(SIMPLE.size(1)).square() + 0.1
        weight.requires_grad_()
        picard(x, *build(weight)).square().sum().backward()
        grads.append(weight.grad)
    torch.testing.assert_close(*grads)


@pytest.mark.parametrize("name", CONVS)
@pytest.mark.parametrize("form", [EdgeIndex, sorted_edge_index])
def test_edge_index(name, form):
    # A sorted EdgeIndex without a weight multiplies in float32 only.
    x, picard = features(4, 4).float(), solve(name).float()
    torch.testing.assert_close(picard(x, form(EDGES)), picard(x, EDGES))


@pytest.mark.parametrize("name", ["gat", "gatv2", "transformer"])
@pytest.mark.parametrize("form", [csr, transposed_csc, MATRICES[-1]])
def test_attention_on_a_matrix_is_what_the_conv_makes_of_it(name, form):
    """The conv's own answer, be it a result or a refusal."""
    x, picard = features(4, 4), solve(name, inject=False)
    adj = form(SIMPLE, torch.ones(SIMPLE.size(1), dtype=x.dtype))
    try:
        picard.conv(x, adj)
    except Exception as error:
        with pytest.raises(type(error)):
            picard(x, adj)
    else:
        torch.testing.assert_close(picard(x, adj), picard(x, SIMPLE))


def test_no_edges():
    x, nothing = features(4, 4), torch.empty(2, 0, dtype=torch.long)
    for name in ("gcn", "gat", "sage", "own"):
        picard = solve(name)
        y = x
        for _ in range(6):
            z = torch.tanh(picard.conv(y, nothing) + x)
            y = 0.5 * y + 0.5 * z
        torch.testing.assert_close(picard(x, nothing), y)


@pytest.mark.parametrize("name", ["gcn", "sage", "graph", "sg", "lg", "tag"])
def test_static_graph(name):
    """Features [B, N, F] over one graph, where the conv knows them."""
    x, picard = features(3, 4, 4), solve(name)
    expected = torch.stack([picard(y, EDGES) for y in x])
    torch.testing.assert_close(picard(x, EDGES), expected)


@pytest.mark.parametrize("conv", [GATConv, GCNConv])
def test_static_graph_stops_per_signal(conv):
    x = features(3, 4, 4) * torch.tensor([1e-3, 1.0, 9.0]).view(3, 1, 1)
    picard = PicardConv(
        make(lambda c: conv(c, c), scale=0.5),
        max_iter=100,
        rtol=1e-8,
        inject=True,
        activation="tanh",
    )
    if conv is GATConv:
        with pytest.raises(AssertionError, match="Static graphs"):
            picard(x, EDGES)
        return
    out, solution = picard(
        x, EDGES, batch=torch.arange(3), return_solution=True
    )
    assert solution.converged.tolist() == [True] * 3
    for y, alone in zip(out, x):
        torch.testing.assert_close(y, picard(alone, EDGES))
