"""Fused smoothed message passing against what users write, in one run.

    python benchmarks/propagate.py [--threads 1] [--repeats 5] [--write DIR]

One table: milliseconds of torch_picard and of a peer, their ratio, and the
ratio that was aimed at; medians of interleaved runs. `floor` is the least
time the memory allows, the bytes that must move over the bandwidth of a copy
measured in the same run; a dash where arithmetic, not memory, is the limit.
--write puts the table (kernels.inc) and a plot (kernels.png) into DIR.
"""

import argparse
import functools
import resource
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch_geometric.nn import APPNP, GCNConv, SimpleConv
from torch_geometric.nn.conv.gcn_conv import gcn_norm

from torch_picard import PicardConv
from torch_picard.engine.monitor import Monitor
from torch_picard.ops import smoothed_propagate

ITERATIONS, ALPHA = 8, 0.5


@dataclass
class Row:
    case: str
    ours: float
    peer: str
    theirs: float
    target: float | None = None
    floor: float | None = None

    @property
    def ratio(self) -> float:
        return self.theirs / self.ours


class Rows(list):
    """Shown as they come: the whole takes minutes."""

    def append(self, row: Row) -> None:
        super().append(row)
        print(f"{row.case} / {row.peer}: {row.ratio:.2f}", flush=True)


class Clock:
    """Medians of interleaved runs, so that a slow moment hits all alike."""

    def __init__(self, device: str, repeats: int):
        self.device, self.repeats = device, repeats

    def __call__(self, *runs: Callable[[], object]) -> list[float]:
        spent: list[list[float]] = [[] for _ in runs]
        for run in runs:
            run()
        for _ in range(self.repeats):
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
    """As many nodes and edges as Cora has."""
    generator = torch.Generator().manual_seed(0)
    return torch.randint(nodes, (2, edges), generator=generator)


GRAPHS = {
    "power law, 169k nodes, 2.5M edges": (power_law, 169_000),
    "grid, 400 x 400": (grid, 160_000),
    "size of Cora": (uniform, 2708),
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


def bytes_of_a_pass(graph: Compressed, channels: int, size: int = 4) -> int:
    """Every index and value, a gathered row for every entry, x and y."""
    entries = graph.col.numel()
    row = channels * size
    return entries * (8 + row) + graph.nodes * (2 * row + 4)


# -- the rows ------------------------------------------------


def operators(clock: Clock, device: str, rows: list[Row]) -> None:
    for name, (make, nodes) in GRAPHS.items():
        graph = Compressed(make(), nodes, device)
        for channels in (64, 128) if nodes == 169_000 else (64,):
            x = torch.randn(nodes, channels, device=device)
            y, matrix = torch.empty_like(x), graph.matrix
            low, value = x.bfloat16(), graph.value.bfloat16()

            def ours(x=x, value=graph.value, graph=graph):
                return smoothed_propagate(
                    graph.rowptr, graph.col, value, x, x, ALPHA
                )

            def naive(x=x, matrix=matrix):
                z = matrix @ x
                return ALPHA * x + (1 - ALPHA) * z, (z - x).norm()

            def addmm(x=x, matrix=matrix):
                y = torch.addmm(x, matrix, x, beta=ALPHA, alpha=1 - ALPHA)
                return y, (y - x).norm() / (1 - ALPHA)

            expected, mine = naive()[0], ours()[0]
            torch.testing.assert_close(mine, expected, rtol=1e-4, atol=1e-4)
            copy, a, b, c, d = clock(
                lambda y=y, x=x: y.copy_(x),
                ours,
                naive,
                addmm,
                lambda low=low, value=value, ours=ours: ours(low, value),
            )
            bandwidth = 2 * x.numel() * 4 / copy
            floor = bytes_of_a_pass(graph, channels) / bandwidth
            case = f"smoothed_propagate, {name}, F={channels}"
            large = nodes == 169_000
            rows.append(
                Row(case, a, "CSR @ x, lerp, norm", b, 3.3 * large, floor)
            )
            rows.append(
                Row(case, a, "addmm on CSR, norm", c, 1.9 * large, floor)
            )
            half = bytes_of_a_pass(graph, channels, 2) / bandwidth
            rows.append(
                Row(f"{case}, bfloat16", d, "float32", a, 1.5 * large, half)
            )


class Convs:
    """The same smoothed GCN iteration as users write it and as PicardConv."""

    def __init__(self, graph: str, channels: int, device: str = "cpu"):
        make, nodes = GRAPHS[graph]
        self.edge_index = make().to(device)
        compressed = Compressed(make(), nodes, device)
        self.matrix = compressed.matrix
        self.x = torch.randn(nodes, channels, device=device)
        torch.manual_seed(0)
        self.coo = GCNConv(channels, channels, cached=True).to(device)
        self.csr = GCNConv(channels, channels, normalize=False).to(device)
        plain = GCNConv(channels, channels).to(device)
        for conv in (self.csr, plain):
            conv.load_state_dict(self.coo.state_dict())
        self.picard = PicardConv(plain, ALPHA, ITERATIONS, rtol=0.0)
        self.plain = plain

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


def convs(clock: Clock, device: str, rows: list[Row]) -> None:
    targets = {
        ("power law, 169k nodes, 2.5M edges", False): [8.0, 2.5, None],
        ("power law, 169k nodes, 2.5M edges", True): [5.0, 2.0, None],
        ("size of Cora", False): [10.0, 2.0, None],
        ("size of Cora", True): [None, None, None],
    }
    for (graph, backward), wanted in targets.items():
        setup = Convs(graph, 64, device)
        x = setup.x.clone().requires_grad_(backward)
        runs = setup.runs(x)
        if backward:
            runs.pop("torchdeq, CSR", None)  # another gradient
        cotangent = torch.randn_like(x)

        def timed(run, x=x, cotangent=cotangent, backward=backward):
            if not backward:
                with torch.no_grad():
                    return run()
            x.grad = None
            return run().backward(cotangent)

        spent = clock(*(lambda r=r: timed(r) for r in runs.values()))
        way = "forward + backward" if backward else "forward"
        case = f"PicardConv(GCNConv), {ITERATIONS} iterations, {way}, {graph}"
        weight = setup.plain.lin.weight
        with torch.no_grad():
            (dense,) = clock(functools.partial(torch.mm, x, weight.t()))
        floor = None if backward else ITERATIONS * dense
        for name, theirs, target in zip(list(runs)[1:], spent[1:], wanted):
            rows.append(Row(case, spent[0], name, theirs, target, floor))
        if not backward and device == "cpu":
            autocast(clock, setup, case, graph, rows)


def autocast(clock, setup: Convs, case: str, graph: str, rows) -> None:
    def low():
        with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
            return setup.picard(setup.x, setup.edge_index)

    def full():
        with torch.no_grad():
            return setup.picard(setup.x, setup.edge_index)

    a, b = clock(low, full)
    target = 1.5 if graph.startswith("power") else None
    rows.append(Row(f"{case}, autocast(bfloat16)", a, "float32", b, target))


def batch(clock: Clock, device: str, rows: list[Row]) -> None:
    """256 graphs of 200 nodes with contraction factors from .1 to .98."""
    graphs, nodes, channels = 256, 200, 64
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
    x = torch.randn(total, channels, device=device)
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
    a, b = clock(skipping, whole)
    with torch.no_grad():
        _, solution = picard(
            x, index, weight, batch=members, return_solution=True
        )
    counts = solution.iterations
    case = f"256 graphs, {int(counts.min())} to {int(counts.max())} iterations"
    rows.append(Row(case, a, "without active", b, 2.0))


def appnp(clock: Clock, device: str, rows: list[Row]) -> None:
    name = "power law, 169k nodes, 2.5M edges"
    make, nodes = GRAPHS[name]
    edge_index = make()
    matrix = Compressed(edge_index, nodes, device).matrix
    edge_index = edge_index.to(device)
    x = torch.randn(nodes, 64, device=device)
    picard = PicardConv(APPNP(10, 0.1), 0.0, 1, rtol=0.0)
    coo = APPNP(10, 0.1, cached=True)
    csr = APPNP(10, 0.1, normalize=False)
    with torch.no_grad():
        torch.testing.assert_close(
            picard(x, edge_index), csr(x, matrix), rtol=1e-4, atol=1e-4
        )
        a, b, c = clock(
            lambda: picard(x, edge_index),
            lambda: coo(x, edge_index),
            lambda: csr(x, matrix),
        )
    case = f"PicardConv(APPNP(K=10)), {name}, F=64"
    rows.append(Row(case, a, "PyG, edge_index", b, 20.0))
    rows.append(Row(case, a, "PyG, CSR", c, 3.0))


# -- memory ------------------------------------------------

PEAKS = ("ours", "PyG, edge_index", "PyG, CSR", "torchdeq, CSR")


def peak(name: str, backward: bool) -> None:
    """Prints by how many MB the run raises the peak of this process."""
    setup = Convs("power law, 169k nodes, 2.5M edges", 64)
    x = setup.x.clone().requires_grad_(backward)
    run = setup.runs(x)[name]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with torch.set_grad_enabled(backward):
        y = run()
        if backward:
            y.sum().backward()
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print((after - before) // 1024)


def memory(threads: int) -> list[list[str]]:
    found = []
    for backward in (False, True):
        way = "forward + backward" if backward else "forward"
        line = [f"{ITERATIONS} iterations, {way}"]
        for name in PEAKS:
            command = [sys.executable, __file__, "--peak", name]
            command += ["--backward"] * backward
            command += ["--threads", str(threads)]
            done = subprocess.run(command, capture_output=True, text=True)
            line.append(done.stdout.strip() or "-")
        found.append(line)
    return found


# -- showing ------------------------------------------------


def number(value: float | None) -> str:
    if not value:
        return "-"
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def table_of(rows: list[Row]) -> list[list[str]]:
    head = ["case", "ms", "peer", "its ms", "ratio", "aim", "floor ms"]
    return [head] + [
        [
            row.case,
            number(row.ours),
            row.peer,
            number(row.theirs),
            f"{row.ratio:.1f}",
            number(row.target),
            number(row.floor),
        ]
        for row in rows
    ]


def show(title: str, table: list[list[str]]) -> None:
    widths = [max(map(len, column)) for column in zip(*table)]
    print(f"\n{title}\n")
    for line in table:
        cells = [c.ljust(w) for c, w in zip(line, widths)]
        print("  ".join(cells).rstrip(), flush=True)


def rst(title: str, table: list[list[str]]) -> str:
    lines = [f"{title}:", "", ".. list-table::", "   :header-rows: 1", ""]
    for row in table:
        lines += [
            f"   {'*' if i == 0 else ' '} - {cell}".rstrip()
            for i, cell in enumerate(row)
        ]
    return "\n".join([*lines, "", ""])


def plot(rows: list[Row], path: Path, title: str) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(11, 0.32 * len(rows) + 1.2))
    names = [f"{row.case} / {row.peer}" for row in rows]
    axes.barh(names, [row.ratio for row in rows], color="#4477aa")
    for i, row in enumerate(rows):
        if row.target:
            axes.plot([row.target] * 2, [i - 0.4, i + 0.4], color="#cc3311")
    axes.axvline(1.0, color="black", linewidth=0.8)
    axes.set_xscale("log")
    axes.set_xlabel("times faster than the peer (red: aimed at)")
    axes.set_title(title)
    axes.tick_params(axis="y", labelsize=7)
    axes.invert_yaxis()
    figure.tight_layout()
    figure.savefig(path, dpi=110)


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

    rows = Rows()
    clock = Clock(options.device, options.repeats)
    for section in (operators, batch, appnp, convs):
        section(clock, options.device, rows)
    title = (
        f"torch {torch.__version__}, {options.device}, {options.threads} "
        f"thread(s), medians of {options.repeats}"
    )
    tables = {title: table_of(rows)}
    if options.device == "cpu":
        head = ["MB above the start", *PEAKS]
        tables["Peak memory, power law graph, F=64"] = [
            head, *memory(options.threads)
        ]  # fmt: skip
    for name, table in tables.items():
        show(name, table)
    if options.write:
        text = "\n".join(rst(name, table) for name, table in tables.items())
        (options.write / "kernels.inc").write_text(text)
        plot(rows, options.write / "kernels.png", title)


if __name__ == "__main__":
    main()
