import copy

import pytest
import torch
import torch.nn.functional as F
from torch.autograd import gradcheck, gradgradcheck
from torch_geometric.nn import GraphConv
from torch_geometric.utils import to_torch_csr_tensor, to_undirected

from torch_picard import Anderson, Implicit, Unrolled
from torch_picard.datasets import DigitsGraph
from torch_picard.nn import PIGN


def graph(num_features=6):
    ring = torch.arange(10)
    ends = torch.cat([(ring + 1) % 10, torch.tensor([5, 4, 7])])
    edge_index = to_undirected(
        torch.stack([torch.cat([ring, torch.tensor([0, 1, 2])]), ends])
    )
    x = torch.randn(
        10, num_features, generator=torch.Generator().manual_seed(0)
    )
    return x, edge_index


@pytest.mark.parametrize("conv", ["gcn", "gat", "sage"])
def test_shapes_gradients_and_solution(conv):
    torch.manual_seed(0)
    x, edge_index = graph()
    model = PIGN(6, 8, 3, conv)
    out, solution = model(x, edge_index, return_solution=True)
    assert out.shape == (10, 3)
    assert solution.value.shape == (10, 8)
    assert solution.evaluations <= 16
    out.square().sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
    assert "PIGN(6, 8, 3, " in str(model)

    model.eval()
    out = model(x, edge_index)
    permutation = torch.randperm(10)
    inverse = permutation.argsort()
    shuffled = model(x[permutation], inverse[edge_index])
    assert torch.allclose(shuffled, out[permutation], atol=1e-5)


@pytest.mark.parametrize("conv", ["gcn", "gat", "sage"])
def test_starts_as_personalised_pagerank(conv):
    x, edge_index = graph()
    model = PIGN(6, 8, 3, conv, max_iter=500, rtol=1e-6, lam=0.9).eval()
    _, solution = model(x, edge_index, return_solution=True)
    assert bool(solution.converged.all())

    weight = torch.zeros(10, 10)
    weight[edge_index[1], edge_index[0]] = 1.0
    if conv != "sage":
        weight += torch.eye(10)
    degree = weight.sum(1)
    if conv == "gcn":
        weight = weight / (degree[:, None] * degree[None, :]).sqrt()
    else:
        weight = weight / degree[:, None]
    x0 = model.encode(x)
    expected = torch.linalg.solve(torch.eye(10) - 0.9 * weight, x0)
    assert torch.allclose(solution.value, expected, rtol=1e-3, atol=1e-4)


def test_gcn_contracts_whatever_the_weights():
    torch.manual_seed(0)
    x, edge_index = graph()
    model = PIGN(6, 8, 3, lam=0.8, beta=1.0, max_iter=500, rtol=1e-6).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=10.0)
    _, solution = model(x, edge_index, return_solution=True)
    assert bool(solution.converged.all())
    history = solution.residual_history[:20, 0]
    assert bool((history[1:] <= 0.8 * history[:-1] * (1 + 1e-3)).all())


def test_sparse_features_give_the_same():
    x, edge_index = graph()
    x = torch.where(x > 0, x, 0.0)
    model = PIGN(6, 8, 3).eval()
    for sparse in (x.to_sparse(), x.to_sparse_csr()):
        assert torch.allclose(
            model(sparse, edge_index), model(x, edge_index), atol=1e-5
        )
        model.train()
        model(sparse, edge_index).sum().backward()
        model.eval()


def test_adjacency_matrix_and_edge_weight():
    x, edge_index = graph()
    model = PIGN(6, 8, 3, "gcn").eval()
    adj = to_torch_csr_tensor(edge_index, size=(10, 10))
    assert torch.allclose(model(x, adj), model(x, edge_index), atol=1e-5)
    ones = torch.ones(edge_index.size(1), requires_grad=True)
    out = model(x, edge_index, ones)
    assert torch.allclose(out, model(x, edge_index), atol=1e-5)
    out.sum().backward()
    assert ones.grad is not None


def test_each_graph_of_a_batch_is_a_solve_of_its_own():
    x, edge_index = graph()
    model = PIGN(6, 8, 3, rtol=1e-4, max_iter=100).eval()
    both = torch.cat([x, 3 * x + 1])
    edges = torch.cat([edge_index, edge_index + 10], dim=1)
    batch = torch.arange(2).repeat_interleave(10)
    out, solution = model(both, edges, batch=batch, return_solution=True)
    assert solution.converged.shape == (2,)
    assert torch.allclose(out[:10], model(x, edge_index), atol=1e-5)


def test_options_reach_the_operator():
    torch.manual_seed(0)
    x, edge_index = graph()
    model = PIGN(
        6,
        8,
        3,
        lambda channels: GraphConv(channels, channels, aggr="mean"),
        inject=torch.nn.Linear(8, 8),
        activation="tanh",
        encoder_activation=None,
        inner_dropout=0.2,
        norm="graph",
        inner_norm=lambda channels: torch.nn.LayerNorm(channels),
        method=Anderson(),
        gradient=Implicit(),
        max_iter=50,
    )
    model(x, edge_index).sum().backward()
    model.eval()
    again = copy.deepcopy(model)
    again.load_state_dict(model.state_dict())
    assert torch.equal(again(x, edge_index), model(x, edge_index))


def test_literal_loop_starts_from_the_input():
    x, edge_index = graph()
    model = PIGN(6, 8, 3, inject=False, max_iter=1, rtol=0.0).eval()
    _, solution = model(x, edge_index, return_solution=True)
    x0 = model.encode(x)
    expected = model.block.conv(x0, edge_index)
    assert torch.allclose(solution.value, expected, atol=1e-5)


def test_reset_parameters():
    torch.manual_seed(0)
    model = PIGN(6, 8, 3, "gat")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(7.0)
    model.reset_parameters()
    for name, parameter in model.named_parameters():
        assert not bool((parameter == 7.0).any()), name
    lin = model.block.conv.lin
    assert torch.allclose(lin.weight, 0.9 * torch.eye(8))
    assert float(model.block.conv.att_src.abs().max()) == 0.0


@pytest.mark.parametrize(
    ("arguments", "options", "name"),
    [
        ((0, 8, 3), {}, "in_channels"),
        ((6, 0, 3), {}, "hidden_channels"),
        ((6, 8, 0), {}, "out_channels"),
        ((6, 8, 3), {"conv": "gin"}, "conv"),
        ((6, 8, 3), {"dropout": 1.0}, "dropout"),
        ((6, 8, 3), {"input_dropout": -0.1}, "input_dropout"),
        ((6, 8, 3), {"inner_dropout": 1.0}, "inner_dropout"),
        ((6, 8, 3), {"lam": 1.0}, "lam"),
        ((6, 8, 3), {"beta": 1.1}, "beta"),
        ((6, 8, 3), {"alpha": 1.0}, "alpha"),
        ((6, 8, 3), {"max_iter": 0}, "max_iter"),
        ((6, 8, 3), {"rtol": -1.0}, "rtol"),
    ],
)
def test_bad_options(arguments, options, name):
    with pytest.raises(ValueError, match=name):
        PIGN(*arguments, **options)


def test_trains_with_its_defaults():
    torch.manual_seed(0)
    data = DigitsGraph()[0]
    model = PIGN(64, 32, 10)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(40):
        optimizer.zero_grad()
        out = model(data.x, data.edge_index)[data.train_mask]
        F.cross_entropy(out, data.y[data.train_mask]).backward()
        optimizer.step()
    model.eval()
    hit = model(data.x, data.edge_index).argmax(-1) == data.y
    assert float(hit[data.test_mask].float().mean()) > 0.9


@pytest.mark.parametrize("conv", ["gcn", "gat", "sage"])
def test_recomputing_gives_the_same_gradients(conv):
    x = torch.randn(6, 5)
    edge_index = torch.randint(6, (2, 14))
    grads = []
    for gradient in (Unrolled(), Unrolled(checkpoint=True)):
        torch.manual_seed(0)
        model = PIGN(5, 8, 3, conv, gradient=gradient)
        model(x, edge_index).square().sum().backward()
        grads.append([p.grad for p in model.parameters()])
    for a, b in zip(*grads):
        torch.testing.assert_close(a, b)


@pytest.mark.slow
@pytest.mark.parametrize("conv", ["gcn", "sage"])
def test_implicit_gradients_by_differences(conv):
    torch.manual_seed(0)
    x = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    edge_index = torch.tensor([[0, 1, 2, 3, 1], [1, 0, 3, 2, 3]])
    model = PIGN(
        3, 4, 2, conv, dropout=0.0, rtol=1e-12, max_iter=500,
        gradient=Implicit(rtol=1e-12, max_iter=500), encoder_activation="tanh",
    ).double()  # fmt: skip
    with torch.no_grad():
        for p in model.parameters():
            p += 0.1 * torch.randn_like(p)

    def solve(x, *weights):  # which are those of the model
        return model(x, edge_index)

    weights = list(model.parameters())
    assert gradcheck(solve, (x, *weights))
    assert gradgradcheck(solve, (x, *weights))


def test_implicit_gradients_of_implicit_gradients():
    torch.manual_seed(0)
    x = torch.randn(6, 5, dtype=torch.float64, requires_grad=True)
    edge_index = torch.randint(6, (2, 14))
    found = []
    for gradient in (Unrolled(), Implicit(rtol=1e-12, max_iter=300)):
        torch.manual_seed(1)
        model = PIGN(
            5, 8, 2, dropout=0.0, rtol=1e-12, max_iter=300, gradient=gradient
        ).double()
        out = model(x, edge_index).square().sum()
        (g,) = torch.autograd.grad(out, x, create_graph=True)
        weights = list(model.parameters())
        found.append(torch.autograd.grad(g.square().sum(), weights))
    for a, b in zip(*found):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("conv", ["gcn", "gat", "sage"])
def test_half_precision(conv, dtype):
    torch.manual_seed(0)
    x = torch.randn(6, 5)
    edge_index = torch.randint(6, (2, 14))
    model = PIGN(5, 8, 3, conv, rtol=1e-2).eval()
    with torch.no_grad():
        want = model(x, edge_index)
    out = model.to(dtype)(x.to(dtype), edge_index)
    assert out.dtype == dtype
    out.float().square().sum().backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())
    torch.testing.assert_close(out.float(), want, rtol=0.1, atol=0.1)


@pytest.mark.parametrize("where", ["norm", "inner_norm"])
@pytest.mark.parametrize("name", ["layer", "graph", "instance", "pair"])
@pytest.mark.parametrize("gradient", [Unrolled(), Implicit(rtol=1e-10)])
def test_norms_are_each_graphs_own(name, where, gradient):
    """With batch=, the output and gradient of a graph are those it has
    alone, whatever the scale of its mates."""
    torch.manual_seed(0)
    model = PIGN(
        4, 6, 3, "sage", inject=0.3, max_iter=200, rtol=1e-11,
        gradient=gradient, **{where: name},
    ).double().eval()  # fmt: skip
    with torch.no_grad():
        for p in model.block.parameters():
            p.mul_(0.2)
    batch = torch.tensor([0] * 3 + [1] * 5)
    edges = torch.tensor([[0, 1, 2, 3, 4, 5, 6, 7], [1, 2, 0, 4, 5, 6, 7, 3]])
    x = torch.randn(8, 4, dtype=torch.float64)
    x[3:] *= 20
    found = []
    for size in (8, 3):
        own = edges[:, :size]
        leaf = x[:size].clone().requires_grad_()
        out = model(leaf, own, batch=batch[:size])
        (grad,) = torch.autograd.grad(out[:3].sin().sum(), leaf)
        found.append((out[:3], grad[:3]))
        assert not grad[3:].any()
    for together, alone in zip(*found):
        torch.testing.assert_close(together, alone, rtol=1e-7, atol=1e-9)
