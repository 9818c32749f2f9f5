"""Convergence as a fact: the same graph network, with a conv that is made to
contract and with one that is free.

    python examples/contraction.py
    python examples/contraction.py --dataset Cora --root FOLDER --runs 5

Both are trained alike; in each iteration the input is added to the state.
After every step of the optimiser it is asked whether P is certified to
contract, and the solves of training and evaluation are counted: how many
converged, and whether one took more iterations than the certificate allows.
Prints a table and saves a picture: residual curves over the course of
training, inside the cone that is proved for them. Every run is kept in a file
(--out): who was interrupted goes on where he was.
"""

import argparse
import statistics
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
import torch.nn.functional as F
from node_training import DATASETS, at_least, load, prepare
from operator_runs import Runs, key, text
from torch import Tensor
from torch.nn import Linear, Module
from torch_geometric.nn import GCNConv

from torch_picard import Implicit, PicardConv, Status
from torch_picard.contraction import contractive, lipschitz_bound
from torch_picard.nn.feature_linear import FeatureLinear

WIDTH = 64
RTOL = 1e-4
SUMMED = "steps", "contracts", "solves", "converged", "late"


class Net(Module):
    """Encoder, iterated GCNConv, decoder."""

    def __init__(self, features: int, classes: int, bound: float | None):
        super().__init__()
        self.encoder = FeatureLinear(features, WIDTH, dropout=0.5)
        conv = GCNConv(WIDTH, WIDTH)
        if bound is not None:
            # on every undirected graph: GCN's propagation has norm 1
            conv = contractive(conv, bound)
        self.block = PicardConv(
            conv,
            alpha=0.0,
            max_iter=200,
            rtol=RTOL,
            inject=True,
            activation="relu",
            gradient=Implicit(),
        )
        self.decoder = Linear(WIDTH, classes)

    def forward(self, x: Tensor, edge_index: Tensor):
        x = F.dropout(self.encoder(x).relu(), 0.5, self.training)
        x, solution = self.block(x, edge_index, return_solution=True)
        x = F.dropout(x, 0.5, self.training)
        return self.decoder(x), solution


@dataclass
class Count:
    """What is counted over the solves of a run."""

    steps: int = 0
    contracts: int = 0
    solves: int = 0
    converged: int = 0
    late: int = 0
    most: int = 0
    curves: list[tuple[int, list[float], float]] = field(default_factory=list)

    def solve(self, solution, certificate) -> None:
        self.solves += 1
        done = int(solution.status) == Status.CONVERGED
        self.converged += done
        self.most = max(self.most, int(solution.iterations))
        if certificate.contracts and done:
            # the residual is at most 1 + L times the distance to x*
            goal = RTOL * float(solution.value.detach().norm())
            allowed = certificate.iterations_for(
                goal / (1 + certificate.constant),
                first_step=float(solution.residual_history[0, 0]),
            )
            self.late += int(solution.iterations) > allowed


def train(net: Net, data, epochs: int, count: Count) -> float:
    """Trains, and returns the test accuracy at the best validation."""
    optimizer = torch.optim.Adam(
        [
            {"params": net.encoder.parameters(), "weight_decay": 5e-3},
            {"params": net.block.parameters()},
            {"params": net.decoder.parameters()},
        ],
        lr=0.01,
    )
    x, edge_index, y = data.x, data.edge_index, data.y
    best, test = (-1.0, 0.0), 0.0
    for epoch in range(epochs):
        net.train()
        optimizer.zero_grad()
        out, solution = net(x, edge_index)
        certificate = lipschitz_bound(net.block, edge_index, x.size(0))
        count.solve(solution, certificate)
        if epoch % max(1, epochs // 5) == 0:
            curve = solution.residual_history[:, 0].tolist()
            count.curves.append((epoch, curve, certificate.constant))
        loss = F.cross_entropy(out[data.train_mask], y[data.train_mask])
        loss.backward()
        optimizer.step()
        certificate = lipschitz_bound(net.block, edge_index, x.size(0))
        count.steps += 1
        count.contracts += certificate.contracts
        net.eval()
        with torch.no_grad():
            out, solution = net(x, edge_index)
        count.solve(solution, certificate)
        hit = (out.argmax(-1) == y).float()
        loss = float(F.cross_entropy(out[data.val_mask], y[data.val_mask]))
        score = (float(hit[data.val_mask].mean()), -loss)
        if score > best:
            best, test = score, float(hit[data.test_mask].mean())
    return test


def picture(path: Path, runs: dict[str, list[dict]]) -> None:
    """The residual curves of the first run of each."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(
        1, len(runs), figsize=(6 * len(runs), 4.5), sharey=True
    )
    for axis, (name, found) in zip(axes, runs.items()):
        curves = found[0]["curves"]
        longest = max(len(curve) for _, curve, _ in curves)
        for place, (epoch, curve, _) in enumerate(curves):
            colour = plt.cm.viridis(place / max(1, len(curves) - 1))
            relative = [r / curve[0] for r in curve]
            axis.semilogy(relative, color=colour, label=f"epoch {epoch}")
        constant = max(c for _, _, c in curves)
        if constant < 1:
            steps = range(longest)
            cone = [constant**k for k in steps]
            axis.fill_between(
                steps, cone, 1e-6, color="C1", alpha=0.15,
                label=f"proved: ${constant:.2f}^k$",
            )  # fmt: skip
        axis.set_title(name)
        axis.set_xlabel("iteration k")
        axis.set_ylim(1e-6, 1e3)
        axis.legend()
    axes[0].set_ylabel("residual / first residual")
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def table(runs: dict[str, list[dict]]) -> str:
    rows = [
        ["conv", "test accuracy", "certified steps", "solves converged",
         "most iterations", "beyond the bound"]
    ]  # fmt: skip
    for name, found in runs.items():
        test = [run["test"] for run in found]
        spread = statistics.stdev(test) if len(test) > 1 else 0.0
        total = {n: sum(run[n] for run in found) for n in SUMMED}
        rows.append(
            [
                name,
                f"{100 * statistics.mean(test):.1f} +- {100 * spread:.1f}",
                f"{total['contracts']} of {total['steps']}",
                f"{total['converged']} of {total['solves']}",
                str(max(run["most"] for run in found)),
                str(total["late"]) if total["contracts"] else "-",
            ]
        )
    return text(rows)


def work(data, bound: float | None, epochs: int, seed: int) -> dict:
    """One run: its test accuracy, and what was counted."""
    torch.manual_seed(seed)
    net = Net(data.x.size(1), int(data.y.max()) + 1, bound)
    count = Count()
    return {"test": train(net, data, epochs, count), **asdict(count)}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--dataset", choices=DATASETS, default=DATASETS[0])
    parser.add_argument("--root", help="folder with the raw files")
    parser.add_argument("--cache", help="folder for processed files")
    parser.add_argument("--runs", type=at_least(1), default=3)
    parser.add_argument("--epochs", type=at_least(1), default=100)
    parser.add_argument("--bound", type=float, default=0.95)
    parser.add_argument("--features", choices=("raw", "centred"),
                        default="raw")  # fmt: skip
    parser.add_argument(
        "--out", type=Path, default=Path("outputs"),
        help="folder of the runs (kept, and continued) and of the picture",
    )  # fmt: skip
    options = parser.parse_args()
    data = load(options.dataset, options.root, options.cache)
    data = prepare(data, 0.0, options.features, 0)
    setting = [options.dataset, options.features, options.epochs]
    stored = Runs(options.out / "contraction.json", {"setting": setting})
    bounds = {f"contractive, {options.bound:g}": options.bound, "free": None}
    stored.complete(
        {
            key((name,), seed): (data, bound, options.epochs, seed)
            for name, bound in bounds.items()
            for seed in range(options.runs)
        },
        work,
    )
    runs = {
        name: [stored.results[key((name,), s)] for s in range(options.runs)]
        for name in bounds
    }
    print(table(runs))
    path = options.out / "contraction.png"
    picture(path, runs)
    print(f"Residual curves: {path}")


if __name__ == "__main__":
    main()
