"""PicardConv over many convs is Algorithm 1, whatever the conv."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch_geometric.nn import GCNConv

from tests.nn.graphs import (
    ATTRIBUTED,
    CONVS,
    EDGES,
    WEIGHTED,
    algorithm_1,
    features,
    gentle,
    make,
)
from torch_picard import Implicit, PicardConv, Status, Unrolled

CLOSE = {"rtol": 1e-10, "atol": 1e-12}


@pytest.mark.parametrize("inject", [False, True])
@pytest.mark.parametrize("name", CONVS)
def test_equals_algorithm_1(name, inject):
    x, conv = features(4, 4), make(name)
    picard = PicardConv(
        conv,
        alpha=0.3,
        max_iter=7,
        rtol=0.0,
        inject=inject,
        activation="tanh",
    )
    expected = algorithm_1(
        conv,
        x,
        EDGES,
        alpha=0.3,
        n=7,
        activation=torch.tanh,
        f=x if inject else None,
    )
    out, solution = picard(x, EDGES, return_solution=True)
    torch.testing.assert_close(out, expected, **CLOSE)
    torch.testing.assert_close(picard(x, EDGES), expected, **CLOSE)
    assert solution.evaluations == 7
    assert solution.status.tolist() == [Status.MAX_ITER]


@pytest.mark.parametrize("name", CONVS)
def test_gradients_are_those_of_algorithm_1(name):
    def gradients(run):
        x, conv = features(4, 4).requires_grad_(), make(name)
        run(conv, x).square().sum().backward()
        return [x.grad, *(p.grad for p in conv.parameters())]

    found = gradients(
        lambda conv, x: PicardConv(
            conv, max_iter=5, rtol=0.0, activation="tanh"
        )(x, EDGES)
    )
    expected = gradients(
        lambda conv, x: algorithm_1(conv, x, EDGES, n=5, activation=torch.tanh)
    )
    assert len(found) == len(expected)
    for a, b in zip(found, expected):
        torch.testing.assert_close(a, b, **CLOSE)


@pytest.mark.parametrize("name", CONVS)
def test_solves_the_equation(name):
    x, conv = features(4, 4), make(name, scale=0.5)
    picard = PicardConv(
        conv, max_iter=200, rtol=1e-11, inject=True, activation=gentle
    )
    out, solution = picard(x, EDGES, return_solution=True)
    assert solution.converged.all()
    assert out.shape == x.shape
    residual = (gentle(conv(out, EDGES) + x) - out).norm()
    assert residual <= 1e-10 * out.norm()
    assert solution.residual.item() == pytest.approx(residual.item(), abs=1e-9)


@st.composite
def graphs(draw):
    n = draw(st.integers(1, 8))
    node = st.integers(0, n - 1)
    edges = draw(st.lists(st.tuples(node, node), max_size=20))
    edge_index = torch.tensor(edges, dtype=torch.long).reshape(-1, 2).t()
    order = draw(st.permutations(range(n)))
    return n, edge_index.contiguous(), torch.tensor(order)


@pytest.mark.parametrize("name", CONVS)
@settings(max_examples=15, deadline=None)
@given(graph=graphs(), seed=st.integers(0, 100), inject=st.booleans())
def test_renaming_the_nodes_renames_the_result(name, graph, seed, inject):
    n, edge_index, order = graph
    x = features(n, 4, seed=seed)
    picard = PicardConv(
        make(name, seed=seed),
        max_iter=4,
        rtol=0.0,
        inject=inject,
        activation="tanh",
    )
    renamed = picard(x[order], order.argsort()[edge_index])
    torch.testing.assert_close(
        renamed, picard(x, edge_index)[order], rtol=1e-9, atol=1e-11
    )


def edge_gradients(conv, attribute, gradient, as_keyword):
    """Gradients to x, the edges and the parameters, of a tight solve."""
    conv.zero_grad()
    x = features(4, 4).requires_grad_()
    edges = attribute.clone().requires_grad_()
    name = "edge_weight" if edges.dim() == 1 else "edge_attr"
    picard = PicardConv(
        conv,
        max_iter=300,
        rtol=1e-13,
        inject=True,
        activation=gentle,
        gradient=gradient,
    )
    if as_keyword:
        out, solution = picard(x, EDGES, return_solution=True, **{name: edges})
    else:
        out, solution = picard(x, EDGES, edges, return_solution=True)
    assert solution.converged.all()
    (out * features(4, 4, seed=1)).sum().backward()
    parameters = [p.grad for p in conv.parameters() if p.grad is not None]
    return [out.detach(), x.grad, edges.grad, *parameters]


@pytest.mark.parametrize("name", [*WEIGHTED, *ATTRIBUTED])
def test_edge_gradients(name):
    """Given either way, and by either derivative, they are the same."""
    if name in WEIGHTED:
        conv, edges = make(name, scale=0.5), features(7).square() + 0.1
    else:
        conv, edges = make(ATTRIBUTED[name], scale=0.5), features(7, 3)
    exact = Implicit(rtol=1e-12)
    first = edge_gradients(conv, edges, Unrolled(), as_keyword=False)
    assert first[2].abs().sum() > 0
    for gradient, as_keyword in [
        (Unrolled(), True),
        (Unrolled(checkpoint=True), True),
        (exact, False),
        (exact, True),
    ]:
        again = edge_gradients(conv, edges, gradient, as_keyword)
        assert len(first) == len(again)
        for a, b in zip(first, again):
            torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("gradient", [Unrolled(), Implicit(rtol=1e-12)])
def test_gradcheck(gradient):
    conv = make("gcn", channels=2, scale=0.5)
    picard = PicardConv(
        conv,
        max_iter=100,
        rtol=1e-13,
        inject=True,
        activation=gentle,
        gradient=gradient,
    )

    def solve(x, edge_weight, weight, bias):
        call = torch.func.functional_call
        parameters = {"conv.lin.weight": weight, "conv.bias": bias}
        return call(picard, parameters, (x, EDGES, edge_weight))

    inputs = (
        features(4, 2).requires_grad_(),
        (features(7).square() + 0.1).requires_grad_(),
        conv.lin.weight.detach().clone().requires_grad_(),
        conv.bias.detach().clone().requires_grad_(),
    )
    assert torch.autograd.gradcheck(solve, inputs)


def test_dtype_of_the_input_is_kept():
    for dtype in (torch.float32, torch.bfloat16):
        x = features(4, 4).to(dtype)
        picard = PicardConv(GCNConv(4, 4).to(dtype), inject=True)
        assert picard(x, EDGES).dtype == dtype
