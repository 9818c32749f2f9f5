"""Node classification on ogbn-arxiv, with OGB's own loader and evaluator.

    python examples/ogb_arxiv.py --root FOLDER
    python examples/ogb_arxiv.py --root FOLDER --scale full --device cuda

GCN and GraphSAGE of three layers, and PIGN, whose one conv is iterated 32
times with implicit gradients: as deep as 32 layers, in the memory of a few.
The data set is downloaded into FOLDER unless it is there. Prints a table of
accuracies, parameters and times, and saves a picture of the training losses; a
run that was interrupted goes on.
"""

import statistics
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from node_training import at_least
from operator_runs import Runs, Table, View, key, number_of, parser, report
from torch import Tensor, nn
from torch_geometric.data import Data
from torch_geometric.nn import GCN, GraphSAGE
from torch_geometric.transforms import ToUndirected
from tqdm import tqdm

from torch_picard import PIGN, Implicit

DATASET = "ogbn-arxiv"
SCALES = {
    "small": {"hidden": 64, "epochs": 30, "iterations": 32},
    "full": {"hidden": 256, "epochs": 500, "iterations": 32},
}
MODELS = {
    "gcn": "GCN, 3 layers",
    "sage": "GraphSAGE, 3 layers",
    "pign-gcn": "PIGN-GCN, 32 iterations",
    "pign-sage": "PIGN-SAGE, 32 iterations",
}


def load(root: str) -> tuple[Data, dict[str, Tensor], int]:
    """The graph with edges in both directions, the split, the number of
    classes."""
    try:
        from ogb.nodeproppred import PygNodePropPredDataset
    except ImportError:
        raise SystemExit(
            "this example needs ogb: pip install torch-picard[ogb]"
        ) from None
    from torch_geometric.data.data import DataEdgeAttr, DataTensorAttr
    from torch_geometric.data.storage import GlobalStorage

    # ogb calls torch.load, which by now wants to be told what to trust
    known = [Data, DataEdgeAttr, DataTensorAttr, GlobalStorage]
    try:
        with torch.serialization.safe_globals(known):
            dataset = PygNodePropPredDataset(DATASET, root=root)
    except OSError as error:
        raise SystemExit(
            f"{DATASET} is not in {root}, or not whole, and could not be "
            f"downloaded: {error}"
        ) from error
    split = dataset.get_idx_split()
    data = ToUndirected()(dataset[0])
    return data, split, dataset.num_classes


def build(name: str, data: Data, classes: int, setting: dict) -> nn.Module:
    hidden = setting["hidden"]
    if name.startswith("pign"):
        return PIGN(
            data.num_features, hidden, classes, conv=name.split("-")[1],
            max_iter=setting["iterations"], gradient=Implicit(),
            norm="BatchNorm", dropout=0.3,
        )  # fmt: skip
    kind = {"gcn": GCN, "sage": GraphSAGE}[name]
    return kind(
        data.num_features, hidden, 3, classes, dropout=0.5, norm="BatchNorm"
    )


def run(name: str, seed: int, root: str, setting: dict, device: str) -> dict:
    """The test accuracy at the epoch of the best validation."""
    from ogb.nodeproppred import Evaluator

    data, split, classes = load(root)
    evaluator = Evaluator(name=DATASET)
    data = data.to(device)
    split = {part: index.to(device) for part, index in split.items()}
    torch.manual_seed(seed)
    model = build(name, data, classes, setting).to(device)
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    best, losses = {"valid": 0.0, "test": 0.0}, []
    start = time.perf_counter()
    for _ in tqdm(
        range(setting["epochs"]), desc=f"{name} {seed}", leave=False
    ):
        model.train()
        optimizer.zero_grad()
        out = model(data.x, data.edge_index)[split["train"]]
        loss = F.cross_entropy(out, data.y[split["train"], 0])
        loss.backward()
        optimizer.step()
        losses.append(round(float(loss.detach()), 4))
        found = evaluate(model, data, split, evaluator)
        if found["valid"] >= best["valid"]:
            best = found
    return {
        "valid": best["valid"],
        "test": {"0": best["test"]},
        "losses": losses,
        "parameters": number_of(model),
        "epoch": (time.perf_counter() - start) / setting["epochs"],
    }


@torch.no_grad()
def evaluate(model, data, split, evaluator) -> dict[str, float]:
    model.eval()
    guess = model(data.x, data.edge_index).argmax(1, keepdim=True)
    return {
        part: evaluator.eval(
            {"y_true": data.y[split[part]], "y_pred": guess[split[part]]}
        )["acc"]
        for part in ("valid", "test")
    }


def table(view: View) -> Table:
    rows = [["", "test accuracy", "validation", "parameters", "s an epoch"]]
    for name, title in MODELS.items():
        runs = view.runs((name,))
        rows.append(
            [
                title,
                view.spread((name,), 0),
                f"{statistics.mean(r['valid'] for r in runs):.4f}",
                f"{runs[0]['parameters']:,}",
                f"{statistics.mean(r['epoch'] for r in runs):.1f}",
            ]
        )
    return rows


def picture(path: Path, view: View) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axis = plt.subplots(figsize=(6, 4))
    for name, title in MODELS.items():
        curves = [run["losses"] for run in view.runs((name,))]
        mean = [statistics.mean(values) for values in zip(*curves)]
        axis.plot(range(1, len(mean) + 1), mean, label=title)
    axis.set(xlabel="epoch", ylabel="training loss", yscale="log")
    axis.legend()
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def main() -> None:
    options = parser(__doc__, "ogb_arxiv", SCALES)
    options.add_argument("--root", required=True, help="folder of the data")
    options.add_argument(
        "--epochs", type=at_least(1), help="instead of the scale's"
    )
    args = options.parse_args()
    setting = dict(SCALES[args.scale])
    if args.epochs is not None:
        setting["epochs"] = args.epochs
    load(args.root)  # once, before the processes start
    runs = Runs(Path(args.out) / f"ogb_arxiv_{args.scale}.json", setting)
    todo = {
        key((name,), seed): (name, seed, args.root, setting, args.device)
        for seed in range(args.seeds)
        for name in MODELS
    }
    runs.complete(todo, run, args.workers)
    view = View(runs.results, args.seeds)
    report({DATASET: table(view)}, args.write, "ogb_arxiv")
    path = (args.write or args.out) / "ogb_arxiv.png"
    picture(path, view)
    print(f"Picture: {path}")


if __name__ == "__main__":
    main()
