"""Wrong options and calls, each with an error that says what is wrong."""

import pytest
import torch
from torch_geometric import nn as pyg
from torch_geometric.nn import (
    ChebConv,
    GATConv,
    GATv2Conv,
    GCNConv,
    GINConv,
    GINEConv,
    GraphConv,
    HeteroConv,
    MixHopConv,
    SAGEConv,
    Sequential,
    SGConv,
    SSGConv,
    TransformerConv,
)
from torch_geometric.utils import to_torch_csr_tensor

from tests.nn.graphs import EDGES
from torch_picard import (
    PIGN,
    Anderson,
    ConvergenceError,
    Implicit,
    Picard,
    PicardConv,
)
from torch_picard.ops import backends

NAN = float("nan")


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"conv": None}, TypeError, "conv must be a module"),
        ({"conv": "gcn"}, TypeError, "conv must be a module"),
        ({"conv": GCNConv}, TypeError, "conv must be a module"),
        ({"conv": max}, TypeError, "conv must be a module"),
        ({"alpha": 1.0}, ValueError, "alpha .* 1"),
        ({"alpha": 1}, ValueError, "alpha"),
        ({"alpha": -0.1}, ValueError, "alpha"),
        ({"alpha": NAN}, ValueError, "alpha"),
        ({"alpha": "0.5"}, TypeError, "alpha"),
        ({"alpha": True}, TypeError, "alpha"),
        ({"alpha": torch.tensor([0.5, 1.0])}, ValueError, "alpha"),
        ({"max_iter": 0}, ValueError, "max_iter"),
        ({"max_iter": -3}, ValueError, "max_iter"),
        ({"max_iter": 2.5}, TypeError, "max_iter"),
        ({"max_iter": True}, TypeError, "max_iter"),
        ({"max_iter": None}, TypeError, "max_iter"),
        ({"rtol": -1e-3}, ValueError, "rtol"),
        ({"rtol": NAN}, ValueError, "rtol"),
        ({"rtol": float("inf")}, ValueError, "rtol"),
        ({"rtol": "1e-3"}, TypeError, "rtol"),
        ({"atol": -1}, ValueError, "atol"),
        ({"atol": None}, TypeError, "atol"),
        ({"inject": None}, TypeError, "inject"),
        ({"inject": 0.5}, TypeError, "inject"),
        ({"inject": "yes"}, TypeError, "inject"),
        (
            {"activation": "no such one"},
            ValueError,
            "activation must be .*'no such one'.*ReLU",
        ),
        ({"activation": "threshold"}, ValueError, "activation .*'threshold'"),
        ({"activation": 3}, TypeError, "activation"),
        ({"method": "anderson"}, TypeError, "method"),
        ({"method": Anderson}, TypeError, "method"),
        ({"gradient": "implicit"}, TypeError, "gradient"),
        ({"gradient": Implicit}, TypeError, "gradient"),
        ({"on_failure": "shout"}, ValueError, "on_failure"),
        ({"on_failure": None}, ValueError, "on_failure"),
        ({"backend": "fast"}, ValueError, "backend"),
        ({"backend": None}, ValueError, "backend"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_bad_option(options, error, message):
    with pytest.raises(error, match=message):
        PicardConv(**{"conv": GCNConv(4, 4), **options})


def test_alpha_belongs_to_the_method_if_there_is_one():
    with pytest.raises(ValueError, match=r"alpha=0\.5 .*Anderson\(alpha="):
        PicardConv(GCNConv(4, 4), alpha=0.5, method=Anderson())
    with pytest.raises(ValueError, match=r"Picard\(alpha="):
        PicardConv(GCNConv(4, 4), 0.0, method=Picard(0.0))


@pytest.mark.parametrize("backend", ["auto", "torch"])
def test_backends(backend):
    picard = PicardConv(GCNConv(4, 4), backend=backend)
    assert picard(torch.randn(4, 4), EDGES).shape == (4, 4)


def test_a_backend_that_is_not_there(monkeypatch):
    monkeypatch.setattr(backends, "_has_scatter", lambda: False)
    with pytest.raises(RuntimeError, match=r"'scatter'.*pip install"):
        PicardConv(GCNConv(4, 4), backend="scatter")
    monkeypatch.setitem(backends.MISSING, "cpu", "it was not built")
    with pytest.raises(RuntimeError, match=r"'native'.*it was not built"):
        PicardConv(GCNConv(4, 4), backend="native")(torch.ones(4, 4), EDGES)


@pytest.mark.parametrize(
    ("conv", "out"),
    [
        (lambda: GCNConv(4, 8), 8),
        (lambda: SAGEConv((4, 4), 3), 3),
        (lambda: GraphConv(4, 1), 1),
        (lambda: GATConv(4, 4, heads=2), 8),
        (lambda: GATConv(4, 2, heads=2, concat=False), 2),
        (lambda: GATv2Conv(4, 4, heads=3), 12),
        (lambda: TransformerConv(4, 4, heads=2), 8),
        (lambda: MixHopConv(4, 4), 12),
    ],
)
def test_a_conv_that_changes_the_width_is_refused_at_once(conv, out):
    with pytest.raises(
        ValueError, match=rf"4 features to {out}\..*Linear\(4, {out}\)"
    ):
        PicardConv(conv())


@pytest.mark.parametrize(
    ("conv", "out"),
    [
        (lambda: GCNConv(-1, 8), 8),
        (lambda: GATConv(-1, 4, heads=2), 8),
        (lambda: SAGEConv((-1, -1), 3), 3),
        (lambda: Halves(), 2),
    ],
)
def test_or_at_the_call_if_it_does_not_say(conv, out):
    picard = PicardConv(conv())
    with pytest.raises(
        ValueError, match=rf"4 features to {out}\..*Linear\(4, {out}\)"
    ):
        picard(torch.randn(4, 4), EDGES)


class Halves(torch.nn.Module):
    def forward(self, x, edge_index):
        return x[:, ::2]


@pytest.mark.parametrize(
    "conv",
    [
        lambda: GCNConv(-1, 4),
        lambda: GATConv(-1, 2, heads=2),
        lambda: GATConv(4, 4, heads=2, concat=False),
        lambda: SAGEConv((4, 4), 4),
        lambda: SAGEConv((-1, -1), 4),
        lambda: MixHopConv(6, 2, powers=[0, 1, 2]),
    ],
)
def test_a_conv_that_keeps_the_width_is_not_refused(conv):
    picard = PicardConv(conv())
    width = 6 if isinstance(picard.conv, MixHopConv) else 4
    x = torch.randn(4, width)
    assert picard(x, EDGES).shape == x.shape


@pytest.mark.parametrize("conv", [SGConv, SSGConv])
def test_a_conv_that_caches_its_state_is_refused(conv):
    more = {"alpha": 0.1} if conv is SSGConv else {}
    with pytest.raises(ValueError, match="use cached=False"):
        PicardConv(conv(4, 4, cached=True, **more))


class Pair(torch.nn.Module):
    def forward(self, x, edge_index):
        return x, x


class Rows(torch.nn.Module):
    def forward(self, x, edge_index):
        return x[1:]


X = torch.ones(4, 4)
BATCH = torch.tensor([0, 0, 1, 1])


@pytest.mark.parametrize(
    ("picard", "arguments", "error", "message"),
    [
        ({}, {"x": (X, X)}, ValueError, "x must be one Tensor.*tuple"),
        ({}, {"x": (X, None)}, ValueError, "source and target"),
        ({}, {"x": None}, ValueError, "x must be one Tensor"),
        ({}, {"x": X.long()}, ValueError, "floating"),
        ({}, {"batch": BATCH[:3]}, ValueError, "batch"),
        ({}, {"batch": BATCH.float()}, ValueError, "batch"),
        ({}, {"batch": BATCH.int()}, ValueError, "batch"),
        ({}, {"batch": BATCH[:, None]}, ValueError, "batch"),
        ({}, {"batch": [0, 0, 1, 1]}, TypeError, "batch"),
        ({}, {"batch": BATCH.flip(0)}, ValueError, "^batch must be sorted"),
        ({}, {"batch": BATCH - 1}, ValueError, "^batch must not be negative"),
        ({"rtol": 0.0}, {"batch": BATCH[:3]}, ValueError, "batch"),
        ({}, {"edge_attr": X}, TypeError, "edge_attr"),
        ({"conv": Pair()}, {}, TypeError, "Tensor"),
        ({"conv": Rows()}, {}, ValueError, "shape"),
        ({"inject": torch.nn.Linear(4, 1)}, {}, ValueError, "inject"),
        ({"activation": "glu"}, {}, ValueError, "shape"),
        ({"activation": lambda z: z.double()}, {}, ValueError, "dtype"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_bad_call(picard, arguments, error, message):
    layer = PicardConv(**{"conv": GCNConv(4, 4), **picard})
    with pytest.raises(error, match=message):
        layer(**{"x": X, "edge_index": EDGES, **arguments})


def test_names_of_other_arguments_reach_the_conv():
    with pytest.raises(TypeError, match="GCNConv"):
        PicardConv(GCNConv(4, 4))(X, EDGES, edge_attr=X)
    with pytest.raises(TypeError, match="SGConv"):
        PicardConv(SGConv(4, 4))(X, EDGES, None, None)
    with pytest.raises(TypeError, match="GATConv"):
        PicardConv(GATConv(4, 4))(X, EDGES, no_such_one=X)


CONVS = {
    "GCN": lambda: GCNConv(4, 4),
    "GCN of any width": lambda: GCNConv(-1, 4),
    "GCN cached": lambda: GCNConv(4, 4, cached=True),
    "GAT": lambda: GATConv(4, 4),
    "SAGE": lambda: SAGEConv(4, 4),
    "GIN": lambda: GINConv(torch.nn.Linear(4, 4)),
    "Graph": lambda: GraphConv(4, 4),
    "Cheb": lambda: ChebConv(4, 4, 2),
    "stack": lambda: Sequential(
        "x, edge_index", [(GCNConv(4, 4), "x, edge_index -> x")]
    ),
    "PIGN": lambda: PIGN(4, 8, 3),
}
SHAPE = r"^edge_index must hold integers of shape \[2, E\].*"
CALLS = {
    "x 1-dim": ({"x": X[0]}, r"^x must .*\[N, F\], got shape \[4\]"),
    "x a number": ({"x": X[0, 0]}, r"^x must .*\[N, F\], got shape \[\]"),
    "x wide": ({"x": torch.ones(4, 5)}, r"^x must .* 4 .*\[4, 5\]"),
    "x double": ({"x": X.double()}, "^x must be of .*float32.*float64"),
    "x half": ({"x": X.half()}, "^x must be of .*float32.*float16"),
    "edges float": ({"edge_index": EDGES.float()}, SHAPE + "float32"),
    "edges of 3": ({"edge_index": EDGES[[0, 1, 1]]}, SHAPE + r"\[3, "),
    "edges 1-dim": ({"edge_index": EDGES[0]}, SHAPE + "int64 of shape"),
    "edges None": ({"edge_index": None}, SHAPE + "NoneType"),
    "edges a list": ({"edge_index": EDGES.tolist()}, SHAPE + "list"),
    "a node too far": (
        {"edge_index": EDGES + 1},
        r"^edge_index must .* in \[0, 4\).*got 1 to 4",
    ),
    "a node below": ({"edge_index": EDGES - 1}, "^edge_index must .* -1 to 2"),
    "not square": (
        {"edge_index": to_torch_csr_tensor(EDGES, size=(4, 5))},
        r"^edge_index must be a square adjacency.*\[4, 4\], got \[4, 5\]",
    ),
}


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("conv", CONVS)
@pytest.mark.filterwarnings("ignore:Sparse")
def test_input_that_does_not_fit_is_named(conv, call):
    arguments, message = CALLS[call]
    if call == "x wide" and conv == "GCN of any width":
        message = "^conv must keep the width of x"
    layer = CONVS[conv]()
    if not isinstance(layer, PIGN):
        layer = PicardConv(layer)
    with pytest.raises(ValueError, match=message):
        layer(**{"x": X, "edge_index": EDGES, **arguments})


def gine_conv(width, _, edge_dim):
    return GINEConv(torch.nn.Linear(width, width), edge_dim=edge_dim)


@pytest.mark.parametrize("by_name", [False, True])
@pytest.mark.parametrize(
    ("weight", "message"),
    [
        (torch.ones(5), r"one entry an edge.* 7, got shape \[5\]"),
        (torch.ones(9), r"one entry an edge.* 7, got shape \[9\]"),
        (torch.ones(7, 2), r"shape \[E\], got shape \[7, 2\]"),
        ([1.0] * 7, "a Tensor.* got list"),
    ],
)
@pytest.mark.parametrize("conv", [GCNConv, GraphConv, SGConv])
def test_weights_that_do_not_fit_are_named(conv, weight, message, by_name):
    assert EDGES.size(1) == 7
    more = {"edge_weight": weight} if by_name else {}
    layer = PicardConv(conv(4, 4))
    with pytest.raises(ValueError, match="^edge_weight must .*" + message):
        layer(X, EDGES, *(() if by_name else (weight,)), **more)


@pytest.mark.parametrize(
    ("attr", "message"),
    [
        (torch.ones(7, 5), r"3 features an edge.* got shape \[7, 5\]"),
        (torch.ones(5, 3), r"one entry an edge.* 7, got shape \[5, 3\]"),
        (torch.ones(7, 3).double(), "float32, as x is, got torch.float64"),
    ],
)
@pytest.mark.parametrize("conv", [GATConv, TransformerConv, gine_conv])
def test_features_of_edges_that_do_not_fit_are_named(conv, attr, message):
    layer = PicardConv(conv(4, 4, edge_dim=3))
    with pytest.raises(ValueError, match="^edge_attr must .*" + message):
        layer(X, EDGES, edge_attr=attr)


def test_features_of_edges_that_are_missing_are_named():
    layer = PicardConv(TransformerConv(4, 4, edge_dim=3))
    with pytest.raises(ValueError, match="edge_attr must be given"):
        layer(X, EDGES)


def test_a_conv_without_weights_says_so():
    with pytest.raises(ValueError, match="SAGEConv takes no edge_weight"):
        PIGN(4, 8, 3, conv="sage")(X, EDGES, torch.ones(7))


def test_the_batch_of_a_node_type_is_named():
    layer = PicardConv(HeteroConv({("a", "to", "a"): GCNConv(4, 4)}))
    edges = {("a", "to", "a"): EDGES}
    for batch, message in (
        (BATCH.float(), "LongTensor.*float32"),
        (BATCH.flip(0), "must be sorted"),
        (BATCH - 1, "must not be negative"),
    ):
        with pytest.raises(ValueError, match=rf"^batch\['a'\] .*{message}"):
            layer({"a": X}, edges, batch={"a": batch})


class Fails(torch.nn.Module):
    """For a reason of its own."""

    def __init__(self, error):
        super().__init__()
        self.error, self.other = error, torch.nn.Linear(9, 9)

    def forward(self, x, graph):
        raise self.error


def test_what_a_conv_says_itself_is_left_alone():
    for error in (ValueError("x is odd"), TypeError("x is a letter")):
        with pytest.raises(type(error), match=f"^{error}$"):
            PicardConv(Fails(error))(X, "a graph")
    layer = PicardConv(GCNConv(4, 4), max_iter=1, on_failure="raise")
    with pytest.raises(ConvergenceError):
        layer(X, EDGES)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"hidden_channels": 0}, ValueError, "hidden_channels"),
        ({"hidden_channels": 4.5}, TypeError, "hidden_channels"),
        ({"conv": "no such one"}, ValueError, "conv .*'gcn'"),
        ({"conv": 3}, ValueError, "conv .* 3"),
        ({"inject": "yes"}, TypeError, "inject"),
        ({"norm": "foo"}, ValueError, "^norm must .*'foo'.*GraphNorm"),
        ({"inner_norm": "foo"}, ValueError, "^inner_norm must .*'foo'"),
        ({"norm": 3}, TypeError, "^norm must .* 3"),
        ({"activation": "foo"}, ValueError, "^activation must .*'foo'"),
        (
            {"encoder_activation": "foo"},
            ValueError,
            "^encoder_activation must .*'foo'.*ReLU",
        ),
        ({"encoder_activation": 3}, TypeError, "^encoder_activation must"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_bad_option_of_a_model(options, error, message):
    widths = {"in_channels": 4, "hidden_channels": 8, "out_channels": 3}
    with pytest.raises(error, match=message):
        PIGN(**{**widths, **options})


def broken(x):
    return x @ torch.zeros(3, 3)


@pytest.mark.parametrize(
    "make, wide",
    [
        (lambda: pyg.EdgeConv(torch.nn.Linear(8, 4)), None),
        (lambda: pyg.GINConv(torch.nn.Linear(4, 4)), None),
        (
            lambda: pyg.GINEConv(torch.nn.Linear(4, 4), edge_dim=2),
            "edge_attr must have 2 features",
        ),
        (lambda: pyg.CGConv(4, dim=2), "shapes cannot be multiplied"),
    ],
)
def test_x_is_not_blamed_for_the_faults_of_others(make, wide):
    x, edge_index = torch.randn(5, 4), torch.tensor([[0, 1, 2], [1, 2, 3]])
    attr = [torch.randn(3, 2)] if wide else []
    block = PicardConv(make(), inject=True)
    assert block(x, edge_index, *attr).shape == x.shape
    with pytest.raises(ValueError, match="edge_index must hold node indices"):
        block(x, edge_index + 5, *attr)
    if wide:
        with pytest.raises(ValueError, match="edge_attr must have one entry"):
            block(x, edge_index, attr[0][:2])
        with pytest.raises((ValueError, RuntimeError), match=wide):
            block(x, edge_index, torch.randn(3, 3))
    block = PicardConv(make(), inject=True, activation=broken)
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        block(x, edge_index, *attr)
