"""PicardConv where PyG expects a conv."""

import sys
from types import SimpleNamespace

import pytest
import torch
from torch_geometric.nn import (
    GATConv,
    GCNConv,
    HeteroConv,
    SAGEConv,
    Sequential,
    summary,
)
from torch_geometric.nn.models.basic_gnn import BasicGNN

from tests.nn.graphs import EDGES, algorithm_1, features, make
from torch_picard import PicardConv


def layer(channels=4, **options):
    return PicardConv(
        make(lambda c: GCNConv(c, c), channels), inject=True, **options
    )


def test_sequential():
    first, second = layer(), layer(max_iter=3, rtol=0.0)
    lin = torch.nn.Linear(4, 2).double()
    model = Sequential(
        "x, edge_index, edge_weight",
        [
            (first, "x, edge_index, edge_weight -> x"),
            torch.nn.Tanh(),
            (second, "x, edge_index -> x"),
            (lin, "x -> x"),
        ],
    )
    x, weight = features(4, 4), features(7).square()
    expected = lin(second(torch.tanh(first(x, EDGES, weight)), EDGES))
    assert torch.equal(model(x, EDGES, weight), expected)
    assert "PicardConv(GCNConv(4, 4), alpha=0.5" in str(model)


class PicardGCN(BasicGNN):
    supports_edge_weight = True
    supports_edge_attr = False
    supports_norm_batch = False

    def init_conv(self, in_channels, out_channels, **kwargs):
        conv = GCNConv(in_channels, out_channels, **kwargs)
        return PicardConv(conv, max_iter=4, rtol=0.0, inject=True)


@pytest.mark.parametrize("jk", [None, "last", "cat", "max", "lstm"])
def test_basic_gnn(jk):
    torch.manual_seed(0)
    model = PicardGCN(4, 4, num_layers=3, out_channels=4, jk=jk).double()
    x, weight = features(4, 4), features(7).square().requires_grad_()
    out = model(x, EDGES, edge_weight=weight)
    assert out.shape == (4, 4)
    out.sum().backward()
    assert weight.grad.abs().sum() > 0
    if jk is None:
        expected = x
        for i, conv in enumerate(model.convs):
            expected = algorithm_1(
                conv.conv, expected, EDGES, weight, n=4, f=expected
            )
            expected = expected.relu() if i < 2 else expected
        torch.testing.assert_close(out, expected)
    model.reset_parameters()
    assert not torch.equal(model(x, EDGES, edge_weight=weight), out)


def test_basic_gnn_of_another_width_says_what_to_do():
    with pytest.raises(ValueError, match="keep the width"):
        PicardGCN(7, 4, num_layers=2)


def test_hetero_conv():
    torch.manual_seed(0)
    a, b = layer(), layer()
    between = SAGEConv((4, 4), 4).double()
    conv = HeteroConv(
        {
            ("paper", "cites", "paper"): a,
            ("author", "knows", "author"): b,
            ("author", "writes", "paper"): between,
        },
        aggr="sum",
    )
    x = {"paper": features(4, 4), "author": features(3, 4, seed=1)}
    knows = torch.tensor([[0, 1, 2], [1, 2, 0]])
    writes = torch.tensor([[0, 1, 2], [3, 1, 0]])
    out = conv(
        x,
        {
            ("paper", "cites", "paper"): EDGES,
            ("author", "knows", "author"): knows,
            ("author", "writes", "paper"): writes,
        },
    )
    both = between((x["author"], x["paper"]), writes)
    torch.testing.assert_close(out["paper"], a(x["paper"], EDGES) + both)
    torch.testing.assert_close(out["author"], b(x["author"], knows))


def test_hetero_conv_between_two_types_is_refused():
    edge_type = ("author", "writes", "paper")
    conv = HeteroConv({edge_type: layer()})
    x = {"paper": features(4, 4), "author": features(3, 4)}
    with pytest.raises(ValueError, match="source and target"):
        conv(x, {edge_type: torch.tensor([[0, 1], [1, 2]])})


class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = layer()

    def forward(self, x, edge_index):
        return self.conv(x, edge_index).tanh()


@pytest.fixture
def table(monkeypatch):
    """PyG's summary draws with tabulate; any table will do here."""

    def tabulate(rows, headers, **_):
        return "\n".join(" | ".join(row) for row in [headers, *rows])

    module = SimpleNamespace(tabulate=tabulate)
    monkeypatch.setitem(sys.modules, "tabulate", module)


@pytest.mark.usefixtures("table")
def test_summary():
    text = summary(Net(), features(4, 4), EDGES, max_depth=2)
    assert "PicardConv" in text and "GCNConv" in text
    assert text.count("[4, 4]") >= 4
    assert "| 20" in text  # 4*4 weights and 4 biases


def fixed(conv, **options):
    return PicardConv(
        conv,
        max_iter=6,
        rtol=0.0,
        inject=True,
        activation="tanh",
        **options,
    )


@pytest.mark.parametrize(
    "factory",
    [
        lambda c: GCNConv(c, c, add_self_loops=False),
        pytest.param(lambda c: SAGEConv(c, c), marks=pytest.mark.slow),
        pytest.param(
            lambda c: GATConv(c, c, add_self_loops=False),
            marks=pytest.mark.slow,
        ),
    ],
    ids=["gcn", "sage", "gat"],
)
def test_fixed_count_compiles_without_a_break(factory):
    torch.compiler.reset()
    picard = fixed(make(factory))
    compiled = torch.compile(picard, fullgraph=True, backend="eager")
    x = features(4, 4).requires_grad_()
    y = features(4, 4).requires_grad_()
    out, expected = compiled(x, EDGES), picard(y, EDGES)
    torch.testing.assert_close(out, expected)
    out.square().sum().backward()
    expected.square().sum().backward()
    torch.testing.assert_close(x.grad, y.grad)


def test_compiles_with_weights_alpha_and_batch():
    torch.compiler.reset()
    alpha = torch.nn.Parameter(torch.tensor(0.3, dtype=torch.float64))
    conv = make(lambda c: GCNConv(c, c, add_self_loops=False))
    picard = fixed(conv, alpha=alpha)
    compiled = torch.compile(picard, fullgraph=True, backend="eager")
    x, weight = features(4, 4), features(7).square() + 0.1
    batch = torch.tensor([0, 0, 1, 1])
    out = compiled(x, EDGES, weight, batch=batch)
    torch.testing.assert_close(out, picard(x, EDGES, weight, batch=batch))
