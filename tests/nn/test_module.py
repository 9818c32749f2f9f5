"""PicardConv as a module: state, names, copies."""

import copy
import io
import pickle

import pytest
import torch
from torch_geometric.nn import GATConv, GCNConv, SAGEConv

from tests.nn.graphs import CONVS, EDGES, features, make
from torch_picard import PIGN, Anderson, Implicit, Picard, PicardConv


def full(name="gcn"):
    return PicardConv(
        make(name),
        torch.nn.Parameter(torch.tensor(0.4, dtype=torch.float64)),
        max_iter=12,
        inject=torch.nn.Linear(4, 4).double(),
        activation=torch.nn.PReLU().double(),
        gradient=Implicit(),
    )


@pytest.mark.parametrize(
    ("picard", "text"),
    [
        (
            lambda: PicardConv(GCNConv(8, 8)),
            "PicardConv(GCNConv(8, 8), alpha=0.5, max_iter=16)",
        ),
        (
            lambda: PicardConv(GATConv(8, 4, heads=2), 0.25, 5),
            "PicardConv(GATConv(8, 4, heads=2), alpha=0.25, max_iter=5)",
        ),
        (
            lambda: PicardConv(
                SAGEConv(8, 8), torch.nn.Parameter(torch.tensor(0.5))
            ),
            "PicardConv(SAGEConv(8, 8, aggr=mean), alpha=learned, "
            "max_iter=16)",
        ),
        (
            lambda: PicardConv(GCNConv(8, 8), torch.tensor(0.5)),
            "PicardConv(GCNConv(8, 8), alpha=0.5, max_iter=16)",
        ),
        (
            lambda: PicardConv(GCNConv(8, 8), method=Picard(0.25)),
            "PicardConv(GCNConv(8, 8), method=Picard(alpha=0.25), "
            "max_iter=16)",
        ),
    ],
)
def test_repr(picard, text):
    assert str(picard()) == text


def test_repr_of_a_method():
    text = str(PicardConv(GCNConv(8, 8), method=Anderson()))
    assert text == (
        f"PicardConv(GCNConv(8, 8), method={Anderson()!r}, max_iter=16)"
    )


def test_parameters_are_those_of_its_parts():
    names = {name for name, _ in full().named_parameters()}
    assert names == {
        "alpha",
        "conv.bias",
        "conv.lin.weight",
        "inject.weight",
        "inject.bias",
        "activation.weight",
    }
    plain = set(PicardConv(GCNConv(4, 4)).state_dict())
    assert plain == {"conv.bias", "conv.lin.weight"}


@pytest.mark.parametrize("name", CONVS)
def test_copies_compute_the_same(name):
    x, picard = features(4, 4), full(name)
    out = picard(x, EDGES)
    assert torch.equal(copy.deepcopy(picard)(x, EDGES), out)
    assert torch.equal(pickle.loads(pickle.dumps(picard))(x, EDGES), out)

    buffer = io.BytesIO()
    torch.save(picard.state_dict(), buffer)
    buffer.seek(0)
    other = full(name)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(0.9)
    if list(other.conv.parameters()):
        assert not torch.equal(other(x, EDGES), out)
    other.load_state_dict(torch.load(buffer))
    assert torch.equal(other(x, EDGES), out)


def test_a_copy_is_independent():
    x, picard = features(4, 4), full()
    out, twin = picard(x, EDGES), copy.deepcopy(picard)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.mul_(0.5)
    assert torch.equal(picard(x, EDGES), out)
    assert not torch.equal(twin(x, EDGES), out)


@pytest.mark.parametrize("options", [{}, {"inject": True}])
def test_reset_parameters(options):
    picard = PicardConv(GCNConv(4, 4), **options)
    torch.manual_seed(3)
    picard.reset_parameters()
    first = copy.deepcopy(picard.state_dict())
    with torch.no_grad():
        for parameter in picard.parameters():
            parameter.fill_(7.0)
    torch.manual_seed(3)
    picard.reset_parameters()
    for name, value in picard.state_dict().items():
        assert torch.equal(value, first[name])


def test_reset_reaches_every_part():
    inject = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.ReLU())
    alpha = torch.nn.Parameter(torch.tensor(0.4))
    picard = PicardConv(
        GCNConv(4, 4), alpha, inject=inject, activation=torch.nn.PReLU()
    )
    with torch.no_grad():
        for parameter in picard.parameters():
            parameter.fill_(0.7)
    picard.reset_parameters()
    for name, parameter in picard.named_parameters():
        assert not (parameter == 0.7).any(), name
    assert alpha.item() == pytest.approx(0.4)


def test_train_and_eval_reach_every_part():
    picard = PicardConv(GCNConv(4, 4), inject=torch.nn.Dropout()).eval()
    assert not picard.inject.training and not picard.conv.training
    assert picard.train().inject.training


def test_eval_mode_gives_gradients():
    x, picard = features(4, 4), full().eval()
    picard(x, EDGES).sum().backward()
    without = [n for n, p in picard.named_parameters() if p.grad is None]
    # A fixed point, which Implicit differentiates, does not depend on it.
    assert without == ["alpha"]


def test_no_grad():
    with torch.no_grad():
        assert not full()(features(4, 4), EDGES).requires_grad


def test_conversion_of_the_dtype():
    picard = full().float()
    assert picard.alpha.dtype == torch.float32
    assert picard(features(4, 4).float(), EDGES).dtype == torch.float32


def test_training_lowers_a_loss():
    torch.manual_seed(0)
    x, picard = features(4, 4), full()
    target = torch.tanh(features(4, 4, seed=1))
    optimizer = torch.optim.Adam(picard.parameters(), lr=0.02)
    losses = []
    for _ in range(60):
        optimizer.zero_grad()
        loss = (picard(x, EDGES) - target).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.2 * losses[0]


@pytest.mark.parametrize(
    "make",
    [
        lambda: PIGN(4, 6, 2, dropout=0.0),
        lambda: PIGN(4, 6, 2, "sage", dropout=0.0, gradient=Implicit()),
        lambda: PicardConv(GCNConv(4, 4), inject=True),
        lambda: PicardConv(GATConv(4, 4), inject=True),
    ],
)
def test_training_goes_on_after_inference_mode(make):
    torch.manual_seed(0)
    model, x = make(), features(4, 4).float()
    with torch.inference_mode():
        want = model(x, EDGES)
    out = model(x, EDGES)
    torch.testing.assert_close(out.detach(), want.clone())
    out.square().sum().backward()
    assert all(p.grad is not None for p in model.parameters())


@pytest.mark.parametrize("name", CONVS)
def test_no_nodes(name):
    """As of a node type that is not in a batch."""
    picard, none = full(name), torch.zeros(2, 0, dtype=torch.long)
    x = torch.zeros(0, 4, dtype=torch.float64, requires_grad=True)
    out, solution = picard(x, none, return_solution=True)
    assert out.shape == (0, 4) and solution.converged.all()
    out.sum().backward()
