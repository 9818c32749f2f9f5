"""Minesweeper: what a node is depends on what its neighbours' numbers say.

    TORCH_PICARD_DATA=FOLDER python examples/minesweeper.py

A grid of 100 x 100 (HeterophilousGraphDataset of PyG): which nodes are mines?
Half of the nodes show how many of their neighbours are. The models of
table1.py, GCN and GraphSAGE as a stack of five layers, with IterGNN, and as
PIGN, and the same encoder and decoder without a graph; all with the same
number of parameters, training and stopping; nothing was searched for. FOLDER
holds heterophilous/minesweeper; else PyG downloads it. Prints the area under
the ROC curve on the first splits of the ten; a run that was interrupted goes
on.
"""

import copy
import statistics
from pathlib import Path

import torch
import torch.nn.functional as F
from node_training import at_least, load
from operator_runs import Runs, Table, View, key, number_of, parser, report
from table1 import build, width_for
from torch import Tensor, nn

SCALES = {
    "small": {"parameters": 20_000, "epochs": 200, "lr": 5e-3},
    "full": {"parameters": 500_000, "epochs": 1000, "lr": 3e-3},
}
LOOK = 5  # epochs between looks at the validation nodes
MODELS = {
    "no graph": ("without", "GCN", {"depth": 0}),
    "GCN, 5 layers": ("without", "GCN", {"depth": 5}),
    "GCN, IterGNN": ("IterGNN", "GCN", {"max_iter": 10}),
    "GCN, PIGN": ("PIGN", "GCN", {"max_iter": 10}),
    "SAGE, 5 layers": ("without", "SAGE", {"depth": 5}),
    "SAGE, IterGNN": ("IterGNN", "SAGE", {"max_iter": 10}),
    "SAGE, PIGN": ("PIGN", "SAGE", {"max_iter": 10}),
}


def area(scores: Tensor, data, mask: Tensor) -> float:
    from sklearn.metrics import roc_auc_score

    return 100 * float(roc_auc_score(data.y[mask], scores[mask]))


def run(name: str, setting: dict, split: int) -> dict:
    data = load("minesweeper", split=split)
    kind, conv, options = MODELS[name]

    def make(width: int) -> nn.Module:
        return build(kind, conv, (data.x.size(1), width, 2), options)

    width = width_for(setting["parameters"], make)
    torch.manual_seed(split)
    model = make(width)
    optimizer = torch.optim.Adam(model.parameters(), setting["lr"])
    batch = torch.zeros(data.num_nodes, dtype=torch.long)
    best, kept = -1.0, None
    for epoch in range(1, setting["epochs"] + 1):
        model.train()
        out = model(data.x, data.edge_index, batch=batch)
        loss = F.cross_entropy(out[data.train_mask], data.y[data.train_mask])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if epoch % LOOK and epoch != setting["epochs"]:
            continue
        model.eval()
        with torch.no_grad():
            out = model(data.x, data.edge_index, batch=batch)
        found = area(out[:, 1] - out[:, 0], data, data.val_mask)
        if found > best:
            best, kept = found, copy.deepcopy(model.state_dict())
    model.load_state_dict(kept)
    model.eval()
    result: dict = {"parameters": number_of(model), "val": best}
    with torch.no_grad():
        if kind == "without":
            out = model(data.x, data.edge_index, batch=batch)
        else:
            out, end = model(
                data.x, data.edge_index, batch=batch, return_solution=True
            )
            result["iterations"] = float(torch.as_tensor(end.iterations).max())
        if kind == "PIGN":
            result["residual"] = float(end.residual.max() / end.value.norm())
    result["test"] = {"0": area(out[:, 1] - out[:, 0], data, data.test_mask)}
    return result


def table(view: View) -> Table:
    rows = [["", "ROC AUC, %", "parameters", "iterations", "residual"]]
    for name in MODELS:
        runs = view.runs((name,))
        found = view.errors((name,), 0)
        spread = statistics.stdev(found) if len(found) > 1 else 0.0
        cells = [
            f"{statistics.mean(found):.1f} ± {spread:.1f}",
            f"{runs[0]['parameters']:,}",
        ]
        for what, form in (("iterations", "{:.1f}"), ("residual", "{:.1e}")):
            values = [run[what] for run in runs if what in run]
            cells.append(
                form.format(statistics.median(values)) if values else "-"
            )
        rows.append([name, *cells])
    return rows


def picture(path: Path, view: View) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    found = [view.errors((name,), 0) for name in MODELS]
    figure, axis = plt.subplots(figsize=(6, 3))
    axis.barh(
        list(MODELS),
        [statistics.mean(v) for v in found],
        xerr=[statistics.stdev(v) if len(v) > 1 else 0.0 for v in found],
        color=["C1" if "PIGN" in name else "C0" for name in MODELS],
    )
    axis.invert_yaxis()
    axis.set(xlabel="test ROC AUC [%]", xlim=(50, 100))
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def main() -> None:
    options = parser(__doc__, "minesweeper", SCALES)
    options.add_argument(
        "--epochs", type=at_least(1), help="instead of the scale's"
    )
    args = options.parse_args()
    setting = dict(SCALES[args.scale])
    if args.epochs is not None:
        setting["epochs"] = args.epochs
    load("minesweeper")  # once, before the processes start
    runs = Runs(args.out / f"minesweeper_{args.scale}.json", setting)
    todo = {
        key((name,), split): (name, setting, split)
        for split in range(args.seeds)
        for name in MODELS
    }
    runs.complete(todo, run, args.workers)
    view = View(runs.results, args.seeds)
    title = f"Minesweeper, mean ± sd of {args.seeds} splits"
    report({title: table(view)}, args.write, "minesweeper")
    path = (args.write or args.out) / "minesweeper.png"
    picture(path, view)
    print(f"Picture: {path}")


if __name__ == "__main__":
    main()
