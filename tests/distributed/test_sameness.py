"""What differs between processes ends all of them, by name."""

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch_geometric import nn as pyg

from torch_picard import PIGN, Anderson, Implicit, PicardConv
from torch_picard.distributed import PartitionedGraph
from torch_picard.distributed.sameness import Facts, agree, bits

WIDTH, NODES = 4, 12


def ring():
    node = torch.arange(NODES)
    both = torch.stack([node, (node + 1) % NODES])
    return torch.cat([both, both.flip(0)], dim=1)


class Case:
    """A solve of which something may be another one in the last process."""

    def __init__(self, rank, world):
        self.edges = ring()
        self.graph = PartitionedGraph(self.edges, NODES)
        self.other = rank == world - 1
        torch.manual_seed(0)
        self.conv = PicardConv(
            pyg.GCNConv(WIDTH, WIDTH), inject=True, activation="tanh"
        )
        self.x = torch.ones(NODES, WIDTH)[self.graph.owned]
        self.weight = torch.ones(self.edges.size(1))
        self.args, self.options = (), {}

    def run(self):
        return self.conv(self.x, self.graph, *self.args, **self.options)


def weights(case):
    with torch.no_grad():
        case.conv.conv.lin.weight[1, 2] += case.other


def weights_of_another_seed(case):
    torch.manual_seed(int(case.other))
    case.conv.reset_parameters()


def weights_that_changed_sign(case):
    case.conv.double()
    case.x = case.x.double()
    with torch.no_grad():
        case.conv.conv.lin.weight.mul_(-1 if case.other else 1)


def a_buffer(case):
    case.conv.conv.register_buffer("scale", torch.tensor([case.other]))


def dtype(case):
    if case.other:
        case.conv.double()
        case.x = case.x.double()


def half(case):
    if case.other:
        case.conv.bfloat16()
        case.x = case.x.bfloat16()


def dtype_of_the_state_alone(case):
    if case.other:
        case.x = case.x.double()


def edge_weight_of_one(case):
    if case.other:
        case.args = (case.weight,)


def edge_weight_by_name(case):
    case.options = {"edge_weight": case.weight + case.other}


def gradient_of_edge_weight(case):
    case.args = (case.weight.requires_grad_(case.other),)


def gradient_of_x(case):
    case.x.requires_grad_(case.other)


def no_grad(case):
    torch.set_grad_enabled(not case.other)


def rows(case):
    if case.other:
        case.x = case.x[1:]


def nothing_of_a_tensor(case):
    if case.other:
        case.x = None


def batch(case):
    case.options = {"batch": None}
    if case.other:
        case.options = {"batch": torch.zeros(len(case.x), dtype=torch.long)}


def start(case):
    case.options = {"start": case.x.double() if case.other else case.x}


def max_iter(case):
    case.conv.max_iter += case.other


def rtol(case):
    case.conv.rtol = 0.0 if case.other else 1e-4


def method(case):
    case.conv.method = Anderson() if case.other else None


def gradient(case):
    case.conv.gradient = Implicit() if case.other else None


def inject(case):
    case.conv.inject = not case.other


def training(case):
    case.conv.train(case.other)


def another_conv(case):
    if case.other:
        case.conv.conv = pyg.SAGEConv(WIDTH, WIDTH)


def a_frozen_parameter(case):
    case.conv.conv.bias.requires_grad_(not case.other)


def an_encoder(case):
    case.conv = PIGN(WIDTH, WIDTH, 2)
    with torch.no_grad():
        case.conv.encoder.bias[0] += case.other


def a_model(case):
    model = nn.ModuleList([case.conv, nn.Linear(2, 2)])
    with torch.no_grad():
        model[1].bias[0] = 1.0 * case.other
    conv = case.conv

    def run():
        with case.graph.comparing(model):
            conv(case.x, case.graph)

    case.run = run


DIFFERENT = {
    weights: "conv.lin.weight (torch.float32 [4, 4] with a gradient, other "
    "numbers in process 1 than in 0) must be the same in every process",
    weights_of_another_seed: "conv.lin.weight",
    weights_that_changed_sign: "conv.lin.weight",
    a_buffer: "conv.scale (torch.bool [1], other numbers",
    dtype: "x (torch.float32 [n, 4] in process 0, torch.float64 [n, 4] in 1)",
    half: "torch.bfloat16 [n, 4] in 1)",
    dtype_of_the_state_alone: "x (torch.float32 [n, 4] in process 0, ",
    edge_weight_of_one: "argument 0 of conv (nothing in process 0, "
    "torch.float32 [24] in 1)",
    edge_weight_by_name: "edge_weight (torch.float32 [24], other numbers",
    gradient_of_edge_weight: "torch.float32 [24] with a gradient in 1)",
    gradient_of_x: "torch.float32 [n, 4] with a gradient in 1)",
    no_grad: "torch.is_grad_enabled() (True in process 0, False in 1)",
    rows: "torch.float32, not one row a node there in 1)",
    nothing_of_a_tensor: "x (torch.float32 [n, 4] in process 0, None in 1)",
    batch: "batch (None in process 0, torch.int64 [n] in 1)",
    start: "start (torch.float32 [n, 4] in process 0, torch.float64 [n, 4]",
    max_iter: "max_iter (16 in process 0, 17 in 1)",
    rtol: "rtol (0.0001 in process 0, 0.0 in 1)",
    method: "method (None in process 0, Anderson(",
    gradient: "gradient (None in process 0, Implicit(",
    inject: "inject (True in process 0, False in 1)",
    training: "the modules (",
    another_conv: "the modules (",
    a_frozen_parameter: "conv.bias (torch.float32 [4] with a gradient in ",
    an_encoder: "encoder.bias (torch.float32 [4] with a gradient, other",
    a_model: "1.bias (torch.float32 [2] with a gradient, other numbers",
}


def told(call):
    try:
        call()
    except ValueError as error:
        return str(error)
    return "no error"


def different(rank, world):
    errors = []
    for change in DIFFERENT:
        case = Case(rank, world)
        change(case)
        errors.append(told(case.run))
        torch.set_grad_enabled(True)
    return errors


def test_what_differs_is_named_in_every_process(processes):
    first, second = processes(2, different, seconds=20)
    for change, one, other in zip(DIFFERENT, first, second):
        assert DIFFERENT[change] in one, (change.__name__, one)
        assert one == other


def equal(rank, world):
    """Nothing differs, but what belongs to a process alone."""
    counts = []
    reduce = dist.all_reduce

    def counting(*args, **kwargs):
        counts[-1] += 1
        return reduce(*args, **kwargs)

    for change in DIFFERENT:
        case = Case(rank, world)
        case.other = False
        change(case)
        picard = getattr(case.conv, "block", case.conv)
        picard.rtol, picard.max_iter = 0.0, 3
        counts.append(0)
        dist.all_reduce = counting
        case.run()
        dist.all_reduce = reduce
    return counts


def test_what_is_equal_is_no_error_and_costs_one_reduction(processes):
    """Beside those of the residuals of 3 evaluations."""
    for counts in processes(2, equal, seconds=20):
        assert counts == [1 + 3] * len(DIFFERENT)


def mended(rank, world):
    """By what the error recommends."""
    case = Case(rank, world)
    weights_of_another_seed(case)
    before = told(case.run)
    for t in (*case.conv.parameters(), *case.conv.buffers()):
        dist.broadcast(t.data, 0)
    return before, told(case.run)


def test_the_error_says_how_to_mend_it(processes):
    for before, after in processes(3, mended, seconds=20):
        assert "in process 2 than in 0" in before
        assert "send them from one process" in before
        assert after == "no error"


def forgotten(rank, world):
    """Gradients that were not summed."""
    case = Case(rank, world)
    optimizer = torch.optim.SGD(case.conv.parameters(), 1e-3)
    case.x = case.x * torch.arange(NODES)[case.graph.owned][:, None]
    errors = []
    for _ in range(2):
        errors.append(told(lambda: case.run().sum().backward()))
        optimizer.step()
    return errors


def test_gradients_that_were_not_summed_are_noticed(processes):
    for first, second in processes(2, forgotten, seconds=20):
        assert first == "no error"
        assert "sum the gradients before every step" in second


def graphs(rank, world):
    other = rank == world - 1
    edges, owner = ring(), torch.arange(NODES) % world
    calls = [
        lambda: PartitionedGraph(edges.roll(int(other), 1), NODES),
        lambda: PartitionedGraph(edges, NODES + other),
        lambda: PartitionedGraph(edges + other, NODES),
        lambda: PartitionedGraph(edges.float() if other else edges, NODES),
        lambda: PartitionedGraph(edges, NODES, owner=owner.roll(int(other))),
        lambda: PartitionedGraph(edges, NODES, owner=owner if other else None),
        lambda: PartitionedGraph(edges, NODES, owner=owner[other:]),
        lambda: Case(rank, world).graph.gather(torch.ones(6)[other:]),
    ]
    return [told(call) for call in calls]


def test_graphs_that_differ_are_named_in_every_process(processes):
    want = [
        "edge_index (torch.int64 [2, 24], other numbers",
        "num_nodes (12 in process 0, 13 in 1)",
        "the graph (sound in process 0, edge_index must be in 0..11, got 1..",
        "the graph (sound in process 0, edge_index must be a LongTensor [2, ",
        "owner (torch.int64 [12], other numbers",
        "owner (None in process 0, torch.int64 [12] in 1)",
        "the graph (sound in process 0, owner must be a LongTensor [12], got",
        "not one row a node there",
    ]
    first, second = processes(2, graphs, seconds=20)
    for text, one, other in zip(want, first, second):
        assert text in one and one == other


def outside(rank, world):
    group = dist.new_group([0])
    if rank == 0:
        return told(lambda: PartitionedGraph(ring(), NODES, group))
    return told(lambda: PartitionedGraph(ring(), NODES, group=group))


def test_a_process_outside_the_group_is_told(processes):
    inside, told_outside = processes(2, outside, seconds=20)
    assert inside == "no error"
    assert "group must have this process in it" in told_outside


def lazy(rank, world):
    case = Case(rank, world)
    case.conv = PicardConv(pyg.SAGEConv(-1, WIDTH))
    before = told(case.run)
    torch.manual_seed(0)
    if not case.other:
        case.conv(torch.ones(NODES, WIDTH), case.edges)
    between = told(case.run)
    if case.other:
        case.conv(torch.ones(NODES, WIDTH), case.edges)
    return before, between, told(case.run)


def test_weights_that_are_yet_to_be_drawn(processes):
    for before, between, after in processes(2, lazy, seconds=20):
        assert "conv.lin_l.weight is not initialised: call the mod" in before
        assert "not initialised in 1)" in between
        assert after == "no error"


@pytest.mark.parametrize(
    "dtype",
    [torch.float64, torch.float32, torch.bfloat16, torch.bool, torch.uint8],
)
def test_every_number_and_its_place_is_in_the_bits(dtype):
    """In all of several chunks."""
    draw = torch.Generator().manual_seed(0)
    t = torch.randint(2, (37,), generator=draw).to(dtype)
    known = {int(bits(t, 8))}
    for i in range(37):
        changed = t.clone()
        changed[i] = 1 - changed[i].to(torch.int)
        known.add(int(bits(changed, 8)))
    assert len(known) == 38
    swapped = t.clone()
    i, j = int(t.to(torch.int).argmin()), int(t.to(torch.int).argmax())
    swapped[[i, j]] = t[[j, i]]
    assert int(bits(swapped, 8)) != int(bits(t, 8))
    assert int(bits(t.reshape(37, 1).expand(37, 2)[:, 1], 8)) == int(
        bits(t, 8)
    )


def test_bits_of_the_last_place_and_of_nan_count():
    t = torch.full((9,), 0.1)
    moved = t.clone()
    moved[4] = torch.nextafter(t[4], torch.tensor(1.0))
    assert int(bits(t)) != int(bits(moved))
    t[0] = moved[0] = torch.nan
    moved[4] = t[4]
    assert int(bits(t)) == int(bits(moved))


def named(rank, world):
    facts = Facts()
    for name in "abcde":
        facts.say(name, f"{rank} at 0x{rank:x}7f")
    same = Facts()
    same.say("f", f"<function at 0x{rank:x}7f>")
    agree(same, None, torch.device("cpu"))
    return told(lambda: agree(facts, None, torch.device("cpu")))


def test_the_first_of_many_are_named(processes):
    for error in processes(2, named, seconds=20):
        assert "a (0 in process 0, 1 in 1), b (" in error
        assert "and 2 more must be" in error
        assert "d (" not in error and "0x" not in error
