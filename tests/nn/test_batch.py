"""``batch=``: each graph is a solve of its own."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch_geometric.data import Batch, Data
from torch_geometric.nn import GraphConv, SimpleConv
from torch_geometric.utils import erdos_renyi_graph

from tests.nn.graphs import CONVS, features, gentle, make
from torch_picard import (
    Anderson,
    Broyden,
    ConvergenceError,
    Implicit,
    PicardConv,
    Status,
)

EXACT = {"rtol": 1e-12, "atol": 1e-13}


def path(n):
    up = torch.stack([torch.arange(n - 1), torch.arange(1, n)])
    return torch.cat([up, up.flip(0)], dim=1)


def complete(n):
    return (1 - torch.eye(n)).nonzero().t().contiguous()


def data(edge_index, n, seed=0, size=1.0, channels=4):
    x = size * features(n, channels, seed=seed)
    return Data(x=x, edge_index=edge_index, num_nodes=n)


def mixed():
    """Graphs that differ in how hard they are."""
    empty = torch.empty(2, 0, dtype=torch.long)
    return [
        data(path(5), 5, seed=1),
        data(complete(6), 6, seed=2, size=10.0),
        data(empty, 2, seed=3, size=0.01),
        data(path(2), 2, seed=4),
    ]


def solver(conv, **options):
    defaults = {
        "max_iter": 200,
        "rtol": 1e-7,
        "inject": True,
        "activation": gentle,
    }
    return PicardConv(conv, **{**defaults, **options})


@pytest.mark.parametrize("name", CONVS)
def test_each_graph_gets_what_it_gets_alone(name):
    picard = solver(make(name, scale=0.7))
    alone = [picard(d.x, d.edge_index, return_solution=True) for d in mixed()]
    batch = Batch.from_data_list(mixed())
    out, solution = picard(
        batch.x, batch.edge_index, batch=batch.batch, return_solution=True
    )
    assert solution.status.tolist() == [Status.CONVERGED] * 4
    torch.testing.assert_close(out, torch.cat([v for v, _ in alone]), **EXACT)
    iterations = [int(s.iterations) for _, s in alone]
    assert solution.iterations.tolist() == iterations
    assert len(set(iterations)) > 1
    assert solution.evaluations == max(int(s.evaluations) for _, s in alone)


@settings(max_examples=25, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 7), min_size=1, max_size=5),
    seed=st.integers(0, 1000),
    scale=st.floats(0.1, 1.5),
)
def test_random_graphs_alone_and_together(sizes, seed, scale):
    torch.manual_seed(seed)
    graphs = [
        data(erdos_renyi_graph(n, 0.5), n, seed=seed + i, size=scale)
        for i, n in enumerate(sizes)
    ]
    picard = solver(make("gcn", scale=scale), max_iter=12)
    batch = Batch.from_data_list(graphs)
    out, solution = picard(
        batch.x, batch.edge_index, batch=batch.batch, return_solution=True
    )
    for i, graph in enumerate(graphs):
        value, own = picard(graph.x, graph.edge_index, return_solution=True)
        torch.testing.assert_close(out[batch.batch == i], value, **EXACT)
        assert solution.status[i] == own.status[0]
        assert solution.iterations[i] == own.iterations[0]


@pytest.mark.parametrize("method", [Anderson(), Broyden()])
def test_accelerated_alone_and_together(method):
    picard = solver(make("graph", scale=0.5), method=method)
    batch = Batch.from_data_list(mixed())
    out, solution = picard(
        batch.x, batch.edge_index, batch=batch.batch, return_solution=True
    )
    assert solution.converged.all()
    for i, graph in enumerate(mixed()):
        torch.testing.assert_close(
            out[batch.batch == i], picard(graph.x, graph.edge_index)
        )


def test_gradients_alone_and_together():
    conv = make("gat", scale=0.7)
    picard = solver(conv, gradient=Implicit(rtol=1e-12), rtol=1e-12)
    batch = Batch.from_data_list(mixed())
    x = batch.x.requires_grad_()
    picard(x, batch.edge_index, batch=batch.batch).square().sum().backward()
    together = [p.grad.clone() for p in conv.parameters()]
    conv.zero_grad()
    rows = []
    for graph in mixed():
        y = graph.x.requires_grad_()
        picard(y, graph.edge_index).square().sum().backward()
        rows.append(y.grad)
    tight = {"rtol": 1e-9, "atol": 1e-10}
    torch.testing.assert_close(x.grad, torch.cat(rows), **tight)
    for found, p in zip(together, conv.parameters()):
        torch.testing.assert_close(found, p.grad, **tight)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_bad_graph_leaves_the_others(bad):
    picard = solver(make("sage", scale=0.7))
    graphs = mixed()
    graphs[1].x[2, 1] = bad
    batch = Batch.from_data_list(graphs)
    out, solution = picard(
        batch.x, batch.edge_index, batch=batch.batch, return_solution=True
    )
    fine = Status.CONVERGED
    status = [fine, Status.NONFINITE, fine, fine]
    assert solution.status.tolist() == status
    for i in (0, 2, 3):
        alone = picard(graphs[i].x, graphs[i].edge_index)
        torch.testing.assert_close(out[batch.batch == i], alone, **EXACT)


def test_each_graph_ends_as_its_edges_demand():
    """x -> 0.3*(sum of the neighbours) + f contracts on a path, where the
    adjacency has norm below 2, and not on K8, where it has norm 7."""
    conv = GraphConv(3, 3).double()
    with torch.no_grad():
        conv.lin_rel.weight.copy_(0.3 * torch.eye(3))
        conv.lin_rel.bias.zero_()
        conv.lin_root.weight.zero_()
    graphs = [
        data(path(5), 5, channels=3),
        data(complete(8), 8, channels=3),
        data(path(3), 3, channels=3),
    ]
    picard = PicardConv(conv, max_iter=300, rtol=1e-9, inject=True)
    batch = Batch.from_data_list(graphs)
    out, solution = picard(
        batch.x, batch.edge_index, batch=batch.batch, return_solution=True
    )
    assert solution.status.tolist() == [
        Status.CONVERGED,
        Status.DIVERGED,
        Status.CONVERGED,
    ]
    assert torch.isfinite(out).all()
    for i in (0, 2):
        n = graphs[i].num_nodes
        adjacency = torch.zeros(n, n, dtype=out.dtype)
        adjacency[tuple(graphs[i].edge_index)] = 0.3
        exact = torch.linalg.solve(
            torch.eye(n, dtype=out.dtype) - adjacency, graphs[i].x
        )
        torch.testing.assert_close(
            out[batch.batch == i], exact, rtol=1e-7, atol=1e-7
        )

    raising = PicardConv(
        conv, max_iter=300, rtol=1e-9, inject=True, on_failure="raise"
    )
    with pytest.raises(ConvergenceError) as error:
        raising(batch.x, batch.edge_index, batch=batch.batch)
    assert error.value.solution.status.tolist() == solution.status.tolist()


def test_solution_is_about_the_value():
    picard = solver(make("gcn"))
    batch = Batch.from_data_list(mixed())
    out, solution = picard(
        batch.x, batch.edge_index, batch=batch.batch, return_solution=True
    )
    assert out is solution.value
    z = gentle(picard.conv(out, batch.edge_index) + batch.x)
    for i in range(4):
        rows = batch.batch == i
        residual = (z[rows] - out[rows]).norm()
        assert residual <= 1e-7 * z[rows].norm()
        assert residual <= solution.residual[i] * (1 + 1e-6) + 1e-12
    assert solution.residual_history.shape == (solution.evaluations, 4)


def test_without_batch_there_is_one_solve():
    batch = Batch.from_data_list(mixed())
    picard = solver(make("gcn"))
    _, solution = picard(batch.x, batch.edge_index, return_solution=True)
    assert solution.status.shape == (1,)


def test_fixed_count_needs_no_batch():
    """Exactly max_iter updates: the same with and without."""
    batch = Batch.from_data_list(mixed())
    picard = solver(make("gcn"), rtol=0.0, max_iter=5)
    args = batch.x, batch.edge_index
    out, solution = picard(*args, batch=batch.batch, return_solution=True)
    assert solution.iterations.tolist() == [5] * 4
    assert torch.equal(out, picard(*args, batch=batch.batch))
    assert torch.equal(out, picard(*args))


def test_a_finished_graph_does_not_move():
    graphs = [data(path(2), 2, size=9.0), data(path(7), 7, size=0.1)]
    batch = Batch.from_data_list(graphs)
    images = []

    def watched(z):
        images.append(gentle(z))
        return images[-1]

    picard = solver(make("gcn"), activation=watched)
    _, solution = picard(
        batch.x, batch.edge_index, batch=batch.batch, return_solution=True
    )
    first, second = solution.iterations.tolist()
    assert first < second
    for z in images[first:]:
        torch.testing.assert_close(z[:2], images[first][:2], **EXACT)


@pytest.mark.parametrize("scale", [1e-13, 1e19])
def test_a_scale_that_needs_more_care_costs_mates_no_iteration(scale):
    """Squares that float32 does not hold are measured once more, which is
    no step of anybody."""
    torch.manual_seed(0)
    pairs = torch.tensor([[0, 1, 2, 3, 4], [1, 2, 0, 4, 3]])
    x = torch.randn(5, 3)
    x[3:] *= scale
    layer = PicardConv(SimpleConv(aggr="mean"), max_iter=24, rtol=1e-6)
    batch = torch.tensor([0, 0, 0, 1, 1])
    together, both = layer(x, pairs, batch=batch, return_solution=True)
    alone, one = layer(x[:3], pairs[:, :3], return_solution=True)
    assert both.status[0] == one.status[0] == Status.CONVERGED
    assert both.iterations[0] == one.iterations[0]
    assert torch.equal(together[:3], alone)
    assert both.evaluations <= 24
