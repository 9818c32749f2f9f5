"""lipschitz_bound: what it says, and what it refuses to say."""

import math

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations
from torch_geometric.nn import (
    APPNP,
    MLP,
    ChebConv,
    GATConv,
    GCNConv,
    GINConv,
    GraphConv,
    SAGEConv,
    SGConv,
    SimpleConv,
)

from torch_picard import PIGN, PicardConv
from torch_picard.contraction import (
    Ball,
    Bound,
    Certificate,
    L2Attention,
    L2TransformerLayer,
    Residual,
    Sum,
    contractive,
    lipschitz_bound,
    register_bound,
)

EDGES = torch.tensor([[0, 1, 2, 2], [1, 2, 0, 1]])
GRAPH = {"edge_index": EDGES, "num_nodes": 4}


def constant(*args, **kwargs):
    return lipschitz_bound(*args, **kwargs).constant


def linear(gain, width=3):
    lin = nn.Linear(width, width)
    with torch.no_grad():
        lin.weight.copy_(gain * torch.eye(width))
    return lin


# -- kinds and reasons --------------------------------------------------------


def test_a_certificate_says_where_it_comes_from():
    module = nn.Sequential(linear(0.5), nn.ReLU(), linear(0.5))
    found = lipschitz_bound(module)
    assert isinstance(found, Certificate)
    assert (found.kind, found.norm, found.region) == ("certified", "l2", None)
    assert found.constant == pytest.approx(0.25) and found.contracts
    assert found.reason == "Linear 0.5 then ReLU 1 then Linear 0.5"


def test_compositions_multiply_and_sums_add():
    a, b = linear(2.0), linear(3.0)
    assert constant(nn.Sequential(a, b)) == pytest.approx(6)
    assert constant((a, b)) == pytest.approx(6)
    assert constant(Sum((a, b))) == pytest.approx(5)
    assert constant(Sum(((), a))) == pytest.approx(3)
    assert constant(Residual(a)) == pytest.approx(3)
    assert constant(Residual(a, 0.25)) == pytest.approx(1.25)
    assert constant(nn.Sequential()) == 1
    assert constant(()) == 1


def test_softmax_attention_needs_a_ball():
    module = nn.MultiheadAttention(4, 2).eval()
    everywhere = lipschitz_bound(module, num_nodes=5)
    assert everywhere.constant == math.inf and not everywhere.contracts
    assert "Ball(radius)" in everywhere.reason
    ball = Ball(2.0)
    local = lipschitz_bound(module, num_nodes=5, region=ball)
    assert local.kind == "local" and local.region is ball
    assert local.constant < math.inf
    wider = lipschitz_bound(module, num_nodes=5, region=Ball(4.0))
    more = lipschitz_bound(module, num_nodes=9, region=ball)
    assert local.constant < min(wider.constant, more.constant)
    # the same ball elsewhere reaches further
    moved = Ball(2.0, torch.ones(5, 4))
    assert constant(module, num_nodes=5, region=moved) == pytest.approx(
        constant(module, num_nodes=5, region=Ball(4.0))
    )


def test_a_region_that_nothing_needs_is_left_out():
    found = lipschitz_bound(linear(0.5), region=Ball(1.0))
    assert found.kind == "certified" and found.region is None


def test_attention_after_a_norm_holds_everywhere():
    """LayerNorm's image is bounded, whatever comes in."""
    layer = nn.TransformerEncoderLayer(4, 2, 8, norm_first=True).eval()
    found = lipschitz_bound(layer, num_nodes=3)
    assert found.kind == "certified" and found.constant < math.inf
    assert lipschitz_bound(layer, num_nodes=3, region=Ball(1.0)).kind == (
        "certified"
    )
    after = nn.TransformerEncoderLayer(4, 2, 8).eval()
    assert constant(after, num_nodes=3) == math.inf
    assert lipschitz_bound(after, num_nodes=3, region=Ball(1.0)).kind == (
        "local"
    )


def test_a_bounded_activation_makes_attention_certified():
    """|tanh| <= 1 in each of so many features."""
    attention = nn.MultiheadAttention(4, 1).eval()
    squashed = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), attention)
    assert lipschitz_bound(squashed, num_nodes=3).kind == "certified"
    assert constant(squashed, num_nodes=3) < math.inf
    loose = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), attention)
    assert constant(loose, num_nodes=3) == math.inf


def test_gcn_without_a_graph_is_about_every_undirected_one():
    conv = GCNConv(3, 3)
    weight = conv.lin.weight.detach().double()
    norm = float(torch.linalg.matrix_norm(weight, 2))
    found = lipschitz_bound(conv)
    assert found.constant == pytest.approx(norm)
    assert "every undirected graph" in found.reason
    assert lipschitz_bound(PicardConv(conv)).constant == found.constant
    undirected = torch.cat([EDGES, EDGES.flip(0)], 1)
    assert constant(conv, undirected) == pytest.approx(norm, rel=1e-6)
    assert constant(conv, EDGES) > norm  # directed
    assert "every" not in lipschitz_bound(conv, EDGES).reason


def test_picard_conv_is_about_one_application():
    conv = GCNConv(3, 3)
    plain = constant(conv, **GRAPH)
    for options in ({}, {"inject": True}, {"alpha": 0.9}, {"max_iter": 1}):
        assert constant(PicardConv(conv, **options), **GRAPH) == plain
    halved = PicardConv(conv, activation=torch.sigmoid)
    assert constant(halved, **GRAPH) == pytest.approx(plain / 4)


def test_pign_blocks_contract_by_construction():
    block = PIGN(5, 4, 2, lam=0.9).block
    assert constant(block) <= 0.9 * (1 + 1e-6)


# -- infinite, and why ----------------------------------------------------


@pytest.mark.parametrize(
    "module, why",
    [
        (nn.Hardshrink(), "not continuous"),
        (nn.Threshold(0.1, 20.0), "not continuous"),
        (nn.Softplus(threshold=1.0), "jump"),
        (nn.Softplus(beta=-1.0), "negative beta"),
        (nn.CELU(-1.0), "CELU inf"),
        (nn.LayerNorm(3, eps=0.0), "LayerNorm inf"),
        (nn.RMSNorm(3, eps=0.0), "RMSNorm inf"),
        (nn.BatchNorm1d(3), "call eval()"),
        (nn.BatchNorm1d(3, track_running_stats=False).eval(), "eval()"),
        (SAGEConv(3, 3, normalize=True), "normalize=True"),
        (APPNP(2, 0.1, dropout=0.5), "call eval()"),
        (nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3)), "call eval()"),
    ],
)
def test_no_bound_with_the_reason(module, why):
    found = lipschitz_bound(module, **GRAPH)
    assert found.constant == math.inf and not found.contracts
    assert why in found.reason


@pytest.mark.parametrize(
    "module",
    [
        GATConv(3, 3, dropout=0.5),
        nn.MultiheadAttention(4, 1, dropout=0.5),
        nn.TransformerEncoderLayer(4, 1, 4),
    ],
)
def test_dropped_attention_weights_have_no_bound(module):
    found = lipschitz_bound(module, **GRAPH, region=Ball(1.0))
    assert found.constant == math.inf and "eval()" in found.reason
    module.eval()
    assert constant(module, **GRAPH, region=Ball(1.0)) < math.inf


def test_dropout_in_training_scales_what_it_keeps():
    module = nn.Sequential(linear(0.5), nn.Dropout(0.5))
    assert constant(module) == pytest.approx(1.0)
    assert constant(module.eval()) == pytest.approx(0.5)
    assert constant(nn.Dropout(1.0)) == 0
    mlp = MLP([3, 3, 3], dropout=0.5, norm=None)
    # none after the last map
    assert constant(mlp) == pytest.approx(2 * constant(mlp.eval()))


def test_a_constant_map_stays_one():
    """0 times infinity is 0."""
    module = nn.Sequential(nn.Hardshrink(), linear(0.0))
    assert constant(module) == 0


def test_weights_that_are_not_finite():
    lin = nn.Linear(3, 3)
    with torch.no_grad():
        lin.weight[0, 0] = math.nan
    assert constant(lin) == math.inf


# -- errors -------------------------------------------------------------------


class Unknown(nn.Module):
    def forward(self, x):
        return x


class Child(nn.Linear):
    """A subclass may compute something else."""

    def forward(self, x):
        return 3 * super().forward(x)


@pytest.mark.parametrize(
    "module, name",
    [
        (Unknown(), "Unknown"),
        (Child(3, 3), "Child"),
        (nn.Sequential(nn.Linear(3, 3), Unknown()), "Unknown"),
        (nn.GRUCell(3, 3), "GRUCell"),
        (ChebConv(3, 3, 2), "ChebConv"),
        (PicardConv(GCNConv(3, 3), activation=torch.exp), "exp"),
        (PIGN(3, 4, 2), "PIGN"),
        (3, "3"),
    ],
)
def test_an_unknown_module_names_register_bound(module, name):
    with pytest.raises(ValueError, match="register_bound") as error:
        lipschitz_bound(module, **GRAPH)
    assert name in str(error.value)
    assert "estimate_lipschitz" in str(error.value)


@pytest.mark.parametrize(
    "conv",
    [
        SAGEConv(3, 3),
        SAGEConv(3, 3, aggr="max"),
        GraphConv(3, 3),
        GINConv(nn.Linear(3, 3)),
        SimpleConv(),
        GCNConv(3, 3, normalize=False),
    ],
)
def test_a_bound_that_depends_on_the_graph_asks_for_it(conv):
    with pytest.raises(ValueError, match="edge_index must be given"):
        lipschitz_bound(conv)
    assert constant(conv, **GRAPH) < math.inf


def test_what_holds_on_every_graph_needs_none():
    """A maximum or mean of neighbours, in l_inf; but not with weights."""
    for aggr in ("mean", "max"):
        assert constant(SAGEConv(3, 3, aggr), norm="linf") < math.inf
        with pytest.raises(ValueError, match="edge_index must be given"):
            lipschitz_bound(GraphConv(3, 3, aggr), norm="linf")
    for norm in ("l1", "linf"):
        with pytest.raises(ValueError, match="edge_index must be given"):
            lipschitz_bound(GCNConv(3, 3), norm=norm)


@pytest.mark.parametrize(
    "module",
    [
        nn.MultiheadAttention(4, 1),
        L2Attention(4),
        nn.TransformerEncoderLayer(4, 1, 4, norm_first=True),
    ],
)
def test_attention_asks_for_the_number_of_tokens(module):
    with pytest.raises(ValueError, match="num_nodes must be given"):
        lipschitz_bound(module.eval(), region=Ball(1.0))
    # the last nodes may have no edges: the largest index is no count
    with pytest.raises(ValueError, match="num_nodes must be given"):
        lipschitz_bound(module, EDGES, region=Ball(1.0))


@pytest.mark.parametrize(
    "kwargs, error, match",
    [
        ({"norm": "fro"}, ValueError, "norm must be"),
        ({"norm": 2}, ValueError, "norm must be"),
        ({"region": 1.0}, TypeError, "region must be a Ball"),
        ({"num_nodes": 0}, ValueError, "num_nodes must be at least 1"),
        ({"num_nodes": 2.0}, TypeError, "num_nodes must be an integer"),
        ({"num_nodes": True}, TypeError, "num_nodes must be an integer"),
        ({"input_size": (0,)}, ValueError, "input_size"),
        ({"input_size": ()}, ValueError, "input_size"),
        ({"edge_index": [[0], [1]]}, TypeError, "edge_index must be"),
        ({"edge_index": EDGES.double()}, ValueError, "edge_index must be"),
        ({"edge_index": EDGES[:1]}, ValueError, "edge_index must be"),
        ({"edge_index": EDGES - 1}, ValueError, "edge_index must hold"),
        (
            {"edge_index": EDGES, "num_nodes": 2},
            ValueError,
            "edge_index must hold",
        ),
        (
            {"edge_index": EDGES, "edge_weight": torch.ones(3)},
            ValueError,
            "edge_weight must have one entry an edge, 4",
        ),
        (
            {"edge_index": EDGES, "edge_weight": [1.0] * 4},
            TypeError,
            "edge_weight must be a Tensor",
        ),
        ({"edge_weight": torch.ones(4)}, ValueError, "edge_weight was given"),
    ],
)
def test_arguments_are_checked_by_name(kwargs, error, match):
    for ask in (lipschitz_bound, contractive):
        with pytest.raises(error, match=match):
            ask(GCNConv(3, 3), **kwargs)


@pytest.mark.parametrize("radius", [0.0, -1.0, math.inf, math.nan])
def test_a_ball_has_a_radius(radius):
    with pytest.raises(ValueError, match="radius must be positive"):
        Ball(radius)


def test_a_nested_picard_conv_is_a_whole_solve():
    conv = PicardConv(GCNConv(3, 3))
    with pytest.raises(ValueError, match="whole solve"):
        lipschitz_bound(PicardConv(conv))
    with pytest.raises(ValueError, match="whole solve"):
        lipschitz_bound(nn.Sequential(conv))


@pytest.mark.parametrize("norm", ["l1", "linf"])
@pytest.mark.parametrize(
    "module",
    [nn.MultiheadAttention(4, 1), L2Attention(4), GATConv(4, 4)],
)
def test_attention_is_bounded_in_l2_and_so_in_all(module, norm):
    """By the equivalence of norms, on as many entries as there are."""
    known = {**GRAPH, "region": Ball(1.0)}
    entries = 4 * GRAPH["num_nodes"]
    l2 = lipschitz_bound(module, **known).constant
    found = lipschitz_bound(module, norm=norm, **known).constant
    assert found == pytest.approx(l2 * entries**0.5)
    with pytest.raises(ValueError, match="norm must be 'l2'"):
        contractive(module, 0.9, norm=norm, **known, method="project")


@pytest.mark.parametrize(
    "module, match",
    [
        (SAGEConv(3, 3, aggr="lstm"), "aggregates by"),
        (SAGEConv(3, 3, aggr=["mean", "max"]), "aggregates by"),
        (GCNConv(3, 3, aggr="mean"), "aggr='add'"),
        (SGConv(3, 3, aggr="max"), "aggr='add'"),
        (SimpleConv(combine_root="cat"), "changes the width"),
        (SimpleConv("mean", "self_loop"), "self_loop"),
        (GATConv(3, 3, edge_dim=2), "edge_dim"),
        (GATConv(3, 3, residual=True), "residual"),
        (GATConv((3, 3), 3), "one input width"),
        (GATConv(3, 3, negative_slope=2.0), "negative_slope"),
        (GATConv(3, 3, negative_slope=-2.0), "negative_slope"),
        (nn.MultiheadAttention(4, 1, kdim=2), "self-attention only"),
        (nn.MultiheadAttention(4, 1, add_bias_kv=True), "self-attention"),
        (nn.MultiheadAttention(4, 1, add_zero_attn=True), "self-attention"),
        (GCNConv(-1, 3), "no shape yet"),
        (nn.Sequential(nn.LazyLinear(3)), "LazyLinear"),
    ],
)
def test_variants_without_a_bound(module, match):
    with pytest.raises(ValueError, match=match):
        lipschitz_bound(module, **GRAPH, region=Ball(1.0))
    with pytest.raises(ValueError, match=match):
        contractive(module, **GRAPH, region=Ball(1.0))


def test_circular_convolutions_and_the_size_of_the_image():
    conv = nn.Conv1d(1, 1, 3, padding=3, padding_mode="circular")
    assert constant(conv) == math.inf  # how often it repeats depends on it
    assert constant(conv, input_size=8) < math.inf
    assert constant(conv, norm="linf") < math.inf
    whole = nn.Conv1d(1, 1, 3, padding=1, padding_mode="circular")
    assert constant(whole, input_size=5) <= constant(whole)
    with pytest.raises(ValueError, match="input_size must have 1"):
        lipschitz_bound(whole, input_size=(3, 4))


# -- rules of one's own -------------------------------------------------------


class Twice(nn.Module):
    """2 * (W x), or whatever is inside."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return 2 * self.inner(x)


@register_bound(Twice)
def _twice(module, context):
    return 2 * context.bound(module.inner).constant


class Own(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(3 * torch.eye(2))
        self.answer = None

    def forward(self, x):
        return x @ self.weight.T


@register_bound(Own)
def _own(module, context):
    found = context.matrix_norm(context.weight(module, "weight"))
    return found if module.answer is None else module.answer


def test_a_rule_of_ones_own():
    assert constant(Twice(linear(2.0))) == pytest.approx(4)
    assert constant(nn.Sequential(Twice(Own()))) == pytest.approx(6)
    module = Twice(nn.Sequential(Own(), linear(2.0, 2)))
    contractive(module, 0.5)
    assert constant(module) <= 0.5
    assert constant(module) == pytest.approx(0.5, rel=0.02)


def test_a_number_from_a_local_part_is_local():
    module = Twice(nn.MultiheadAttention(4, 1)).eval()
    found = lipschitz_bound(module, num_nodes=3, region=Ball(1.0))
    assert found.kind == "local"
    assert lipschitz_bound(Twice(linear(1.0)), region=Ball(1.0)).kind == (
        "certified"
    )


def test_what_a_rule_may_return():
    module = Own()
    module.answer = Bound(0.3, reason="by decree")
    assert lipschitz_bound(module).reason == "by decree"
    module.answer = Certificate(0.4, "l2", "certified")
    assert constant(module) == 0.4
    module.answer = Certificate(0.4, "l2", "local", Ball(1.0))
    assert lipschitz_bound(module, region=Ball(1.0)).kind == "local"
    for lie in (Certificate(0.4, "l2", "estimate"), Certificate(0.4, "l1")):
        module.answer = lie
        with pytest.raises(ValueError, match="proven bound in 'l2'"):
            lipschitz_bound(module)
    module.answer = -1.0
    with pytest.raises(ValueError, match="negative"):
        lipschitz_bound(module)
    module.answer = math.nan
    with pytest.raises(ValueError, match="NaN"):
        lipschitz_bound(module)


def test_a_function_may_have_a_rule():
    def tripled(x):
        return 3 * x

    with pytest.raises(ValueError, match="tripled"):
        lipschitz_bound(tripled)
    register_bound(tripled)(lambda module, context: 3.0)
    assert constant(tripled) == 3
    conv = GCNConv(3, 3)
    assert constant(PicardConv(conv, activation=tripled)) == pytest.approx(
        3 * constant(conv)
    )


# -- computed weights, nothing changed --------------------------------------


def test_parametrised_modules_are_bounded_as_they_are():
    lin = parametrizations.orthogonal(nn.Linear(3, 3))
    assert constant(lin) == pytest.approx(1, abs=1e-6)
    normal = parametrizations.weight_norm(nn.Linear(3, 3))
    weight = normal.weight.detach().double()
    true = torch.linalg.matrix_norm(weight, 2)
    assert constant(normal) == pytest.approx(float(true))


def test_asking_changes_nothing():
    module = L2TransformerLayer(4, 2)
    before = {k: v.clone() for k, v in module.state_dict().items()}
    state = torch.get_rng_state()
    lipschitz_bound(module, num_nodes=5)
    assert torch.equal(torch.get_rng_state(), state)
    for k, v in module.state_dict().items():
        assert torch.equal(v, before[k])
    assert all(p.grad is None for p in module.parameters())
    assert isinstance(lipschitz_bound(module, num_nodes=5).constant, float)


@pytest.mark.filterwarnings("ignore:Sparse")
def test_sparse_adjacencies_bring_their_size_and_values():
    """SAGEConv and GINConv multiply by the values of a sparse tensor."""
    value = torch.tensor([1.0, 2.0, 3.0, 4.0])
    adj = torch.sparse_coo_tensor(EDGES.flip(0), value, (4, 4)).coalesce()
    adj = adj.to_sparse_csr()
    x = torch.eye(4)
    for conv in (SimpleConv(), GINConv(nn.Identity()), GraphConv(4, 4)):
        with torch.no_grad():
            moved = conv(x, adj) - conv(torch.zeros(4, 4), adj)
        found = constant(conv, adj)
        assert float(torch.linalg.matrix_norm(moved, 2)) <= found * 1.0001
    assert constant(GINConv(nn.Identity()), adj) > 4
