import builtins

import pytest
import torch

from torch_picard.datasets import DigitsGraph


def test_shapes_and_split():
    dataset = DigitsGraph()
    data = dataset[0]
    assert len(dataset) == 1
    assert dataset.num_classes == 10
    assert dataset.num_features == 64
    assert data.x.shape == (1797, 64)
    assert data.x.dtype == torch.float32
    assert float(data.x.min()) == 0.0
    assert float(data.x.max()) == 1.0
    assert data.validate()
    assert data.is_undirected()
    assert data.is_coalesced()
    assert not data.has_self_loops()

    masks = [data.train_mask, data.val_mask, data.test_mask]
    assert [int(mask.sum()) for mask in masks] == [200, 500, 1000]
    assert int(sum(mask.int() for mask in masks).max()) == 1
    counts = torch.bincount(data.y[data.train_mask], minlength=10)
    assert counts.tolist() == [20] * 10


def test_every_node_has_its_nearest_neighbours():
    data = DigitsGraph(k=3)[0]
    degree = torch.bincount(data.edge_index[0], minlength=data.num_nodes)
    assert int(degree.min()) >= 3
    distance = torch.cdist(data.x[:1].double(), data.x.double())[0]
    distance[0] = float("inf")
    neighbours = data.edge_index[0][data.edge_index[1] == 0].tolist()
    assert set(distance.topk(3, largest=False).indices.tolist()) <= set(
        neighbours
    )


def test_is_deterministic_and_leaves_the_global_rng():
    state = torch.get_rng_state()
    first, second, other = DigitsGraph()[0], DigitsGraph()[0], None
    other = DigitsGraph(seed=1)[0]
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first.train_mask, second.train_mask)
    assert torch.equal(first.edge_index, second.edge_index)
    assert not torch.equal(first.train_mask, other.train_mask)


def test_all_that_is_left_goes_to_the_test():
    data = DigitsGraph(num_per_class=5, num_val=100, num_test=None)[0]
    total = data.train_mask | data.val_mask | data.test_mask
    assert bool(total.all())
    assert int(data.test_mask.sum()) == 1797 - 50 - 100


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"k": 0}, "k must"),
        ({"k": 1797}, "k must"),
        ({"num_per_class": 0}, "num_per_class"),
        ({"num_per_class": 101}, "num_per_class"),
        ({"num_val": 0}, "num_val"),
        ({"num_test": 0}, "num_test"),
        ({"num_test": 1797}, "num_test"),
        ({"num_test": 1098}, r"num_test must be in \[1, 1097\], got 1098"),
        ({"num_val": 1597}, r"num_val must be in \[1, 1596\], got 1597"),
        ({"seed": -(2**63) - 1}, "seed must be in"),
    ],
)
def test_bad_options(options, name):
    with pytest.raises(ValueError, match=name):
        DigitsGraph(**options)


@pytest.mark.parametrize(
    "options, said",
    [
        ({"k": 2.0}, "k must be an int, got float 2.0"),
        ({"num_per_class": "5"}, "num_per_class must be an int, got str '5'"),
        ({"num_val": 2.5}, "num_val must be an int, got float 2.5"),
        ({"num_val": None}, "num_val must be an int, got NoneType None"),
        ({"num_test": 2.5}, "num_test must be an int, got float 2.5"),
        ({"num_test": True}, "num_test must be an int, got bool True"),
        ({"seed": "a"}, "seed must be an int, got str 'a'"),
        ({"transform": 3}, "transform must be callable or None, got int 3"),
        ({"pre_transform": "x"}, "pre_transform must be callable or None"),
    ],
)
def test_options_of_another_kind(options, said):
    with pytest.raises(TypeError, match=f"^{said}"):
        DigitsGraph(**options)


def test_as_many_as_there_are():
    data = DigitsGraph(k=1, num_val=597, num_test=1000)[0]
    total = data.train_mask | data.val_mask | data.test_mask
    assert bool(total.all())


def test_without_scikit_learn_the_error_names_the_extra(monkeypatch):
    real = builtins.__import__

    def without_sklearn(name, *args, **kwargs):
        if name.startswith("sklearn"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without_sklearn)
    with pytest.raises(ImportError, match=r"torch-picard\[datasets\]"):
        DigitsGraph()
