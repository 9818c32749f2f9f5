"""Learned on small graphs, right on large ones? Distances from a source.

    python examples/shortest_paths.py

Points in a long strip, joined to their neighbours, edges as long as they are;
for every node, how far is it from the source? All models are trained on graphs
of 10 to 30 nodes and tested on graphs of 30 to 500. They share encoder,
decoder and layer, a network on the edges whose messages meet in a maximum:

    8 layers          stacked, each with its own weights
    24 iterations     one layer, applied so many times, always
    IterGNN           one layer, and a learned confidence that stops it
    PicardConv        one layer, iterated until each graph has settled

There are no biases: who scales all lengths scales all answers. Prints the
error relative to the farthest node, and the iterations beside the edges of the
longest of the shortest paths; a run that was interrupted goes on.
"""

import statistics
from functools import cache
from itertools import repeat
from pathlib import Path

import numpy as np
import torch
from node_training import at_least
from operator_runs import (
    Runs,
    Table,
    View,
    fit,
    key,
    number_of,
    parser,
    report,
)
from torch import Tensor, nn
from torch_geometric.data import Data
from torch_geometric.loader import DataLoader
from torch_geometric.nn import MessagePassing, global_max_pool

from torch_picard import PicardConv

SCALES = {
    "small": {"width": 16, "graphs": 1000, "updates": 1000, "lr": 1e-2},
    "full": {"width": 64, "graphs": 20_000, "updates": 20_000, "lr": 2e-3},
}
SIZES = [30, 60, 125, 250, 500]
TESTED, TRAINED, LONGEST = 20, 40, 1000
MODELS = ["8 layers", "24 iterations", "IterGNN", "PicardConv"]


def strip(nodes: int, rng: np.random.Generator) -> Data:
    """x [N, 2]: at the source (an upper bound of all distances, 0), else
    (0, 0); the second column is free. edge_attr [E, 1]: lengths; y [N]:
    distances; hops: edges of the longest shortest path."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import dijkstra

    points = rng.random((nodes, 2)) * [nodes / 10, 1.0]
    points = points[points[:, 0].argsort()]
    apart = np.linalg.norm(points[:, None] - points, axis=2)
    near = apart.argsort(1)[:, 1:4]  # three neighbours
    pairs = np.stack([np.repeat(np.arange(nodes), 3), near.ravel()])
    line = np.arange(nodes - 1)  # and a path through all, to be connected
    pairs = np.concatenate([pairs, [line, line + 1]], 1)
    pairs = np.unique(np.concatenate([pairs, pairs[::-1]], 1), axis=1)
    lengths = apart[pairs[0], pairs[1]]
    source = int(rng.integers(nodes))
    graph = coo_array((lengths, tuple(pairs)), (nodes, nodes)).tocsr()
    far, parent = dijkstra(graph, indices=source, return_predecessors=True)
    hops = np.zeros(nodes, dtype=int)
    for node in far.argsort()[1:]:
        hops[node] = hops[parent[node]] + 1
    x = torch.zeros(nodes, 1)
    x[source] = float(nodes) / 5
    return Data(
        x=x,
        edge_index=torch.from_numpy(pairs),
        edge_attr=torch.from_numpy(lengths).float()[:, None],
        y=torch.from_numpy(far).float(),
        hops=int(hops.max()),
    )


class Step(MessagePassing):
    """max(x0, max over neighbours of relu(A h_j - b * length)), A with rows
    that are averages and b not negative: in the largest norm a change of h is
    not enlarged, and every edge costs something, so the iteration settles."""

    def __init__(self, width: int):
        super().__init__(aggr="max")
        self.mix = nn.Parameter(torch.randn(width, width))
        self.cost = nn.Parameter(torch.randn(width))

    def forward(
        self, h: Tensor, edge_index: Tensor, edge_attr: Tensor, x0: Tensor
    ) -> Tensor:
        mixed = h @ self.mix.softmax(1).T
        found = self.propagate(edge_index, h=mixed, edge_attr=edge_attr)
        return torch.maximum(x0, found)

    def message(self, h_j: Tensor, edge_attr: Tensor) -> Tensor:
        cost = nn.functional.softplus(self.cost)
        return (h_j - edge_attr * cost).relu()


class Distances(nn.Module):
    """The state says how much is left of a bound: it is full at the source
    and falls along the edges."""

    def __init__(self, name: str, width: int):
        super().__init__()
        self.encoder = nn.Linear(1, width, bias=False)
        self.decoder = nn.Linear(width, 1, bias=False)
        self.name, self.max_iter = name, TRAINED
        count = 8 if name == "8 layers" else 1
        self.steps = nn.ModuleList(Step(width) for _ in range(count))
        if name == "IterGNN":
            self.confidence = nn.Linear(width, 1)
        elif name != "8 layers":
            fixed = name == "24 iterations"
            self.solve = PicardConv(
                self.steps[0],
                alpha=0.0,
                max_iter=24 if fixed else TRAINED,
                rtol=0.0 if fixed else 1e-5,
                on_failure="ignore",
            )

    def forward(self, data: Data) -> tuple[Tensor, Tensor]:
        """Distances [N], iterations of each graph [S]."""
        x0 = self.encoder(data.x).relu()
        graph = data.edge_index, data.edge_attr, x0
        if self.name == "8 layers":
            h = x0
            for step in self.steps:
                h = step(h, *graph)
            iterations = torch.full((data.num_graphs,), len(self.steps))
        elif self.name == "IterGNN":
            h, iterations = self.stopped_softly(x0, graph, data)
        else:
            if self.name == "PicardConv":
                self.solve.max_iter = self.max_iter
            h, solution = self.solve(
                x0, *graph, batch=data.batch, return_solution=True
            )
            iterations = solution.iterations
        bound = largest(data.x[:, 0], data)[data.batch]
        return bound - self.decoder(h)[:, 0], iterations

    def stopped_softly(
        self, h: Tensor, graph: tuple, data: Data
    ) -> tuple[Tensor, Tensor]:
        """The formulas of itergnn.py, with this layer."""
        left = h.new_ones(data.num_graphs, 1)
        out = torch.zeros_like(h)
        iterations = torch.zeros(data.num_graphs)
        for _ in range(self.max_iter):
            iterations += (left[:, 0] > 0.01).float()
            h = self.steps[0](h, *graph)
            stop = self.confidence(global_max_pool(h, data.batch)).sigmoid()
            out = out + (left * stop)[data.batch] * h
            left = left * (1 - stop)
            if float(left.detach().max()) < 0.01:
                break
        return out + left[data.batch] * h, iterations


def largest(values: Tensor, data: Data) -> Tensor:
    """[N] -> [S], of each graph."""
    return global_max_pool(values[:, None], data.batch)[:, 0]


def error(found: Tensor, data: Data) -> Tensor:
    """[N], relative to the distance of the farthest node."""
    return (found - data.y).abs() / largest(data.y, data)[data.batch]


@cache
def strips(nodes: int | None, count: int, seed: int) -> list[Data]:
    """Of so many nodes; None: of 10 to 30."""
    rng = np.random.default_rng([seed, nodes or 0])
    sizes = [nodes or int(rng.integers(10, 31)) for _ in range(count)]
    return [strip(size, rng) for size in sizes]


def run(name: str, setting: dict, sizes: list[int], seed: int) -> dict:
    torch.manual_seed(seed)
    model = Distances(name, setting["width"])
    loader = DataLoader(strips(None, setting["graphs"], seed), 32, True)
    batches = (data for _ in repeat(None) for data in loader)

    def loss() -> Tensor:
        data = next(batches)
        return error(model(data)[0], data).mean()

    fit(model, loss, setting["updates"], setting["lr"])
    model.max_iter = LONGEST
    test: dict[str, float] = {}
    iterations: dict[str, list[float]] = {}
    for size in sizes:
        data = next(iter(DataLoader(strips(size, TESTED, 1000), TESTED)))
        with torch.no_grad():
            found, count = model(data)
        test[str(size)] = 100 * float(error(found, data).mean())
        iterations[str(size)] = count.tolist()
    return {
        "test": test,
        "iterations": iterations,
        "parameters": number_of(model),
    }


def table(view: View, sizes: list[int]) -> Table:
    rows = [["", "parameters", *(f"{size} nodes" for size in sizes)]]
    for name in MODELS:
        runs = view.runs((name,))
        cells = []
        for size in sizes:
            errors = view.errors((name,), size)
            spread = statistics.stdev(errors) if len(errors) > 1 else 0.0
            cells.append(f"{statistics.mean(errors):.1f} ± {spread:.1f}")
        rows.append([name, f"{runs[0]['parameters']:,}", *cells])
    return rows


def counts(view: View, sizes: list[int]) -> Table:
    """Medians over graphs and seeds, with the smallest and the largest."""

    def of(values: list[float]) -> str:
        low, high = min(values), max(values)
        return f"{statistics.median(values):g} ({low:g} to {high:g})"

    rows = [["", *(f"{size} nodes" for size in sizes)]]
    hops = [
        [data.hops for data in strips(size, TESTED, 1000)] for size in sizes
    ]
    rows.append(["edges of the longest path", *map(of, hops)])
    for name in MODELS[1:]:
        runs = view.runs((name,))
        cells = [
            of([c for run in runs for c in run["iterations"][str(size)]])
            for size in sizes
        ]
        rows.append([name, *cells])
    return rows


def picture(path: Path, view: View, sizes: list[int]) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.6))
    for name in MODELS:
        left.plot(
            sizes,
            [view.error((name,), size) for size in sizes],
            marker="o",
            label=name,
        )
    left.axvline(30, color="grey", linestyle=":")
    left.set(xscale="log", yscale="log", xlabel="nodes", ylabel="error [%]")
    left.set_xticks(sizes, sizes)
    left.minorticks_off()
    left.legend()
    for size in sizes:
        hops = [data.hops for data in strips(size, TESTED, 1000)]
        found = view.runs(("PicardConv",))[0]["iterations"][str(size)]
        right.scatter(hops, found, s=12, label=f"{size} nodes")
    right.set(
        xscale="log", yscale="log", xlabel="edges of the longest path",
        ylabel="iterations of PicardConv",
    )  # fmt: skip
    right.legend()
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def main() -> None:
    options = parser(__doc__, "shortest_paths", SCALES)
    options.add_argument("--sizes", type=at_least(2), nargs="+", default=SIZES)
    options.add_argument(
        "--updates", type=at_least(1), help="instead of the scale's"
    )
    args = options.parse_args()
    setting = dict(SCALES[args.scale])
    if args.updates is not None:
        setting["updates"] = args.updates
    runs = Runs(
        args.out / f"shortest_paths_{args.scale}.json",
        setting | {"sizes": args.sizes},
    )
    todo = {
        key((name,), seed): (name, setting, args.sizes, seed)
        for name in MODELS
        for seed in range(args.seeds)
    }
    runs.complete(todo, run, args.workers)
    view = View(runs.results, args.seeds)
    title = (
        "Error in % of the distance of the farthest node, mean ± sd of "
        f"{args.seeds} seeds, {TESTED} graphs of each size"
    )
    tables = {
        title: table(view, args.sizes),
        "Iterations of a graph": counts(view, args.sizes),
    }
    report(tables, args.write, "shortest_paths")
    path = (args.write or args.out) / "shortest_paths.png"
    picture(path, view, args.sizes)
    print(f"Picture: {path}")


if __name__ == "__main__":
    main()
