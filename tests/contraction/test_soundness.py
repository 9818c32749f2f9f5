"""A certified bound is never exceeded: on random modules, graphs and pairs
of points, and on the worst pairs that can be found."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from numpy.polynomial.legendre import leggauss as legendre
from torch import Tensor, nn
from torch_geometric.nn import (
    APPNP,
    MLP,
    GATConv,
    GCNConv,
    GINConv,
    GraphConv,
    LGConv,
    SAGEConv,
    SGConv,
    SimpleConv,
)
from torch_geometric.nn import BatchNorm as PyGBatchNorm
from torch_geometric.nn import LayerNorm as PyGLayerNorm

from torch_picard import PIGN, PicardConv
from torch_picard.contraction import (
    Ball,
    L2Attention,
    L2TransformerLayer,
    Residual,
    lipschitz_bound,
)
from torch_picard.contraction.bounds import _RULES, load_rules
from torch_picard.contraction.rules.activations import _KNOWN

pytestmark = pytest.mark.filterwarnings(
    "ignore:Sparse", "ignore:Using padding"
)

NORMS = ("l2", "l1", "linf")
#: relative, beside the rounding of the values that are compared
SLACK = 1 + 1e-9
ROUNDING = 64 * torch.finfo(torch.float64).eps
FLOAT = torch.float64


@dataclass
class Case:
    """A module, how it is called, and what is known of its calls."""

    module: Any
    shape: tuple[int, ...]
    call: Callable[[Tensor], Tensor]
    known: dict[str, Any] = field(default_factory=dict)
    norms: tuple[str, ...] = NORMS


# -- norms and ratios -------------------------------------------------------


def size(v: Tensor, norm: str) -> Tensor:
    order = {"l2": 2, "l1": 1, "linf": math.inf}[norm]
    return torch.linalg.vector_norm(v.flatten(), order)


def ratio(case: Case, x: Tensor, y: Tensor, norm: str) -> Tensor:
    return size(case.call(x) - case.call(y), norm) / size(x - y, norm)


def jacobian(case: Case, x: Tensor) -> Tensor:
    found = torch.autograd.functional.jacobian(case.call, x)
    return found.reshape(-1, x.numel())


def steepest(matrix: Tensor, norm: str) -> Tensor:
    """The direction that the matrix moves the most."""
    if norm == "l2":
        return torch.linalg.svd(matrix).Vh[0]
    if norm == "l1":
        out = torch.zeros(matrix.size(1), dtype=matrix.dtype)
        out[matrix.abs().sum(0).argmax()] = 1
        return out
    sign = matrix[matrix.abs().sum(1).argmax()].sign()
    return torch.where(sign == 0, torch.ones_like(sign), sign)


def into(region: Ball | None, x: Tensor) -> Tensor:
    """The nearest point of the region."""
    if region is None:
        return x
    c = 0 if region.center is None else region.center
    length = torch.linalg.vector_norm(x - c, dim=-1, keepdim=True)
    return c + (x - c) * (region.radius / length).clamp(max=1.0)


def climb(case: Case, x: Tensor, y: Tensor, norm: str, steps: int):
    """Gradient ascent on the ratio."""
    region = case.known.get("region")
    points = [x.clone().requires_grad_(), y.clone().requires_grad_()]
    optimiser = torch.optim.Adam(points, lr=0.05 * float(size(x - y, "linf")))
    for _ in range(steps):
        found = ratio(case, *points, norm)
        if not found > 0:
            break
        optimiser.zero_grad()
        (-found.log()).backward()
        optimiser.step()
        with torch.no_grad():
            for p in points:
                p.copy_(into(region, p))
    return [p.detach() for p in points]


def pairs(case: Case, seed: int, spread: float, norm: str, steps: int):
    rng = torch.Generator().manual_seed(seed)
    region = case.known.get("region")

    def point(scale: float) -> Tensor:
        raw = torch.randn(case.shape, generator=rng, dtype=FLOAT)
        if region is None:
            return scale * raw
        c = 0 if region.center is None else region.center
        share = torch.rand((*case.shape[:-1], 1), generator=rng, dtype=FLOAT)
        raw = raw / torch.linalg.vector_norm(raw, dim=-1, keepdim=True)
        return c + region.radius * raw * share.sqrt()

    x, y = point(spread), point(spread)
    yield x, y
    if norm == "l2" and steps:
        yield climb(case, x, y, norm, steps)
        x = climb(case, x, into(region, x + 1e-2 * y), norm, steps)[0]
    way = steepest(jacobian(case, x), norm).reshape(case.shape)
    for far in (1e-3, 0.3):
        yield x, into(region, x + far * float(size(x, "linf")) * way)


def check(case: Case, seed: int, spread: float, steps: int = 0) -> None:
    for norm in case.norms:
        bound = lipschitz_bound(case.module, norm=norm, **case.known)
        assert bound.kind == "local" or "region" not in case.known
        for x, y in pairs(case, seed, spread, norm, steps):
            if torch.equal(x, y):
                continue
            with torch.no_grad():
                moved = (case.call(x), case.call(y))
            found = size(moved[0] - moved[1], norm)
            allowed = bound.constant * SLACK * size(x - y, norm)
            inexact = bound.constant * (size(x, norm) + size(y, norm))
            inexact = inexact + sum(size(m, norm) for m in moved)
            assert found <= allowed + ROUNDING * inexact, (norm, str(bound))


# -- modules ----------------------------------------------------------------


def activations() -> list[Callable[[], Any]]:
    plain = [kind for kinds in _KNOWN for kind in kinds]
    made = [(lambda k=k: k() if isinstance(k, type) else k) for k in plain]
    return [
        *made,
        nn.GELU,
        lambda: nn.GELU("tanh"),
        lambda: nn.LeakyReLU(0.3),
        lambda: nn.LeakyReLU(-2.0),
        lambda: nn.PReLU(init=-1.7),
        lambda: nn.ELU(1.6),
        lambda: nn.CELU(0.4),
        lambda: nn.Softplus(3.0),
        lambda: nn.Hardtanh(-0.5, 2.0),
        lambda: nn.Softshrink(0.2),
        lambda: nn.Softmax(-1),
        lambda: nn.Softmax(0),
        lambda: nn.Dropout(0.5),
        lambda: nn.Dropout1d(0.5),
        lambda: nn.Dropout2d(0.5),
        lambda: nn.Dropout3d(0.5),
    ]


ACTIVATIONS = activations()
acts = st.sampled_from(ACTIVATIONS)
#: without those that mix rows or need images
maps = st.sampled_from([*ACTIVATIONS[: len(ACTIVATIONS) - 6]])
seeds = st.integers(0, 2**20)
scales = st.sampled_from([0.2, 1.0, 4.0])
widths = st.integers(1, 5)


def shake(module: Any, seed: int, scale: float) -> Any:
    """Parameters and buffers that the seed decides."""
    if not isinstance(module, nn.Module):
        return module
    module = module.double().eval()
    rng = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in module.parameters():
            noise = torch.randn(p.shape, generator=rng, dtype=FLOAT)
            p.copy_(0.6 * scale * noise)
        for name, b in module.named_buffers():
            if "running_var" in name:
                b.copy_(torch.rand(b.shape, generator=rng, dtype=FLOAT))
                b.add_(0.01)
            elif "running_mean" in name:
                b.copy_(torch.randn(b.shape, generator=rng, dtype=FLOAT))
    return module


@st.composite
def dense(draw) -> Case:
    rows, a, b = draw(widths), draw(widths), draw(widths)
    act, other = draw(acts)(), draw(maps)()
    kind = draw(st.integers(0, 6))
    bias = draw(st.booleans())
    if kind == 0:
        module: Any = act
    elif kind == 1:
        module = nn.Linear(a, b, bias)
    elif kind == 2:
        layers = [nn.Linear(a, b, bias), nn.Linear(b, a)]
        others = [o for o in (act, other) if isinstance(o, nn.Module)]
        module = nn.Sequential(layers[0], *others, layers[1])
    elif kind == 3:
        weight = draw(st.sampled_from([None, 0.3, 1.0]))
        inner = nn.Sequential(nn.Linear(a, a), nn.Tanh(), nn.Linear(a, a))
        module = nn.Sequential(Residual(inner, weight), nn.Linear(a, b))
    elif kind == 4:
        module = MLP(
            [a, b, 3, a],
            act=draw(st.sampled_from(["relu", "tanh", "elu", None])),
            norm=draw(st.sampled_from(["batch_norm", "layer_norm", None])),
            plain_last=draw(st.booleans()),
            act_first=draw(st.booleans()),
            bias=bias,
        )
    elif kind == 5:
        outer = nn.Sequential(nn.Linear(a, b), nn.Flatten(0), nn.Identity())
        module = nn.Sequential(outer, nn.Unflatten(0, (rows, b)))
    else:
        module = nn.Sequential(nn.Linear(a, 2 * b), Residual(nn.SiLU(), 0.5))
    module = shake(module, draw(seeds), draw(scales))
    return Case(module, (rows, a), module)


@st.composite
def norms(draw) -> Case:
    rows, a = draw(st.integers(2, 5)), draw(st.integers(1, 5))
    affine = draw(st.booleans())
    eps = draw(st.sampled_from([1e-5, 1e-2, 1.0]))
    module: Any = draw(
        st.sampled_from(
            [
                lambda: nn.LayerNorm(a, eps, affine),
                lambda: nn.LayerNorm((rows, a), eps, affine),
                lambda: nn.RMSNorm(a, eps, affine),
                lambda: nn.RMSNorm(a, None, affine),
                lambda: nn.BatchNorm1d(a, eps, affine=affine),
                lambda: PyGBatchNorm(a, eps, affine=affine),
                lambda: PyGLayerNorm(a, eps, affine, mode="node"),
                lambda: PyGLayerNorm(a, eps, affine, mode="graph"),
            ]
        )
    )()
    chosen = NORMS
    if isinstance(module, PyGLayerNorm) and module.mode == "graph":
        chosen = ("l2",)
    if draw(st.booleans()):
        module = nn.Sequential(nn.Linear(a, a), module, nn.Tanh())
    module = shake(module, draw(seeds), draw(scales))
    return Case(module, (rows, a), module, norms=chosen)


@st.composite
def batch_norms(draw) -> Case:
    kind, shape = draw(
        st.sampled_from(
            [
                (nn.BatchNorm1d, (2, 3, 4)),
                (nn.BatchNorm2d, (1, 3, 2, 2)),
                (nn.BatchNorm3d, (1, 2, 2, 1, 3)),
            ]
        )
    )
    module = shake(kind(shape[1]), draw(seeds), draw(scales))
    return Case(module, shape, module)


@st.composite
def convolutions(draw) -> Case:
    two = draw(st.booleans())
    kernel = tuple(
        draw(st.integers(1, 4 if not two else 3)) for _ in range(1 + two)
    )
    dilation = tuple(draw(st.integers(1, 2)) for _ in kernel)
    stride = tuple(draw(st.integers(1, 2)) for _ in kernel)
    mode = draw(st.sampled_from(["zeros", "circular", "reflect", "replicate"]))
    size = tuple(
        draw(st.integers(1 + d * (k - 1), 4 + d * (k - 1)))
        for k, d in zip(kernel, dilation)
    )
    most = [n - (mode == "reflect") for n in size]
    padding: Any = tuple(draw(st.integers(0, min(3, m))) for m in most)
    if max(stride) == 1 and draw(st.booleans()):
        same = [d * (k - 1) for k, d in zip(kernel, dilation)]
        if all(s <= m for s, m in zip(same, most)):
            padding = "same"
    groups = draw(st.integers(1, 2))
    a, b = groups * draw(st.integers(1, 2)), groups * draw(st.integers(1, 2))
    module = (nn.Conv2d if two else nn.Conv1d)(
        a, b, kernel, stride, padding, dilation, groups, draw(st.booleans()),
        mode,
    )  # fmt: skip
    module = shake(module, draw(seeds), draw(scales))
    known = {}
    if draw(st.booleans()) or mode == "circular":
        known["input_size"] = size
    return Case(module, (1, a, *size), module, known)


# -- graphs -------------------------------------------------------------------


@dataclass
class Drawn:
    edges: Tensor
    nodes: int
    weight: Tensor | None
    flow: str = "source_to_target"
    sparse: bool = False
    undirected: bool = False

    def arguments(self) -> tuple[Any, ...]:
        """What the conv is called with."""
        if self.sparse:
            return (self.adjacency(),)
        return (self.edges,) if self.weight is None else self.weighted()

    def weighted(self) -> tuple[Any, ...]:
        return self.edges, self.weight

    def adjacency(self) -> Tensor:
        value = self.weight
        if value is None:
            value = torch.ones(self.edges.size(1), dtype=FLOAT)
        shape = (self.nodes, self.nodes)
        index = self.edges.flip(0)
        adj = torch.sparse_coo_tensor(index, value, shape).coalesce()
        return adj.to_sparse_csr()

    def known(self) -> dict[str, Any]:
        if self.sparse:
            return {"edge_index": self.adjacency()}
        return {
            "edge_index": self.edges,
            "num_nodes": self.nodes,
            "edge_weight": self.weight,
        }


@st.composite
def graphs(draw, weights=True, sparse=True, negative=False) -> Drawn:
    """Directed or not, with hubs, isolated nodes, self-loops, duplicates."""
    nodes = draw(st.integers(1, 7))
    node = st.integers(0, nodes - 1)
    edges = draw(st.lists(st.tuples(node, node), max_size=12))
    if draw(st.booleans()):
        hub = draw(node)
        star = [(hub, v) for v in range(nodes)]
        edges += star if draw(st.booleans()) else [(v, u) for u, v in star]
    undirected = draw(st.booleans())
    ends = torch.tensor(edges, dtype=torch.long).reshape(-1, 2).T.contiguous()
    weight = None
    if weights and draw(st.booleans()):
        rng = torch.Generator().manual_seed(draw(seeds))
        weight = 3 * torch.rand(ends.size(1), generator=rng, dtype=FLOAT)
        if negative and draw(st.booleans()):
            weight = weight - 1.5
    if undirected:
        ends = torch.cat([ends, ends.flip(0)], 1)
        weight = None if weight is None else torch.cat([weight, weight])
    is_sparse = sparse and draw(st.booleans())
    flow = "source_to_target"
    if not is_sparse and draw(st.booleans()):
        flow = "target_to_source"
    return Drawn(ends, nodes, weight, flow, is_sparse, undirected)


def on(graph: Drawn, conv: Any, width: int, **more: Any) -> Case:
    arguments = graph.arguments()
    return Case(
        conv,
        (graph.nodes, width),
        lambda x: conv(x, *arguments),
        {**graph.known(), **more},
    )


@st.composite
def weighted_convs(draw) -> Case:
    """Convs that take edge weights."""
    kind = draw(st.integers(0, 7))
    negative = kind in (1, 2, 3)
    graph = draw(graphs(negative=negative))
    width = draw(st.integers(1, 4))
    flow = {"flow": graph.flow}
    loops = draw(st.booleans())
    aggr = draw(st.sampled_from(["sum", "mean", "max"]))
    conv: Any
    if kind == 0:
        improved = draw(st.booleans())
        out = draw(st.integers(1, 4))
        conv = GCNConv(width, out, improved, add_self_loops=loops, **flow)
    elif kind == 1:
        conv = GCNConv(
            width, width, normalize=False, add_self_loops=False, **flow
        )
    elif kind == 2:
        conv = GraphConv(width, draw(st.integers(1, 4)), aggr, **flow)
    elif kind == 3:
        root = draw(st.sampled_from([None, "sum", "self_loop"]))
        aggr = "sum" if root == "self_loop" else aggr
        conv = SimpleConv(aggr, root, **flow)
    elif kind == 4:
        hops = draw(st.integers(1, 3))
        conv = SGConv(width, width, hops, add_self_loops=loops, **flow)
    elif kind == 5:
        alpha = draw(st.sampled_from([0.0, 0.1, 0.9]))
        conv = APPNP(draw(st.integers(1, 4)), alpha, 0.5,
                     add_self_loops=loops, **flow)  # fmt: skip
    else:
        conv = LGConv(draw(st.booleans()), **flow)
    conv = shake(conv, draw(seeds), draw(scales))
    return on(graph, conv, width)


@st.composite
def plain_convs(draw) -> Case:
    """Convs that take none."""
    graph = draw(graphs(weights=False))
    if graph.sparse and draw(st.booleans()):
        rng = torch.Generator().manual_seed(draw(seeds))
        graph.weight = torch.randn(
            graph.edges.size(1), generator=rng, dtype=FLOAT
        )
    width, out = draw(st.integers(1, 4)), draw(st.integers(1, 4))
    aggr = draw(st.sampled_from(["sum", "mean", "max"]))
    conv: Any
    if draw(st.booleans()):
        conv = SAGEConv(
            width, out, aggr, root_weight=draw(st.booleans()),
            project=draw(st.booleans()), flow=graph.flow,
        )  # fmt: skip
    else:
        act = draw(maps)()
        after = [act] if isinstance(act, nn.Module) else []
        inner = nn.Sequential(nn.Linear(width, out), *after)
        eps = draw(st.sampled_from([0.0, 0.5, -1.5]))
        conv = GINConv(inner, eps, draw(st.booleans()), flow=graph.flow)
        if draw(st.booleans()):
            conv.aggr_module = SAGEConv(1, 1, aggr).aggr_module
            conv.aggr = aggr
    conv = shake(conv, draw(seeds), draw(scales))
    return on(graph, conv, width)


@st.composite
def attention_convs(draw) -> Case:
    graph = draw(graphs(weights=False, sparse=False))
    width = draw(st.integers(1, 3))
    conv = GATConv(
        width, draw(st.integers(1, 3)), draw(st.integers(1, 3)),
        draw(st.booleans()), draw(st.sampled_from([0.0, 0.2, 1.0, -0.7])),
        dropout=0.5, add_self_loops=draw(st.booleans()), flow=graph.flow,
    )  # fmt: skip
    conv = shake(conv, draw(seeds), draw(scales))
    region = draw(balls(graph.nodes, width))
    return on(graph, conv, width, region=region)


@st.composite
def balls(draw, rows: int, width: int) -> Ball:
    center = None
    if draw(st.booleans()):
        rng = torch.Generator().manual_seed(draw(seeds))
        center = torch.randn(rows, width, generator=rng, dtype=FLOAT)
    return Ball(draw(st.sampled_from([0.1, 1.0, 3.0])), center)


@st.composite
def picard(draw) -> Case:
    """P of a PicardConv is activation(conv(x) + f)."""
    case = draw(st.one_of(weighted_convs(), plain_convs()))
    width = case.shape[1]
    conv = case.module
    out = getattr(conv, "out_channels", width)
    if isinstance(conv, GINConv):
        out = conv.nn[0].out_features
    if out != width:
        return case
    act = draw(maps)()
    act = act.double() if isinstance(act, nn.Module) else act
    f = draw(st.sampled_from([0.0, 2.0]))
    module = PicardConv(conv, inject=bool(f), activation=act).double().eval()
    inner = case.call
    return Case(
        module, case.shape, lambda x: act(inner(x) + f), case.known, NORMS
    )


@st.composite
def blocks(draw) -> Case:
    """Of PIGN, with weights that were moved."""
    graph = draw(graphs(weights=False, sparse=False))
    graph.flow = "source_to_target"
    conv = draw(st.sampled_from(["gcn", "sage", "gat"]))
    norm = draw(st.sampled_from([None, "layer_norm", "batch_norm"]))
    model = PIGN(
        3, 4, 2, conv, beta=1.0, inner_norm=norm, activation="tanh",
        inner_dropout=0.3,
    )  # fmt: skip
    shake(model, draw(seeds), 1.0)
    operator = model.block.conv
    more, chosen = {}, NORMS
    if conv == "gat":
        more, chosen = {"region": draw(balls(graph.nodes, 4))}, ("l2",)
    if norm == "layer_norm":
        chosen = ("l2",)
    return Case(
        model.block,
        (graph.nodes, 4),
        lambda x: torch.tanh(operator(x, graph.edges) + 0.5),
        {**graph.known(), **more},
        chosen,
    )


# -- attention ----------------------------------------------------------------


@st.composite
def attention(draw) -> Case:
    heads = draw(st.integers(1, 2))
    width, rows = heads * draw(st.integers(1, 2)), draw(st.integers(1, 5))
    kind = draw(st.integers(0, 4))
    known: dict[str, Any] = {"num_nodes": rows}
    region = draw(balls(rows, width))
    module: Any
    if kind == 0:
        bias = draw(st.booleans())
        module = nn.MultiheadAttention(width, heads, 0.1, bias)
        known["region"] = region
    elif kind < 3:
        module = nn.TransformerEncoderLayer(
            width,
            heads,
            draw(st.integers(1, 5)),
            0.1,
            draw(st.sampled_from([F.relu, F.gelu])),
            draw(st.sampled_from([1e-5, 1e-1])),
            batch_first=True,
            norm_first=kind == 1,
        )
        if kind == 2:
            known["region"] = region
        if draw(st.booleans()):
            module = nn.TransformerEncoder(
                module, 2, nn.LayerNorm(width), enable_nested_tensor=False
            )
    elif kind == 3:
        module = L2Attention(width, heads, draw(st.booleans()))
    else:
        module = L2TransformerLayer(width, heads, 3, 0.4)
    module = shake(module, draw(seeds), draw(scales))

    def call(x: Tensor) -> Tensor:
        if isinstance(module, nn.MultiheadAttention):
            return module(x[:, None], x[:, None], x[:, None])[0][:, 0]
        return module(x[None])[0]

    return Case(module, (rows, width), call, known, NORMS)


CASES = {
    "dense": dense(),
    "norms": norms(),
    "batch norms": batch_norms(),
    "convolutions": convolutions(),
    "weighted convs": weighted_convs(),
    "plain convs": plain_convs(),
    "attention convs": attention_convs(),
    "picard": picard(),
    "blocks": blocks(),
    "attention": attention(),
}
#: modules do not get simpler by shrinking
PHASES = [Phase.explicit, Phase.generate]
spreads = st.sampled_from([1e-4, 1.0, 10.0])


@pytest.mark.parametrize("name", CASES)
def test_never_exceeded(name):
    @settings(max_examples=12, phases=PHASES)
    @given(case=CASES[name], seed=seeds, spread=spreads)
    def law(case, seed, spread):
        check(case, seed, spread)

    law()


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_never_exceeded_in_many_cases(name):
    """At least 2,000 in all, with pairs found by gradient ascent."""

    @settings(max_examples=250, phases=PHASES)
    @given(case=CASES[name], seed=seeds, spread=spreads)
    def law(case, seed, spread):
        check(case, seed, spread, steps=15)

    law()


def test_every_rule_has_a_case():
    """A new rule without one would go unnoticed here."""
    load_rules()
    elsewhere = {
        "_Given", "tuple", "Sum",  # inside of other rules
        "_relu",  # inside of SAGEConv
        "Hardshrink", "Threshold",  # infinite
    }  # fmt: skip
    seen: set[Any] = set()

    def visit(part: Any) -> None:
        seen.add(type(part) if isinstance(part, nn.Module) else part)
        if isinstance(part, nn.Module):
            for child in part.modules():
                seen.add(type(child))
            extra = getattr(part, "activation", None)
            if extra is not None:
                visit(extra)

    for cases in CASES.values():

        @settings(max_examples=60, phases=PHASES)
        @given(case=cases)
        def collect(case):
            visit(case.module)

        collect()
    for make in ACTIVATIONS:
        visit(make())
    # adapters bring rules of their own, and are tested beside them
    others = ("test", "torch_picard.anie", "torch_picard.vit")
    unseen = {
        k for k in _RULES if not any(o in str(k.__module__) for o in others)
    } - seen
    assert not {k.__name__ for k in unseen} - elsewhere


# -- equality -----------------------------------------------------------------


def reached(case: Case, x: Tensor, y: Tensor, norm: str = "l2") -> float:
    """The share of the bound that a pair uses up."""
    bound = lipschitz_bound(case.module, norm=norm, **case.known)
    return ratio(case, x, y, norm).item() / float(bound.constant)


def star(leaves: int) -> Tensor:
    """Node 0 sends to all the others and to itself."""
    return torch.stack(
        [torch.zeros(leaves + 1, dtype=torch.long), torch.arange(leaves + 1)]
    )


def identity(lin: Any) -> None:
    with torch.no_grad():
        lin.weight.copy_(torch.eye(lin.weight.size(0)))
        if lin.bias is not None:
            lin.bias.zero_()


@pytest.mark.parametrize(
    "norm, constant", [("l2", math.sqrt(10)), ("l1", 10.0), ("linf", 1.0)]
)
def test_maximum_over_a_star(norm, constant):
    """A hub that sends to 9 leaves and itself: sqrt(10) exactly."""
    conv = SAGEConv(2, 2, "max", root_weight=False).double()
    identity(conv.lin_l)
    graph = Drawn(star(9), 10, None)
    case = on(graph, conv, 2)
    x = torch.zeros(10, 2, dtype=FLOAT)
    y = x.clone()
    y[0, 0] = 1.0
    bound = lipschitz_bound(conv, norm=norm, **case.known)
    assert bound.constant == pytest.approx(constant, rel=1e-12)
    assert reached(case, x, y, norm) == pytest.approx(1, abs=1e-12)


@given(graph=graphs(sparse=False), improved=st.booleans())
@settings(max_examples=25)
def test_gcn_of_an_undirected_graph_has_norm_1(graph, improved):
    """With weights and isolated nodes, too; attained at sqrt(deg)."""
    ends = torch.cat([graph.edges, graph.edges.flip(0)], 1)
    weight = graph.weight
    if weight is not None:
        weight = torch.cat([weight, weight])
        keep = ends[0] != ends[1]  # PyG keeps one of two self-loops
        ends, weight = ends[:, keep], weight[keep]
    else:
        ends = ends[:, ends[0] != ends[1]]
    conv = GCNConv(1, 1, improved, bias=False).double()
    identity(conv.lin)
    found = lipschitz_bound(conv, ends, graph.nodes, edge_weight=weight)
    assert found.constant == pytest.approx(1, abs=1e-6)
    assert found.constant >= 1
    # PyG has the loops of weight 2 only where there are weights
    loop = 2.0 if improved and weight is not None else 1.0
    degree = torch.full((graph.nodes,), loop, dtype=FLOAT)
    ones = torch.ones(ends.size(1), dtype=FLOAT)
    degree.index_add_(0, ends[1], ones if weight is None else weight)
    x = degree.sqrt()[:, None]
    args = (ends,) if weight is None else (ends, weight)
    torch.testing.assert_close(conv(x, *args), x)


def test_gcn_of_a_large_graph_has_norm_1():
    rng = torch.Generator().manual_seed(0)
    ends = torch.randint(3000, (2, 8000), generator=rng)
    ends = torch.cat([ends, ends.flip(0)], 1)
    conv = GCNConv(1, 1, bias=False)
    identity(conv.lin)
    found = lipschitz_bound(conv, ends, 3100).constant
    assert 1 <= found <= 1 + 1e-6


def test_uniform_attention():
    """With W_Q = 0 a token takes the mean of the values: |W_V| is reached
    where all tokens move alike (A1)."""
    n, width = 5, 4
    module = nn.MultiheadAttention(width, 1, bias=False).double()
    with torch.no_grad():
        module.in_proj_weight[:width] = 0
        identity(module.out_proj)
    value = module.in_proj_weight[2 * width :].detach()

    def call(x):
        return module(x[:, None], x[:, None], x[:, None])[0][:, 0]

    case = Case(module, (n, width), call)
    x = torch.zeros(n, width, dtype=FLOAT)
    y = steepest(value, "l2").expand(n, width)
    norm = float(torch.linalg.matrix_norm(value, 2))
    assert ratio(case, x, y, "l2").item() == pytest.approx(norm)
    bound = lipschitz_bound(module, num_nodes=n, region=Ball(1.0)).constant
    # of one row of P, sqrt(n) may be needed: it is where one token has all
    assert norm <= bound <= math.sqrt(n) * norm * (1 + 1e-9)


def test_an_affine_map_reaches_its_bound():
    """F1: u = x + lam * int x t u dt, on Gauss nodes: rank one, |lam|/3 in
    the norm of the weights' roots."""
    lam, n = 2.0, 12
    nodes, weights = map(torch.from_numpy, legendre(n))
    t, w = (nodes + 1) / 2, weights / 2
    root = w.sqrt()
    lin = nn.Linear(n, n).double()
    with torch.no_grad():
        lin.weight.copy_(lam * torch.outer(root * t, root * t))
        lin.bias.copy_(root * t)
    found = lipschitz_bound(lin)
    assert found.constant == pytest.approx(lam / 3, rel=1e-12)
    case = Case(lin, (1, n), lin)
    x = torch.zeros(1, n, dtype=FLOAT)
    assert reached(case, x, (root * t)[None]) == pytest.approx(1, abs=1e-12)
    solution = x
    for k in range(60):
        solution = lin(solution)
        if k == 0:
            first = float(size(solution, "l2"))
    truth = (root * t / (1 - lam / 3))[None]
    torch.testing.assert_close(solution, truth, rtol=1e-9, atol=1e-9)
    # B1 with equality
    assert first / (1 - found.constant) == pytest.approx(
        float(size(truth, "l2"))
    )


@pytest.mark.parametrize("norm", NORMS)
@given(seed=seeds, rows=widths, cols=widths)
@settings(max_examples=5)
def test_a_linear_map_reaches_its_bound(norm, seed, rows, cols):
    lin = shake(nn.Linear(rows, cols), seed, 1.0)
    case = Case(lin, (3, rows), lin)
    x = torch.zeros(3, rows, dtype=FLOAT)
    way = steepest(jacobian(case, x), norm).reshape(3, rows)
    assert reached(case, x, x + way, norm) == pytest.approx(1, abs=1e-9)


@pytest.mark.parametrize("dims", [1, 2])
@pytest.mark.parametrize("norm", NORMS)
def test_a_circular_convolution_reaches_its_bound(dims, norm):
    kind = (nn.Conv1d, nn.Conv2d)[dims - 1]
    conv = kind(2, 3, 3, padding=2, dilation=2, padding_mode="circular")
    conv = shake(conv, 3, 1.0)
    sizes = (6, 5)[:dims]
    case = Case(conv, (1, 2, *sizes), conv, {"input_size": sizes})
    x = torch.zeros(case.shape, dtype=FLOAT)
    way = steepest(jacobian(case, x), norm).reshape(case.shape)
    assert reached(case, x, x + way, norm) == pytest.approx(1, abs=1e-9)


@pytest.mark.parametrize("affine", [False, True])
def test_layer_norm_reaches_its_bound(affine):
    """Where a row is nearly constant; nothing useful passes through it."""
    norm = nn.LayerNorm(4, elementwise_affine=affine).double()
    case = Case(norm, (1, 4), norm)
    x = torch.ones(1, 4, dtype=FLOAT)
    y = x + 1e-7 * torch.tensor([1.0, -1.0, 0.0, 0.0], dtype=FLOAT)
    assert lipschitz_bound(norm).constant == pytest.approx(316.2, rel=1e-3)
    assert reached(case, x, y) == pytest.approx(1, abs=1e-6)
