"""Parametrised weights are computed once a solve, gradients included."""

import pytest
import torch
from torch.nn.utils import parametrize
from torch.nn.utils.parametrizations import spectral_norm
from torch_geometric.nn import GATConv, GCNConv, GINConv

from torch_picard import Anderson, Implicit, Phantom, PicardConv, Unrolled
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


@pytest.mark.parametrize("backend", ["torch", "auto"])
@pytest.mark.parametrize(
    "gradient", [Unrolled(), Implicit(rtol=1e-10), Phantom(3)]
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
    names = [n for n, _ in block.named_parameters()]

    def solve(*weights):
        return torch.func.functional_call(
            block, dict(zip(names, weights)), (x, ring(4))
        )

    weights = [p.detach().requires_grad_() for p in block.parameters()]
    assert torch.autograd.gradcheck(solve, weights, atol=1e-6)
    assert torch.autograd.gradgradcheck(solve, weights, atol=1e-5)


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
