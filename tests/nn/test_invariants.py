"""Normalisation and self-loops: once per forward, with the same result."""

import pytest
import torch
from torch_geometric.nn import (
    APPNP,
    GATConv,
    GATv2Conv,
    GCNConv,
    LGConv,
    SGConv,
    TAGConv,
)
from torch_geometric.nn.conv import (
    appnp,
    gat_conv,
    gatv2_conv,
    gcn_conv,
    lg_conv,
    sg_conv,
    tag_conv,
)
from torch_geometric.utils import to_torch_csr_tensor

from tests.nn.graphs import EDGES, algorithm_1, features, make
from torch_picard import Implicit, PicardConv, Unrolled
from torch_picard.nn import invariants

NORMALISED = {
    "gcn": lambda c: GCNConv(c, c),
    "sg": lambda c: SGConv(c, c, K=2),
    "lg": lambda c: LGConv(),
    "tag": lambda c: TAGConv(c, c, K=2),
    "appnp": lambda c: APPNP(K=2, alpha=0.1),
}
LOOPED = {
    "gat": lambda c: GATConv(c, c),
    "gatv2": lambda c: GATv2Conv(c, c),
}


@pytest.fixture
def count(monkeypatch):
    """Counts the calls of a function, wherever it was imported."""

    def start(name, modules):
        calls = []
        original = getattr(gcn_conv, name)

        def counted(*args, **kwargs):
            calls.append(args)
            return original(*args, **kwargs)

        for module in (invariants, *modules):
            monkeypatch.setattr(module, name, counted)
        return calls

    return start


NORM = (gcn_conv, sg_conv, lg_conv, tag_conv, appnp)


@pytest.mark.parametrize("max_iter", [1, 8])
@pytest.mark.parametrize("gradient", [Unrolled(True), Implicit()], ids=repr)
@pytest.mark.parametrize("name", NORMALISED)
def test_normalises_once(name, max_iter, gradient, count):
    picard = PicardConv(
        make(NORMALISED[name]),
        max_iter=max_iter,
        rtol=0.0,
        inject=True,
        activation="tanh",
        gradient=gradient,
    )
    remembered = picard.explain_plan(EDGES).startswith("fused")
    calls = count("gcn_norm", NORM)
    x = features(4, 4).requires_grad_()
    picard(x, EDGES).sum().backward()
    assert len(calls) == 1
    picard(x, EDGES)
    # A plan knows a graph again; otherwise it may be another one.
    assert len(calls) == (1 if remembered else 2)
    picard(x, EDGES.clone())
    assert len(calls) == (2 if remembered else 3)


@pytest.mark.parametrize("name", NORMALISED)
def test_normalises_a_matrix_once(name, count):
    x, calls = features(4, 4), count("gcn_norm", NORM)
    weight = torch.ones(EDGES.size(1), dtype=x.dtype)
    adj = to_torch_csr_tensor(EDGES.flip(0), weight, size=(4, 4))
    PicardConv(make(NORMALISED[name]), max_iter=8, rtol=0.0)(x, adj)
    assert len(calls) == 1


@pytest.mark.parametrize("max_iter", [1, 8])
@pytest.mark.parametrize("name", LOOPED)
def test_adds_self_loops_once(name, max_iter, monkeypatch):
    calls = []
    for module in (invariants, gat_conv, gatv2_conv):
        for function in ("add_self_loops", "remove_self_loops"):
            original = getattr(module, function)

            def counted(*args, original=original, **kwargs):
                calls.append(original.__name__)
                return original(*args, **kwargs)

            monkeypatch.setattr(module, function, counted)
    picard = PicardConv(make(LOOPED[name]), max_iter=max_iter, rtol=0.0)
    picard(features(4, 4), EDGES)
    assert sorted(calls) == ["add_self_loops", "remove_self_loops"]


@pytest.mark.parametrize(
    ("factory", "edges"),
    [
        (lambda c: GCNConv(c, c, improved=True), None),
        (lambda c: GCNConv(c, c, add_self_loops=False), 1),
        (lambda c: GCNConv(c, c, normalize=False), 1),
        (lambda c: GCNConv(c, c, flow="target_to_source"), 1),
        (lambda c: GCNConv(c, c, aggr="max"), 1),
        (lambda c: GCNConv(c, c, decomposed_layers=2), None),
        (lambda c: SGConv(c, c, K=3, add_self_loops=False), 1),
        (lambda c: SGConv(c, c, flow="target_to_source"), None),
        (lambda c: LGConv(normalize=False), 1),
        (lambda c: TAGConv(c, c, normalize=False), 1),
        (lambda c: APPNP(3, 0.2, add_self_loops=False), 1),
        (lambda c: GATConv(c, c, add_self_loops=False), None),
        (lambda c: GATConv(c, c, edge_dim=3), 3),
        (lambda c: GATConv(c, c, edge_dim=3, fill_value="max"), 3),
        (lambda c: GATConv(c, c, flow="target_to_source"), None),
        (lambda c: GATConv(c, c // 2, heads=2, residual=True), None),
        (lambda c: GATv2Conv(c, c, edge_dim=3, fill_value=0.5), 3),
        (lambda c: GATv2Conv(c, c, share_weights=True), None),
    ],
)
def test_result_is_that_of_the_conv(factory, edges):
    x, conv = features(4, 4), make(factory)
    args = [EDGES]
    if edges is not None:
        shape = (EDGES.size(1),) if edges == 1 else (EDGES.size(1), edges)
        args.append(features(*shape).square() + 0.1)
    picard = PicardConv(conv, max_iter=5, rtol=0.0, activation="tanh")
    expected = algorithm_1(conv, x, *args, n=5, activation=torch.tanh)
    torch.testing.assert_close(picard(x, *args), expected)


class Loud(torch.nn.Module):
    def forward(self, x):
        raise RuntimeError("loud")


@pytest.mark.parametrize(
    ("name", "switch"),
    [("gcn", "normalize"), ("tag", "normalize"), ("gat", "add_self_loops")],
)
def test_the_conv_is_left_as_it_was(name, switch):
    x, conv = features(4, 4), make({**NORMALISED, **LOOPED}[name])
    before, state = conv(x, EDGES), dict(vars(conv))
    PicardConv(conv)(x, EDGES)
    assert getattr(conv, switch) is True
    assert vars(conv) == state

    if name == "tag":
        conv.lins[0] = Loud()
    else:
        kept, conv.lin = conv.lin, Loud()
    with pytest.raises(RuntimeError, match="loud"):
        PicardConv(conv)(x, EDGES)
    assert getattr(conv, switch) is True
    if name != "tag":
        conv.lin = kept
        assert torch.equal(conv(x, EDGES), before)


class Louder(GCNConv):
    """A subclass may do anything with its arguments."""

    def forward(self, x, edge_index, edge_weight=None):
        assert edge_index is EDGES and self.normalize
        return 2 * super().forward(x, edge_index, edge_weight)


def test_a_subclass_is_called_as_it_is(count):
    calls = count("gcn_norm", NORM)
    x, conv = features(4, 4), make(lambda c: Louder(c, c))
    out = PicardConv(conv, max_iter=5, rtol=0.0)(x, EDGES)
    assert len(calls) == 5
    torch.testing.assert_close(out, algorithm_1(conv, x, EDGES, n=5))


def test_a_conv_that_caches_its_graph_keeps_doing_so(count):
    calls = count("gcn_norm", NORM)
    conv = make(lambda c: GCNConv(c, c, cached=True))
    x, picard = features(4, 4), PicardConv(conv, max_iter=5, rtol=0.0)
    first = picard(x, EDGES)
    assert len(calls) == 1
    assert torch.equal(picard(x, EDGES), first)
    assert len(calls) == 1
    assert conv._cached_edge_index is not None
    plain = PicardConv(make(NORMALISED["gcn"]), max_iter=5, rtol=0.0)
    torch.testing.assert_close(first, plain(x, EDGES))


@pytest.mark.parametrize("name", [*NORMALISED, *LOOPED])
def test_hooks_see_each_iteration_and_the_arguments(name):
    x, conv = features(4, 4), make({**NORMALISED, **LOOPED}[name])
    picard = PicardConv(conv, max_iter=5, rtol=0.0)
    before = picard(x, EDGES)
    seen = []
    handle = conv.register_forward_hook(lambda _, args, out: seen.append(args))
    torch.testing.assert_close(picard(x, EDGES), before)
    assert len(seen) == 5
    assert all(args[1] is EDGES for args in seen)
    handle.remove()

    handle = conv.register_forward_pre_hook(lambda _, args: seen.append(args))
    picard(x, EDGES)
    assert len(seen) == 10
    handle.remove()
    conv.register_forward_hook(lambda _, args, out: 2 * out)
    assert not torch.allclose(picard(x, EDGES), before)


@pytest.mark.parametrize("name", [*NORMALISED, *LOOPED, "sage"])
def test_hooks_of_propagation(name):
    x, seen = features(4, 4), []
    factories = {**NORMALISED, **LOOPED}
    conv = make(factories.get(name, name))
    conv.register_message_forward_hook(lambda *_: seen.append(1))
    PicardConv(conv, max_iter=5, rtol=0.0)(x, EDGES)
    steps = 2 if name in ("sg", "tag", "appnp") else 1
    assert len(seen) == 5 * steps


def test_own_self_loops_of_a_graph_are_kept():
    """add_remaining_self_loops leaves the weight of those that exist."""
    x, conv = features(4, 4), make(NORMALISED["gcn"])
    weight = features(EDGES.size(1)).square() + 0.1
    picard = PicardConv(conv, max_iter=3, rtol=0.0)
    expected = algorithm_1(conv, x, EDGES, weight, n=3)
    torch.testing.assert_close(picard(x, EDGES, weight), expected)


@pytest.mark.parametrize("name", [*NORMALISED, *LOOPED])
def test_explain_masks(name):
    """An edge mask set by an explainer acts in every iteration."""
    from torch_geometric.explain.algorithm.utils import clear_masks, set_masks

    x, conv = features(4, 4), make({**NORMALISED, **LOOPED}[name])
    picard = PicardConv(conv, max_iter=4, rtol=0.0, activation="tanh")
    before = picard(x, EDGES)
    mask = features(EDGES.size(1)).requires_grad_()
    set_masks(picard, mask, EDGES, apply_sigmoid=True)
    out = picard(x, EDGES)
    expected = algorithm_1(conv, x, EDGES, n=4, activation=torch.tanh)
    torch.testing.assert_close(out, expected)
    assert not torch.allclose(out, before)
    (gradient,) = torch.autograd.grad(out.sum(), mask)
    assert gradient.abs().sum() > 0
    clear_masks(picard)
    torch.testing.assert_close(picard(x, EDGES), before)
