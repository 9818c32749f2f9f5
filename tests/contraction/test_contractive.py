"""contractive(): the bound is kept whatever happens to the module."""

import copy
import io
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils import parametrizations, parametrize
from torch_geometric.nn import (
    MLP,
    GATConv,
    GCNConv,
    GINConv,
    GraphConv,
    SAGEConv,
    SGConv,
)

from torch_picard import PIGN, Implicit, PicardConv, Status, Unrolled
from torch_picard.contraction import (
    Ball,
    L2Attention,
    L2TransformerLayer,
    Residual,
    contractive,
    lipschitz_bound,
    remove_contractive,
)
from torch_picard.contraction.contractive import (
    cayley,
    largest_scale,
    project_l1,
)
from torch_picard.contraction.growth import Growth

SEEDS = st.integers(0, 10_000)
BOUND = 0.9
WIDTH = 4
NODES = 5
EDGES = torch.tensor([[0, 0, 0, 0, 1, 2, 3, 3], [0, 1, 2, 3, 2, 1, 3, 0]])
GRAPH = {"edge_index": EDGES, "num_nodes": NODES}
TOKENS = {"num_nodes": NODES}
LOCAL = {**TOKENS, "region": Ball(1.0)}


def mlp() -> nn.Module:
    return nn.Sequential(
        nn.Linear(WIDTH, 6), nn.ReLU(), nn.Linear(6, WIDTH, bias=False)
    )


def two_powers() -> nn.Module:
    """A bound with several powers of the scale, 0 among them."""
    inner = nn.Sequential(
        nn.Linear(WIDTH, WIDTH), nn.Tanh(), Residual(mlp(), 0.5)
    )
    return Residual(inner, 0.6)


def transformer() -> nn.Module:
    layer = nn.TransformerEncoderLayer(
        WIDTH, 2, 6, 0.0, layer_norm_eps=0.1, batch_first=True
    )
    # gains are not scaled: learned, they would outgrow any bound
    for norm in (layer.norm1, layer.norm2):
        norm.requires_grad_(False)
    return layer


@dataclass
class Made:
    """How to make a module, and what else its bound needs."""

    make: Callable[[], nn.Module]
    known: dict[str, Any] = field(default_factory=dict)
    norms: tuple[str, ...] = ("l2", "l1", "linf")
    matrices: bool = True
    graph: bool = False
    #: contractive to this
    bound: float = BOUND


def conv(make, **more):
    return Made(make, GRAPH, graph=True, **more)


KINDS = {
    "linear": Made(lambda: nn.Linear(WIDTH, WIDTH)),
    "mlp": Made(mlp),
    "two powers": Made(two_powers),
    "pyg mlp": Made(lambda: MLP([WIDTH, 6, WIDTH], norm=None)),
    "prelu": Made(lambda: nn.Sequential(mlp(), nn.PReLU(init=2.0))),
    "batch norm": Made(lambda: nn.Sequential(mlp(), nn.BatchNorm1d(WIDTH))),
    "shared": Made(lambda: nn.Sequential(*[nn.Linear(WIDTH, WIDTH)] * 2)),
    "conv1d": Made(
        lambda: nn.Conv1d(WIDTH, WIDTH, 3, padding=1), matrices=False
    ),
    "conv2d": Made(
        lambda: nn.Conv2d(2, 2, 3, padding=1, padding_mode="circular"),
        {"input_size": (4, 5)},
        matrices=False,
    ),
    "gcn": conv(lambda: GCNConv(WIDTH, WIDTH)),
    "gcn of any graph": Made(
        lambda: PicardConv(GCNConv(WIDTH, WIDTH)),
        norms=("l2",),
        graph=True,
    ),
    "sgc": conv(lambda: SGConv(WIDTH, WIDTH, K=2)),
    "sage": conv(lambda: SAGEConv(WIDTH, WIDTH)),
    "sage max": conv(lambda: PicardConv(SAGEConv(WIDTH, WIDTH, "max"))),
    "sage project": conv(lambda: SAGEConv(WIDTH, WIDTH, project=True)),
    "graph conv": conv(
        lambda: PicardConv(GraphConv(WIDTH, WIDTH), activation="tanh")
    ),
    "gin": conv(lambda: PicardConv(GINConv(mlp(), train_eps=True))),
    "gin fixed": conv(lambda: GINConv(mlp(), eps=0.3)),
    "gat": Made(
        lambda: GATConv(WIDTH, WIDTH // 2, heads=2),
        {**GRAPH, "region": Ball(1.0)},
        ("l2",),
        graph=True,
    ),
    "pign": Made(
        lambda: (
            PIGN(
                3, WIDTH, 2, lambda c: GCNConv(c, c), inner_norm="batch_norm"
            ).block
        ),
        GRAPH,
        graph=True,
    ),
    "attention": Made(lambda: nn.MultiheadAttention(WIDTH, 2), LOCAL, ("l2",)),
    "transformer": Made(
        transformer,
        LOCAL,
        ("l2",),
        bound=40.0,
    ),
    "l2 attention": Made(lambda: L2Attention(WIDTH, 2), TOKENS, ("l2",)),
    "l2 layer": Made(lambda: L2TransformerLayer(WIDTH, 2), TOKENS, ("l2",)),
}


def variants(*everywhere: str):
    """All norms and methods in the slow suite; in the fast one those of
    some modules, and the default for the others."""
    for name, kind in KINDS.items():
        for norm in kind.norms:
            other = "orthogonal" if norm == "l2" else "project"
            for method in ("scale", other) if kind.matrices else ("scale",):
                usual = (norm, method) == ("l2", "scale")
                slow = () if usual or name in everywhere else SLOW
                yield pytest.param(name, norm, method, marks=slow)


SLOW = pytest.mark.slow
VARIANTS = list(variants("mlp", "two powers", "gin", "attention"))


class Guarded:
    """A contractive module, and the question whether it is."""

    def __init__(self, name, norm="l2", method="scale", seed=0, gain=3.0):
        self.kind, self.norm, self.method = KINDS[name], norm, method
        self.module = self.fresh(seed, gain)

    def plain(self, seed: int, gain: float = 1.0) -> nn.Module:
        torch.manual_seed(seed)
        module = self.kind.make().eval()
        with torch.no_grad():
            for p in module.parameters():
                p.mul_(gain if p.dim() > 1 else 1)
        return module

    def fresh(self, seed: int, gain: float = 1.0) -> nn.Module:
        module = self.plain(seed, gain)
        return contractive(
            module, self.kind.bound, norm=self.norm, method=self.method,
            **self.kind.known,
        )  # fmt: skip

    def bound(self, module=None) -> float:
        module = self.module if module is None else module
        found = lipschitz_bound(module, norm=self.norm, **self.kind.known)
        return found.constant

    def holds(self, module=None) -> bool:
        return self.bound(module) <= self.kind.bound

    def __call__(self, x, module=None):
        module = self.module if module is None else module
        if isinstance(module, nn.MultiheadAttention):
            return module(x, x, x)[0]
        return module(x, EDGES) if self.kind.graph else module(x)

    def input(self, dtype=torch.float32):
        torch.manual_seed(7)
        if isinstance(self.module, nn.Conv2d):
            return torch.randn(1, 2, 4, 5, dtype=dtype)
        if isinstance(self.module, nn.Conv1d):
            return torch.randn(1, WIDTH, 6, dtype=dtype)
        return torch.randn(NODES, WIDTH, dtype=dtype)


def stir(module, seed, gain):
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, p in module.named_parameters():
            noise = torch.randn_like(p)
            # what is not scaled must not reach the bound by itself
            free = "norm" in name or p.dim() < 2
            p.copy_(noise / 2 if free else gain * noise)


# -- the guarantee ------------------------------------------------------------


@pytest.mark.parametrize("name, norm, method", VARIANTS)
def test_holds_at_the_start_and_after_any_change(name, norm, method):
    guarded = Guarded(name, norm, method)
    assert guarded.holds()
    for seed, gain in enumerate([1e-3, 1.0, 30.0, 1e4]):
        stir(guarded.module, seed, gain)
        assert guarded.holds(), gain


@pytest.mark.parametrize("name, norm, method", VARIANTS)
def test_holds_through_training(name, norm, method):
    """Steps far too large, and weight decay."""
    for optimiser in (
        lambda p: torch.optim.SGD(p, lr=3.0, momentum=0.9),
        lambda p: torch.optim.Adam(p, lr=0.3, weight_decay=0.1),
    ):
        guarded = Guarded(name, norm, method, gain=1.0)
        step = optimiser(guarded.module.parameters())
        x = guarded.input()
        for _ in range(3):
            loss = (guarded(x) - 2.0).square().mean()
            step.zero_grad()
            loss.backward()
            for p in guarded.module.parameters():
                assert p.grad is None or bool(p.grad.isfinite().all())
            step.step()
            assert guarded.holds()


@given(seed=SEEDS, name=st.sampled_from(sorted(KINDS)))
@settings(max_examples=30)
def test_most_of_the_bound_is_used(seed, name):
    """A scale below 1 comes from the constraint alone, and the constraint
    is tight up to the Gram bound and sums of powers."""
    guarded = Guarded(name, seed=seed, gain=4.0)
    if guarded.bound(guarded.plain(seed, 4.0)) > guarded.kind.bound:
        assert guarded.bound() > 0.93 * guarded.kind.bound


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("norm", ["l2", "l1", "linf"])
def test_slack_leaves_everything_as_it_is(name, norm):
    """The factor is 1, the output and the gradient are the same to the last
    bit."""
    kind = KINDS[name]
    if norm not in kind.norms or name == "transformer":
        return  # its bound is above 1 with all weights 0
    guarded = Guarded(name, norm, gain=0.05)
    plain = guarded.plain(0, 0.05)
    assert guarded.bound(plain) < guarded.kind.bound
    x = guarded.input()
    guarded(x).square().sum().backward()
    guarded(x, plain).square().sum().backward()
    assert torch.equal(guarded(x), guarded(x, plain))
    mine = dict(guarded.module.named_parameters())
    for key, p in plain.named_parameters():
        where, _, last = key.rpartition(".")
        where = f"{where}." if where else ""
        other = mine.get(key)
        if other is None:
            other = mine[f"{where}parametrizations.{last}.original"]
        assert torch.equal(other, p)
        if p.grad is not None:
            torch.testing.assert_close(other.grad, p.grad)


def test_less_restriction_than_needed_is_none():
    """One weight may grow while another shrinks."""
    module = mlp()
    contractive(module, BOUND)
    with torch.no_grad():
        module[0].parametrizations.weight.original.mul_(10 / 3)
        module[2].parametrizations.weight.original.mul_(0.001)
    original = module[0].parametrizations.weight.original
    assert torch.equal(module[0].weight, original)


# -- what may happen to a module ----------------------------------------------


@pytest.mark.parametrize("name, norm, method", VARIANTS)
def test_state_dicts(name, norm, method):
    """One's own into itself and into a fresh module, through a file, and
    that of an unconstrained module."""
    guarded = Guarded(name, norm, method)
    x = guarded.input()
    file = io.BytesIO()
    torch.save(guarded.module.state_dict(), file)
    file.seek(0)
    state = torch.load(file, weights_only=True)
    expected = guarded(x)
    for module in (guarded.module, guarded.fresh(1)):
        module.load_state_dict(state, strict=True)
        torch.testing.assert_close(guarded(x, module), expected)
        assert guarded.holds(module)
    large = guarded.plain(2, 5.0)
    guarded.module.load_state_dict(large.state_dict(), strict=True)
    assert guarded.holds()
    if method == "scale":
        small = guarded.plain(3, 0.05)
        guarded.module.load_state_dict(small.state_dict(), strict=True)
        if guarded.bound(small) <= guarded.kind.bound:
            assert torch.equal(guarded(x), guarded(x, small))


@pytest.mark.parametrize("name", KINDS)
def test_copies_are_independent(name):
    guarded = Guarded(name)
    x = guarded.input()
    twin = copy.deepcopy(guarded.module)
    before = guarded(x)
    assert torch.equal(guarded(x, twin), before)
    stir(twin, 1, 10.0)
    assert guarded.holds(twin)
    assert torch.equal(guarded(x), before)
    stir(guarded.module, 2, 10.0)
    assert guarded.holds() and guarded.holds(twin)
    twin.load_state_dict(guarded.module.state_dict())
    torch.testing.assert_close(guarded(x, twin), guarded(x))


@pytest.mark.parametrize(
    "dtype", [torch.float64, torch.bfloat16, torch.float16]
)
@pytest.mark.parametrize("name, norm, method", VARIANTS)
def test_dtypes(name, norm, method, dtype):
    """Weights are rounded after the constraint, and stay within it."""
    guarded = Guarded(name, norm, method)
    guarded.module.to(dtype)
    assert guarded.holds()
    assert guarded.bound() > 0.4 * guarded.kind.bound or method != "scale"
    stir(guarded.module, 1, 10.0)
    assert guarded.holds()


@pytest.mark.parametrize("norm", ["l2", "l1", "linf"])
@given(seed=SEEDS)
@settings(max_examples=5)
def test_float64_to_the_last_digit(norm, seed):
    """Of rank one, where the Gram bound has no slack."""
    rng = torch.Generator().manual_seed(seed)
    a, b = torch.randn(2, 30, generator=rng, dtype=torch.float64)
    for method in ("scale", "project"):
        if method == "project" and norm == "l2":
            continue
        lin = nn.Linear(30, 30).double()
        with torch.no_grad():
            lin.weight.copy_(torch.outer(a, b))
        contractive(lin, BOUND, norm=norm, method=method)
        found = lipschitz_bound(lin, norm=norm).constant
        assert BOUND * (1 - 1e-9) <= found <= BOUND


@pytest.mark.parametrize(
    "name", sorted(set(KINDS) - {"attention", "transformer"})
)
def test_reset_parameters(name):
    """What the unconstrained module would start with."""
    guarded = Guarded(name)
    plain = guarded.plain(0)
    for module in (guarded.module, plain):
        torch.manual_seed(5)
        for part in module.modules():
            own = getattr(part, "reset_parameters", None)
            if own is not None and not list(part.children()):
                own()
            elif parametrize.is_parametrized(part):
                part.reset_parameters()
    assert guarded.holds()
    if guarded.bound(plain) <= guarded.kind.bound:
        x = guarded.input()
        assert torch.equal(guarded(x), guarded(x, plain))


def test_reset_parameters_of_a_whole_conv():
    torch.manual_seed(0)
    guarded = contractive(PicardConv(GCNConv(3, 3), inject=True), 5.0)
    stir(guarded, 0, 10.0)
    torch.manual_seed(1)
    guarded.reset_parameters()
    torch.manual_seed(1)
    plain = GCNConv(3, 3)
    torch.manual_seed(1)
    plain.reset_parameters()
    assert torch.equal(guarded.conv.lin.weight, plain.lin.weight)


@pytest.mark.parametrize("name, norm, method", VARIANTS)
def test_remove_contractive_keeps_the_weights(name, norm, method):
    guarded = Guarded(name, norm, method)
    x = guarded.input()
    expected = guarded(x)
    module = guarded.module
    weights = {
        (part, key): getattr(part, key).detach().clone()
        for part in module.modules()
        if parametrize.is_parametrized(part)
        for key in part.parametrizations
    }
    assert remove_contractive(module) is module
    for (part, key), weight in weights.items():
        assert torch.equal(getattr(part, key), weight)
    torch.testing.assert_close(guarded(x), expected)
    assert guarded.holds()
    assert not any(parametrize.is_parametrized(m) for m in module.modules())
    plain = guarded.plain(1)
    assert module.state_dict().keys() == plain.state_dict().keys()
    plain.load_state_dict(module.state_dict())
    torch.testing.assert_close(guarded(x, plain), expected)
    # and again
    module.load_state_dict(guarded.plain(2, 5.0).state_dict())
    assert not guarded.holds() or guarded.kind.bound > 1
    contractive(
        module, guarded.kind.bound, norm=norm, method=method,
        **guarded.kind.known,
    )  # fmt: skip
    assert guarded.holds()


def test_remove_leaves_other_parametrisations():
    module = nn.Sequential(parametrizations.orthogonal(nn.Linear(3, 3)))
    remove_contractive(module)
    assert parametrize.is_parametrized(module[0])


def test_tied_weights_stay_tied():
    a, b = nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False)
    b.weight = a.weight
    module = contractive(nn.Sequential(a, b), BOUND)
    assert len(list(module.parameters())) == 1
    stir(module, 0, 9.0)
    assert lipschitz_bound(module).constant <= BOUND
    torch.testing.assert_close(a.weight, b.weight)


def test_reversible_modes():
    """Dropout in training multiplies by 1/(1-p): the weights give way."""
    module = nn.Sequential(nn.Linear(3, 3), nn.Dropout(0.5))
    contractive(module, BOUND)
    stir(module, 0, 9.0)
    for mode in (True, False, True):
        module.train(mode)
        found = lipschitz_bound(module).constant
        assert 0.98 * BOUND < found <= BOUND


def test_a_loaded_eps_is_bounded_too():
    module = contractive(GINConv(mlp(), eps=0.1), BOUND, **GRAPH)
    state = module.state_dict()
    state["eps"] = torch.full_like(state["eps"], 3.0)
    module.load_state_dict(state)
    assert lipschitz_bound(module, **GRAPH).constant <= BOUND


def test_what_cannot_be_kept_is_said():
    """A mode without a bound, and a free parameter that has grown."""
    module = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3)).eval()
    contractive(module, BOUND)
    module.train()
    with pytest.raises(RuntimeError, match="call eval"):
        module(torch.randn(4, 3))
    module.eval()
    module(torch.randn(4, 3))
    inner = nn.Sequential(nn.Linear(3, 3))
    module = nn.Sequential(Residual(inner, 0.5), nn.BatchNorm1d(3)).eval()
    contractive(module, BOUND)
    with torch.no_grad():
        module[1].weight.fill_(3.0)
    with pytest.raises(RuntimeError, match="cannot be kept"):
        module(torch.randn(4, 3))


def test_zero_weights_and_their_gradients():
    for make in (mlp, two_powers):
        module = make()
        with torch.no_grad():
            for p in module.parameters():
                p.zero_()
        contractive(module, BOUND)
        module(torch.randn(2, WIDTH)).sum().backward()
        for p in module.parameters():
            assert bool(p.grad.isfinite().all())


# -- errors -------------------------------------------------------------------


@pytest.mark.parametrize(
    "kwargs, error, match",
    [
        ({"bound": 0.0}, ValueError, "bound must be positive and finite"),
        ({"bound": -1.0}, ValueError, "bound must be positive and finite"),
        ({"bound": math.inf}, ValueError, "bound must be positive"),
        ({"bound": math.nan}, ValueError, "bound must be positive"),
        ({"bound": "1"}, TypeError, "bound must be a number"),
        ({"norm": "max"}, ValueError, "norm must be"),
        ({"method": "svd"}, ValueError, "method must be 'scale', 'orth"),
        ({"method": "project"}, ValueError, "goes with norm 'linf' or 'l1'"),
        (
            {"method": "orthogonal", "norm": "linf"},
            ValueError,
            "goes with norm 'l2'",
        ),
        ({"region": 2.0}, TypeError, "region must be a Ball"),
    ],
)
def test_options_are_checked(kwargs, error, match):
    module = nn.Linear(3, 3)
    with pytest.raises(error, match=match):
        contractive(module, **kwargs)
    assert not parametrize.is_parametrized(module)


@pytest.mark.parametrize(
    "module, options, match",
    [
        (nn.ReLU(), {}, "depends on no weight"),
        (Residual(nn.Linear(3, 3)), {}, "Residual with a weight"),
        (Residual(nn.Linear(3, 3), 0.05), {}, "bound must exceed 0.95"),
        (nn.MultiheadAttention(4, 1), {"num_nodes": 3}, "Ball"),
        (SAGEConv(3, 3), {}, "edge_index must be given"),
        (
            parametrizations.orthogonal(nn.Linear(3, 3)),
            {},
            "parametrised already",
        ),
        (PIGN(3, 4, 2).block, {}, "depends on no weight"),
        (nn.Conv1d(2, 2, 3), {"method": "orthogonal"}, "needs matrices"),
        (nn.Sequential(nn.Linear(3, 3), nn.Bilinear(1, 1, 1)), {}, "Bilinear"),
        (GCNConv(-1, 3), {}, "no shape yet"),
        (nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3)), {}, "eval()"),
    ],
)
def test_what_cannot_be_made_contractive(module, options, match):
    with pytest.raises(ValueError, match=match):
        contractive(module, 0.95, **options)
    weights = [n for n, _ in module.named_parameters() if "original" in n]
    assert len(weights) <= 1  # nothing was half done


def test_only_modules():
    with pytest.raises(TypeError, match="must be a Module"):
        contractive(torch.relu)


def test_once_only():
    module = contractive(nn.Linear(3, 3))
    with pytest.raises(ValueError, match="parametrised already"):
        contractive(module)


def test_buffers_are_no_weights():
    lin = nn.Linear(3, 3)
    weight = lin.weight.detach()
    del lin.weight
    lin.register_buffer("weight", weight)
    with pytest.raises(ValueError, match="no Parameter of its own"):
        contractive(lin)


# -- derivatives --------------------------------------------------------------


def through(module):
    """The map from all its parameters to its values."""
    names, values = zip(*module.named_parameters())

    def run(*parameters, x):
        state = dict(zip(names, parameters))
        return torch.func.functional_call(module, state, x)

    return run, [v.detach().clone().requires_grad_() for v in values]


@pytest.mark.parametrize("gain", [0.1, 3.0], ids=["slack", "active"])
@pytest.mark.parametrize("make", [mlp, two_powers])
@pytest.mark.parametrize(
    "norm, method",
    [
        ("l2", "scale"),
        ("linf", "scale"),
        ("l2", "orthogonal"),
        ("linf", "project"),
        ("l1", "project"),
    ],
)
def test_gradients_through_the_constraint(make, gain, norm, method):
    torch.manual_seed(0)
    module = make().double()
    with torch.no_grad():
        for p in module.parameters():
            p.mul_(gain)
    contractive(module, BOUND, norm=norm, method=method)
    run, parameters = through(module)
    x = torch.randn(2, WIDTH, dtype=torch.float64)
    assert torch.autograd.gradcheck(
        lambda *p: run(*p, x=(x,)), parameters, atol=1e-6
    )


@pytest.mark.parametrize("gain", [0.1, 3.0], ids=["slack", "active"])
def test_second_derivatives(gain):
    torch.manual_seed(0)
    module = Residual(nn.Sequential(nn.Linear(2, 2), nn.Tanh()), 0.5)
    module = nn.Sequential(module, nn.Linear(2, 2)).double()
    with torch.no_grad():
        for p in module.parameters():
            p.mul_(gain)
    contractive(module, BOUND)
    run, parameters = through(module)
    x = torch.randn(2, 2, dtype=torch.float64)
    assert torch.autograd.gradgradcheck(
        lambda *p: run(*p, x=(x,)), parameters, atol=1e-6
    )


@pytest.mark.parametrize(
    "gradient, backend",
    [
        (Implicit(rtol=1e-12), "auto"),
        (Unrolled(), "auto"),
        (Unrolled(), "torch"),
    ],
)
def test_gradients_through_a_solve(gradient, backend):
    """The constraint is active; parameters, input and graph conv."""
    torch.manual_seed(0)
    module = PicardConv(
        GCNConv(2, 2), 0.0, 60, 1e-13, inject=True, gradient=gradient,
        activation="tanh", backend=backend,
    ).double()  # fmt: skip
    with torch.no_grad():
        module.conv.lin.weight.mul_(4)
    contractive(module, 0.5, **GRAPH)
    run, parameters = through(module)
    x = torch.randn(NODES, 2, dtype=torch.float64, requires_grad=True)

    def solve(x, *p):
        return run(*p, x=(x, EDGES))

    assert torch.autograd.gradcheck(solve, (x, *parameters), atol=1e-6)
    first = torch.autograd.grad(
        solve(x, *parameters).square().sum(), parameters, create_graph=True
    )
    total = sum(g.square().sum() for g in first)
    second = torch.autograd.grad(total, parameters)
    eps, way = 1e-6, [torch.randn_like(p) for p in parameters]

    def slope(t):
        moved = [p.detach() + t * w for p, w in zip(parameters, way)]
        moved = [m.requires_grad_() for m in moved]
        found = torch.autograd.grad(solve(x, *moved).square().sum(), moved)
        return sum(g.square().sum() for g in found)

    numeric = (slope(eps) - slope(-eps)) / (2 * eps)
    exact = sum((s * w).sum() for s, w in zip(second, way))
    torch.testing.assert_close(exact, numeric, rtol=1e-5, atol=1e-6)


# -- the pieces ---------------------------------------------------------------


@given(
    terms=st.dictionaries(
        st.integers(1, 6), st.floats(1e-6, 1e6), min_size=1, max_size=4
    ),
    fixed=st.floats(0, 0.85),
)
def test_the_scale_uses_up_the_bound(terms, fixed):
    growth = Growth({0: fixed, **terms})
    for at_most_one in (True, False):
        s = largest_scale(growth, BOUND, at_most_one).item()
        value = fixed + sum(c * s**d for d, c in terms.items())
        if at_most_one and fixed + sum(terms.values()) <= BOUND:
            assert s == 1
        else:
            assert value == pytest.approx(BOUND, rel=1e-12)
            assert value <= BOUND * (1 + 1e-14)


@given(seed=SEEDS, rows=st.integers(1, 6), cols=st.integers(1, 6))
def test_cayley_is_orthonormal(seed, rows, cols):
    rng = torch.Generator().manual_seed(seed)
    m = 5 * torch.randn(rows, cols, generator=rng, dtype=torch.float64)
    q = cayley(m)
    assert q.shape == m.shape
    gram = q.T @ q if rows >= cols else q @ q.T
    eye = torch.eye(min(rows, cols), dtype=torch.float64)
    torch.testing.assert_close(gram, eye)


def nearest(w, radius):
    """By bisection on the threshold: the projection is the one
    soft-thresholding whose l1 norm is the radius."""
    low, high = 0.0, float(w.abs().max())
    for _ in range(200):
        middle = (low + high) / 2
        total = (w.abs() - middle).clamp(min=0).sum()
        low, high = (middle, high) if total > radius else (low, middle)
    return w.sign() * (w.abs() - high).clamp(min=0)


@given(
    seed=SEEDS,
    size=st.integers(1, 8),
    radius=st.floats(0.05, 4.0),
    gain=st.sampled_from([0.01, 1.0, 1e6]),
)
def test_projection_onto_the_l1_ball(seed, size, radius, gain):
    rng = torch.Generator().manual_seed(seed)
    w = gain * torch.randn(3, size, generator=rng, dtype=torch.float64)
    found = project_l1(w, radius)
    for row, image in zip(w, found):
        if row.abs().sum() <= radius:
            assert torch.equal(image, row)
            continue
        assert float(image.abs().sum()) <= radius * (1 + 1e-15)
        torch.testing.assert_close(
            image, nearest(row, radius), rtol=1e-7, atol=1e-8 * gain
        )
        # no point of the ball is nearer: vertices, and random ones
        eye = torch.eye(size, dtype=torch.float64) * radius
        inside = torch.randn(40, size, generator=rng, dtype=torch.float64)
        inside = radius * inside / inside.abs().sum(1, keepdim=True)
        distance = (image - row).norm()
        for point in torch.cat([eye, -eye, inside]):
            assert (point - row).norm() >= distance * (1 - 1e-12)


@pytest.mark.parametrize("norm", ["linf", "l1"])
def test_project_leaves_what_is_inside(norm):
    lin = nn.Linear(3, 3)
    with torch.no_grad():
        lin.weight.copy_(
            torch.tensor([[0.1, 0.2, 0.3], [0.0, 0.0, 0.0], [5.0, 1.0, 0.0]])
        )
        if norm == "l1":
            lin.weight.copy_(lin.weight.T.clone())
    before = lin.weight.detach().clone()
    contractive(lin, BOUND, norm=norm, method="project")
    after = lin.weight if norm == "linf" else lin.weight.T
    before = before if norm == "linf" else before.T
    assert torch.equal(after[:2], before[:2])
    assert after[2].abs().sum().item() == pytest.approx(BOUND, rel=1e-5)


# -- what it is for -----------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    ["gcn of any graph", "sage max", "graph conv", "gin"],
)
def test_solves_end_within_the_promised_count(name):
    guarded = Guarded(name, seed=3, gain=4.0)
    guarded.module.double()
    inner = guarded.module.conv
    solver = PicardConv(
        inner, 0.0, 1000, 0.0, 1e-8, inject=True,
        activation=guarded.module.activation,
    )  # fmt: skip
    known = dict(guarded.kind.known)
    if name == "gcn of any graph":
        edges = torch.cat([EDGES, EDGES.flip(0)], 1)
        known = {"edge_index": edges, "num_nodes": NODES}
    edges = known["edge_index"]
    certificate = lipschitz_bound(solver, **known)
    assert certificate.contracts
    for seed in range(3):
        torch.manual_seed(seed)
        x = 10 * torch.randn(NODES, WIDTH, dtype=torch.float64)
        _, solution = solver(x, edges, return_solution=True)
        assert solution.status.tolist() == [Status.CONVERGED]
        first = float(solution.residual_history[0, 0])
        # a residual of 1e-8 is reached once the error is (1 + L) times less
        eps = 1e-8 / (1 + certificate.constant)
        promised = certificate.iterations_for(eps, first)
        assert int(solution.iterations[0]) <= promised


def test_without_it_the_same_solve_fails():
    torch.manual_seed(0)
    conv = GCNConv(WIDTH, WIDTH).double()
    with torch.no_grad():
        conv.lin.weight.mul_(4)
    edges = torch.cat([EDGES, EDGES.flip(0)], 1)
    x = torch.randn(NODES, WIDTH, dtype=torch.float64)
    solver = PicardConv(conv, 0.0, 500, inject=True)
    _, solution = solver(x, edges, return_solution=True)
    assert solution.status.tolist() != [Status.CONVERGED]
    contractive(solver, BOUND)
    _, solution = solver(x, edges, return_solution=True)
    assert solution.status.tolist() == [Status.CONVERGED]
