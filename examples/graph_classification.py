"""Graph classification with a stop for every graph: MUTAG and PROTEINS.

    TORCH_PICARD_DATA=FOLDER python examples/graph_classification.py
    python examples/graph_classification.py --dataset PROTEINS --scale full

Ten folds. Three models of one width: GCN and GIN of three layers, and
PicardConv(GCNConv) with injection, in which each graph of a batch stops by
itself. Pooling is the mean over nodes; all options are fixed beforehand, the
same for all models, and the accuracy is that after the last epoch, so nothing
is chosen on a test fold. Beside it: the share of the largest class. FOLDER
holds tu/MUTAG and tu/PROTEINS; else PyG downloads them. Prints a table and
saves a picture; a run that was interrupted goes on.
"""

import statistics
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from node_training import at_least
from operator_runs import Runs, Table, View, key, number_of, parser, report
from torch import Tensor, nn
from torch_geometric.datasets import TUDataset
from torch_geometric.loader import DataLoader
from torch_geometric.nn import GCN, GIN, GCNConv, global_mean_pool
from working_copy import opened

from torch_picard import PicardConv
from torch_picard.nn.smoothing_linear import SmoothingLinear

FOLDS = 10
SCALES = {
    "small": {"hidden": 32, "epochs": 40, "batch": 32, "lr": 5e-3},
    "full": {"hidden": 64, "epochs": 200, "batch": 32, "lr": 5e-3},
}
MODELS = {
    "gcn": "GCN, 3 layers",
    "gin": "GIN, 3 layers",
    "picard": "PicardConv(GCNConv), each graph to 1e-3",
}


def load(name: str) -> TUDataset:
    return opened("tu", name, partial(TUDataset, name=name))


class Classifier(nn.Module):
    def __init__(self, kind: str, features: int, classes: int, hidden: int):
        super().__init__()
        self.encoder = nn.Linear(features, hidden)
        if kind == "picard":
            conv = GCNConv(hidden, hidden)
            conv.lin = SmoothingLinear(hidden, lam=0.8, beta=1.0)
            self.body: nn.Module = PicardConv(
                conv, alpha=0.0, max_iter=40, rtol=1e-3, inject=True,
                activation="relu",
            )  # fmt: skip
        else:
            self.body = {"gcn": GCN, "gin": GIN}[kind](hidden, hidden, 3)
        self.decoder = nn.Linear(hidden, classes)

    def forward(self, data, iterations: list | None = None) -> Tensor:
        x = self.encoder(data.x).relu()
        if isinstance(self.body, PicardConv):
            x, solution = self.body(
                x, data.edge_index, batch=data.batch, return_solution=True
            )
            if iterations is not None:
                iterations += solution.iterations.tolist()
        else:
            x = self.body(x, data.edge_index)
        return self.decoder(global_mean_pool(x, data.batch))


def folds(labels: Tensor) -> list[Tensor]:
    """Test indices; the same for all models."""
    from sklearn.model_selection import StratifiedKFold

    split = StratifiedKFold(FOLDS, shuffle=True, random_state=0)
    parts = split.split(torch.zeros(len(labels)), labels)
    return [torch.from_numpy(test) for _, test in parts]


def run(kind: str, fold: int, name: str, setting: dict) -> dict:
    dataset = load(name)
    labels = torch.cat([data.y for data in dataset])
    held = torch.zeros(len(dataset), dtype=torch.bool)
    held[folds(labels)[fold]] = True
    torch.manual_seed(fold)
    model = Classifier(
        kind, dataset.num_features, dataset.num_classes, setting["hidden"]
    )
    optimizer = torch.optim.Adam(model.parameters(), setting["lr"])
    train = DataLoader(dataset[~held], setting["batch"], shuffle=True)
    for _ in range(setting["epochs"]):
        for data in train:
            optimizer.zero_grad()
            F.cross_entropy(model(data), data.y).backward()
            optimizer.step()
    model.eval()
    data = next(iter(DataLoader(dataset[held], int(held.sum()))))
    iterations: list[int] = []
    with torch.no_grad():
        hit = model(data, iterations).argmax(1) == data.y
    largest = torch.bincount(labels[~held]).argmax()
    return {
        "test": {"0": 100 * hit.float().mean().item()},
        "largest": 100 * (data.y == largest).float().mean().item(),
        "parameters": number_of(model),
        "iterations": iterations,
    }


def table(view: View) -> Table:
    rows = [["", "accuracy, %", "parameters", "iterations of a graph"]]
    common = [run["largest"] for run in view.runs(("gcn",))]
    rows.append(
        ["the largest class", f"{statistics.mean(common):.1f}", "0", "-"]
    )
    for kind, title in MODELS.items():
        runs = view.runs((kind,))
        counts = sorted(i for run in runs for i in run["iterations"])
        spread = "-"
        if counts:
            middle = statistics.median(counts)
            spread = f"{counts[0]} to {counts[-1]}, median {middle:g}"
        hits = view.errors((kind,), 0)
        accuracy = (
            f"{statistics.mean(hits):.1f} ± {statistics.stdev(hits):.1f}"
        )
        rows.append([title, accuracy, f"{runs[0]['parameters']:,}", spread])
    return rows


def picture(path: Path, view: View, dataset: TUDataset) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(8, 3))
    for i, kind in enumerate(MODELS):
        left.boxplot(view.errors((kind,), 0), positions=[i], widths=0.6)
    left.set_xticks(range(len(MODELS)), ["GCN", "GIN", "PicardConv"])
    left.set(ylabel="accuracy of a fold [%]")
    counts = [run["iterations"] for run in view.runs(("picard",))]
    sizes = [data.num_nodes for data in dataset]
    labels = torch.cat([data.y for data in dataset])
    for test, found in zip(folds(labels), counts):
        nodes = [sizes[i] for i in test.sort().values]
        right.plot(nodes, found, ".", color="C0", alpha=0.3)
    right.set(xlabel="nodes of a graph", ylabel="its iterations", xscale="log")
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def main() -> None:
    options = parser(__doc__, "graph_classification", SCALES)
    options.add_argument(
        "--dataset", choices=["MUTAG", "PROTEINS"], default="MUTAG"
    )
    options.add_argument(
        "--epochs", type=at_least(1), help="instead of the scale's"
    )
    args = options.parse_args()
    setting = dict(SCALES[args.scale])
    if args.epochs is not None:
        setting["epochs"] = args.epochs
    name = args.dataset
    dataset = load(name)  # once, before the processes start
    runs = Runs(args.out / f"graphs_{name}_{args.scale}.json", setting)
    todo = {
        key((kind,), fold): (kind, fold, name, setting)
        for fold in range(FOLDS)
        for kind in MODELS
    }
    runs.complete(todo, run, args.workers)
    view = View(runs.results, FOLDS)
    title = f"{name}, {len(dataset)} graphs, {FOLDS} folds, mean ± sd of folds"
    stem = f"graphs_{name.lower()}"
    report({title: table(view)}, args.write, stem)
    path = (args.write or args.out) / f"{stem}.png"
    picture(path, view, dataset)
    print(f"Picture: {path}")


if __name__ == "__main__":
    main()
