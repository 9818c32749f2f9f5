"""Warm starts, and fixed points kept from batch to batch."""

import pytest
import torch
from torch_geometric import nn as pyg
from torch_geometric.nn import GCNConv, SAGEConv
from torch_geometric.utils import k_hop_subgraph

from tests.nn.graphs import ACROSS, RandomWalk
from tests.nn.sampling import WIDTH, graph, picard
from torch_picard import Implicit, PicardConv
from torch_picard.nn import StoredPicard


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
    for wrong, text in [
        (n_id.float(), "n_id must be a LongTensor"),
        (n_id.tolist(), "n_id must be a LongTensor"),
        (n_id + 100, r"n_id must be in 0\.\.39"),
    ]:
        with pytest.raises(ValueError, match=text):
            stored(x, edge_index, wrong, seeds, weight)
    for sizes in ((0, 3), (3, 0), (2.5, 3)):
        with pytest.raises((TypeError, ValueError), match=r"num_nod|channels"):
            StoredPicard(picard(), *sizes)
    with pytest.raises(ValueError, match="x must have the 5 channels"):
        stored(x[:, :2], edge_index, n_id, seeds, weight)


@pytest.mark.parametrize(
    "make",
    [
        lambda: pyg.SSGConv(WIDTH, WIDTH, alpha=0.1),
        lambda: pyg.ARMAConv(WIDTH, WIDTH),
        lambda: pyg.EGConv(WIDTH, WIDTH, num_heads=1),
    ],
)
def test_convs_that_normalise_by_the_neighbours_degrees_are_refused(make):
    data = graph()
    stored = StoredPicard(PicardConv(make(), inject=True), 40, WIDTH)
    n_id, edge_index, _, seeds = next(iter(batches(data)))
    with pytest.raises(ValueError, match="looks further than one hop"):
        stored(data.x[n_id], edge_index, n_id, seeds)


@pytest.mark.parametrize(
    "change, text",
    [
        *ACROSS,
        ({"conv": RandomWalk(WIDTH)}, "looks further than one hop"),
        ({"conv": pyg.GPSConv(WIDTH, None)}, "conv holds BatchNorm"),
    ],
)
def test_what_looks_across_the_rows_is_refused(change, text):
    data = graph()
    options = {"conv": SAGEConv(WIDTH, WIDTH), "inject": True} | change
    stored = StoredPicard(PicardConv(**options), 40, WIDTH)
    n_id, edge_index, _, seeds = next(iter(batches(data)))
    with pytest.raises(ValueError, match=text):
        stored(data.x[n_id], edge_index, n_id, seeds)


@torch.no_grad()
@pytest.mark.parametrize("kind", ["LEConv", "MFConv", "FiLMConv", "GATConv"])
def test_convs_of_one_hop_are_not(kind):
    torch.manual_seed(0)
    data, conv = graph(), getattr(pyg, kind)(WIDTH, WIDTH)
    for p in conv.parameters():
        p.mul_(0.3)
    block = PicardConv(
        conv, inject=True, activation="tanh", rtol=1e-7, max_iter=200
    )
    want = block(data.x, data.edge_index)
    stored = StoredPicard(block, data.num_nodes, WIDTH)
    for _ in range(12):
        for n_id, edge_index, _, seeds in batches(data):
            stored(data.x[n_id], edge_index, n_id, seeds)
    torch.testing.assert_close(stored.states, want, rtol=1e-4, atol=1e-5)


def test_what_runs_away_is_not_stored():
    data = graph()
    conv = GCNConv(WIDTH, WIDTH, normalize=False)
    with torch.no_grad():
        conv.lin.weight.mul_(1e20)
    block = PicardConv(conv, alpha=0.0, rtol=0.0, max_iter=8, inject=True)
    stored = StoredPicard(block, 40, WIDTH)
    for n_id, edge_index, weight, seeds in batches(data):
        with torch.no_grad():
            stored(data.x[n_id], edge_index, n_id, seeds, weight)
    assert stored.states.isfinite().all() and not stored.known.all()


def test_a_node_is_there_once():
    data, stored = graph(), StoredPicard(picard(), 40, WIDTH)
    n_id = torch.tensor([0, 1, 1])
    with pytest.raises(ValueError, match="n_id must name every node once"):
        stored(data.x[n_id], torch.zeros(2, 0, dtype=torch.long), n_id, 1)


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_states_are_of_the_dtype_of_the_model(dtype):
    data = graph().apply(lambda t: t.to(dtype) if t.is_floating_point() else t)
    block = picard(rtol=1e-13).to(dtype)
    stored = StoredPicard(block, data.num_nodes, WIDTH)
    assert stored.states.dtype == dtype
    for _ in range(1 if dtype == torch.bfloat16 else 25):
        for n_id, edge_index, weight, seeds in batches(data):
            out = stored(data.x[n_id], edge_index, n_id, seeds, weight)
            assert torch.equal(stored.states[n_id[:seeds]], out)
    assert stored.states.dtype == out.dtype == dtype
    if dtype == torch.float64:
        want = block(data.x, data.edge_index, data.edge_weight)
        torch.testing.assert_close(stored.states, want, rtol=0, atol=1e-11)


@torch.no_grad()
def test_states_follow_the_features_where_the_conv_has_no_weights():
    data = graph()
    block = PicardConv(
        pyg.LGConv(normalize=False), inject=True, activation="tanh"
    )
    stored = StoredPicard(block, 40, WIDTH)
    n_id, edge_index, weight, seeds = next(iter(batches(data)))
    for dtype in (torch.float32, torch.float64):
        args = data.x[n_id].to(dtype), edge_index, n_id, seeds
        assert stored(*args, weight.to(dtype)).dtype == dtype
        assert stored.states.dtype == dtype


@torch.no_grad()
def test_graphs_of_a_large_one_stop_by_themselves():
    """Seeds of two graphs, as if each were alone."""
    data, block = graph(), picard(rtol=1e-4)
    n_id, edge_index, weight, seeds = next(iter(batches(data)))
    two = [30.0**i * data.x[n_id] for i in range(2)]
    alone = []
    for x in two:
        stored = StoredPicard(block, 40, WIDTH)
        alone.append(
            stored(x, edge_index, n_id, seeds, weight, return_solution=True)
        )
    around, n = len(n_id) - seeds, len(n_id)
    rows = torch.cat(
        [torch.arange(seeds), n + torch.arange(seeds),
         seeds + torch.arange(around), n + seeds + torch.arange(around)]
    )  # fmt: skip
    place = rows.argsort()
    stored = StoredPicard(block, 80, WIDTH)
    args = (
        torch.cat(two)[rows],
        place[torch.cat([edge_index, n + edge_index], 1)],
        torch.cat([n_id, 40 + n_id])[rows],
        2 * seeds,
        torch.cat([weight, weight]),
    )
    batch = (rows >= n).long()
    out, solution = stored(*args, batch=batch, return_solution=True)
    counts = [int(one.iterations) for _, one in alone]
    assert solution.iterations.tolist() == counts
    assert counts[0] != counts[1]
    torch.testing.assert_close(out, torch.cat([value for value, _ in alone]))
    with pytest.raises(ValueError, match=r"batch must be sorted .* seeds"):
        stored(*args, batch=1 - batch)
    with pytest.raises(ValueError, match="batch must be a LongTensor"):
        stored(*args, batch=batch[:3])


def test_adjacencies_are_refused():
    data, stored = graph(), StoredPicard(picard(), 40, WIDTH)
    n_id, edge_index, weight, seeds = next(iter(batches(data)))
    size = (len(n_id), len(n_id))
    adj_t = torch.sparse_coo_tensor(edge_index.flip(0), weight, size)
    for wrong in (adj_t, edge_index.t(), [edge_index]):
        with pytest.raises(ValueError, match=r"edge_index must be a LongTens"):
            stored(data.x[n_id], wrong, n_id, seeds, weight)
    for x in (n_id[:, None].repeat(1, WIDTH), [data.x[n_id]]):
        with pytest.raises(
            ValueError, match=r"x must be a Tensor .* floating"
        ):
            stored(x, edge_index, n_id, seeds, weight)
