"""What P is: injection, activation, smoothing, method, gradient."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch_geometric.nn import GCNConv

from tests.nn.graphs import EDGES, algorithm_1, features, gentle, make
from torch_picard import (
    Adaptive,
    Anderson,
    Broyden,
    ConvergenceWarning,
    Implicit,
    NewtonKrylov,
    OneStep,
    Phantom,
    Picard,
    PicardConv,
    Status,
    Unrolled,
    fixed_point,
)

PATH = torch.tensor([[0, 1, 1, 2, 2, 3], [1, 0, 2, 1, 3, 2]])


def contracting_gcn(norm, seed=0):
    """D^-1/2 A D^-1/2 has norm 1, so ``norm`` bounds the Lipschitz
    constant."""
    conv = make(lambda c: GCNConv(c, c), seed=seed)
    with torch.no_grad():
        size = torch.linalg.matrix_norm(conv.lin.weight, 2)
        conv.lin.weight.mul_(norm / size)
        conv.bias.normal_()
    return conv


@settings(max_examples=20, deadline=None)
@given(
    norm=st.floats(0.05, 0.9),
    alpha=st.floats(0.0, 0.8),
    seed=st.integers(0, 1000),
)
def test_literal_loop_forgets_its_input_and_injection_does_not(
    norm, alpha, seed
):
    conv = contracting_gcn(norm, seed)
    one, two = features(4, 4, seed=seed), features(4, 4, seed=seed + 1)

    def results(inject):
        picard = PicardConv(
            conv, alpha, max_iter=3000, rtol=1e-12, inject=inject
        )
        pairs = [picard(x, PATH, return_solution=True) for x in (one, two)]
        assert all(solution.converged.all() for _, solution in pairs)
        return pairs[0][0], pairs[1][0]

    a, b = results(inject=False)
    torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-8)
    # |x - y| >= |f - g|/(1 + L) where x = P(x) + f and y = P(y) + g.
    a, b = results(inject=True)
    assert (a - b).norm() >= (one - two).norm() / (1 + norm) - 1e-8


def test_few_literal_iterations_keep_the_input():
    conv = contracting_gcn(0.5)
    few = PicardConv(conv, max_iter=3, rtol=0.0)
    many = PicardConv(conv, max_iter=60, rtol=0.0)
    one, two = features(4, 4), features(4, 4, seed=1)
    distance = (few(one, PATH) - few(two, PATH)).norm()
    # Three steps, each of which keeps at least a share alpha - (1-alpha)L.
    assert distance > 0.25**3 * (one - two).norm()
    assert (many(one, PATH) - many(two, PATH)).norm() < 1e-6 * distance


def test_inject_a_module():
    x, conv = features(4, 4), make("gcn")
    inject = torch.nn.Linear(4, 4).double()
    picard = PicardConv(conv, max_iter=5, rtol=0.0, inject=inject)
    expected = algorithm_1(conv, x, EDGES, n=5, f=inject(x))
    torch.testing.assert_close(picard(x, EDGES), expected)
    assert {id(p) for p in inject.parameters()} <= {
        id(p) for p in picard.parameters()
    }


def test_injected_once_per_forward():
    calls = []
    inject = torch.nn.Dropout(0.5)
    inject.register_forward_hook(lambda *_: calls.append(1))
    PicardConv(make("gcn"), max_iter=9, rtol=0.0, inject=inject)(
        features(4, 4), EDGES
    )
    assert len(calls) == 1


@pytest.mark.parametrize(
    "activation",
    ["tanh", "Tanh", torch.tanh, torch.nn.Tanh(), lambda z: z.tanh()],
)
def test_activation(activation):
    x, conv = features(4, 4), make("gcn")
    picard = PicardConv(conv, max_iter=5, rtol=0.0, activation=activation)
    expected = algorithm_1(conv, x, EDGES, n=5, activation=torch.tanh)
    torch.testing.assert_close(picard(x, EDGES), expected)


def test_activation_that_learns():
    activation = torch.nn.PReLU(4).double()
    picard = PicardConv(make("gcn"), activation=activation)
    picard(features(4, 4), EDGES).sum().backward()
    assert activation.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("shape", [(), (1,), (4,), (4, 1)])
def test_learnable_alpha(shape):
    """A scalar, or one a channel or a node."""
    x, conv = features(4, 4), make("gcn")
    alpha = torch.nn.Parameter(torch.full(shape, 0.3, dtype=torch.float64))
    picard = PicardConv(conv, alpha, max_iter=4, rtol=0.0)
    out = picard(x, EDGES)
    torch.testing.assert_close(
        out, algorithm_1(conv, x, EDGES, alpha=0.3, n=4)
    )
    out.square().sum().backward()
    assert alpha.grad.shape == shape
    (probe,) = torch.autograd.grad(
        algorithm_1(conv, x, EDGES, alpha=alpha, n=4).square().sum(), alpha
    )
    torch.testing.assert_close(alpha.grad, probe)
    assert "alpha" in dict(picard.named_parameters())

    picard.reset_parameters()
    with torch.no_grad():
        alpha.fill_(1.0)
    with pytest.raises(ValueError, match="alpha"):
        picard(x, EDGES)
    picard.reset_parameters()
    torch.testing.assert_close(alpha.detach(), torch.full_like(alpha, 0.3))


def test_alpha_that_is_a_constant_tensor():
    alpha = torch.tensor(0.3, dtype=torch.float64)
    picard = PicardConv(make("gcn"), alpha, max_iter=4, rtol=0.0)
    assert "alpha" in picard.state_dict()
    assert not any(p is alpha for p in picard.parameters())
    other = PicardConv(make("gcn"), 0.3, max_iter=4, rtol=0.0)
    x = features(4, 4)
    torch.testing.assert_close(picard(x, EDGES), other(x, EDGES))


@pytest.mark.parametrize(
    "method",
    [Picard(0.2), Anderson(), Broyden(), NewtonKrylov(), Adaptive()],
    ids=lambda m: type(m).__name__,
)
@pytest.mark.parametrize("name", ["gcn", "gat", "own"])
def test_methods_find_the_same_solution(method, name):
    x, conv = features(4, 4), make(name, scale=0.7)
    options = {
        "max_iter": 300,
        "rtol": 1e-10,
        "inject": True,
        "activation": gentle,
    }
    out, solution = PicardConv(conv, method=method, **options)(
        x, EDGES, return_solution=True
    )
    assert solution.converged.all()
    torch.testing.assert_close(
        out, PicardConv(conv, **options)(x, EDGES), rtol=1e-8, atol=1e-9
    )


@pytest.mark.parametrize(
    "gradient",
    [Unrolled(), Unrolled(checkpoint=True), Implicit(), Phantom(3), OneStep()],
    ids=repr,
)
def test_gradients_are_those_of_the_engine(gradient):
    def solve(picard_conv):
        x, conv = features(4, 4).requires_grad_(), make("gcn", scale=0.7)
        options = {"max_iter": 40, "rtol": 1e-6, "gradient": gradient}
        if picard_conv:
            layer = PicardConv(conv, inject=True, activation=gentle, **options)
            out = layer(x, EDGES)
        else:
            out = fixed_point(
                lambda y: gentle(conv(y, EDGES) + x), x, **options
            ).value
        out.square().sum().backward()
        return [x.grad, *(p.grad for p in conv.parameters())]

    for a, b in zip(solve(True), solve(False)):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11)


def test_on_failure():
    x, conv = features(4, 4), make("gcn")
    options = {"max_iter": 2, "rtol": 1e-12, "inject": True}
    _, solution = PicardConv(conv, **options)(x, EDGES, return_solution=True)
    assert solution.status.tolist() == [Status.MAX_ITER]
    with pytest.warns(ConvergenceWarning, match="max_iter"):
        PicardConv(conv, on_failure="warn", **options)(x, EDGES)


def test_dropout_inside_the_operator_is_one_map_a_solve():
    """Its masks are drawn once, so the solve converges; the next forward
    draws others, and eval mode none."""
    torch.manual_seed(0)
    picard = PicardConv(
        make(lambda c: GCNConv(c, c), scale=0.7),
        max_iter=200,
        rtol=1e-9,
        inject=True,
        activation=torch.nn.Sequential(torch.nn.Tanh(), torch.nn.Dropout(0.3)),
    )
    x = features(4, 4)
    first, solution = picard(x, EDGES, return_solution=True)
    assert solution.converged.all()
    assert not torch.allclose(first, picard(x, EDGES))
    picard.eval()
    assert torch.equal(picard(x, EDGES), picard(x, EDGES))
