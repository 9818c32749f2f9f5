"""What PyG's loaders of large graphs mean for a fixed point."""

import pytest
import torch
import torch.nn.functional as F
from torch_geometric import typing
from torch_geometric.data import Batch, Data
from torch_geometric.loader import (
    ClusterData,
    ClusterLoader,
    NeighborLoader,
    ShaDowKHopSampler,
)
from torch_geometric.nn import GCNConv
from torch_geometric.utils import k_hop_subgraph

from tests.nn.sampling import WIDTH, graph, picard
from torch_picard import PicardConv
from torch_picard.distributed import partition
from torch_picard.nn import StoredPicard, num_hops


def sampled(data, seeds, hops):
    """What NeighborLoader(data, [-1] * hops) gives for these seeds, its own
    order of edges apart: all nodes within so many hops, seeds first, and the
    edges that lead to those within one hop less."""
    near, *_ = k_hop_subgraph(
        seeds, hops, data.edge_index, num_nodes=data.num_nodes
    )
    inner, *_ = k_hop_subgraph(
        seeds, hops - 1, data.edge_index, num_nodes=data.num_nodes
    )
    n_id = torch.cat([seeds, near[~torch.isin(near, seeds)]])
    name = torch.full((data.num_nodes,), -1)
    name[n_id] = torch.arange(len(n_id))
    edges = torch.isin(data.edge_index[1], inner)
    return n_id, name[data.edge_index[:, edges]], data.edge_weight[edges]


@torch.no_grad()
def test_as_many_iterations_as_hops_are_exact_at_the_seeds():
    data, seeds = graph(80), torch.tensor([3, 17, 60])
    n_id, edge_index, weight = sampled(data, seeds, 3)
    assert len(n_id) < 80
    for count, exact in [(1, True), (3, True), (6, False)]:
        block = picard(rtol=0.0, max_iter=count)
        want = block(data.x, data.edge_index, data.edge_weight)[seeds]
        got = block(data.x[n_id], edge_index, weight)[:3]
        error = (got - want).abs().max()
        assert (error < 1e-6) == exact
        assert (num_hops(block) <= 3) == exact


@torch.no_grad()
def test_a_degree_that_was_not_sampled_is_missing():
    """GCN's own normalisation, of a batch, is not that of the graph."""
    data, seeds = graph(80), torch.tensor([3, 17, 60])
    n_id, edge_index, _ = sampled(data, seeds, 3)
    conv = GCNConv(WIDTH, WIDTH)
    block = PicardConv(conv, inject=True, rtol=0.0, max_iter=3)
    want = block(data.x, data.edge_index)[seeds]
    got = block(data.x[n_id], edge_index)[:3]
    assert (got - want).abs().max() > 1e-3


class Clusters(ClusterData):
    """PyG's, with our partition where METIS is missing."""

    def _metis(self, edge_index, num_nodes):
        return partition(edge_index, num_nodes, self.num_parts)


@torch.no_grad()
@pytest.mark.parametrize("merged", [1, 2])
def test_cluster_batches_have_the_fixed_point_without_the_edges_cut(merged):
    data, block = graph(80), picard()
    data.n_id = torch.arange(80)
    clusters = Clusters(data, 4, log=False)
    whole = block(data.x, data.edge_index, data.edge_weight)
    seen = []
    for batch in ClusterLoader(clusters, batch_size=merged):
        inside = torch.isin(data.edge_index, batch.n_id).all(0)
        assert 0 < int(inside.sum()) < data.num_edges
        want = block(
            data.x, data.edge_index[:, inside], data.edge_weight[inside]
        )[batch.n_id]
        got = block(batch.x, batch.edge_index, batch.edge_weight)
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-6)
        assert (got - whole[batch.n_id]).abs().max() > 1e-3
        seen.append(batch.n_id)
    assert torch.cat(seen).sort().values.equal(data.n_id)


def alone(data, seed):
    """The graph within two hops of a node, and the node's number in it."""
    near, edge_index, name, edges = k_hop_subgraph(
        int(seed), 2, data.edge_index, relabel_nodes=True,
        num_nodes=data.num_nodes,
    )  # fmt: skip
    return data.x[near], edge_index, name.item(), data.edge_weight[edges]


@torch.no_grad()
def test_shadow_batches_are_solves_of_their_own():
    """ShaDowKHopSampler gives a small graph for each seed, and ``batch``."""
    data, block = graph(), picard()
    parts = [alone(data, seed) for seed in (3, 17, 30)]
    batch = Batch.from_data_list(
        [Data(x, edges, edge_weight=weight) for x, edges, _, weight in parts]
    )
    out, solution = block(
        batch.x, batch.edge_index, batch.edge_weight, batch=batch.batch,
        return_solution=True,
    )  # fmt: skip
    assert solution.iterations.shape == (3,)
    for i, (x, edges, name, weight) in enumerate(parts):
        want = block(x, edges, weight)[name]
        torch.testing.assert_close(out[batch.ptr[i] + name], want)


NEIGHBORS = pytest.mark.skipif(
    not (typing.WITH_PYG_LIB or typing.WITH_TORCH_SPARSE),
    reason="NeighborLoader needs pyg-lib or torch-sparse",
)
SHADOW = pytest.mark.skipif(
    not typing.WITH_TORCH_SPARSE,
    reason="ShaDowKHopSampler needs torch-sparse",
)


@NEIGHBORS
def test_neighbor_loader_gives_the_values_and_gradients_of_the_graph():
    """With all neighbours of as many hops as there are iterations."""
    data, grads = graph(80), []
    block = picard(rtol=0.0, max_iter=3)
    want = block(data.x, data.edge_index, data.edge_weight)
    want.square().sum().backward()
    grads.append(block.conv.lin.weight.grad)
    block.zero_grad()
    for batch in NeighborLoader(data, [-1] * num_hops(block), batch_size=20):
        out = block(batch.x, batch.edge_index, batch.edge_weight)
        seeds = slice(batch.batch_size)
        torch.testing.assert_close(out[seeds], want[batch.n_id[seeds]])
        out[seeds].square().sum().backward()
    grads.append(block.conv.lin.weight.grad)
    torch.testing.assert_close(*grads)


@NEIGHBORS
@torch.no_grad()
def test_stored_states_over_a_neighbor_loader():
    data, block = graph(80), picard()
    want = block(data.x, data.edge_index, data.edge_weight)
    stored = StoredPicard(block, 80, WIDTH)
    for _ in range(12):
        for batch in NeighborLoader(data, [-1], batch_size=20):
            stored(
                batch.x, batch.edge_index, batch.n_id, batch.batch_size,
                batch.edge_weight,
            )  # fmt: skip
    torch.testing.assert_close(stored.states, want, rtol=1e-4, atol=1e-5)


@SHADOW
@torch.no_grad()
def test_shadow_sampler_with_all_neighbours():
    data, block = graph(), picard()
    seeds = torch.tensor([3, 17, 30])
    loader = ShaDowKHopSampler(
        data, depth=2, num_neighbors=100, node_idx=seeds, batch_size=3
    )
    (batch,) = loader
    out, solution = block(
        batch.x, batch.edge_index, batch.edge_weight, batch=batch.batch,
        return_solution=True,
    )  # fmt: skip
    assert solution.converged.all() and solution.iterations.shape == (3,)
    for seed, root in zip(seeds, batch.root_n_id):
        x, edge_index, name, weight = alone(data, seed)
        want = block(x, edge_index, weight)[name]
        torch.testing.assert_close(out[root], want, rtol=1e-5, atol=1e-6)


def neighbors(data):
    for batch in NeighborLoader(data, [-1] * 3, batch_size=20):
        seeds = torch.arange(batch.batch_size)
        yield batch, seeds, batch.y[seeds], None


def clusters(data):
    for batch in ClusterLoader(Clusters(data, 4, log=False), batch_size=2):
        yield batch, torch.arange(batch.num_nodes), batch.y, None


def shadow(data):
    loader = ShaDowKHopSampler(data, 2, num_neighbors=5, batch_size=20)
    for batch in loader:
        yield batch, batch.root_n_id, batch.y, batch.batch  # y: the roots'


@pytest.mark.parametrize(
    "batches",
    [
        pytest.param(neighbors, marks=NEIGHBORS),
        clusters,
        pytest.param(shadow, marks=SHADOW),
    ],
)
def test_training(batches, seed):
    data = graph(80)
    data.y = (data.x[:, 0] > 0).long()
    count = {"rtol": 0.0, "max_iter": 3} if batches is neighbors else {}
    block, head = picard(**count), torch.nn.Linear(WIDTH, 2)
    optimizer = torch.optim.Adam(
        [*block.parameters(), *head.parameters()], lr=0.05
    )
    losses = []
    for _ in range(15):
        for batch, nodes, y, which in batches(data):
            out = block(
                batch.x, batch.edge_index, batch.edge_weight, batch=which
            )
            loss = F.cross_entropy(head(out[nodes]), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    assert sum(losses[-4:]) < 0.6 * sum(losses[:4])
