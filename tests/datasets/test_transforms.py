import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch_geometric.data import Data, HeteroData

from torch_picard.datasets import Centre, DropInNoise


def bag_of_words(density=0.1, shape=(60, 40), seed=0):
    generator = torch.Generator().manual_seed(seed)
    return Data(x=(torch.rand(shape, generator=generator) < density).float())


@given(p=st.floats(0, 1), seed=st.integers(0, 2**31))
def test_ones_stay_and_nothing_else_appears(p, seed):
    data = bag_of_words()
    x = DropInNoise(p, seed=seed)(data).x
    assert bool((x[data.x == 1] == 1).all())
    assert bool(((x == 0) | (x == 1)).all())


def test_share_of_zeros_that_turn_is_p():
    # Another seed than the features': the same would correlate with them.
    data = bag_of_words(shape=(500, 400))
    for p in (0.0, 0.25, 0.5, 1.0):
        turned = DropInNoise(p, seed=5)(data).x[data.x == 0].mean()
        assert float(turned) == pytest.approx(p, abs=0.01)


def test_input_and_global_rng_stay():
    data = bag_of_words()
    before, state = data.x.clone(), torch.get_rng_state()
    out = DropInNoise(0.5, seed=3)(data)
    assert torch.equal(data.x, before)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(99)
    again = DropInNoise(0.5, seed=3)(data)
    assert torch.equal(out.x, again.x)
    assert not torch.equal(out.x, DropInNoise(0.5, seed=4)(data).x)


@pytest.mark.parametrize("layout", ["coo", "csr"])
def test_sparse_features_get_the_same_noise(layout):
    data = bag_of_words()
    sparse = Data(
        x=data.x.to_sparse() if layout == "coo" else data.x.to_sparse_csr()
    )
    stored = sparse.x.clone()
    for transform in (DropInNoise(0.3, seed=1), Centre()):
        assert torch.equal(transform(sparse).x, transform(data).x)
    assert torch.equal(sparse.x.to_dense(), stored.to_dense())


def test_grey_values_turn_to_the_largest():
    data = Data(x=torch.tensor([[0.0, 0.5], [0.25, 0.0]]))
    out = DropInNoise(1.0)(data).x
    assert out.tolist() == [[0.5, 0.5], [0.25, 0.5]]
    zeros = Data(x=torch.zeros(2, 2, dtype=torch.float64))
    assert DropInNoise(1.0)(zeros).x.tolist() == [[1.0, 1.0], [1.0, 1.0]]
    assert DropInNoise(1.0)(zeros).x.dtype == torch.float64


def test_centre():
    data = bag_of_words()
    before = data.x.clone()
    x = Centre()(data).x
    assert torch.equal(data.x, before)
    assert x.norm(dim=1).tolist() == pytest.approx([1.0] * 60, abs=1e-5)
    raw = data.x - data.x.mean(dim=0)
    assert torch.allclose(x * raw.norm(dim=1, keepdim=True), raw, atol=1e-6)
    shifted = Data(x=data.x + torch.arange(40.0))
    assert torch.allclose(Centre()(shifted).x, x, atol=1e-4)


def test_centre_of_equal_rows_is_zero():
    x = Centre()(Data(x=torch.ones(4, 3))).x
    assert torch.equal(x, torch.zeros(4, 3))


def test_errors_and_repr():
    for p in (-0.1, 1.1, float("nan")):
        with pytest.raises(ValueError, match="p must be in"):
            DropInNoise(p)
    with pytest.raises(ValueError, match="before centring"):
        DropInNoise(0.5)(Data(x=-torch.ones(2, 2)))
    for transform in (DropInNoise(0.5), Centre()):
        with pytest.raises(ValueError, match="no features"):
            transform(Data(edge_index=torch.zeros(2, 0, dtype=torch.long)))
    assert str(DropInNoise(0.5, seed=2)) == "DropInNoise(p=0.5, seed=2)"
    assert str(Centre()) == "Centre()"


@pytest.mark.parametrize(
    "options, error, said",
    [
        ({"p": "0.5"}, TypeError, "p must be a number, got str '0.5'"),
        ({"p": None}, TypeError, "p must be a number, got NoneType"),
        ({"p": True}, TypeError, "p must be a number, got bool"),
        ({"p": 2}, ValueError, r"p must be in \[0, 1\], got 2"),
        ({"seed": 0.5}, TypeError, "seed must be an int, got float 0.5"),
        ({"seed": None}, TypeError, "seed must be an int, got NoneType"),
        ({"seed": 2**64}, ValueError, r"seed must be in \[-\d+, \d+\], got"),
    ],
)
def test_bad_options(options, error, said):
    with pytest.raises(error, match=said):
        DropInNoise(**({"p": 0.5} | options))


@pytest.mark.parametrize("given", [None, 3, HeteroData(), Data(x=[1.0])])
def test_what_has_no_features_is_named(given):
    for transform in (DropInNoise(0.5), Centre()):
        with pytest.raises(ValueError, match=r"graph with features `x`.* got"):
            transform(given)
