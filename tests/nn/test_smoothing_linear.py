import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from torch_picard.engine.held import held_weights
from torch_picard.nn.smoothing_linear import SmoothingLinear


def norm(lin):
    return float(torch.linalg.matrix_norm(lin.weight.double(), 2))


@settings(max_examples=50, deadline=None)
@given(
    channels=st.integers(1, 8),
    lam=st.floats(0.01, 0.99),
    beta=st.floats(0.0, 1.0),
    size=st.floats(0.0, 1e3),
    seed=st.integers(0, 1000),
)
def test_never_expands_by_more_than_lam(channels, lam, beta, size, seed):
    lin = SmoothingLinear(channels, lam, beta)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        lin.deviation.copy_(
            size * torch.randn(channels, channels, generator=generator)
        )
    assert norm(lin) <= lam * (1 + 1e-5)


def test_starts_as_a_multiple_of_the_identity():
    lin = SmoothingLinear(4, 0.9, 0.5)
    assert torch.allclose(lin.weight, 0.9 * torch.eye(4))
    x = torch.randn(3, 4)
    assert torch.allclose(lin(x), 0.9 * x)


def test_bound_holds_while_training():
    torch.manual_seed(0)
    lin = SmoothingLinear(4, 0.9, 1.0)
    optimizer = torch.optim.SGD(lin.parameters(), lr=1.0)
    x = torch.randn(20, 4)
    for _ in range(30):
        loss = (lin(x) - 5 * x.flip(1)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        assert norm(lin) <= 0.9 * (1 + 1e-5)
    assert not torch.allclose(lin.weight, 0.9 * torch.eye(4), atol=0.1)
    lin.reset_parameters()
    assert torch.allclose(lin.weight, 0.9 * torch.eye(4))


def test_held_weight_is_computed_once_and_let_go():
    lin = SmoothingLinear(4, 0.9, 0.5)
    with held_weights(lin):
        assert lin.weight is lin.weight
        lin(torch.randn(3, 4)).sum().backward()
    assert lin.weight is not lin.weight
    assert lin.deviation.grad is not None


@pytest.mark.parametrize(
    ("lam", "beta", "name"),
    [
        (0.0, 0.5, "lam"),
        (1.0, 0.5, "lam"),
        (0.5, -1, "beta"),
        (0.5, 2, "beta"),
    ],
)
def test_bad_options(lam, beta, name):
    with pytest.raises(ValueError, match=name):
        SmoothingLinear(4, lam, beta)
