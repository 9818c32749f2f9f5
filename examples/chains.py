"""How far does information travel? Accuracy against the length of a chain.

    python examples/chains.py

The class of a chain is written in its first node only; every node is to be
classified (torch_picard.datasets.ChainGraphs). All models share encoder and
decoder, and the decoder reads the direction of the state, not its size,
because a signal fades geometrically along a chain. Between the two stand

    GCN-2, GCN-8   stacked GCN layers: they see 2 and 8 edges far
    APPNP          10 steps of personalised PageRank, its usual number
    PicardConv     x = conv(x) + x0, a GCN conv that contracts with rate 0.98,
                   iterated four times as often as a chain has nodes

PicardConv has the parameters of one layer, whatever the length. The count is
fixed (rtol = atol = 0): a residual measures the whole state, and is small
long before the last nodes, whose values are tiny, have settled.
"""

import argparse
import statistics
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from node_training import train
from torch import Tensor
from torch.nn import Linear, Module, ModuleList
from torch_geometric.nn import APPNP, GCNConv
from tqdm import tqdm

from torch_picard.datasets import ChainGraphs
from torch_picard.nn.picard_conv import PicardConv
from torch_picard.nn.pign import SmoothingLinear

WIDTH = 8


class Layers(Module):
    """GCN layers with ReLU, one after another."""

    def __init__(self, depth: int):
        super().__init__()
        self.convs = ModuleList(
            GCNConv(WIDTH, WIDTH, cached=True) for _ in range(depth)
        )

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        for conv in self.convs:
            x = conv(x, edge_index).relu()
        return x


def picard(length: int) -> PicardConv:
    conv = GCNConv(WIDTH, WIDTH, bias=False, cached=True)
    conv.lin = SmoothingLinear(WIDTH, lam=0.98, beta=0.1)
    return PicardConv(
        conv, alpha=0.0, max_iter=4 * length, rtol=0.0, atol=0.0, inject=True
    )


PROPAGATION = {
    "GCN-2": lambda length: Layers(2),
    "GCN-8": lambda length: Layers(8),
    "APPNP": lambda length: APPNP(K=10, alpha=0.1, cached=True),
    "PicardConv": picard,
}


class ChainModel(Module):
    def __init__(self, num_features: int, num_classes: int, propagation):
        super().__init__()
        self.encoder = Linear(num_features, WIDTH, bias=False)
        self.propagation = propagation
        self.decoder = Linear(WIDTH, num_classes)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        x = self.propagation(self.encoder(x), edge_index)
        return self.decoder(direction(x))


def direction(x: Tensor) -> Tensor:
    """x with rows of length one; rows of nothing (below 1e-30) become zero.

    Scaled by the largest entry first: the square of 1e-22 would underflow.
    """
    largest = x.detach().abs().amax(dim=-1, keepdim=True)
    heard = largest > 1e-30
    x = torch.where(heard, x, 0.0) / torch.where(heard, largest, 1.0)
    return F.normalize(x, dim=-1)


def accuracy(name: str, length: int, seed: int, epochs: int) -> float:
    data = ChainGraphs(length, num_chains=10, seed=seed)[0]
    torch.manual_seed(seed)
    model = ChainModel(data.x.size(1), 2, PROPAGATION[name](length))
    train(model, data, lr=0.02, weight_decay=0.0, epochs=epochs, patience=10)
    model.eval()
    with torch.no_grad():
        hit = model(data.x, data.edge_index).argmax(-1) == data.y
    return 100 * float(hit[data.test_mask].float().mean())


def picture(path: Path, results: dict) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axis = plt.subplots(figsize=(6, 4))
    for name, by_length in results.items():
        means = [statistics.mean(v) for v in by_length.values()]
        axis.plot(list(by_length), means, marker="o", label=name)
    axis.set_xscale("log")
    axis.set_xticks(list(by_length), list(by_length))
    axis.set_xlabel("nodes of a chain")
    axis.set_ylabel("test accuracy [%]")
    axis.legend()
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--lengths", type=int, nargs="+", default=[10, 20, 50, 100, 200]
    )
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument(
        "--picture", type=Path, default=Path("outputs/chains.png")
    )
    parser.add_argument(
        "--threads",
        type=int,
        default=1,
        help="threads of torch: graphs this small gain nothing from more",
    )
    args = parser.parse_args()
    torch.set_num_threads(args.threads)

    bar = tqdm(total=len(PROPAGATION) * len(args.lengths) * args.runs)
    results: dict = {}
    for name in PROPAGATION:
        for length in args.lengths:
            bar.set_description(f"{name}, {length} nodes")
            run = partial(accuracy, name, length, epochs=args.epochs)
            values = results.setdefault(name, {}).setdefault(length, [])
            for seed in range(args.runs):
                values.append(run(seed))
                bar.update()
    bar.close()

    print(f"test accuracy, mean of {args.runs} runs (chance: 50.0)")
    print("nodes".ljust(12), *(f"{length:>7}" for length in args.lengths))
    for name, by_length in results.items():
        means = (f"{statistics.mean(v):7.1f}" for v in by_length.values())
        print(name.ljust(12), *means)
    last = args.lengths[-1]
    print(
        f"Notice: at {last} nodes PicardConv is right for "
        f"{statistics.mean(results['PicardConv'][last]):.1f}% of the nodes, "
        f"APPNP for {statistics.mean(results['APPNP'][last]):.1f}%, GCN-8 "
        f"for {statistics.mean(results['GCN-8'][last]):.1f}%."
    )
    picture(args.picture, results)
    print(f"Picture: {args.picture}")


if __name__ == "__main__":
    main()
