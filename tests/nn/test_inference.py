"""The full-graph solve, chunk by chunk."""

import os
import signal
import subprocess
import sys
import textwrap

import pytest
import torch
from torch import nn
from torch_geometric import nn as pyg
from torch_geometric.data import Data

from benchmarks import _memory
from tests.nn.graphs import ACROSS, FAR, centred
from torch_picard import (
    PIGN,
    Anderson,
    ConvergenceError,
    ConvergenceWarning,
    PicardConv,
    picard_inference,
)
from torch_picard.nn.stored import Stored

WIDTH = 6


def graph(nodes=60, edges=150, seed=0, weight=False):
    draw = torch.Generator().manual_seed(seed)
    edge_index = torch.randint(nodes, (2, edges), generator=draw)
    data = Data(
        x=torch.randn(nodes, WIDTH, generator=draw), edge_index=edge_index
    )
    if weight:
        data.edge_weight = torch.rand(edges, generator=draw)
    return data


def picard(make, **options):
    torch.manual_seed(0)
    options = {"rtol": 1e-6, "max_iter": 100, "inject": True} | options
    block = PicardConv(make(), activation="tanh", **options).eval()
    with torch.no_grad():
        for p in block.parameters():
            p.mul_(0.4)
    return block


CONVS = {
    "GCN": lambda: pyg.GCNConv(WIDTH, WIDTH),
    "SAGE": lambda: pyg.SAGEConv(WIDTH, WIDTH),
    "GAT": lambda: pyg.GATConv(WIDTH, WIDTH),
    "LG": lambda: pyg.LGConv(),
    "ClusterGCN": lambda: pyg.ClusterGCNConv(WIDTH, WIDTH),
}


@pytest.mark.parametrize("name", CONVS)
@pytest.mark.parametrize("weight", [False, True])
def test_equals_the_solve_in_memory(name, weight):
    if weight and name not in ("GCN", "LG"):
        return
    data, block = graph(weight=weight), picard(CONVS[name])
    args = (data.edge_weight,) if weight else ()
    with torch.no_grad():
        want = block(data.x, data.edge_index, *args)
    for budget in (None, 40_000):
        got = picard_inference(
            block, data, memory_budget=budget, progress=False
        )
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "options",
    [
        {"rtol": 0.0, "max_iter": 5},
        {"rtol": 1e-12, "max_iter": 7},
        {"inject": False, "alpha": 0.3},
        {"inject": nn.Linear(WIDTH, WIDTH)},
        {"alpha": 0.0, "atol": 1e-3, "rtol": 0.0},
    ],
)
def test_the_options_of_the_solve(options):
    data, block = graph(), picard(CONVS["GCN"], **options)
    with torch.no_grad():
        want = block(data.x, data.edge_index)
    got = picard_inference(block, data, memory_budget=40_000, progress=False)
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-6)


def several():
    """Graphs that stop by themselves, at different times."""
    parts = [graph(20, 50, seed) for seed in range(3)]
    edges = [d.edge_index + 20 * i for i, d in enumerate(parts)]
    return Data(
        x=torch.cat([10.0**i * d.x for i, d in enumerate(parts)]),
        edge_index=torch.cat(edges, 1),
        batch=torch.arange(3).repeat_interleave(20),
    )


def pign():
    torch.manual_seed(0)
    return PIGN(
        WIDTH, 8, 3, conv="gat", rtol=1e-4, max_iter=200, norm="BatchNorm"
    ).eval()


def test_pign_and_graphs_that_stop_by_themselves():
    data, model = several(), pign()
    with torch.no_grad():
        want, solution = model(
            data.x, data.edge_index, batch=data.batch, return_solution=True
        )
    assert len(set(solution.iterations.tolist())) > 1
    got = picard_inference(model, data, memory_budget=60_000, progress=False)
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)


class Wide(pyg.MessagePassing):
    """A user's own, with messages much wider than a state."""

    def __init__(self, width, times):
        super().__init__(aggr="sum")
        self.up = nn.Linear(2 * width, times * width)
        self.down = nn.Linear(times * width, width)

    def forward(self, x, edge_index):
        return self.propagate(edge_index, x=x)

    def message(self, x_i, x_j):
        return self.down(self.up(torch.cat([x_i, x_j], 1)).relu())


LARGE = {
    "GCN": lambda c: pyg.GCNConv(c, c),
    "GAT": lambda c: pyg.GATConv(c, c, heads=8, concat=False),
    "GATv2": lambda c: pyg.GATv2Conv(c, c, heads=8, concat=False),
    "GATv2 edges": lambda c: pyg.GATv2Conv(
        c, c, heads=8, concat=False, edge_dim=24
    ),
    "GATv2 concat": lambda c: pyg.GATv2Conv(c, c // 8, heads=8, edge_dim=5),
    "Transformer": lambda c: pyg.TransformerConv(c, c, heads=8, concat=False),
    "Transformer edges": lambda c: pyg.TransformerConv(
        c, c // 8, heads=8, edge_dim=5, beta=True
    ),
    "weights of edges": lambda c: pyg.NNConv(c, c, nn.Linear(5, c * c)),
    "one's own": lambda c: Wide(c, 20),
    "padded": lambda c: pyg.SAGEConv(
        c, c, aggr=pyg.aggr.SetTransformerAggregation(c, heads=4)
    ),
}


@torch.no_grad()
@pytest.mark.parametrize("name", LARGE)
def test_peak_memory_stays_within_the_budget(name):
    nodes, width, budget = 600, 32, 1_200_000
    draw = torch.Generator().manual_seed(0)
    source = torch.randint(nodes, (5 * nodes,), generator=draw)
    target = torch.randint(nodes, (5 * nodes,), generator=draw).sort().values
    data = Data(
        x=torch.randn(nodes, width, generator=draw),
        edge_index=torch.stack([source, target]),
    )
    torch.manual_seed(0)
    conv = LARGE[name](width)
    args = ()
    dim = getattr(conv, "edge_dim", None) or 5
    if getattr(conv, "edge_dim", None) or hasattr(conv, "nn"):
        data.edge_attr = torch.randn(5 * nodes, dim, generator=draw)
        args = (data.edge_attr,)
    block = PicardConv(conv, inject=True, max_iter=2, rtol=0.0).eval()
    found = []

    def solve(memory_budget):
        found.append(
            picard_inference(
                block, data, memory_budget=memory_budget, progress=False
            )
        )

    states = 3 * data.x.nbytes  # in files
    more = data.x.nbytes + 120 * (data.num_edges + nodes)
    one = _memory.peak(lambda: solve(None)) * 2**20
    many = _memory.peak(lambda: solve(budget)) * 2**20
    assert many <= budget + states + more
    assert one > 1.2 * budget + states + more or name == "GCN"
    want = block(data.x, data.edge_index, *args)
    for got in found:
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)


LIMITED = """
    import resource, sys, torch
    from torch_geometric.data import Data
    from torch_geometric.nn import GATv2Conv
    from torch_picard import PIGN, picard_inference

    torch.set_num_threads(1)
    nodes, way, path, conv = 150_000, *sys.argv[1:]
    width, count = 128, 2
    if conv == "gatv2":
        width, count = 64, 1
        conv = lambda c: GATv2Conv(c, c, heads=8, concat=False)
    draw = torch.Generator().manual_seed(0)
    data = Data(
        x=torch.from_file(path, shared=True, size=width * nodes).reshape(
            nodes, width
        ),
        edge_index=torch.randint(nodes, (2, nodes), generator=draw),
    )
    data.x[:] = torch.arange(nodes)[:, None] % 7
    torch.manual_seed(0)
    model = PIGN(width, width, 1, conv=conv, rtol=0.0, max_iter=count).eval()
    small = Data(x=data.x[:9], edge_index=data.edge_index[:, :0])
    def solve(data):
        if way == "chunks":
            return picard_inference(
                model, data, memory_budget=20_000_000, progress=False
            )
        with torch.no_grad():
            return model(data.x, data.edge_index)
    solve(small)  # libraries, kernels, caches
    with open("/proc/self/status") as file:
        now = [line for line in file if line.startswith("VmData")][0]
    # private memory: the budget, and 120 bytes an edge or node
    more = 20_000_000 + 120 * nodes
    most = 1024 * int(now.split()[1]) + more
    assert 4 * nodes * width > more, "one state would fit"
    resource.setrlimit(resource.RLIMIT_DATA, (most, most))
    solve(data)
    print("done")
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize(
    "way, conv, fits",
    [
        ("chunks", "sage", True), ("whole", "sage", False),
        ("chunks", "gatv2", True),
    ],
)  # fmt: skip
def test_under_a_limit_of_the_system_on_memory(way, conv, fits, tmp_path):
    """The features and every state take 77 MB (38 with gatv2, whose messages
    of all edges take 300), the limit is some 38."""
    root = os.path.dirname(os.path.dirname(os.path.dirname(__file__)))
    run = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(LIMITED), way,
         str(tmp_path / "x.bin"), conv],
        capture_output=True, text=True, cwd=root,
    )  # fmt: skip
    assert ("done" in run.stdout) == fits, run.stderr
    assert fits or "memory" in run.stderr


#: a model and data by name, of several chunks at 40 kB
RUNS = {
    "PicardConv": lambda: (picard(CONVS["GCN"]), graph()),
    "PicardConv, batch": lambda: (picard(CONVS["GCN"]), several()),
    "PIGN": lambda: (pign(), graph()),
    "PIGN, batch": lambda: (pign(), several()),
}


def in_memory(model, data):
    with torch.no_grad():
        return model(data.x, data.edge_index, batch=data.batch)


def interrupted_at(count):
    save, calls = Stored.save, []

    def saved(*args):
        save(*args)
        calls.append(1)
        if len(calls) == count:
            raise KeyboardInterrupt

    return saved


@pytest.mark.parametrize("name", RUNS)
@pytest.mark.parametrize("saves", [1, 17])
def test_interrupted_in_any_stage_and_called_again(
    name, saves, tmp_path, monkeypatch
):
    """After the first chunk that is encoded; or amid the iterations."""
    (model, data), save = RUNS[name](), Stored.save
    options = {"memory_budget": 40_000, "progress": False, "folder": tmp_path}
    monkeypatch.setattr(Stored, "save", interrupted_at(saves))
    with pytest.raises(KeyboardInterrupt):
        picard_inference(model, data, **options)
    made = []
    monkeypatch.setattr(
        Stored, "save", lambda *args: (made.append(args[1]), save(*args))
    )
    got = picard_inference(model, data, **options)
    assert (made[0]["stage"] == 0) == (saves == 1)
    later = len(made)
    whole = picard_inference(model, data, **options)
    assert len(made) - later == later + saves  # none was done again
    assert torch.equal(got, whole)
    want = in_memory(model, data)
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)


KILLED = """
    import os, signal, sys
    sys.path[:0] = sys.argv[4:]
    from tests.nn import test_inference as t
    from torch_picard import picard_inference
    from torch_picard.nn.stored import Stored

    save, left = Stored.save, [int(sys.argv[3])]
    def counted(self, record):
        left[0] -= 1
        if left[0] == 0:  # the work is done, but not recorded
            os.kill(os.getpid(), signal.SIGKILL)
        save(self, record)
    Stored.save = counted
    model, data = t.RUNS[sys.argv[2]]()
    picard_inference(model, data, memory_budget=40_000, folder=sys.argv[1])
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    "name, saves", [("PicardConv", 23), ("PIGN, batch", 2)]
)
def test_killed_and_called_again(name, saves, tmp_path, monkeypatch):
    folder = tmp_path / "states"
    root = os.path.dirname(os.path.dirname(os.path.dirname(__file__)))
    run = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(KILLED), str(folder), name,
         str(saves), root],
        capture_output=True, text=True, cwd=root,
    )  # fmt: skip
    assert run.returncode == -signal.SIGKILL, run.stderr
    assert "chunk" in run.stderr  # the progress bar
    assert {p.name for p in folder.iterdir()} >= {"even.bin", "progress.json"}

    save, made = Stored.save, []
    monkeypatch.setattr(
        Stored, "save", lambda *args: (made.append(args[1]), save(*args))
    )
    model, data = RUNS[name]()
    options = {"memory_budget": 40_000, "progress": False, "folder": folder}
    got = picard_inference(model, data, **options)
    later = len(made)
    assert list(folder.iterdir()) == []
    whole = picard_inference(model, data, **options)
    assert torch.equal(got, whole)
    assert len(made) - later == later + saves - 1
    want = in_memory(model, data)
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)


def test_another_run_in_the_folder(tmp_path):
    data, block = graph(), picard(CONVS["GCN"], on_failure="ignore")

    class Stop(Exception):
        pass

    calls = []

    def stop(*_):
        calls.append(1)
        if len(calls) == 3:
            raise Stop

    other = picard(CONVS["SAGE"])
    other.conv.register_forward_pre_hook(stop)
    with pytest.raises(Stop):
        picard_inference(other, data, folder=tmp_path, progress=False)
    with pytest.raises(ValueError, match="holds a run that differs in the mo"):
        picard_inference(block, data, folder=tmp_path, progress=False)


def _other_values(data, block, folder):
    data.x[-1, -1] += 1


def _other_graphs(data, block, folder):
    data.batch = torch.arange(len(data.x)) // 30


def _other_inject(data, block, folder):
    block.inject = False


def _other_activation(data, block, folder):
    conv = CONVS["GCN"]()
    block.activation = PicardConv(conv, activation="relu").activation


def _other_loops(data, block, folder):
    block.conv.add_self_loops = False


def _lost_file(data, block, folder):
    (folder / "start.bin").unlink()


@pytest.mark.parametrize(
    "change",
    [
        _other_values, _other_graphs, _other_inject, _other_activation,
        _other_loops, _lost_file,
    ],
)  # fmt: skip
def test_what_was_changed_since_is_noticed(change, tmp_path, monkeypatch):
    data, block = graph(), picard(CONVS["GCN"])

    with monkeypatch.context() as patch:
        patch.setattr(Stored, "save", interrupted_at(3))
        with pytest.raises(KeyboardInterrupt):
            picard_inference(
                block, data, memory_budget=40_000, folder=tmp_path,
                progress=False,
            )  # fmt: skip
    change(data, block, tmp_path)
    with pytest.raises(ValueError, match="holds a run"):
        picard_inference(
            block, data, memory_budget=40_000, folder=tmp_path, progress=False
        )


def test_features_may_be_a_file(tmp_path):
    data, block = graph(), picard(CONVS["GCN"])
    want = picard_inference(block, data, progress=False)
    path = str(tmp_path / "x.bin")
    mapped = torch.from_file(path, shared=True, size=data.x.numel())
    mapped.copy_(data.x.flatten())
    data.x = mapped.reshape(data.x.shape)
    assert torch.equal(picard_inference(block, data, progress=False), want)


def test_a_failed_solve_says_so():
    data = graph()
    block = picard(CONVS["GCN"], max_iter=2, on_failure="warn")
    with pytest.warns(ConvergenceWarning, match="MAX_ITER"):
        picard_inference(block, data, progress=False)
    block.on_failure = "raise"
    with pytest.raises(ConvergenceError):
        picard_inference(block, data, progress=False)
    data.x[3, 2] = torch.nan
    with pytest.raises(ConvergenceError, match="NONFINITE"):
        picard_inference(block, data, progress=False)


@pytest.mark.parametrize(
    "change, error, text",
    [
        ({"model": nn.Linear(6, 6)}, TypeError, "model must be a PIGN or a"),
        ({"train": True}, ValueError, "model must be in eval mode"),
        (
            {"model": PicardConv(CONVS["GCN"](), method=Anderson()).eval()},
            ValueError, "model must be iterated by Picard",
        ),
        (
            {"model": PicardConv(pyg.APPNP(K=3, alpha=0.1)).eval()},
            ValueError, "further than one hop",
        ),
        (
            {
                "model": PIGN(6, 4, 2, norm="PairNorm").eval(),
                "memory_budget": 20_000,
            },
            ValueError, "PairNorm, whose statistics are over all nodes",
        ),
        ({"memory_budget": 100}, ValueError, "memory_budget must be at least"),
        ({"memory_budget": 1.5e5}, ValueError, "positive number of bytes"),
        ({"memory_budget": float("nan")}, ValueError, "positive number of"),
        ({"memory_budget": "1GB"}, ValueError, "positive number of bytes"),
        ({"memory_budget": 0}, ValueError, "positive number of bytes"),
        ({"x": torch.ones(60)}, ValueError, "data.x must be a dense Tensor"),
        ({"x": torch.ones(60, 6).long()}, ValueError, "floating dtype"),
        ({"edge_index": torch.arange(4)}, ValueError, "got shape"),
        ({"edge_weight": torch.ones(3)}, ValueError, "of all 150 edges"),
        ({"batch": torch.zeros(3).long()}, ValueError, "data.batch must be"),
        ({"batch": torch.zeros(60)}, ValueError, "data.batch must be"),
        (
            {"batch": torch.tensor([1, 0]).repeat(30)}, ValueError,
            "data.batch must be sorted",
        ),
        ({"edge_index": torch.tensor([[0], [99]])}, ValueError, "in 0..59"),
        ({"edge_index": torch.ones(2, 3)}, ValueError, "LongTensor"),
        ({"x": torch.eye(6).to_sparse()}, ValueError, "dense Tensor"),
    ],
)  # fmt: skip
def test_wrong_calls(change, error, text):
    data = graph()
    for name in ("x", "edge_index", "edge_weight", "batch"):
        if name in change:
            data[name] = change[name]
    model = change.get("model", picard(CONVS["GCN"]))
    model.train(change.get("train", False))
    with pytest.raises(error, match=text):
        picard_inference(
            model, data, memory_budget=change.get("memory_budget"),
            progress=False,
        )  # fmt: skip


@pytest.mark.parametrize("name", FAR)
def test_what_looks_further_than_a_chunk_is_refused(name):
    data, block = graph(), picard(lambda: FAR[name](WIDTH))
    with torch.no_grad():
        want = block(data.x, data.edge_index)
    got = picard_inference(block, data, progress=False)
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match="further than one hop"):
        picard_inference(block, data, memory_budget=40_000, progress=False)


@pytest.mark.parametrize(
    "change, text",
    [
        *ACROSS,
        ({"encoder_activation": centred}, "encoder_activation must map each"),
        ({"norm": "GraphNorm"}, "norm holds GraphNorm"),
        ({"norm": lambda c: Centring()}, "norm must map each row"),
    ],
)
def test_what_looks_across_the_rows_is_refused(change, text):
    data, model = graph(), PIGN(WIDTH, 4, 2, **change).eval()
    with torch.no_grad():
        want = model(data.x, data.edge_index)
    got = picard_inference(model, data, progress=False)  # one chunk
    torch.testing.assert_close(got, want)
    with pytest.raises(ValueError, match=text):
        picard_inference(model, data, memory_budget=20_000, progress=False)


class Centring(nn.Module):
    def forward(self, x):
        return centred(x)


def test_a_row_by_itself_may_be_random():
    """Of what draws random numbers nothing can be tried."""
    data = graph()
    block = PicardConv(
        pyg.SAGEConv(WIDTH, WIDTH), inject=True, max_iter=3, rtol=0.0,
        activation=lambda z: z.tanh() + 1e-3 * torch.rand_like(z),
    ).eval()  # fmt: skip
    got = picard_inference(block, data, memory_budget=20_000, progress=False)
    with torch.no_grad():
        want = block(data.x, data.edge_index)
    torch.testing.assert_close(got, want, rtol=0, atol=1e-2)


def test_a_wave_along_a_chain_arrives():
    """The residual is 1 until then, as in memory."""
    nodes = torch.arange(60)
    data = Data(x=(nodes == 0).float()[:, None])
    data.edge_index = torch.stack([nodes[:-1], nodes[1:]])
    block = PicardConv(
        pyg.SimpleConv(aggr="sum"), alpha=0.0, inject=True, max_iter=200
    ).eval()
    out, solution = picard_inference(
        block, data, memory_budget=3000, progress=False, return_solution=True
    )
    assert torch.equal(out, torch.ones(60, 1))
    want, inside = block(data.x, data.edge_index, return_solution=True)
    assert torch.equal(out, want) and solution.converged.all()
    assert solution.iterations == inside.iterations == 59
    assert solution.value is None


def test_types_of_edges():
    data, block = graph(), picard(lambda: pyg.RGCNConv(WIDTH, WIDTH, 3))
    data.edge_type = torch.arange(150) % 3
    with torch.no_grad():
        want = block(data.x, data.edge_index, data.edge_type)
    got = picard_inference(block, data, memory_budget=40_000, progress=False)
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("budget", [None, 20_000])
def test_features_that_do_not_fit_are_named(budget):
    data, block = graph(), picard(CONVS["SAGE"])
    whole = data.x
    for data.x, text in (
        (whole[:, :2], "data: x must have 6 features a node"),
        (whole.double(), "data: x must be of torch.float32"),
    ):
        with pytest.raises(ValueError, match=text):
            picard_inference(block, data, memory_budget=budget, progress=False)


def test_a_conv_that_needs_incoming_edges_is_named():
    """The median of no messages is an error in PyG."""
    block = picard(lambda: pyg.SAGEConv(WIDTH, WIDTH, aggr="median"))
    with pytest.raises(ValueError, match="without incoming edges"):
        picard_inference(block, graph(), memory_budget=40_000, progress=False)


@pytest.mark.parametrize("content", ["", "{}", "[1]", '{"identity": 3'])
def test_a_damaged_record_is_named(content, tmp_path):
    (tmp_path / "progress.json").write_text(content)
    with pytest.raises(
        ValueError, match=r"progress\.json that is not of a run"
    ):
        picard_inference(
            picard(CONVS["SAGE"]), graph(), folder=tmp_path, progress=False
        )
    assert (tmp_path / "progress.json").read_text() == content


@pytest.mark.parametrize("aggr", ["lstm", "gru"])
def test_what_depends_on_the_padding_is_refused(aggr):
    """PyG takes the last output of a padded sequence."""
    block = picard(lambda: pyg.SAGEConv(WIDTH, WIDTH, aggr="lstm"))
    data = graph()
    data.edge_index = data.edge_index[:, data.edge_index[1].argsort()]
    if aggr == "gru":
        block.conv.aggr_module = pyg.aggr.GRUAggregation(WIDTH, WIDTH)
    with torch.no_grad():
        want = block(data.x, data.edge_index)
    got = picard_inference(block, data, progress=False)
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match="pads with zeros up to the largest"):
        picard_inference(block, data, memory_budget=40_000, progress=False)


@pytest.mark.parametrize(
    "make",
    [
        lambda: pyg.LEConv(WIDTH, WIDTH),
        lambda: pyg.MFConv(WIDTH, WIDTH),
        lambda: pyg.GENConv(WIDTH, WIDTH),
        lambda: pyg.FiLMConv(WIDTH, WIDTH),
        lambda: pyg.SuperGATConv(WIDTH, WIDTH),
        lambda: pyg.EdgeConv(nn.Linear(2 * WIDTH, WIDTH)),
        lambda: pyg.TAGConv(WIDTH, WIDTH, K=1),
    ],
)
def test_convs_of_one_hop_are_not(make):
    data, block = graph(), picard(make)
    with torch.no_grad():
        want = block(data.x, data.edge_index)
    got = picard_inference(block, data, memory_budget=20_000, progress=False)
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-6)


def test_what_conv_does_not_take_is_left():
    data = graph(weight=True)
    data.edge_attr = torch.randn(150, 3)
    block = picard(CONVS["SAGE"])
    with torch.no_grad():
        want = block(data.x, data.edge_index)
    got = picard_inference(block, data, progress=False)
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["layer", "graph", "pair"])
def test_the_encoders_norm_is_each_graphs_own(name):
    torch.manual_seed(0)
    x = torch.randn(8, 4)
    x[3:] *= 20
    edges = torch.tensor([[0, 1, 2, 3, 4, 5, 6, 7], [1, 2, 0, 4, 5, 6, 7, 3]])
    batch = torch.tensor([0] * 3 + [1] * 5)
    model = PIGN(4, 6, 3, "sage", rtol=1e-4, max_iter=300, norm=name).eval()
    with torch.no_grad():
        want = model(x, edges, batch=batch)
        apart = model(x, edges)
    data = Data(x=x, edge_index=edges, batch=batch)
    found = picard_inference(model, data, progress=False)
    torch.testing.assert_close(found, want, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(want, apart, rtol=1e-3)
