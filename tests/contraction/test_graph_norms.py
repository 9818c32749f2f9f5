"""Norms of sparse matrices, against dense ones: never below."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch_geometric.nn.conv.gcn_conv import gcn_norm

from torch_picard.contraction.graph import Graph, sparse_norm

SEEDS = st.integers(0, 10_000)
NORMS = {"l2": 2, "l1": 1, "linf": math.inf}


def entries(seed, nodes, edges, signed=False, scale=1.0):
    rng = torch.Generator().manual_seed(seed)
    row, col = torch.randint(nodes, (2, edges), generator=rng)
    value = torch.rand(edges, generator=rng, dtype=torch.float64)
    return row, col, scale * (value - 0.5 if signed else value)


def dense(row, col, value, nodes):
    out = torch.zeros(nodes, nodes, dtype=torch.float64)
    return out.index_put((row, col), value, accumulate=True)


def true_norm(matrix, norm):
    return float(torch.linalg.matrix_norm(matrix, NORMS[norm]))


@pytest.mark.parametrize("norm", NORMS)
@given(
    seed=SEEDS,
    nodes=st.integers(1, 20),
    edges=st.integers(0, 60),
    signed=st.booleans(),
    steps=st.sampled_from([0, 1, 3, 100]),
    scale=st.sampled_from([1e-200, 1e-20, 1.0, 1e200]),
)
def test_never_below_the_truth(norm, seed, nodes, edges, signed, steps, scale):
    given_ = entries(seed, nodes, edges, signed)
    true = true_norm(dense(*given_, nodes), norm)
    row, col, value = given_
    found = sparse_norm(row, col, scale * value, nodes, norm, num_iter=steps)
    assert found / scale >= true * (1 - 1e-15)
    if norm != "l2":
        assert found / scale <= true * (1 + 1e-12)


@given(seed=SEEDS, nodes=st.integers(1, 20))
def test_equal_for_connected_graphs(seed, nodes):
    """No negative entries, and every node reaches every other by way of
    shared targets: the iteration has one limit."""
    row, col, value = entries(seed, nodes, 2 * nodes)
    ring = torch.arange(nodes)
    row = torch.cat([row, ring, ring])
    col = torch.cat([col, ring, (ring + 1) % nodes])
    value = torch.cat([value, torch.ones(2 * nodes, dtype=torch.float64)])
    true = true_norm(dense(row, col, value, nodes), "l2")
    found = sparse_norm(row, col, value, nodes, "l2", num_iter=2000)
    assert found == pytest.approx(true, rel=1e-6)
    assert found >= true * (1 - 1e-15)


@given(seed=SEEDS, signed=st.booleans())
def test_more_steps_never_raise_it(seed, signed):
    row, col, value = entries(seed, 12, 40, signed)
    found = [
        sparse_norm(row, col, value, 12, "l2", num_iter=n)
        for n in (0, 1, 2, 5, 20, 100)
    ]
    assert found == sorted(found, reverse=True)


@given(seed=SEEDS)
def test_more_entries_never_lower_it(seed):
    """Without the 1e-6 of an iteration that has not ended."""
    row, col, value = entries(seed, 12, 40)
    for norm in NORMS:
        less = sparse_norm(row[:30], col[:30], value[:30], 12, norm)
        true = true_norm(dense(row, col, value, 12), norm)
        assert true <= sparse_norm(row, col, value, 12, norm) * (1 + 1e-15)
        least = true_norm(dense(row[:30], col[:30], value[:30], 12), norm)
        assert least <= less * (1 + 1e-15)
        assert less <= true * (1 + 1e-3) or norm == "l2"


@given(seed=SEEDS)
def test_any_positive_start_is_sound(seed):
    row, col, value = entries(seed, 10, 30, signed=True)
    rng = torch.Generator().manual_seed(seed + 1)
    start = torch.rand(10, generator=rng, dtype=torch.float64) ** 20 + 1e-30
    true = true_norm(dense(row, col, value, 10), "l2")
    for steps in (1, 2, 100):
        found = sparse_norm(row, col, value, 10, "l2", start, steps)
        assert found >= true * (1 - 1e-15)


def test_duplicates_add_and_cancel():
    row = torch.tensor([0, 0, 1])
    col = torch.tensor([1, 1, 0])
    value = torch.tensor([2.0, -2.0, 3.0])
    for norm in NORMS:
        assert sparse_norm(row, col, value, 2, norm) == pytest.approx(3)
        assert sparse_norm(row[:2], col[:2], value[:2], 2, norm) == 0


def test_a_weight_that_is_not_finite_has_no_bound():
    one = torch.tensor([0])
    for bad in (math.nan, math.inf):
        value = torch.tensor([bad])
        assert sparse_norm(one, one, value, 1, "l2") == math.inf


# -- the graph ----------------------------------------------------------------


@given(
    seed=SEEDS,
    nodes=st.integers(1, 8),
    weighted=st.booleans(),
    improved=st.booleans(),
    loops=st.booleans(),
    flow=st.sampled_from(["source_to_target", "target_to_source"]),
)
def test_the_normalised_adjacency(
    seed, nodes, weighted, improved, loops, flow
):
    """Of directed graphs, too: what gcn_norm computes, as a matrix."""
    row, col, value = entries(seed, nodes, 2 * nodes)
    edges = torch.stack([row, col])
    weight = value if weighted else None
    index, values = gcn_norm(
        edges, weight, nodes, improved, loops, flow, torch.float64
    )
    source, target = index
    if flow == "target_to_source":
        source, target = target, source
    matrix = dense(target, source, values, nodes)
    graph = Graph(edges, nodes, weight)
    for norm in NORMS:
        found = graph.normalised(norm, improved, loops, flow)
        true = true_norm(matrix, norm)
        assert found >= true * (1 - 1e-15)
        assert found <= true * (1 + (0.02 if norm == "l2" else 1e-12))


@given(seed=SEEDS, nodes=st.integers(2, 8))
def test_aggregations(seed, nodes):
    """Sum, mean and (1 + eps) I + A; messages that a node sends."""
    source, target, value = entries(seed, nodes, 2 * nodes)
    graph = Graph(torch.stack([source, target]), nodes, value)
    flow = "source_to_target"
    ones = dense(target, source, torch.ones_like(value), nodes)
    weighted = dense(target, source, value, nodes)
    count = ones.sum(1, keepdim=True).clamp(min=1)
    eye = torch.eye(nodes, dtype=torch.float64)
    for norm in NORMS:
        for found, matrix in {
            graph.sum(norm, False, flow): ones,
            graph.sum(norm, True, flow): weighted,
            graph.mean(norm, False, flow): ones / count,
            graph.mean(norm, True, flow): weighted / count,
            graph.sum(norm, False, flow, loop=1.5): ones + 1.5 * eye,
        }.items():
            assert found >= true_norm(matrix, norm) * (1 - 1e-15)
    assert graph.out_degree(flow) == ones.sum(0).max()
    assert graph.out_degree("target_to_source") == ones.sum(1).max()
    assert graph.mean("linf", False, flow) == pytest.approx(1)


def test_nodes_that_no_edge_names_count():
    """Without num_nodes there may be more of them; their self-loops move
    them by 1."""
    none = torch.empty(2, 0, dtype=torch.long)
    flow = "source_to_target"
    assert Graph(none).normalised("l2", False, True, flow) == 1
    assert Graph(none).normalised("l2", False, False, flow) == 0
    assert Graph(none).sum("l1", False, flow, loop=2.0) == 2
    assert Graph(none, 4).sum("l2", False, flow) == 0
    negative = torch.tensor([-0.5])
    edge = torch.tensor([[0], [0]])
    unknown = Graph(edge, None, negative).sum("l2", True, flow, loop=1.0)
    assert unknown == 1
    assert Graph(edge, 1, negative).sum(
        "l2", True, flow, loop=1.0
    ) == pytest.approx(0.5)


def test_numbers_outlive_the_edges():
    graph = Graph(torch.tensor([[0, 1], [1, 0]]))
    flow = "source_to_target"
    before = graph.sum("l2", False, flow)
    graph.forget()
    assert graph.sum("l2", False, flow) == before
    with pytest.raises(RuntimeError, match="edges were dropped"):
        graph.sum("l1", False, flow)


def test_a_graph_with_hubs():
    """A power law."""
    rng = torch.Generator().manual_seed(0)
    odds = torch.rand(300, generator=rng).pow(-0.6)
    ends = torch.stack(
        [torch.multinomial(odds, 3000, True, generator=rng) for _ in "ab"]
    )
    found = Graph(ends, 300).sum("l2", False, "source_to_target")
    ones = torch.ones(3000, dtype=torch.float64)
    true = true_norm(dense(ends[1], ends[0], ones, 300), "l2")
    assert true <= found <= true * (1 + 1e-6)
