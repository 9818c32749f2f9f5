"""What decides a trained model at one end of a chain is found at the other."""

import copy
from functools import cache

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch_geometric.explain import Explainer, GNNExplainer
from torch_geometric.explain.algorithm import ExplainerAlgorithm
from torch_geometric.nn import GCNConv
from torch_geometric.utils import k_hop_subgraph

from torch_picard import PIGN, PicardConv
from torch_picard.datasets import ChainGraphs
from torch_picard.nn import num_hops

LENGTH = 20
LAST = LENGTH - 1
pytestmark = pytest.mark.slow


class Classifier(nn.Module):
    """A GCNConv that starts at the identity, and is trained as it is."""

    def __init__(self):
        super().__init__()
        self.encoder = nn.Linear(2, 8, bias=False)
        self.block = PicardConv(
            GCNConv(8, 8), alpha=0.0, max_iter=100, rtol=0.0, inject=True,
            activation="tanh",
        )  # fmt: skip
        nn.init.eye_(self.block.conv.lin.weight)
        self.decoder = nn.Linear(8, 2)

    def forward(self, x, edge_index):
        return self.decoder(self.block(self.encoder(x), edge_index))


MODELS = {
    "PicardConv": Classifier,
    "PIGN": lambda: PIGN(
        2, 8, 2, lam=0.995, beta=0.01, rtol=0.0, max_iter=120, dropout=0.0,
        encoder_activation=None,
    ),
}  # fmt: skip


@cache
def trained(name):
    """A model, and a chain that it has not seen."""
    torch.manual_seed(0)
    data, model = ChainGraphs(LENGTH, num_chains=3)[0], MODELS[name]()
    optimizer = torch.optim.Adam(model.parameters(), 0.1)
    for _ in range(60):
        optimizer.zero_grad()
        out = model(data.x, data.edge_index)[data.train_mask]
        F.cross_entropy(out, data.y[data.train_mask]).backward()
        optimizer.step()
    out = model.eval()(data.x, data.edge_index)
    right = (out.argmax(1) == data.y)[data.test_mask]
    assert right.float().mean() >= 0.95
    # of the class that a chain without features is not given
    blank = model(torch.zeros_like(data.x), data.edge_index).argmax(1)
    unseen = data.chain[data.test_mask & (data.y != blank)]
    return model, data.subgraph(data.chain == unseen[-1])


def explained(model, data, algorithm, **options):
    options = {"node_mask_type": "attributes"} | options
    explainer = Explainer(
        copy.deepcopy(model), algorithm, explanation_type="model",
        edge_mask_type="object", model_config={
            "mode": "multiclass_classification", "task_level": "node",
            "return_type": "raw",
        }, **options,
    )  # fmt: skip
    return explainer(data.x, data.edge_index, index=LAST)


def reached(edges):
    """Whether these lead from node 0 to the last."""
    there = {0}
    for _ in range(LENGTH):
        there |= {j for i, j in edges.t().tolist() if i in there}
    return LAST in there


@pytest.mark.parametrize("name", MODELS)
def test_hard_masks_reach_the_start(name):
    model, data = trained(name)
    nodes, edges = ExplainerAlgorithm._get_hard_masks(
        model, LAST, data.edge_index, LENGTH
    )
    assert nodes.all() and edges.all()

    def on_hops(count):
        near, edge_index, place, _ = k_hop_subgraph(
            LAST, count, data.edge_index, relabel_nodes=True
        )
        return 0 in near, model(data.x[near], edge_index)[place[0]]

    want = model(data.x, data.edge_index)[LAST]
    assert want.argmax() == data.y[LAST]
    there, got = on_hops(num_hops(model))
    assert there
    torch.testing.assert_close(got, want)
    there, got = on_hops(1)  # what PyG's own count says
    assert not there and got.argmax() != data.y[LAST]


@pytest.mark.parametrize("name", MODELS)
def test_gnn_explainer_reaches_the_start(name):
    torch.manual_seed(0)
    model, data = trained(name)
    found = explained(model, data, GNNExplainer(epochs=15))
    source, target = data.edge_index
    # a mask is zero where no gradient has come
    assert (found.edge_mask[target == source + 1] > 0).all()
    assert found.node_mask[0].max() == found.node_mask.max() > 0
    part = found.get_explanation_subgraph()
    assert torch.equal(part.x, data.x[:1])  # no other node says anything

    edges = explained(
        model, data, GNNExplainer(epochs=5), node_mask_type=None
    ).get_explanation_subgraph()
    assert edges.num_nodes == LENGTH and reached(edges.edge_index)


@pytest.mark.parametrize("name", MODELS)
def test_captum_explainer_reaches_the_start(name):
    pytest.importorskip("captum")
    from torch_geometric.explain import CaptumExplainer

    def found(**options):
        algorithm = CaptumExplainer("IntegratedGradients", n_steps=10)
        return explained(model, data, algorithm, **options)

    model, data = trained(name)
    both = found()
    matters = both.node_mask.abs().sum(1) > 0
    assert matters.tolist() == [True] + LAST * [False]
    assert (both.edge_mask != 0).all()
    for how in ("topk", "topk_hard"):
        edges = found(node_mask_type=None, threshold_config=(how, 33))
        kept = edges.edge_mask != 0
        assert kept.sum() == 33
        assert reached(data.edge_index[:, kept])
