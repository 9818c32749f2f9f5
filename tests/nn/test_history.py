"""Warm starts, and fixed points kept from batch to batch."""

import pytest
import torch
import torch_geometric.transforms as T
from torch_geometric.data import Data
from torch_geometric.nn import GCNConv, SAGEConv
from torch_geometric.utils import k_hop_subgraph

from torch_picard import Implicit, PicardConv
from torch_picard.nn import StoredPicard

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


def batches(data, size=10):
    """Seeds and all their neighbours, as a loader makes them."""
    for seeds in torch.arange(data.num_nodes).split(size):
        near, _, _, _ = k_hop_subgraph(
            seeds, 1, data.edge_index, num_nodes=data.num_nodes
        )
        around = near[~torch.isin(near, seeds)]
        n_id = torch.cat([seeds, around])
        name = torch.full((data.num_nodes,), -1)
        name[n_id] = torch.arange(len(n_id))
        to_seeds = torch.isin(data.edge_index[1], seeds)
        edge_index = name[data.edge_index[:, to_seeds]]
        yield n_id, edge_index, data.edge_weight[to_seeds], len(seeds)


def test_a_start_at_the_fixed_point_is_there():
    data, block = graph(), picard()
    args = (data.x, data.edge_index, data.edge_weight)
    out, cold = block(*args, return_solution=True)
    again, warm = block(*args, start=out.detach(), return_solution=True)
    assert warm.iterations == 0 and cold.iterations > 5
    torch.testing.assert_close(again, out)
    # from anywhere to the same place
    other, _ = block(*args, start=torch.randn(40, WIDTH), return_solution=True)
    torch.testing.assert_close(other, out, rtol=1e-4, atol=1e-5)


def test_a_start_needs_injection_and_the_shape_of_x():
    data = graph()
    args = (data.x, data.edge_index)
    with pytest.raises(ValueError, match="start needs inject"):
        PicardConv(SAGEConv(WIDTH, WIDTH))(*args, start=data.x)
    for start in (data.x[:3], data.x.double(), [1.0]):
        with pytest.raises(ValueError, match="start must be one Tensor"):
            picard()(*args, start=start)


@torch.no_grad()
def test_sweeps_converge_to_the_fixed_point_of_the_whole_graph():
    data, block = graph(), picard()
    want = block(data.x, data.edge_index, data.edge_weight)
    stored = StoredPicard(block, data.num_nodes, WIDTH)
    errors = []
    for _ in range(12):
        for n_id, edge_index, weight, seeds in batches(data):
            stored(data.x[n_id], edge_index, n_id, seeds, weight)
        errors.append((stored.states - want).abs().max().item())
    assert errors[-1] < 1e-5 < errors[0]
    # and stay there: nothing is left to do
    for n_id, edge_index, weight, seeds in batches(data):
        _, solution = stored(
            data.x[n_id], edge_index, n_id, seeds, weight, return_solution=True
        )
        assert solution.evaluations <= 3
    stored.forget()
    assert not stored.known.any()


def test_it_trains():
    data = graph()
    y = (data.x[:, 0] > 0).long()
    stored = StoredPicard(
        picard(gradient=Implicit(), rtol=1e-4), data.num_nodes, WIDTH
    )
    decode = torch.nn.Linear(WIDTH, 2)
    optimizer = torch.optim.Adam(
        [*stored.parameters(), *decode.parameters()], 0.05
    )
    losses = []
    for _ in range(8):
        total = 0.0
        for n_id, edge_index, weight, seeds in batches(data):
            optimizer.zero_grad()
            out = stored(data.x[n_id], edge_index, n_id, seeds, weight)
            loss = torch.nn.functional.cross_entropy(
                decode(out), y[n_id[:seeds]]
            )
            loss.backward()
            optimizer.step()
            total += loss.item()
        losses.append(total)
    assert losses[-1] < 0.5 * losses[0]
    assert "states" not in stored.state_dict()  # they are not weights


def test_wrong_calls():
    with pytest.raises(TypeError, match="conv must be a PicardConv"):
        StoredPicard(SAGEConv(3, 3), 5, 3)
    with pytest.raises(ValueError, match="conv must inject"):
        StoredPicard(PicardConv(SAGEConv(3, 3)), 5, 3)
    with pytest.raises(ValueError, match="conv normalises by degrees"):
        StoredPicard(PicardConv(GCNConv(3, 3), inject=True), 5, 3)
    data = graph()
    stored = StoredPicard(picard(), data.num_nodes, WIDTH)
    n_id, edge_index, weight, seeds = next(iter(batches(data)))
    x = data.x[n_id]
    with pytest.raises(ValueError, match="n_id must be"):
        stored(x, edge_index, n_id[:3], seeds, weight)
    with pytest.raises(ValueError, match="n_id must be"):
        stored(x, edge_index, n_id, 0, weight)
    with pytest.raises(ValueError, match="x must have the 5 channels"):
        stored(x[:, :2], edge_index, n_id, seeds, weight)
