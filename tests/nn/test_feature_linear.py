import pytest
import torch
import torch.nn.functional as F

from torch_picard.nn.feature_linear import FeatureLinear

LAYOUTS = {
    "dense": lambda x: x,
    "coo": lambda x: x.to_sparse(),
    "csr": lambda x: x.to_sparse_csr(),
}


def features(rows=30, columns=12):
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(rows, columns, generator=generator)
    return torch.where(x < 0.3, x, 0.0)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_without_dropout_it_is_linear(layout):
    x, lin = features(), FeatureLinear(12, 5)
    out = lin(LAYOUTS[layout](x))
    assert torch.allclose(out, F.linear(x, lin.weight, lin.bias), atol=1e-6)

    out.square().sum().backward()
    grad = lin.weight.grad.clone()
    lin.weight.grad = None
    F.linear(x, lin.weight, lin.bias).square().sum().backward()
    assert torch.allclose(grad, lin.weight.grad, atol=1e-5)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_dropout_has_the_right_mean_and_only_in_training(layout):
    torch.manual_seed(0)
    x, lin = LAYOUTS[layout](features()), FeatureLinear(12, 5, dropout=0.5)
    exact = lin.eval()(x)
    assert torch.equal(exact, lin(x))
    lin.train()
    with torch.no_grad():
        mean = sum(lin(x) for _ in range(4000)) / 4000
    assert not torch.equal(lin(x), exact)
    assert torch.allclose(mean, exact, atol=0.05)


def test_sparse_dropout_acts_on_entries():
    torch.manual_seed(0)
    lin = FeatureLinear(2, 2, bias=False, dropout=0.5)
    torch.nn.init.eye_(lin.weight.data)
    x = torch.tensor([[1.0, 0.0], [1.0, 3.0], [0.0, 1.0]])
    seen = set()
    for _ in range(50):
        out = lin(x.to_sparse_csr())
        assert bool(((out == 0) | (out == 2 * x)).all())
        seen.add(tuple((out[:, 0] > 0).tolist()))
    assert (True, False, False) in seen  # rows are dropped one by one


def test_dense_dropout_acts_on_columns():
    torch.manual_seed(0)
    lin = FeatureLinear(2, 2, bias=False, dropout=0.5)
    torch.nn.init.eye_(lin.weight.data)
    for _ in range(20):
        out = lin(torch.ones(3, 2))
        assert torch.equal(out, out[:1].expand(3, 2))
        assert bool(((out == 0) | (out == 2)).all())


def test_input_stays_as_it_is():
    for layout in LAYOUTS.values():
        x = layout(features())
        FeatureLinear(12, 5, dropout=0.5)(x)
        assert torch.equal(x.to_dense(), features())
