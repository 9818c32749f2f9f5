import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch_geometric.utils import degree

from torch_picard.datasets import ChainGraphs


@settings(max_examples=20, deadline=None)
@given(
    length=st.integers(1, 12),
    num_chains=st.integers(3, 9),
    num_classes=st.integers(2, 4),
)
def test_laws(length, num_chains, num_classes):
    data = ChainGraphs(length, num_chains, num_classes)[0]
    total = num_chains * num_classes
    assert data.num_nodes == total * length
    assert data.num_edges == 2 * total * (length - 1)
    assert data.validate()
    assert data.is_undirected()
    assert data.is_sorted()

    # The class is in the first node only.
    first = data.position == 0
    assert torch.equal(data.x[first].argmax(1), data.y[first])
    assert torch.equal(data.x[first].sum(1), torch.ones(total))
    assert float(data.x[~first].abs().sum()) == 0.0

    # Edges join neighbours of one chain.
    row, col = data.edge_index
    assert torch.equal(data.chain[row], data.chain[col])
    steps = (data.position[row] - data.position[col]).abs()
    assert bool((steps == 1).all())
    assert int(degree(row, data.num_nodes).max()) <= 2

    # Whole chains are split, and every part sees every class.
    masks = [data.train_mask, data.val_mask, data.test_mask]
    assert bool((sum(mask.int() for mask in masks) == 1).all())
    for mask in masks:
        assert len(data.y[mask].unique()) == num_classes
        inside = data.chain[mask].bincount(minlength=total)
        assert set(inside.tolist()) <= {0, length}


def test_seed_and_features():
    one, two = ChainGraphs(5)[0], ChainGraphs(5, seed=1)[0]
    assert torch.equal(one.train_mask, ChainGraphs(5)[0].train_mask)
    assert not torch.equal(one.train_mask, two.train_mask)
    assert ChainGraphs(5, num_features=7)[0].x.shape == (200, 7)
    assert ChainGraphs(5, num_classes=3).num_classes == 3


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"length": 0}, "length"),
        ({"num_chains": 2}, "num_chains"),
        ({"num_classes": 1}, "num_classes"),
        ({"num_features": 1}, "num_features"),
        ({"train_share": 0.0}, "train_share"),
        ({"train_share": float("nan")}, "train_share"),
        ({"seed": 2**64}, "seed"),
        ({"train_share": 0.5, "val_share": 0.5}, "train_share"),
    ],
)
def test_bad_options(options, name):
    with pytest.raises(ValueError, match=name):
        ChainGraphs(**({"length": 5} | options))


@given(
    num_chains=st.integers(3, 30),
    train=st.floats(0.01, 0.98),
    val=st.floats(0.01, 0.98),
)
@settings(max_examples=30)
def test_every_part_has_a_chain_of_every_class(num_chains, train, val):
    if train + val >= 1:
        train, val = train / 2, val / 2
    data = ChainGraphs(
        2, num_chains=num_chains, train_share=train, val_share=val
    )[0]
    for mask in (data.train_mask, data.val_mask, data.test_mask):
        assert data.y[mask].unique().tolist() == [0, 1]


@pytest.mark.parametrize(
    "options, said",
    [
        ({"train_share": "x"}, "train_share must be a number, got str 'x'"),
        ({"val_share": None}, "val_share must be a number, got NoneType"),
        ({"length": 2.0}, "length must be an int, got float 2.0"),
        ({"num_chains": True}, "num_chains must be an int, got bool"),
        ({"num_classes": None}, "num_classes must be an int, got NoneType"),
        ({"num_classes": "2"}, "num_classes must be an int, got str '2'"),
        ({"num_features": 2.5}, "num_features must be an int, got float"),
        ({"seed": "a"}, "seed must be an int, got str 'a'"),
        ({"transform": 3}, "transform must be callable or None, got int 3"),
        ({"pre_transform": 3}, "pre_transform must be callable or None"),
    ],
)
def test_options_of_another_kind(options, said):
    with pytest.raises(TypeError, match=f"^{said}"):
        ChainGraphs(**({"length": 3} | options))
