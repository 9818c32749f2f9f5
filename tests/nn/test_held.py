"""Parametrised weights are computed once a solve, gradients included."""

import pytest
import torch
from torch.nn.utils import parametrize
from torch.nn.utils.parametrizations import spectral_norm
from torch_geometric.nn import GATConv, GCNConv, GINConv, SAGEConv

from torch_picard import (
    Anderson,
    Implicit,
    OneStep,
    Phantom,
    PicardConv,
    Unrolled,
)
from torch_picard.contraction import contractive


class Counted(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.calls = 0

    def forward(self, weight):
        self.calls += 1
        return 0.3 * weight.tanh()


def ring(nodes=6):
    i = torch.arange(nodes)
    j = (i + 1) % nodes
    return torch.stack([torch.cat([i, j]), torch.cat([j, i])])


def check_twice(block, *inputs):
    """Derivatives of first and second order by its parameters."""
    weights = tuple(block.parameters())

    def solve(*_):  # gradcheck changes the parameters in place
        return block(*inputs)

    assert torch.autograd.gradcheck(solve, weights, atol=1e-6)
    assert torch.autograd.gradgradcheck(solve, weights, atol=1e-5)
    loss = block(*inputs).square().sum()
    torch.testing.assert_close(
        torch.autograd.grad(loss, weights, create_graph=True),
        torch.autograd.grad(block(*inputs).square().sum(), weights),
    )


@pytest.mark.parametrize("backend", ["torch", "auto"])
@pytest.mark.parametrize(
    "gradient",
    [
        Unrolled(),
        Unrolled(checkpoint=True),
        Implicit(rtol=1e-10),
        Phantom(3),
        OneStep(),
    ],
)
@pytest.mark.parametrize("method", [None, Anderson()])
def test_once_a_solve_with_the_gradient_of_the_written_out_weight(
    backend, gradient, method
):
    torch.manual_seed(0)
    x = torch.randn(6, 4, dtype=torch.double)
    conv = GCNConv(4, 4).double()
    counted = Counted()
    parametrize.register_parametrization(conv.lin, "weight", counted)
    block = PicardConv(
        conv, max_iter=60, rtol=1e-12, inject=True, method=method,
        gradient=gradient, backend=backend,
    )  # fmt: skip
    counted.calls = 0
    out, solution = block(x, ring(), return_solution=True)
    assert counted.calls == 1
    assert solution.evaluations > 3
    out.square().sum().backward()
    assert counted.calls == 1
    original = conv.lin.parametrizations.weight.original
    found = original.grad.clone()

    plain = GCNConv(4, 4).double()
    free = original.detach().clone().requires_grad_()
    weight = 0.3 * free.tanh()
    with torch.no_grad():
        plain.lin.weight.copy_(weight)
        plain.bias.copy_(conv.bias)
    block = PicardConv(
        plain, max_iter=60, rtol=1e-12, inject=True, method=method,
        gradient=gradient, backend=backend,
    )  # fmt: skip
    expected = block(x, ring())
    torch.testing.assert_close(out, expected)
    expected.square().sum().backward()
    (wanted,) = torch.autograd.grad(weight, free, plain.lin.weight.grad)
    torch.testing.assert_close(found, wanted)


def test_a_weight_that_changes_at_every_access_is_one_in_a_solve():
    """torch's spectral norm moves its vectors in training."""
    torch.manual_seed(0)
    x = torch.randn(6, 4, dtype=torch.double)
    conv = GCNConv(4, 4).double()
    spectral_norm(conv.lin)
    block = PicardConv(conv, alpha=0.5, max_iter=300, rtol=1e-12, inject=True)
    _, solution = block(x, ring(), return_solution=True)
    assert bool(solution.converged)


@pytest.mark.parametrize("backend", ["torch", "auto"])
@pytest.mark.parametrize(
    "gradient",
    [Unrolled(), Unrolled(checkpoint=True), Implicit(rtol=1e-12)],
)
@pytest.mark.parametrize(
    "make",
    [
        GCNConv,
        pytest.param(GATConv, marks=pytest.mark.slow),
        pytest.param(SAGEConv, marks=pytest.mark.slow),
    ],
)
def test_constrained_weights_twice_differentiated(make, gradient, backend):
    """A backward pass that evaluates P again finds the weights of the solve,
    not those that a conv changed for its duration would have."""
    torch.manual_seed(0)
    conv = make(2, 2).double()
    contractive(
        conv if make is GCNConv else getattr(conv, "lin", None) or conv.lin_l,
        bound=0.5,
        **{"edge_index": ring(4), "num_nodes": 4} if make is GCNConv else {},
    )
    x = torch.randn(4, 2, dtype=torch.double)
    block = PicardConv(
        conv, max_iter=6 if isinstance(gradient, Unrolled) else 100, rtol=0.0,
        inject=True, alpha=0.3, gradient=gradient, backend=backend,
        on_failure="ignore",
    )  # fmt: skip
    check_twice(block, x, ring(4))


def test_parameters_gone_before_the_second_derivative_are_said():
    x = torch.randn(6, 4)
    block = PicardConv(GATConv(4, 4), inject=True, gradient=Implicit())
    with torch.no_grad():
        block.conv.lin.weight.mul_(0.1)
    weights = {n: p.detach().clone().requires_grad_() for n, p in
               block.named_parameters()}  # fmt: skip
    out = torch.func.functional_call(block, weights, (x, ring()))
    torch.autograd.grad(out.sum(), weights.values(), retain_graph=True)
    with pytest.raises(RuntimeError, match="functional_call"):
        torch.autograd.grad(out.sum(), weights.values(), create_graph=True)


@pytest.mark.slow
def test_several_weights_of_one_conv():
    torch.manual_seed(0)
    net = torch.nn.Sequential(
        torch.nn.Linear(2, 3), torch.nn.Tanh(), torch.nn.Linear(3, 2)
    )
    conv = contractive(
        GINConv(net).double(), edge_index=ring(4), num_nodes=4, bound=0.5
    )
    x = torch.randn(4, 2, dtype=torch.double)
    block = PicardConv(
        conv, max_iter=200, rtol=1e-13, inject=True, alpha=0.0,
        gradient=Implicit(rtol=1e-12),
    )  # fmt: skip
    check_twice(block, x, ring(4))


def test_nothing_is_kept_after_a_solve():
    conv = GATConv(4, 4)
    contractive(conv.lin, 0.5)
    x = torch.randn(6, 4)
    block = PicardConv(conv)
    first = block(x, ring())
    with torch.no_grad():
        conv.lin.parametrizations.weight.original.mul_(0.01)
    assert not torch.equal(first, block(x, ring()))
    assert not parametrize._cache
