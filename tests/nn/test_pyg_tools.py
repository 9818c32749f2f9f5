"""PicardConv in PyG's tools."""

import pytest
import torch
import torch_geometric
from torch import nn
from torch_geometric import EdgeIndex
from torch_geometric import nn as pyg
from torch_geometric.data import Data, HeteroData
from torch_geometric.explain import Explainer, GNNExplainer
from torch_geometric.explain.algorithm import ExplainerAlgorithm
from torch_geometric.loader import DataLoader
from torch_geometric.nn import HeteroConv, to_hetero
from torch_geometric.transforms import AddRandomWalkPE

from torch_picard import PIGN, Implicit, PicardConv, fixed_point
from torch_picard.nn import num_hops

# -- node types ------------------------------------------------------------

EDGES = {
    ("a", "to", "b"): torch.tensor([[0, 1, 2, 2], [0, 0, 1, 3]]),
    ("b", "back", "a"): torch.tensor([[0, 1, 3], [1, 2, 0]]),
    ("c", "into", "a"): torch.tensor([[0, 0, 1], [0, 1, 2]]),
}


def typed(width=5):
    torch.manual_seed(0)
    x = {"a": torch.randn(3, width), "b": torch.randn(4, width)}
    x["c"] = torch.randn(2, width)
    conv = HeteroConv({kind: pyg.SAGEConv(width, width) for kind in EDGES})
    with torch.no_grad():
        for p in conv.parameters():
            p.mul_(0.3)
    return x, conv


def test_one_solve_over_all_node_types():
    x, conv = typed()
    picard = PicardConv(
        conv, inject=True, activation="tanh", rtol=1e-6, max_iter=100
    )
    out, solution = picard(x, EDGES, return_solution=True)
    assert solution.converged.tolist() == [True]
    assert set(solution.value) == {"a", "b"}
    assert torch.equal(out["c"], x["c"])  # it receives nothing
    again = conv(out, EDGES)
    for t in ("a", "b"):
        torch.testing.assert_close(
            torch.tanh(again[t] + x[t]), out[t], rtol=1e-4, atol=1e-5
        )

    def by_hand(y):
        z = conv({**y, "c": x["c"]}, EDGES)
        return {t: torch.tanh(z[t] + x[t]) for t in y}

    want = fixed_point(
        by_hand, {t: x[t] for t in ("a", "b")}, rtol=1e-6, max_iter=100
    )
    assert want.iterations == solution.iterations
    torch.testing.assert_close(want.value, solution.value)


def test_gradients_and_graphs_of_several_types():
    x, conv = typed()
    conv = conv.double()
    x = {t: v.double().requires_grad_() for t, v in x.items()}
    options = {"inject": True, "rtol": 1e-12, "max_iter": 200}
    grads = []
    for gradient in (None, Implicit(rtol=1e-12)):
        picard = PicardConv(conv, gradient=gradient, **options)
        out = picard(x, EDGES)
        loss = sum(v.sin().sum() for t, v in out.items() if t != "c")
        grads.append(torch.autograd.grad(loss, [*x.values()]))
    torch.testing.assert_close(grads[0], grads[1], rtol=1e-7, atol=1e-9)
    assert grads[0][2].abs().max() > 0  # c matters, though it stays

    two = [HeteroData(), HeteroData()]
    for scale, data in zip((1.0, 100.0), two):
        for t in x:
            data[t].x = scale * x[t].detach()
        for kind, edge_index in EDGES.items():
            data[kind].edge_index = edge_index
    batch = next(iter(DataLoader(two, batch_size=2)))
    picard = PicardConv(conv, activation="tanh", **options)
    out, solution = picard(
        batch.x_dict, batch.edge_index_dict, batch=batch.batch_dict,
        return_solution=True,
    )  # fmt: skip
    for i, data in enumerate(two):
        alone, one = picard(
            data.x_dict, data.edge_index_dict, return_solution=True
        )
        assert one.iterations[0] == solution.iterations[i]
        for t in ("a", "b"):
            torch.testing.assert_close(out[t][batch[t].batch == i], alone[t])


def test_node_types_without_nodes():
    """A batch may have none of a type, of several, or of all."""
    x, conv = typed()
    nothing = torch.zeros(2, 0, dtype=torch.long)
    picard = PicardConv(
        conv, inject=True, activation="tanh", rtol=1e-6, max_iter=100
    )
    edges = {**EDGES, ("a", "to", "b"): nothing, ("b", "back", "a"): nothing}
    out, solution = picard({**x, "b": x["b"][:0]}, edges, return_solution=True)
    assert solution.converged.all() and out["b"].shape == (0, 5)
    into = conv.convs["c", "into", "a"]
    alone = into((x["c"], out["a"]), EDGES["c", "into", "a"])
    # SAGEConv of b onto a, without neighbours: its bias and its root
    back = conv.convs["b", "back", "a"]((x["b"], out["a"]), nothing)
    torch.testing.assert_close(
        torch.tanh(alone + back + x["a"]), out["a"], rtol=1e-4, atol=1e-5
    )
    gone = {t: v[:0] for t, v in x.items()}
    edges = dict.fromkeys(EDGES, nothing)
    out, solution = picard(gone, edges, return_solution=True)
    assert solution.converged.all() and solution.evaluations == 0
    assert set(out) == set(x)
    assert all(v.shape == (0, 5) for v in out.values())


class Layer(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = pyg.SAGEConv((-1, -1), 5)

    def forward(self, x, edge_index):
        return self.conv(x, edge_index).tanh()


def test_to_hetero_makes_the_operator():
    x, _ = typed()
    del x["c"]
    edges = {kind: e for kind, e in EDGES.items() if "c" not in kind}
    conv = to_hetero(Layer(), (list(x), list(edges)))
    with torch.no_grad():
        conv(x, edges)
        for p in conv.parameters():
            p.mul_(0.3)
    out, solution = PicardConv(conv, inject=True, max_iter=60)(
        x, edges, return_solution=True
    )
    assert solution.converged.all() and set(out) == {"a", "b"}
    again = conv(out, edges)
    torch.testing.assert_close(
        again["a"] + x["a"], out["a"], rtol=1e-3, atol=1e-3
    )


def test_wrong_node_types():
    x, conv = typed()
    picard = PicardConv(conv)
    with pytest.raises(ValueError, match=r"x\['a'\] must be a Tensor"):
        picard({**x, "a": torch.ones(3, 5, dtype=torch.long)}, EDGES)
    with pytest.raises(ValueError, match="batch must be a dict"):
        picard(x, EDGES, batch={"a": torch.zeros(3, dtype=torch.long)})
    with pytest.raises(ValueError, match="must lead to at least one node ty"):
        picard(x, {})
    wide = HeteroConv({("a", "to", "b"): pyg.SAGEConv((5, 5), 7)})
    with pytest.raises(ValueError, match="changed the width of 'b'"):
        PicardConv(wide)(x, EDGES)
    with pytest.raises(ValueError, match="put PicardConv around to_hetero"):
        PicardConv(pyg.SAGEConv(5, 5))(x["a"], EDGES)


class Inside(nn.Module):
    """A model that holds a solve, given to to_hetero."""

    def __init__(self):
        super().__init__()
        self.first = pyg.SAGEConv((-1, -1), 5)
        self.block = PicardConv(pyg.SAGEConv(5, 5), inject=True)

    def forward(self, x, edge_index):
        return self.block(self.first(x, edge_index).relu(), edge_index)


def test_inside_of_to_hetero_it_says_to_go_around():
    x, _ = typed()
    around = "put PicardConv around to_hetero or HeteroConv"
    del x["c"]  # to_hetero wants every type updated
    metadata = (list(x), [kind for kind in EDGES if "c" not in kind])
    with pytest.raises(ValueError, match=around):
        to_hetero(Inside(), metadata)(x, EDGES)
    with pytest.raises(ValueError, match=around):
        HeteroConv({kind: Inside().block for kind in EDGES})(x, EDGES)
    for model in (Inside().block, PIGN(5, 4, 3, conv="sage")):
        name = type(model).__name__
        with pytest.raises(TypeError, match=f"{name} cannot be .*{around}"):
            to_hetero(model, metadata)


def test_a_module_of_tensors_that_is_to_inject_dicts():
    x, conv = typed()
    for inject in (nn.Linear(5, 5), nn.BatchNorm1d(5)):
        with pytest.raises(ValueError, match=r"as .*HeteroDictLinear does"):
            PicardConv(conv, inject=inject)(x, EDGES)
    sizes = dict.fromkeys(x, 5)
    inject = pyg.HeteroDictLinear(sizes, 5, types=list(x))
    picard = PicardConv(
        conv, inject=inject, activation="tanh", rtol=1e-6, max_iter=100
    )
    out, f = picard(x, EDGES), inject(x)
    again = conv(out, EDGES)
    for t in ("a", "b"):
        torch.testing.assert_close(
            torch.tanh(again[t] + f[t]), out[t], rtol=1e-4, atol=1e-5
        )


def test_the_plan_over_node_types():
    _, conv = typed()
    said = PicardConv(conv).explain_plan(EDGES)
    assert said.startswith("conv: HeteroConv over 3 edge types")


class Narrow(nn.Module):
    """One column for all, which would broadcast; one type forgotten."""

    def __init__(self, forgets):
        super().__init__()
        self.forgets = forgets

    def forward(self, x):
        return {t: v[:, :1] for t, v in x.items() if t != self.forgets}


@pytest.mark.parametrize(
    "forgets, text",
    [(None, r"\[3, 5\] for 'a', got shape \[3, 1\]"), ("a", "got NoneType")],
)
def test_what_is_injected_has_the_shapes_of_x(forgets, text):
    x, conv = typed()
    with pytest.raises(ValueError, match=f"inject must map x to .*{text}"):
        PicardConv(conv, inject=Narrow(forgets))(x, EDGES)


def test_a_start_by_node_type():
    x, conv = typed()
    picard = PicardConv(conv, inject=True, activation="tanh", rtol=1e-5)
    out, cold = picard(x, EDGES, return_solution=True)
    start = {t: v.detach() for t, v in out.items()}
    again, warm = picard(x, EDGES, start=start, return_solution=True)
    assert warm.iterations < cold.iterations
    torch.testing.assert_close(again, out, rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match=r"start must have the node types"):
        picard(x, EDGES, start={"a": x["a"]})
    with pytest.raises(ValueError, match=r"start\['b'\] must be one Tensor"):
        picard(x, EDGES, start={**x, "b": x["b"][:1]})


@pytest.mark.slow
def test_a_compiled_solve_over_node_types():
    x, conv = typed()
    picard = PicardConv(conv, inject=True, rtol=0.0, max_iter=3)
    compiled = torch.compile(picard, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x, EDGES), picard(x, EDGES))


# -- hops ------------------------------------------------------------------


def test_hops_count_iterations():
    gcn = pyg.GCNConv(4, 4)
    assert num_hops(gcn) == 1
    assert num_hops(PicardConv(gcn, max_iter=7)) == 7
    assert num_hops(PicardConv(pyg.SGConv(4, 4, K=3), max_iter=7)) == 21
    assert num_hops(nn.Linear(3, 3)) == 0
    deep = nn.ModuleList([gcn, PicardConv(pyg.GATConv(4, 4), max_iter=5)])
    assert num_hops(deep) == 6
    assert num_hops(pyg.GCN(4, 4, num_layers=3)) == 3
    assert num_hops(pyg.ChebConv(4, 4, K=3)) == 2
    assert num_hops(pyg.APPNP(K=10, alpha=0.1)) == 10
    assert num_hops(pyg.DirGNNConv(pyg.GCNConv(4, 4))) == 1
    assert num_hops(typed()[1]) == 1
    assert num_hops(pyg.AntiSymmetricConv(4, num_iters=4)) == 4
    assert num_hops(PicardConv(pyg.HypergraphConv(4, 4), max_iter=3)) == 6
    assert num_hops(pyg.PANConv(4, 4, filter_size=3)) == 3
    # what PyG counts by itself stays as it was
    assert ExplainerAlgorithm._num_hops(pyg.GCN(4, 4, num_layers=3)) == 3
    assert ExplainerAlgorithm._num_hops(pyg.APPNP(K=10, alpha=0.1)) == 1
    assert ExplainerAlgorithm._num_hops(deep) == 6


@pytest.mark.parametrize("model", [3, None, [pyg.GCNConv(4, 4)]])
def test_hops_of_what_is_no_module(model):
    got = type(model).__name__
    with pytest.raises(
        TypeError, match=rf"model must be a torch\.nn\.Module, got {got}"
    ):
        num_hops(model)


def test_hops_of_hypergraphs_reach_what_the_output_depends_on():
    """Nodes on a string of hyperedges, two in each."""
    torch.manual_seed(0)
    n = 9
    edges = torch.arange(n - 1)
    hyperedges = torch.stack(
        [torch.cat([edges, edges + 1]), torch.cat([edges, edges])]
    )
    block = PicardConv(
        pyg.HypergraphConv(4, 4), max_iter=3, rtol=0.0, alpha=0.0
    )
    x = torch.randn(n, 4, requires_grad=True)
    block(x, hyperedges)[-1].sum().backward()
    sees = x.grad.abs().sum(1) > 0
    assert sees.tolist() == [False] * 5 + [True] * 4
    assert num_hops(block) == 2 * 3  # node - hyperedge - node, three times


# -- explainers ------------------------------------------------------------

LENGTH = 20


class Chain(nn.Module):
    """Sends what node 0 has along the chain."""

    def __init__(self, **options):
        super().__init__()
        options = {"max_iter": LENGTH + 2, "rtol": 0.0} | options
        self.block = PicardConv(
            pyg.GCNConv(2, 2, bias=False, add_self_loops=False,
                        normalize=False),
            alpha=0.0, inject=True, **options,
        )  # fmt: skip
        with torch.no_grad():
            self.block.conv.lin.weight.copy_(torch.eye(2))

    def forward(self, x, edge_index):
        return self.block(x, edge_index)


def chain():
    x = torch.zeros(LENGTH, 2)
    x[0, 0] = 1.0
    i = torch.arange(LENGTH - 1)
    return x, torch.stack([i, i + 1])


def explained(algorithm, model=None, **options):
    x, edge_index = chain()
    explainer = Explainer(
        (model or Chain()).eval(), algorithm, explanation_type="model",
        model_config={
            "mode": "multiclass_classification", "task_level": "node",
            "return_type": "raw",
        },
        node_mask_type="attributes", edge_mask_type="object", **options,
    )  # fmt: skip
    return explainer(x, edge_index, index=LENGTH - 1)


def test_gnn_explainer_reaches_the_start_of_a_chain():
    torch.manual_seed(0)
    found = explained(GNNExplainer(epochs=60))
    assert (found.edge_mask > 0).all()
    assert found.node_mask[0, 0] == found.node_mask.max() > 0


def test_masks_do_not_end_a_solve_early():
    """Each halves the message: at rtol=1e-4 nothing would seem to move from
    the 14th node on, and nothing be found there."""
    torch.manual_seed(0)
    model = Chain(rtol=1e-4, max_iter=60)
    x, edge_index = chain()
    _, before = model.block(x, edge_index, return_solution=True)
    found = explained(GNNExplainer(epochs=60), model)
    assert (found.edge_mask > 0).all()
    assert found.node_mask[0, 0] == found.node_mask.max() > 0
    _, after = model.block(x, edge_index, return_solution=True)
    assert after.evaluations == before.evaluations < 60


@pytest.mark.parametrize("kind", ["GCNConv", "SAGEConv", "GATConv"])
def test_masks_are_those_of_plain_convs(kind):
    from torch_geometric.explain.algorithm.utils import clear_masks, set_masks

    torch.manual_seed(0)
    conv = getattr(pyg, kind)(4, 4)
    block = PicardConv(conv, max_iter=5, inject=True, activation="tanh")
    x, edge_index = torch.randn(9, 4), torch.randint(9, (2, 30))
    mask = nn.Parameter(torch.randn(30))
    set_masks(block, mask, edge_index)
    got = block(x, edge_index)
    want = x
    for _ in range(5):
        want = 0.5 * want + 0.5 * torch.tanh(conv(want, edge_index) + x)
    torch.testing.assert_close(got, want)
    grads = [torch.autograd.grad(y.sum(), mask)[0] for y in (got, want)]
    torch.testing.assert_close(*grads)
    clear_masks(block)
    assert (block(x, edge_index) - got).abs().max() > 1e-2


def test_captum_explainer_reaches_the_start_of_a_chain():
    pytest.importorskip("captum")
    from torch_geometric.explain import CaptumExplainer

    found = explained(CaptumExplainer("IntegratedGradients"))
    # a product of the feature and the edges: each has its share of it
    share = torch.full((LENGTH - 1,), 1 / LENGTH)
    torch.testing.assert_close(found.edge_mask, share, rtol=0.05, atol=0)
    torch.testing.assert_close(
        found.node_mask[0, 0], share[0], rtol=0.05, atol=0
    )
    assert found.node_mask[1:].abs().max() == 0


def test_hard_masks_of_pygs_own_count_would_not():
    _, edge_index = chain()
    nodes, edges = ExplainerAlgorithm._get_hard_masks(
        Chain(), LENGTH - 1, edge_index, LENGTH
    )
    assert nodes.all() and edges.all()
    nodes, _ = ExplainerAlgorithm._get_hard_masks(
        pyg.GCN(2, 2, num_layers=1), LENGTH - 1, edge_index, LENGTH
    )
    assert not nodes[0]


# -- and the rest ----------------------------------------------------------


def test_a_loaders_batches_stop_graph_by_graph():
    torch.manual_seed(0)
    conv = pyg.GCNConv(4, 4)
    block = PicardConv(conv, inject=True, activation="tanh", max_iter=60)
    graphs = []
    for n in (3, 8, 5):
        edges = torch.randint(n, (2, 3 * n))
        graphs.append(Data(x=torch.randn(n, 4) * n, edge_index=edges))
    batch = next(iter(DataLoader(graphs, batch_size=3)))
    out, solution = block(
        batch.x, batch.edge_index, batch=batch.batch, return_solution=True
    )
    for i, data in enumerate(graphs):
        alone, one = block(data.x, data.edge_index, return_solution=True)
        assert one.iterations[0] == solution.iterations[i]
        torch.testing.assert_close(out[batch.batch == i], alone)


def test_positional_encodings_of_random_walks():
    data = Data(
        x=torch.randn(6, 3), edge_index=torch.randint(6, (2, 20)), num_nodes=6
    )
    data = AddRandomWalkPE(walk_length=5, attr_name=None)(data)
    conv = pyg.GCNConv(8, 8)
    block = PicardConv(conv, inject=True, rtol=0.0, max_iter=4)
    want = data.x
    for _ in range(4):
        want = 0.5 * want + 0.5 * (conv(want, data.edge_index) + data.x)
    torch.testing.assert_close(block(data.x, data.edge_index), want)


def test_summary_lists_it():
    """Shapes and counts of an iterated conv are those of the plain one."""
    pytest.importorskip("tabulate")
    graph = torch.randn(5, 4), torch.randint(5, (2, 9))
    conv = pyg.GCNConv(4, 4)
    block = PicardConv(conv, max_iter=3)
    rows = pyg.summary(block, *graph, max_depth=4).splitlines()
    plain = pyg.summary(conv, *graph).splitlines()
    cells = [[c.strip() for c in row.split("|")][2:] for row in rows[3:5]]
    assert cells[0] == cells[1] == [
        c.strip() for c in plain[3].split("|")
    ][2:]  # fmt: skip
    assert "PicardConv" in rows[3] and "(conv)GCNConv" in rows[4]


@pytest.mark.parametrize("name", ["GCNConv", "GATConv", "SAGEConv"])
def test_export_of_a_fixed_count(name):
    torch.manual_seed(0)
    conv = getattr(pyg, name)(4, 4)
    block = PicardConv(conv, rtol=0.0, max_iter=4, inject=True).eval()
    x, edge_index = torch.randn(6, 4), torch.randint(6, (2, 15))
    program = torch.export.export(block, (x, edge_index), strict=False)
    got = program.module()(x, edge_index)
    torch.testing.assert_close(got, block(x, edge_index))


@pytest.mark.parametrize("strict", [False, True])
def test_export_needs_a_fixed_count(strict):
    block = PicardConv(pyg.SAGEConv(4, 4)).eval()
    x, edge_index = torch.randn(6, 4), torch.randint(6, (2, 15))
    with pytest.raises(Exception, match="rtol=0 and atol=0"):
        torch.export.export(block, (x, edge_index), strict=strict)


def test_an_exported_program_takes_other_graphs():
    torch.manual_seed(0)
    block = PicardConv(pyg.GCNConv(4, 4), rtol=0.0, max_iter=4).eval()
    nodes = torch.export.Dim("nodes", min=2)
    edges = torch.export.Dim("edges", min=2)
    program = torch.export.export(
        block, (torch.randn(6, 4), torch.randint(6, (2, 15))), strict=False,
        dynamic_shapes={"x": {0: nodes}, "edge_index": {1: edges}},
    ).module()  # fmt: skip
    x, edge_index = torch.randn(17, 4), torch.randint(17, (2, 50))
    torch.testing.assert_close(program(x, edge_index), block(x, edge_index))


@pytest.mark.parametrize("kind", ["GCNConv", "SAGEConv"])
@pytest.mark.parametrize("rtol", [0.0, 1e-5])
def test_an_edge_index_of_pyg_under_compile(kind, rtol):
    torch.manual_seed(0)
    block = PicardConv(
        getattr(pyg, kind)(4, 4), rtol=rtol, inject=True, activation="tanh"
    )
    x, edge_index = torch.randn(6, 4), torch.randint(6, (2, 15))
    edge_index = edge_index[:, edge_index[1].argsort()]
    special = EdgeIndex(edge_index, sparse_size=(6, 6), sort_order="col")
    got = torch.compile(block, backend="aot_eager")(x, special)
    torch.testing.assert_close(got, block(x, edge_index))


def test_a_plain_convs_weights_go_in_and_out():
    """A PicardConv has no state of its own beside its conv's."""
    plain, block = pyg.GCNConv(4, 4), PicardConv(pyg.GCNConv(4, 4))
    assert set(block.state_dict()) == {"conv.bias", "conv.lin.weight"}
    named = {f"conv.{name}": t for name, t in plain.state_dict().items()}
    block.load_state_dict(named)
    for name, value in plain.state_dict().items():
        assert torch.equal(block.conv.state_dict()[name], value)
    learned = PicardConv(
        pyg.GCNConv(4, 4), alpha=nn.Parameter(torch.tensor(0.3))
    )
    assert set(learned.state_dict()) - set(block.state_dict()) == {"alpha"}


@pytest.mark.parametrize(
    "make",
    [
        lambda: PicardConv(pyg.SAGEConv(6, 6)),
        lambda: PicardConv(pyg.GCNConv(6, 6), inject=True, activation="tanh"),
        lambda: PicardConv(pyg.GATConv(6, 6), gradient=Implicit()),
        lambda: PicardConv(pyg.GCNConv(6, 6), rtol=0.0, max_iter=4),
        lambda: PIGN(6, 8, 3, dropout=0.0),
        lambda: PIGN(6, 8, 3, dropout=0.0, rtol=0.0, max_iter=3),
    ],
)
@pytest.mark.parametrize(
    "compile",
    [
        torch.compile,
        pytest.param(torch_geometric.compile, marks=pytest.mark.slow),
    ],
)
def test_compiles_in_pieces(make, compile):
    """Without fullgraph=True: what stops by itself runs as it is."""
    torch.manual_seed(0)
    x, edge_index = torch.randn(20, 6), torch.randint(20, (2, 60))
    model = make()
    found = []
    for call in (model, compile(model, backend="eager")):
        model.zero_grad()
        out = call(x, edge_index)
        out.square().sum().backward()
        found.append([out.detach(), *(p.grad for p in model.parameters())])
    for want, got in zip(*found):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)


def test_edge_types_of_to_hetero_stand_side_by_side():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.first = pyg.SAGEConv((-1, -1), 4)
            self.second = pyg.SAGEConv((-1, -1), 4)

        def forward(self, x, edge_index):
            return self.second(self.first(x, edge_index).relu(), edge_index)

    types = (["a", "b"], [("a", "to", "b"), ("b", "to", "a")])
    assert num_hops(to_hetero(Two(), types)) == 2
