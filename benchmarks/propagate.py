"""Fused smoothed message passing against what users write, in one run.

    python benchmarks/propagate.py [--threads 1] [--repeats 5] [--write DIR]

One table: milliseconds of torch_picard and of a peer, their ratio, and the
ratio that was aimed at; medians of interleaved runs. `floor` is the least
time the memory allows, the bytes that must move over the bandwidth of a copy
measured in the same run, and for a PicardConv that of its dense maps alone
besides; what is gathered counts as if no cache held it. --write puts the
table (kernels.inc) and a plot (kernels.png) into DIR, and kernels.json, from
which a run that was interrupted goes on.
"""

import argparse
import functools
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from _table import Results, Row, show
from torch import Tensor
from torch_geometric.nn import APPNP, GCNConv, SimpleConv
from torch_geometric.nn.conv.gcn_conv import gcn_norm

from torch_picard import PicardConv
from torch_picard.engine.monitor import Monitor
from torch_picard.ops import smoothed_propagate, smoothed_update

ITERATIONS, ALPHA, CHANNELS = 8, 0.5, 64
LARGE = "power law, 169k nodes, 2.5M edges"
SMALL = "size of Cora"


class Clock:
    """Medians of interleaved runs, so that a slow moment hits all alike."""

    def __init__(self, device: str, repeats: int):
        self.device, self.repeats = device, repeats

    def __call__(self, *runs: Callable[[], object]) -> list[float]:
        spent: list[list[float]] = [[] for _ in runs]
        start = time.perf_counter()
        for run in runs:
            run()
        self.wait()
        # a second of rounds where they are short, so that medians hold still
        rounds = int(1 / (time.perf_counter() - start))
        for _ in range(max(self.repeats, min(rounds, 100))):
            for run, times in zip(runs, spent):
                self.wait()
                start = time.perf_counter()
                run()
                self.wait()
                times.append(1e3 * (time.perf_counter() - start))
        return [statistics.median(times) for times in spent]

    def wait(self) -> None:
        if self.device == "cuda":
            torch.cuda.synchronize()


# -- graphs ------------------------------------------------


@functools.cache
def power_law(nodes: int = 169_000, edges: int = 2_500_000) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    weight = torch.rand(nodes, generator=generator).pow(-0.6).clamp(max=3e3)
    ends = [
        torch.multinomial(weight, edges, True, generator=generator)
        for _ in range(2)
    ]
    return torch.stack(ends)


def grid(side: int = 400) -> Tensor:
    index = torch.arange(side * side).reshape(side, side)
    pairs = [
        torch.stack([index[:, :-1].flatten(), index[:, 1:].flatten()]),
        torch.stack([index[:-1].flatten(), index[1:].flatten()]),
    ]
    edges = torch.cat(pairs, dim=1)
    return torch.cat([edges, edges.flip(0)], dim=1)


def uniform(nodes: int = 2708, edges: int = 10_556) -> Tensor:
    """By default as many nodes and edges as Cora has."""
    generator = torch.Generator().manual_seed(0)
    return torch.randint(nodes, (2, edges), generator=generator)


GRAPHS = {
    LARGE: (power_law, 169_000),
    "grid, 400 x 400": (grid, 160_000),
    SMALL: (uniform, 2708),
    "degree 6": (functools.partial(uniform, 169_000, 6 * 169_000), 169_000),
    "degree 50": (functools.partial(uniform, 169_000, 50 * 169_000), 169_000),
}


class Compressed:
    """D^-1/2 (A + I) D^-1/2 in rows."""

    def __init__(self, edge_index: Tensor, nodes: int, device: str):
        edges, weight = gcn_norm(edge_index, None, nodes)
        order = edges[1].argsort(stable=True)
        target = edges[1][order].contiguous()
        bounds = torch.arange(nodes + 1)
        self.rowptr = torch.searchsorted(target, bounds).int().to(device)
        self.col = edges[0][order].int().to(device)
        self.value = weight[order].to(device)
        self.matrix = torch.sparse_csr_tensor(
            self.rowptr, self.col, self.value, (nodes, nodes)
        )
        self.nodes = nodes


def bytes_of_a_pass(
    graph: Compressed, channels: int, gathered: int = 4, state: int = 4
) -> int:
    """Every index and value, a gathered row for every entry, x and y."""
    entries = graph.col.numel() * (8 + channels * gathered)
    return entries + graph.nodes * (2 * channels * state + 4)


def copied(x: Tensor) -> Callable[[], Tensor]:
    return functools.partial(torch.empty_like(x).copy_, x)


def bandwidth(x: Tensor, ms: float) -> float:
    """Bytes a ms of a copy of x that took so long."""
    return 2 * x.numel() * x.element_size() / ms


# -- the rows ------------------------------------------------


def update(clock: Clock, device: str) -> list[Row]:
    """alpha*x + (1-alpha)*z and its residual: three passes over memory."""
    x, z = (torch.randn(169_000, 128, device=device) for _ in range(2))

    def plain() -> tuple[Tensor, Tensor]:
        return torch.lerp(x, z, 1 - ALPHA), (z - x).norm()

    copy, a, b = clock(
        copied(x), lambda: smoothed_update(x, z, ALPHA), plain
    )  # fmt: skip
    floor = 3 * x.numel() * 4 / bandwidth(x, copy)
    case = "smoothed_update, 169k x 128"
    return [Row(case, a, "lerp, norm", b, None, floor)]


def operators(
    clock: Clock, device: str, name: str, channels: int
) -> list[Row]:
    make, nodes = GRAPHS[name]
    graph = Compressed(make(), nodes, device)
    x = torch.randn(nodes, channels, device=device)
    matrix = graph.matrix
    low, value = x.bfloat16(), graph.value.bfloat16()

    def ours(x=x, value=graph.value):
        return smoothed_propagate(graph.rowptr, graph.col, value, x, x, ALPHA)

    def naive():
        z = matrix @ x
        return ALPHA * x + (1 - ALPHA) * z, (z - x).norm()

    def addmm():
        y = torch.addmm(x, matrix, x, beta=ALPHA, alpha=1 - ALPHA)
        return y, (y - x).norm() / (1 - ALPHA)

    expected, mine = naive()[0], ours()[0]
    torch.testing.assert_close(mine, expected, rtol=1e-4, atol=1e-4)
    copy, a, b, c, d = clock(
        copied(x), ours, naive, addmm, lambda: ours(low, value)
    )
    speed = bandwidth(x, copy)
    floor = bytes_of_a_pass(graph, channels) / speed
    half = bytes_of_a_pass(graph, channels, 2, 2) / speed
    case = f"smoothed_propagate, {name}, F={channels}"
    aims: dict = {LARGE: (3.3, 1.9, 1.5)} if device == "cpu" else {}
    if device == "cuda":
        aims = {"degree 6": (1.3, None, None), "degree 50": (0.95, None, None)}
    aim = aims.get(name, (None, None, None))
    return [
        Row(case, a, "CSR @ x, lerp, norm", b, aim[0], floor),
        Row(case, a, "addmm on CSR, norm", c, aim[1], floor),
        Row(f"{case}, bfloat16", d, "float32", a, aim[2], half),
    ]


class Convs:
    """The same smoothed GCN iteration as users write it and as PicardConv."""

    def __init__(self, graph: str, channels: int, device: str = "cpu"):
        make, nodes = GRAPHS[graph]
        self.edge_index = make().to(device)
        self.graph = Compressed(make(), nodes, device)
        self.matrix = self.graph.matrix
        self.x = torch.randn(nodes, channels, device=device)
        torch.manual_seed(0)
        self.coo = GCNConv(channels, channels, cached=True).to(device)
        self.csr = GCNConv(channels, channels, normalize=False).to(device)
        plain = GCNConv(channels, channels).to(device)
        for conv in (self.csr, plain):
            conv.load_state_dict(self.coo.state_dict())
        self.picard = PicardConv(plain, ALPHA, ITERATIONS, rtol=0.0)
        self.weight = plain.lin.weight

    def loop(self, conv, graph, x: Tensor) -> Tensor:
        for _ in range(ITERATIONS):
            x = ALPHA * x + (1 - ALPHA) * conv(x, graph)
        return x

    def runs(self, x: Tensor) -> dict[str, Callable[[], Tensor]]:
        found = {
            "ours": lambda: self.picard(x, self.edge_index),
            "PyG, edge_index": lambda: self.loop(self.coo, self.edge_index, x),
            "PyG, CSR": lambda: self.loop(self.csr, self.matrix, x),
        }
        try:
            from torchdeq import get_deq
        except ImportError:
            return found
        deq = get_deq(
            f_solver="fixed_point_iter",
            f_max_iter=ITERATIONS,
            f_tol=1e-30,
            tau=1 - ALPHA,
        ).eval()
        found["torchdeq, CSR"] = lambda: deq(
            lambda z: self.csr(z, self.matrix), x
        )[0][-1]
        return found


AIMS = {  # against PyG on edge_index, PyG on CSR, torchdeq
    ("cpu", LARGE, False): [8.0, 2.5, None],
    ("cpu", LARGE, True): [5.0, 2.0, None],
    ("cpu", SMALL, False): [10.0, 2.0, None],
    ("cuda", LARGE, False): [5.0, None, None],
    ("cuda", SMALL, False): [5.0, None, None],
}


def convs(clock: Clock, device: str, graph: str, backward: bool) -> list[Row]:
    setup = Convs(graph, CHANNELS, device)
    x = setup.x.clone().requires_grad_(backward)
    runs = setup.runs(x)
    if backward:
        runs.pop("torchdeq, CSR", None)  # another gradient
    cotangent = torch.randn_like(x)

    def timed(run: Callable[[], Tensor]) -> object:
        if not backward:
            with torch.no_grad():
                return run()
        x.grad = None
        return run().backward(cotangent)

    spent = clock(*(functools.partial(timed, run) for run in runs.values()))
    way = "forward + backward" if backward else "forward"
    case = f"PicardConv(GCNConv), {ITERATIONS} iterations, {way}, {graph}"
    dense, speed = dense_map(clock, setup)
    a_pass = bytes_of_a_pass(setup.graph, CHANNELS) / speed
    # backward: the transposed pass, the gradients of state and weight
    floor = ITERATIONS * (
        3 * dense + 2 * a_pass if backward else dense + a_pass
    )
    nothing = [None] * 3
    aims = AIMS.get((device, graph, backward), nothing)
    return [
        Row(case, spent[0], name, theirs, aim, floor)
        for name, theirs, aim in zip(list(runs)[1:], spent[1:], aims)
    ]


def dense_map(clock: Clock, setup: Convs) -> tuple[float, float]:
    """ms of one x W', and the bandwidth of a copy."""
    x, h = setup.x, torch.empty_like(setup.x)
    with torch.no_grad():
        dense, copy = clock(
            functools.partial(torch.mm, x, setup.weight.t(), out=h), copied(x)
        )
    return dense, bandwidth(x, copy)


def autocast(clock: Clock, device: str, graph: str) -> list[Row]:
    setup = Convs(graph, CHANNELS, device)

    def full() -> Tensor:
        with torch.no_grad():
            return setup.picard(setup.x, setup.edge_index)

    def low() -> Tensor:
        with torch.autocast(device, dtype=torch.bfloat16):
            return full()

    a, b = clock(low, full)
    dense, speed = dense_map(clock, setup)
    a_pass = bytes_of_a_pass(setup.graph, CHANNELS, gathered=2) / speed
    floor = ITERATIONS * (dense + a_pass)
    case = f"PicardConv(GCNConv), {ITERATIONS} iterations, forward, {graph}"
    aim = 1.5 if graph == LARGE and device == "cpu" else None
    return [
        Row(f"{case}, autocast(bfloat16)", a, "float32", b, aim, floor)
    ]  # fmt: skip


def batch(clock: Clock, device: str) -> list[Row]:
    """256 graphs of 200 nodes with contraction factors from .1 to .98."""
    graphs, nodes = 256, 200
    generator = torch.Generator().manual_seed(0)
    shape = (graphs, 2, 1600)
    ends = torch.randint(nodes, shape, generator=generator)
    ends += nodes * torch.arange(graphs).reshape(-1, 1, 1)
    total = graphs * nodes
    index, weight = gcn_norm(ends.transpose(0, 1).reshape(2, -1), None, total)
    factor = torch.linspace(0.1, 0.98, graphs)
    weight = (weight * factor[index[1] // nodes]).to(device)
    index = index.to(device)
    members = torch.arange(total, device=device) // nodes
    x = torch.randn(total, CHANNELS, device=device)
    picard = PicardConv(SimpleConv("sum"), 0.0, 600, rtol=1e-4, inject=True)

    def skipping() -> Tensor:
        with torch.no_grad():
            return picard(x, index, weight, batch=members)

    def whole() -> Tensor:
        """The same, every graph computed until the last has ended."""
        flags, Monitor.active = Monitor.active, None
        try:
            return skipping()
        finally:
            Monitor.active = flags

    torch.testing.assert_close(skipping(), whole())
    copy, a, b = clock(copied(x), skipping, whole)
    with torch.no_grad():
        _, solution = picard(
            x, index, weight, batch=members, return_solution=True
        )
    counts = solution.iterations
    case = f"256 graphs, {int(counts.min())} to {int(counts.max())} iterations"
    entries = torch.bincount(members[index[1]], minlength=graphs)
    gathered = entries * (8 + 4 * CHANNELS) + nodes * (8 * CHANNELS + 4)
    moved = int((counts * gathered.to(counts)).sum())
    floor = moved / bandwidth(x, copy)
    return [Row(case, a, "without active", b, 2.0, floor)]


def appnp(clock: Clock, device: str) -> list[Row]:
    make, nodes = GRAPHS[LARGE]
    edge_index = make()
    graph = Compressed(edge_index, nodes, device)
    matrix = graph.matrix
    edge_index = edge_index.to(device)
    x = torch.randn(nodes, CHANNELS, device=device)
    picard = PicardConv(APPNP(10, 0.1), 0.0, 1, rtol=0.0)
    coo = APPNP(10, 0.1, cached=True)
    csr = APPNP(10, 0.1, normalize=False)
    with torch.no_grad():
        torch.testing.assert_close(
            picard(x, edge_index), csr(x, matrix), rtol=1e-4, atol=1e-4
        )
        copy, a, b, c = clock(
            copied(x),
            lambda: picard(x, edge_index),
            lambda: coo(x, edge_index),
            lambda: csr(x, matrix),
        )
    floor = 10 * bytes_of_a_pass(graph, CHANNELS) / bandwidth(x, copy)
    case = f"PicardConv(APPNP(K=10)), {LARGE}, F={CHANNELS}"
    aims = (20.0, 3.0) if device == "cpu" else (None, None)
    return [
        Row(case, a, "PyG, edge_index", b, aims[0], floor),
        Row(case, a, "PyG, CSR", c, aims[1], floor),
    ]


def tasks(device: str) -> dict[str, Callable[[Clock], list[Row]]]:
    """What is measured, in order. Names are kept in kernels.json."""
    cases = [(LARGE, 64), (LARGE, 128), ("grid, 400 x 400", 64), (SMALL, 64)]
    if device == "cuda":
        cases += [("degree 6", 64), ("degree 50", 64)]
    found: dict = {"update": functools.partial(update, device=device)}
    for name, width in cases:
        found[f"operators, {name}, {width}"] = functools.partial(
            operators, device=device, name=name, channels=width
        )
    found["batch"] = functools.partial(batch, device=device)
    found["appnp"] = functools.partial(appnp, device=device)
    for graph in (LARGE, SMALL):
        for backward in (False, True):
            found[f"convs, {graph}, {backward}"] = functools.partial(
                convs, device=device, graph=graph, backward=backward
            )
        if device == "cpu":
            found[f"autocast, {graph}"] = functools.partial(
                autocast, device=device, graph=graph
            )
    return found


# -- memory ------------------------------------------------

PEAKS = ("ours", "PyG, edge_index", "PyG, CSR", "torchdeq, CSR")


def peak(name: str, backward: bool) -> None:
    """Prints how many MiB above what this process had the run needs."""
    setup = Convs(LARGE, CHANNELS)
    x = setup.x.clone().requires_grad_(backward)
    run = setup.runs(x)[name]
    with torch.no_grad():
        setup.coo(x, setup.edge_index)  # cached=True, as in the timings
    Path("/proc/self/clear_refs").write_text("5")  # forgets the peak so far
    before = resident("VmRSS")
    with torch.set_grad_enabled(backward):
        y = run()
        if backward:
            y.sum().backward()
    print((resident("VmHWM") - before) // 1024)


def resident(name: str) -> int:
    """KiB."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name + ":"):
            return int(line.split()[1])
    raise KeyError(name)


def memory(threads: int, name: str, backward: bool) -> str:
    """peak() in a process of its own; a dash where that cannot be had."""
    command = [sys.executable, __file__, "--peak", name]
    command += ["--backward"] * backward
    command += ["--threads", str(threads)]
    done = subprocess.run(command, capture_output=True, text=True)
    return done.stdout.strip() or "-"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--write", type=Path, metavar="DIR")
    parser.add_argument("--peak", choices=PEAKS, help=argparse.SUPPRESS)
    parser.add_argument(
        "--backward", action="store_true", help=argparse.SUPPRESS
    )
    options = parser.parse_args()
    warnings.filterwarnings("ignore", message="Sparse")
    torch.set_num_threads(options.threads)
    if options.peak:
        return peak(options.peak, options.backward)

    title = (
        f"torch {torch.__version__}, {options.device}, {options.threads} "
        f"thread(s), medians of {options.repeats} or more"
    )
    results = Results(title, options.write)
    clock = Clock(options.device, options.repeats)
    try:
        for name, run in tasks(options.device).items():
            results.measure(name, functools.partial(run, clock))
        for backward in (False, True) if options.device == "cpu" else ():
            way = "forward + backward" if backward else "forward"
            task = f"{ITERATIONS} iterations, {way}, {LARGE}, F={CHANNELS}"
            for name in PEAKS:
                results.weigh(
                    task,
                    name,
                    functools.partial(memory, options.threads, name, backward),
                )
    except KeyboardInterrupt:
        print("interrupted: this is what was measured", flush=True)
    for name, table in results.tables(PEAKS).items():
        show(name, table)
    print("", *results.missed(), sep="\n")
    if options.write:
        results.write(PEAKS)


if __name__ == "__main__":
    main()
