"""Table 1 of the paper in small: segments of images, with and without
iteration.

    TORCH_PICARD_DATA=FOLDER python examples/table1.py
    python examples/table1.py --data pascal --scale full

Nodes are superpixels of an image, edges join neighbours, and every node is to
be classified. FOLDER holds camvid-sp (the images of CamVid; a file for each
split); ``--data pascal`` is PascalVOC-SP, the paper's, by PyG's LRGBDataset
from lrgb/pascalvoc-sp in FOLDER, else downloaded.

GCN, GAT and GraphSAGE, each as

    without   a stack of layers: x + layer(x)
    IterGNN   one layer, iterated, with a learned soft stop
    PIGN      one layer, iterated towards x = x0 + layer(x)

all of the width at which they have the same number of parameters, all with
batch normalisation, and all with the same search: TRIALS settings are drawn
for each and trained with one seed, and that with the best macro-F1 on the
validation graphs is trained with the seeds of the table. The test graphs are
looked at once, after that. Loss: cross entropy weighted against frequent
classes, as in the benchmark of PascalVOC-SP. Prints a table; a run that was
interrupted goes on.
"""

import os
import random
import statistics
from functools import cache, partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from itergnn import IterGNN
from node_training import at_least
from operator_runs import Runs, Table, View, key, number_of, parser, report
from torch import Tensor, nn
from torch_geometric.data import Data
from torch_geometric.datasets import LRGBDataset
from torch_geometric.loader import DataLoader
from torch_geometric.nn import GATConv, GCNConv, SAGEConv
from working_copy import opened

from torch_picard import PIGN

SCALES = {
    "small": {"parameters": 20_000, "epochs": 12, "batch": 16},
    "full": {"parameters": 500_000, "epochs": 200, "batch": 32},
}
TRIALS, SEARCH_SEED = 6, 1000
CONVS = {"GCN": GCNConv, "GAT": GATConv, "SAGE": SAGEConv}
KINDS = ["without", "IterGNN", "PIGN"]
RANGES = {
    "without": {"depth": [2, 4, 8], "lr": [5e-3, 1e-2]},
    "IterGNN": {"max_iter": [4, 8], "decay": [1.0, 0.9], "lr": [5e-3, 1e-2]},
    "PIGN": {
        "max_iter": [4, 8],
        "alpha": [0.0, 0.3],
        "lr": [5e-3, 1e-2],
    },
}
VOID = {"camvid": 11}  # no class: neither trained nor counted


@cache
def graphs(name: str) -> dict[str, list[Data]]:
    """By split; features have mean 0 and deviation 1 on the training
    nodes."""
    if name == "pascal":
        found = {
            split: list(
                opened(
                    "lrgb",
                    "pascalvoc-sp",
                    partial(LRGBDataset, name="PascalVOC-SP", split=split),
                )
            )
            for split in ("train", "val", "test")
        }
    else:
        folder = Path(os.environ.get("TORCH_PICARD_DATA", "."), "camvid-sp")
        found = {
            split: from_npz(folder / f"{split}.npz")
            for split in ("train", "val", "test")
        }
    x = torch.cat([data.x for data in found["train"]])
    mean, deviation = x.mean(0), x.std(0).clamp(min=1e-6)
    for parts in found.values():
        for data in parts:
            data.x = (data.x - mean) / deviation
            data.y = torch.where(data.y == VOID.get(name, -100), -100, data.y)
    return found


def from_npz(path: Path) -> list[Data]:
    """Graphs that lie one behind the other, each with ids of its own."""
    if not path.is_file():
        raise SystemExit(
            f"{path} is missing: TORCH_PICARD_DATA must name the folder that "
            "holds camvid-sp; or take --data pascal"
        )
    with np.load(path) as arrays:
        x = torch.from_numpy(arrays["x"])
        y = torch.from_numpy(arrays["y"]).long()
        edge_index = torch.from_numpy(arrays["edge_index"]).long()
        nodes = arrays["num_nodes"].tolist()
        edges = arrays["num_edges"].tolist()
    return [
        Data(x=part, y=labels, edge_index=pairs)
        for part, labels, pairs in zip(
            x.split(nodes), y.split(nodes), edge_index.split(edges, 1)
        )
    ]


class Layer(nn.Module):
    def __init__(self, conv: nn.Module, width: int):
        super().__init__()
        self.conv, self.norm = conv, nn.BatchNorm1d(width)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        return self.norm(self.conv(x, edge_index)).relu()


class Stack(nn.Module):
    def __init__(self, sizes: tuple, conv, depth: int):
        super().__init__()
        width = sizes[1]
        self.encoder = nn.Linear(sizes[0], width)
        self.norm = nn.BatchNorm1d(width)
        self.layers = nn.ModuleList(
            Layer(conv(width), width) for _ in range(depth)
        )
        self.decoder = nn.Linear(width, sizes[2])

    def forward(self, x: Tensor, edge_index: Tensor, batch: Tensor) -> Tensor:
        x = self.norm(self.encoder(x)).relu()
        for layer in self.layers:
            x = x + layer(x, edge_index)
        return self.decoder(x)


def build(kind: str, conv: str, sizes: tuple, options: dict) -> nn.Module:
    """``sizes``: features, width, classes."""

    def square(width: int) -> nn.Module:
        return CONVS[conv](width, width)

    if kind == "without":
        return Stack(sizes, square, **options)
    norm = nn.BatchNorm1d
    if kind == "IterGNN":
        return IterGNN(
            *sizes, square, norm=norm, input_dropout=0.0, dropout=0.0,
            **options,
        )  # fmt: skip

    def layer(width: int) -> nn.Module:
        return Layer(square(width), width)

    return PIGN(*sizes, layer, norm=norm, dropout=0.0, **options)


def width_for(target: int, make) -> int:
    """The largest at which ``make(width)`` has no more than ``target``
    parameters."""
    low, high = 1, 2
    while number_of(make(high)) <= target:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        if number_of(make(middle)) <= target:
            low = middle
        else:
            high = middle
    return low


def macro_f1(predicted: Tensor, labels: Tensor) -> float:
    """Mean over the classes that occur in either."""
    from sklearn.metrics import f1_score

    known = labels >= 0
    return float(f1_score(labels[known], predicted[known], average="macro"))


@torch.no_grad()
def test(model: nn.Module, data: Data) -> dict:
    """macro-F1 and, for a model that iterates, how its loops ended."""
    model.eval()
    options = {} if isinstance(model, Stack) else {"return_solution": True}
    out = model(data.x, data.edge_index, batch=data.batch, **options)
    result = {}
    if isinstance(model, PIGN):
        out, end = out
        size = end.value.norm() / len(end.residual) ** 0.5
        result = {
            "iterations": float(end.iterations.float().mean()),
            "converged": float(end.converged.float().mean()),
            "residual": float(end.residual.median() / size),
        }
    elif options:
        out, end = out
        result = {
            "iterations": float(end.iterations),
            "residual": float(end.residual[-1]),
        }
    return result | {"f1": macro_f1(out.argmax(1), data.y)}


def train(
    kind: str, conv: str, options: dict, name: str, setting: dict, seed: int
) -> tuple[nn.Module, dict[str, list[Data]]]:
    found = graphs(name)
    labels = torch.cat([data.y for data in found["train"]])
    counts = torch.bincount(labels[labels >= 0])
    weight = 1 - counts / counts.sum()
    options = dict(options)
    lr = options.pop("lr")
    features = found["train"][0].x.size(1)

    def make(width: int) -> nn.Module:
        return build(kind, conv, (features, width, len(counts)), options)

    width = width_for(setting["parameters"], make)
    torch.manual_seed(seed)
    model = make(width)
    loader = DataLoader(found["train"], setting["batch"], shuffle=True)
    optimizer = torch.optim.Adam(model.parameters(), lr)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, lr, setting["epochs"] * len(loader)
    )
    model.train()
    for _ in range(setting["epochs"]):
        for data in loader:
            out = model(data.x, data.edge_index, batch=data.batch)
            loss = F.cross_entropy(out, data.y, weight, ignore_index=-100)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return model, found


def whole(parts: list[Data]) -> Data:
    return next(iter(DataLoader(parts, len(parts))))


def trial(kind, conv, options, name, setting) -> dict:
    """Validation only."""
    model, found = train(kind, conv, options, name, setting, SEARCH_SEED)
    return {"val": test(model, whole(found["val"]))["f1"]}


def run(kind, conv, options, name, setting, seed) -> dict:
    model, found = train(kind, conv, options, name, setting, seed)
    result = {"options": options, "parameters": number_of(model)}
    result["val"] = test(model, whole(found["val"]))["f1"]
    ended = test(model, whole(found["test"]))
    return result | {"test": {"0": ended.pop("f1")}} | ended


def drawn(kind: str, conv: str, trials: int) -> list[dict]:
    """Settings without repetition, the same every time."""
    rng = random.Random(f"{kind} {conv}")
    options: list[dict] = []
    most = int(np.prod([len(v) for v in RANGES[kind].values()]))
    while len(options) < min(trials, most):
        one = {k: rng.choice(v) for k, v in RANGES[kind].items()}
        if one not in options:
            options.append(one)
    return options


def chosen(results: dict, kind: str, conv: str, trials: int) -> dict:
    options = drawn(kind, conv, trials)
    found = [results[key((kind, conv, "trial", i), SEARCH_SEED)]["val"]
             for i in range(len(options))]  # fmt: skip
    return options[max(range(len(found)), key=found.__getitem__)]


PAPER = {
    ("without", "GCN"): ".151", ("without", "GAT"): ".120",
    ("without", "SAGE"): ".302", ("IterGNN", "GCN"): ".174",
    ("IterGNN", "GAT"): ".110", ("IterGNN", "SAGE"): ".182",
    ("PIGN", "GCN"): ".183", ("PIGN", "GAT"): ".171",
    ("PIGN", "SAGE"): ".356",
}  # fmt: skip


def table(view: View, frequent: float) -> Table:
    rows = [["", *CONVS, *(f"{conv}, paper" for conv in CONVS)]]
    rows.append(
        ["the most frequent class", *[f"{frequent:.4f}"] * 3, "", "", ""]
    )
    for kind in KINDS:
        found = [view.spread((kind, conv), 0) for conv in CONVS]
        rows.append([kind, *found, *(PAPER[kind, conv] for conv in CONVS)])
    return rows


def details(view: View) -> Table:
    """What was chosen, and how the loops ended."""
    rows = [
        ["", "chosen", "parameters", "iterations", "residual", "converged"]
    ]
    for kind in KINDS:
        for conv in CONVS:
            runs = view.runs((kind, conv))
            options = ", ".join(
                f"{k} {v:g}" if isinstance(v, float) else f"{k} {v}"
                for k, v in runs[0]["options"].items()
            )
            cells = [f"{kind}, {conv}", options, f"{runs[0]['parameters']:,}"]
            for name, form in (
                ("iterations", "{:.1f}"),
                ("residual", "{:.1e}"),
                ("converged", "{:.0%}"),
            ):
                values = [run[name] for run in runs if name in run]
                middle = statistics.median(values) if values else None
                cells.append("-" if middle is None else form.format(middle))
            rows.append(cells)
    return rows


def picture(path: Path, view: View) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axis = plt.subplots(figsize=(6, 3.5))
    for shift, kind in enumerate(KINDS):
        found = [view.errors((kind, conv), 0) for conv in CONVS]
        axis.bar(
            [place + 0.27 * (shift - 1) for place in range(len(CONVS))],
            [statistics.mean(v) for v in found],
            0.25,
            yerr=[statistics.stdev(v) if len(v) > 1 else 0.0 for v in found],
            label=kind,
        )
    axis.set_xticks(range(len(CONVS)), list(CONVS))
    axis.set_ylabel("test macro-F1")
    axis.legend(loc="lower right", framealpha=1)
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def main() -> None:
    options = parser(__doc__, "table1", SCALES)
    options.add_argument(
        "--data", choices=["camvid", "pascal"], default="camvid"
    )
    options.add_argument(
        "--epochs", type=at_least(1), help="instead of the scale's"
    )
    options.add_argument("--trials", type=at_least(1), default=TRIALS)
    options.set_defaults(seeds=5)
    args = options.parse_args()
    setting = dict(SCALES[args.scale])
    if args.epochs is not None:
        setting["epochs"] = args.epochs
    name = args.data
    found = graphs(name)
    runs = Runs(args.out / f"table1_{name}_{args.scale}.json", setting)
    models = [(kind, conv) for kind in KINDS for conv in CONVS]
    trials = {
        key((*model, "trial", i), SEARCH_SEED): (*model, one, name, setting)
        for model in models
        for i, one in enumerate(drawn(*model, args.trials))
    }
    runs.complete(trials, trial, args.workers)
    best = partial(chosen, runs.results, trials=args.trials)
    todo = {
        key(model, seed): (*model, best(*model), name, setting, seed)
        for seed in range(args.seeds)
        for model in models
    }
    runs.complete(todo, run, args.workers)

    view = View(runs.results, args.seeds)
    train_labels = torch.cat([data.y for data in found["train"]])
    labels = torch.cat([data.y for data in found["test"]])
    most = torch.full_like(
        labels, int(train_labels[train_labels >= 0].mode()[0])
    )
    title = f"Test macro-F1, mean ± sd of {args.seeds} seeds"
    tables = {
        title: table(view, macro_f1(most, labels)),
        "How the loops ended (medians)": details(view),
    }
    report(tables, args.write, "table1")
    folder = args.out if args.write is None else args.write
    picture(folder / "table1.png", view)
    print(f"Picture: {folder / 'table1.png'}")


if __name__ == "__main__":
    main()
