"""Wrong options and calls, each with an error that says what is wrong."""

import pytest
import torch
from torch_geometric.nn import (
    GATConv,
    GATv2Conv,
    GCNConv,
    GraphConv,
    MixHopConv,
    SAGEConv,
    SGConv,
    SSGConv,
    TransformerConv,
)

from tests.nn.graphs import EDGES
from torch_picard import Anderson, Implicit, Picard, PicardConv
from torch_picard.ops import backends

NAN = float("nan")


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"conv": None}, TypeError, "conv must be a module"),
        ({"conv": "gcn"}, TypeError, "conv must be a module"),
        ({"conv": GCNConv}, TypeError, "conv must be a module"),
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
        ({"activation": "no such one"}, ValueError, "no such one"),
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
        ({}, {"batch": BATCH.flip(0)}, ValueError, "sorted"),
        ({}, {"batch": BATCH - 1}, ValueError, "negative"),
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
