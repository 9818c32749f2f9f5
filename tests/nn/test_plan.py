"""The planning step: the same function as the conv's own forward, faster."""

import copy
import dataclasses
import pickle

import pytest
import torch
from torch_geometric.nn import (
    APPNP,
    GATConv,
    GCNConv,
    GINConv,
    GraphConv,
    LGConv,
    SAGEConv,
    SGConv,
    SimpleConv,
)
from torch_geometric.utils import to_torch_csr_tensor

from torch_picard import Anderson, Implicit, NewtonKrylov, PicardConv
from torch_picard.nn.plan import plan
from torch_picard.ops.library import MISSING

pytestmark = pytest.mark.skipif(
    MISSING["cpu"] is not None, reason=f"no kernels: {MISSING['cpu']}"
)

N, F = 12, 5
FUSED = {
    "gcn": lambda: GCNConv(F, F),
    "gcn cached": lambda: GCNConv(F, F, cached=True),
    "gcn as it is": lambda: GCNConv(F, F, normalize=False, bias=False),
    "gcn max": lambda: GCNConv(F, F, aggr="max"),
    "sgc": lambda: SGConv(F, F, K=3),
    "sage mean": lambda: SAGEConv(F, F),
    "sage sum": lambda: SAGEConv(F, F, aggr="sum", root_weight=False),
    "sage pool": lambda: SAGEConv(F, F, project=True),
    "graph": lambda: GraphConv(F, F),
    "graph mean": lambda: GraphConv(F, F, aggr="mean"),
    "simple": lambda: SimpleConv("mean", combine_root="sum"),
    "simple loops": lambda: SimpleConv("max", combine_root="self_loop"),
    "light": lambda: LGConv(),
    "appnp": lambda: APPNP(K=4, alpha=0.2),
}
AGGREGATED = {
    "sage max": lambda: SAGEConv(F, F, aggr="max"),
    "graph max": lambda: GraphConv(F, F, aggr="max"),
    "gin": lambda: GINConv(torch.nn.Linear(F, F), train_eps=True),
}
WEIGHTED = ("gcn", "gcn max", "sgc", "graph", "graph mean", "simple", "appnp")


def edges(seed: int = 0) -> torch.Tensor:
    """Three graphs of four nodes; node 3 has no neighbour, an edge is
    double."""
    generator = torch.Generator().manual_seed(seed)
    ends = torch.randint(4, (2, 24), generator=generator)
    ends = ends[:, (ends != 3).all(0)]
    graph = torch.arange(ends.size(1)) % 3
    ends = ends + 4 * graph
    return torch.cat([ends, ends[:, 3:4]], dim=1)


def features(*shape) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def make(factory):
    torch.manual_seed(0)
    return factory().double()


def outcome(conv, backend, *args, batch=None, **options):
    """Value and gradients of a solve."""
    x = features(N, F).requires_grad_()
    weights = [a for a in args[1:] if a is not None]
    weights = [w.detach().clone().requires_grad_() for w in weights]
    inputs = [x, *weights, *conv.parameters()]
    picard = PicardConv(conv, backend=backend, inject=True, **options)
    value, solution = picard(
        x, args[0], *weights, batch=batch, return_solution=True
    )
    grads = torch.autograd.grad(
        value.square().sum(), inputs, allow_unused=True
    )
    return value, solution, grads


def assert_same(conv, *args, **options):
    mine, mine_solution, mine_grads = outcome(conv, "native", *args, **options)
    value, solution, grads = outcome(conv, "torch", *args, **options)
    torch.testing.assert_close(mine, value)
    torch.testing.assert_close(mine_solution.status, solution.status)
    torch.testing.assert_close(mine_solution.iterations, solution.iterations)
    torch.testing.assert_close(
        mine_solution.residual_history, solution.residual_history
    )
    for a, b in zip(mine_grads, grads, strict=True):
        zero = torch.zeros(())
        torch.testing.assert_close(
            zero if a is None else a, zero if b is None else b,
            check_dtype=False,
        )  # fmt: skip


@pytest.mark.parametrize("activation", [None, "relu", "tanh", "elu"])
@pytest.mark.parametrize("name", [*FUSED, *AGGREGATED])
def test_a_plan_computes_what_the_conv_computes(name, activation):
    conv = make({**FUSED, **AGGREGATED}[name])
    assert_same(conv, edges(), max_iter=3, rtol=0.0, activation=activation)


@pytest.mark.parametrize("name", WEIGHTED)
def test_with_edge_weights_and_their_gradients(name):
    index = edges()
    weight = features(index.size(1)).square() + 0.1
    assert_same(
        make(FUSED[name]), index, weight, max_iter=3, activation="tanh"
    )


@pytest.mark.parametrize("name", ["gcn", "sage mean", "appnp", "gin"])
def test_graphs_of_a_batch_stop_apart(name):
    batch = torch.arange(N) // 4
    conv = make({**FUSED, **AGGREGATED}[name])
    for p in conv.parameters():
        p.data *= 0.3
    assert_same(
        conv, edges(), batch=batch, max_iter=40, rtol=1e-3, activation="tanh"
    )


@pytest.mark.parametrize(
    "options",
    [
        {"method": Anderson(), "rtol": 1e-10},
        {"method": NewtonKrylov(), "max_iter": 60, "rtol": 1e-10},
        {"gradient": Implicit(rtol=1e-10), "max_iter": 200, "rtol": 1e-11},
    ],
    ids=["Anderson", "NewtonKrylov", "Implicit"],
)
@pytest.mark.parametrize("name", ["gcn", "sage max"])
def test_other_methods_and_gradients(name, options):
    conv = make({**FUSED, **AGGREGATED}[name])
    for p in conv.parameters():
        p.data *= 0.3
    options = {"max_iter": 40, "activation": "tanh", **options}
    mine, _, mine_grads = outcome(conv, "native", edges(), **options)
    value, _, grads = outcome(conv, "torch", edges(), **options)
    torch.testing.assert_close(mine, value, rtol=1e-6, atol=1e-8)
    for a, b in zip(mine_grads, grads, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-8)


def test_second_derivatives_of_a_fused_solve():
    conv = make(FUSED["gcn"])
    index = edges()
    weight = features(index.size(1)).square() + 0.1
    picard = PicardConv(conv, max_iter=2, rtol=0.0, activation="tanh")

    def run(x, weight, *parameters):
        return picard(x, index, weight)

    x = features(N, F).requires_grad_()
    args = (x, weight.requires_grad_(), *conv.parameters())
    assert torch.autograd.gradcheck(run, args)
    assert torch.autograd.gradgradcheck(run, args)


@pytest.mark.parametrize("name", FUSED)
def test_the_compiled_loop_is_the_loop(name):
    conv = make(FUSED[name])
    x, index = features(N, F), edges()
    picard = PicardConv(conv, max_iter=7, rtol=0.0, activation="tanh")
    with torch.no_grad():
        value, whole = picard(x, index, return_solution=True)
        for k in range(7):
            step = PicardConv(conv, max_iter=1, rtol=0.0, activation="tanh")
            x, one = step(x, index, return_solution=True)
            torch.testing.assert_close(
                whole.residual_history[k], one.residual_history[0]
            )
    torch.testing.assert_close(value, x)


def test_a_sparse_adjacency_is_planned_too():
    index, conv = edges(), make(FUSED["gcn"])
    weight = features(index.size(1)).square() + 0.1
    adj = to_torch_csr_tensor(index.flip(0), weight, size=(N, N))
    picard = PicardConv(conv, max_iter=3, rtol=0.0)
    assert picard.explain_plan(adj).startswith("fused")
    x = features(N, F)
    own = PicardConv(conv, max_iter=3, rtol=0.0, backend="torch")
    torch.testing.assert_close(picard(x, adj), own(x, adj))


# -- which path, and why -----------------------------------------------------


def path(conv, *args, **options) -> str:
    return PicardConv(conv, **options).explain_plan(*args)


def test_explain_plan_names_the_path():
    for factory in FUSED.values():
        assert path(make(factory), edges()).startswith("fused: ")
        text = path(make(factory), edges(), activation="elu")
        assert text.startswith("aggregated: ") and "activation" in text
    for factory in AGGREGATED.values():
        text = path(make(factory), edges())
        assert text.startswith("aggregated: ") and "dense map" in text


class Sub(GCNConv):
    def message(self, x_j, edge_weight):
        return 2 * super().message(x_j, edge_weight)


def explained():
    conv = GCNConv(F, F)
    conv.explain = True
    return conv


def hooked(register):
    def build():
        conv = GCNConv(F, F)
        getattr(conv, register)(lambda *args: None)
        return conv

    return build


@pytest.mark.parametrize(
    ("factory", "reason"),
    [
        (lambda: GATConv(F, F), "GATConv is none of"),
        (lambda: Sub(F, F), "Sub is none of"),
        (explained, "explained"),
        (hooked("register_message_forward_hook"), "hooked"),
        (hooked("register_propagate_forward_pre_hook"), "hooked"),
        (hooked("register_aggregate_forward_hook"), "hooked"),
        (hooked("register_forward_hook"), "hooked"),
        (lambda: GCNConv(F, F, decomposed_layers=5), "decomposed"),
        (lambda: GCNConv(F, F, flow="target_to_source"), "flow"),
        (lambda: SAGEConv(F, F, aggr="median"), "aggregates by"),
        (lambda: SAGEConv(F, F, normalize=True), "normalises its output"),
        (lambda: APPNP(3, 0.1, dropout=0.5), "drops edges"),
    ],
)
def test_falls_back_and_says_why(factory, reason):
    torch.manual_seed(0)
    conv = factory()
    text = path(conv, edges())
    assert text.startswith("conv: ") and reason in text
    if not getattr(conv, "dropout", 0) and not conv.explain:
        x, index = features(N, F).float(), edges()
        value = PicardConv(conv, 0.5, 3, rtol=0.0)(x, index)
        for _ in range(3):
            x = 0.5 * x + 0.5 * conv(x, index)
        torch.testing.assert_close(value, x)


def test_the_torch_backend_runs_convs_as_they_are():
    text = path(GCNConv(F, F), edges(), backend="torch")
    assert text.startswith("conv: GCNConv on torch")


# -- what is remembered of a graph -------------------------------------------


def test_a_graph_that_was_written_to_is_planned_anew():
    conv, x, index = make(FUSED["gcn"]), features(N, F), edges()
    picard = PicardConv(conv, max_iter=2, rtol=0.0)
    before = picard(x, index)
    index[:, 0] = torch.tensor([8, 9])
    after = picard(x, index)
    assert not torch.equal(before, after)
    torch.testing.assert_close(
        after, PicardConv(conv, max_iter=2, rtol=0.0)(x, index.clone())
    )


def test_so_are_weights_that_were_written_to():
    conv, x, index = make(FUSED["gcn"]), features(N, F), edges()
    weight = torch.ones(index.size(1), dtype=torch.float64)
    picard = PicardConv(conv, max_iter=2, rtol=0.0)
    before = picard(x, index, weight)
    weight[0] = 9.0
    assert not torch.equal(before, picard(x, index, weight))


def test_a_used_conv_can_be_copied_and_pickled():
    conv, x, index = make(FUSED["gcn"]), features(N, F), edges()
    picard = PicardConv(conv, max_iter=2, rtol=0.0)
    value = picard(x, index)
    for other in (
        copy.deepcopy(picard),
        pickle.loads(pickle.dumps(picard)),
    ):
        assert torch.equal(other(x, index), value)


@pytest.mark.parametrize("wrong", [-1, N])
def test_an_index_out_of_range_is_an_error(wrong):
    index = edges()
    index[0, 0] = wrong
    with pytest.raises(ValueError, match=r"edge_index.*\[0, 12\)"):
        PicardConv(SAGEConv(F, F))(torch.randn(N, F), index)


# -- reduced precision -------------------------------------------------------


@pytest.mark.parametrize("name", [*FUSED, *AGGREGATED])
def test_under_autocast_the_backends_agree(name):
    torch.manual_seed(0)
    conv = {**FUSED, **AGGREGATED}[name]()
    x, found = features(N, F).float(), []
    for backend in ("native", "torch"):
        layer = PicardConv(
            conv, max_iter=4, rtol=0.0, atol=0.0, activation="tanh",
            inject=True, backend=backend,
        )  # fmt: skip
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found.append(layer(x, edges()))
    torch.testing.assert_close(*found, rtol=0.05, atol=0.05)


def test_under_autocast_messages_are_rounded_and_sums_are_not():
    torch.manual_seed(0)
    conv, index = GCNConv(F, F), edges()
    x = features(N, F).float()
    picard = PicardConv(conv, max_iter=4, rtol=0.0, activation="tanh")
    full = picard(x, index)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        low = picard(x, index)
    assert low.dtype == torch.float32
    error = (low - full).norm() / full.norm()
    assert 0 < error < 4 * torch.finfo(torch.bfloat16).eps


@pytest.mark.parametrize("name", ["gcn", "simple", "graph mean"])
@pytest.mark.parametrize("rows", [N, 5000])
def test_under_autocast_the_compiled_loop_is_the_loop(name, rows):
    # 5000 rows: the rounded product is taken in blocks of fewer
    torch.manual_seed(0)
    step = step_of(FUSED[name](), torch.randn(rows, F), edges())
    step.form = dataclasses.replace(step.form, root=None)
    x = torch.randn(rows, F)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        got, stats = step.steps(x, 0.3, None, 4)
        want, sums = x, []
        for _ in range(4):
            want, one = step.smoothed(want, 0.3, None, None)
            sums.append(one)
    torch.testing.assert_close(got, want, rtol=0, atol=0)
    torch.testing.assert_close(stats, torch.stack(sums), rtol=0, atol=0)


def step_of(conv, x, edge_index):
    """The operator that a PicardConv would iterate."""
    found = plan(
        None, conv, x, edge_index, (), {}, f=None, activation=None,
        backend="auto",
    )  # fmt: skip
    assert found.path == "fused"
    return found.operator


@pytest.mark.parametrize("name", ["sgc", "appnp"])
def test_hops_without_a_gradient_are_those_with_one(name):
    torch.manual_seed(0)
    picard = PicardConv(FUSED[name](), alpha=0.3, max_iter=3, rtol=0.0)
    x = torch.randn(N, F)
    kept = x.clone()
    with torch.no_grad():
        got = picard(x, edges())
        again = picard(x, edges())
    want = picard(x.clone().requires_grad_(), edges())
    torch.testing.assert_close(got, want.detach())
    torch.testing.assert_close(got, again, rtol=0, atol=0)
    torch.testing.assert_close(x, kept, rtol=0, atol=0)
