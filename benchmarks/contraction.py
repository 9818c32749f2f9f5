"""Guarantees and what they cost, against torchdeq, in one run.

    python benchmarks/contraction.py [--threads 1] [--repeats 7] [--write DIR]

Prints five tables: the true norm of a weight over the first steps of
training under torchdeq's spectral norm and under contractive(); spectral
radii of torchdeq and of this package; how tight the bound of each layer
type is; how tight and how fast the Gram bound is, by size; and what
contractive() costs in a training step. --write puts them into DIR as
contraction_*.inc. Without torchdeq (``pip install torch-picard[bench]``) its
columns are empty.
"""

import argparse
import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch_geometric.nn import (
    APPNP,
    GATConv,
    GCNConv,
    GINConv,
    GraphConv,
    SAGEConv,
    SGConv,
)
from torch_geometric.utils import to_undirected

from torch_picard import PicardConv, fixed_point
from torch_picard.contraction import (
    Ball,
    L2Attention,
    L2TransformerLayer,
    Residual,
    contractive,
    gram_bound,
    lipschitz_bound,
    spectral_radius,
)

try:
    import torchdeq
    from torchdeq.norm import apply_norm, reset_norm
except ImportError:
    torchdeq = None

Table = list[list[str]]
TARGET = 0.9


def exact(weight: Tensor) -> float:
    return float(torch.linalg.matrix_norm(weight.detach().double(), 2))


# -- the norm over the first steps --------------------------------------------


def norms_in_training(steps: int = 8) -> Table:
    """A Linear(64, 64), started at 3 times PyTorch's scale, fits noise."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(256, 64, generator=generator)
    goal = torch.randn(256, 64, generator=generator)

    def made() -> nn.Linear:
        torch.manual_seed(0)
        lin = nn.Linear(64, 64)
        with torch.no_grad():
            lin.weight.mul_(3)
        return lin

    def run(lin: nn.Linear, before: Callable[[], None]) -> list[str]:
        found = []
        optimiser = torch.optim.Adam(lin.parameters(), lr=0.02)
        for _ in range(steps):
            before()
            found.append(f"{exact(lin.weight):.4f}")
            optimiser.zero_grad()
            (lin(x) - goal).square().mean().backward()
            optimiser.step()
        return found

    ours = run(contractive(made(), TARGET), lambda: None)
    theirs = ["-"] * steps
    if torchdeq:
        lin = made()
        apply_norm(
            lin,
            "spectral_norm",
            learn_scale=False,
            target_norm=TARGET,
        )
        theirs = run(lin, lambda: reset_norm(lin))
    table = [["training step", "torchdeq spectral_norm", "contractive()"]]
    for k in range(steps):
        table.append([str(k), theirs[k], ours[k]])
    return table


# -- the spectral radius ------------------------------------------------------


def spectral_radii() -> Table:
    angle = 1.0
    c, s = math.cos(angle), math.sin(angle)
    rng = torch.Generator().manual_seed(0)
    random = torch.randn(40, 40, generator=rng, dtype=torch.float64)
    quarter = torch.tensor([[0.0, -1.0], [1.0, 0.0]])
    matrices = {
        "rotation by 90 degrees, times .9": 0.9 * quarter,
        "rotation by 1 radian, times .9": 0.9 * torch.tensor(
            [[c, -s], [s, c]]
        ),
        "diag(.9, -.9)": torch.diag(torch.tensor([0.9, -0.9])),
        "[[.5, 50], [0, .5]]": torch.tensor([[0.5, 50.0], [0.0, 0.5]]),
        "random 40 x 40": random / 7,
    }  # fmt: skip
    table = [["matrix", "truth", "torchdeq", "spectral_radius"]]
    for name, matrix in matrices.items():
        m = matrix.double()
        truth = float(torch.linalg.eigvals(m).abs().max())
        x = torch.ones(1, len(m), dtype=m.dtype)

        def operator(v: Tensor, m: Tensor = m) -> Tensor:
            return v @ m.T

        ours = spectral_radius(operator, x).constant
        theirs = "-"
        if torchdeq:
            torch.manual_seed(0)
            deq = torchdeq.get_deq(f_max_iter=1, f_tol=1e-30).eval()
            info = deq(operator, x, sradius_mode=True)[1]
            theirs = f"{float(info['sradius']):.4f}"
        table.append([name, f"{truth:.4f}", theirs, f"{ours:.4f}"])
    return table


# -- tightness ----------------------------------------------------------------


@dataclass
class Layer:
    """A module, how it is called and what its bound needs."""

    module: nn.Module
    shape: tuple[int, ...]
    call: Callable[[Tensor], Tensor] | None = None
    known: dict[str, Any] = field(default_factory=dict)

    @property
    def map(self) -> Callable[[Tensor], Tensor]:
        return self.call or self.module

    def bound(self) -> float:
        return float(lipschitz_bound(self.module, **self.known).constant)

    def into(self, x: Tensor) -> Tensor:
        """The nearest point of the region."""
        region = self.known.get("region")
        if region is None:
            return x
        length = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        return x * (region.radius / length).clamp(max=1.0)

    def slope(self, x: Tensor) -> tuple[float, Tensor]:
        """|J(x)| and the direction that it moves the most."""
        jacobian = torch.autograd.functional.jacobian(self.map, x)
        matrix = jacobian.reshape(-1, x.numel())
        _, values, right = torch.linalg.svd(matrix, full_matrices=False)
        return float(values[0]), right[0].reshape(x.shape)

    def ratio(self, x: Tensor, y: Tensor) -> Tensor:
        return (self.map(x) - self.map(y)).norm() / (x - y).norm()

    def worst(self, starts: int = 8, steps: int = 80) -> float:
        """The largest |P(x) - P(y)| / |x - y| found, by gradient ascent from
        random pairs and along the steepest directions."""
        rng = torch.Generator().manual_seed(0)
        best = 0.0
        for k in range(starts):
            x = torch.randn(self.shape, generator=rng, dtype=torch.float64)
            x = self.into((1e-4, 0.1, 1.0, 10.0)[k % 4] * x)
            slope, way = self.slope(x)
            best = max(best, slope)
            y = self.into(x + (0.1 if k < starts // 2 else 1e-3) * way)
            pair = [v.clone().requires_grad_() for v in (x, y)]
            optimiser = torch.optim.Adam(pair, lr=0.03)
            for _ in range(steps):
                found = self.ratio(*pair)
                best = max(best, float(found.detach()))
                optimiser.zero_grad()
                (-found.log()).backward()
                optimiser.step()
                with torch.no_grad():
                    for p in pair:
                        p.copy_(self.into(p))
            best = max(best, self.slope(pair[0].detach())[0])
        return best


def layers() -> dict[str, Layer]:
    """One of each type, in float64, on a directed graph of 12 nodes or 6
    tokens."""
    torch.manual_seed(0)
    width, nodes, tokens = 4, 12, 6
    rng = torch.Generator().manual_seed(1)
    edges = torch.randint(nodes, (2, 30), generator=rng)
    undirected = to_undirected(edges, num_nodes=nodes)
    graph = {"edge_index": edges, "num_nodes": nodes}
    ball = {"region": Ball(1.0)}

    def mlp() -> nn.Module:
        return nn.Sequential(
            nn.Linear(width, 16), nn.ReLU(), nn.Linear(16, width)
        )

    def on(conv: nn.Module, ends: Tensor = edges, **more: Any) -> Layer:
        conv.double()
        known = {"edge_index": ends, "num_nodes": nodes, **more}
        return Layer(
            conv, (nodes, width), lambda x: conv(x, ends), known
        )  # fmt: skip

    def mixing(module: nn.Module, **more: Any) -> Layer:
        module.double().eval()

        def call(x: Tensor) -> Tensor:
            if isinstance(module, nn.MultiheadAttention):
                y = x[:, None]
                return module(y, y, y, need_weights=False)[0][:, 0]
            return module(x[None])[0]

        known = {"num_nodes": tokens, **more}
        return Layer(module, (tokens, width), call, known)

    def plain(module: nn.Module, *shape: int, **known: Any) -> Layer:
        return Layer(
            module.double().eval(), shape or (1, width), None, known
        )  # fmt: skip

    return {
        "Linear(64, 64)": plain(nn.Linear(64, 64), 1, 64),
        "Linear stack, 3 of 64": plain(
            nn.Sequential(*[nn.Linear(64, 64) for _ in range(3)]), 1, 64
        ),
        "MLP 4-16-4, ReLU": plain(mlp()),
        "Residual(MLP, weight=.5)": plain(Residual(mlp(), 0.5)),
        "Conv2d 3x3, circular": plain(
            nn.Conv2d(2, 2, 3, padding=1, padding_mode="circular"),
            1, 2, 5, 5, input_size=(5, 5),
        ),
        "Conv2d 3x3, zeros": plain(
            nn.Conv2d(2, 2, 3, padding=1), 1, 2, 5, 5
        ),
        "Conv2d 3x3, reflect": plain(
            nn.Conv2d(2, 2, 3, padding=1, padding_mode="reflect"),
            1, 2, 5, 5,
        ),
        "LayerNorm": plain(nn.LayerNorm(width)),
        "GCNConv, undirected": on(GCNConv(width, width), undirected),
        "GCNConv, directed": on(GCNConv(width, width)),
        "SGConv(K=3), directed": on(SGConv(width, width, 3)),
        "APPNP(5, .1), directed": on(APPNP(5, 0.1)),
        "SAGEConv mean": on(SAGEConv(width, width)),
        "SAGEConv max": on(SAGEConv(width, width, "max")),
        "SAGEConv max, no root": on(
            SAGEConv(width, width, "max", root_weight=False)
        ),
        "GraphConv sum": on(GraphConv(width, width)),
        "GINConv(MLP)": on(GINConv(mlp())),
        "GATConv, rows up to 1": on(GATConv(width, width), **ball),
        "PicardConv(GCNConv), tanh": Layer(
            (picard := PicardConv(
                GCNConv(width, width), activation="tanh"
            ).double()),
            (nodes, width),
            lambda x: torch.tanh(picard.conv(x, edges)),
            graph,
        ),
        "MultiheadAttention, rows up to 1": mixing(
            nn.MultiheadAttention(width, 2), **ball
        ),
        "TransformerEncoderLayer, norm_first": mixing(
            nn.TransformerEncoderLayer(
                width, 2, 8, norm_first=True, batch_first=True
            )
        ),
        "L2Attention": mixing(L2Attention(width, 2)),
        "L2TransformerLayer": mixing(L2TransformerLayer(width, 2, 8)),
        "contractive(MLP)": plain(contractive(mlp().double(), TARGET)),
        "contractive(L2TransformerLayer)": mixing(
            contractive(
                L2TransformerLayer(width, 2, 8).double(), TARGET,
                num_nodes=tokens,
            )
        ),
    }  # fmt: skip


def tightness() -> Table:
    table = [["layer", "bound", "worst ratio found", "bound / found"]]
    for name, layer in layers().items():
        bound, worst = layer.bound(), layer.worst()
        table.append(
            [name, f"{bound:.4g}", f"{worst:.4g}", f"{bound / worst:.3f}"]
        )
    return table


def gram(repeats: int) -> Table:
    table = [
        [
            "matrix", "bound / exact, random", "bound / exact, orthogonal",
            "contractive() uses", "Gram ms", "SVD ms",
        ]
    ]  # fmt: skip
    for size in (16, 64, 256, 512, 1024):
        rng = torch.Generator().manual_seed(size)
        m = torch.randn(size, size, generator=rng)
        q = torch.linalg.qr(m)[0]
        lin = nn.Linear(size, size)
        with torch.no_grad():
            lin.weight.copy_(m)
        used = exact(contractive(lin, TARGET).weight) / TARGET
        ours, theirs = timed(
            repeats, lambda m=m: gram_bound(m), lambda m=m: exact(m)
        )
        table.append(
            [
                f"{size} x {size}",
                f"{float(gram_bound(m)) / exact(m):.5f}",
                f"{float(gram_bound(q)) / exact(q):.5f}",
                f"{100 * used:.2f}%",
                f"{ours:.2f}",
                f"{theirs:.2f}",
            ]
        )
    return table


# -- the cost -----------------------------------------------------------------


def timed(repeats: int, *runs: Callable[[], object]) -> list[float]:
    """Medians in ms of interleaved runs."""
    spent: list[list[float]] = [[] for _ in runs]
    for run in runs:
        run()
    for _ in range(repeats):
        for run, times in zip(runs, spent):
            start = time.perf_counter()
            run()
            times.append(1e3 * (time.perf_counter() - start))
    return [statistics.median(times) for times in spent]


def power_law(nodes: int, edges: int) -> Tensor:
    """The graph of propagate.py."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.rand(nodes, generator=generator).pow(-0.6).clamp(max=3e3)
    ends = [
        torch.multinomial(weight, edges, True, generator=generator)
        for _ in range(2)
    ]
    return torch.stack(ends)


def uniform(nodes: int, edges: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(nodes, (2, edges), generator=generator)


CONVS = {
    "GCNConv": lambda: GCNConv(64, 64),
    "SAGEConv max": lambda: SAGEConv(64, 64, "max"),
    "GINConv(MLP)": lambda: GINConv(
        nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64))
    ),
}


#: what fixed_point iterates by itself, and its input
MODULES = {
    "4 x Linear, ReLU": (
        lambda: nn.Sequential(
            *(
                part
                for _ in range(4)
                for part in (nn.Linear(64, 64), nn.ReLU())
            )
        ),
        (2708, 64),
    ),
    "L2TransformerLayer": (
        lambda: L2TransformerLayer(64, 4),
        (32, 64, 64),
    ),
}


def cost(repeats: int, large: bool) -> Table:
    """Forward, backward and a step of Adam."""
    table = [["model", "graph", "free ms", "contractive ms", "ratio", "aim"]]
    graphs = {"size of Cora": (uniform, 2708, 10_556)}
    if large:
        graphs["169k nodes, 2.5M edges"] = (power_law, 169_000, 2_500_000)
    for where, (make, nodes, count) in graphs.items():
        edges = make(nodes, count)
        x = torch.randn(nodes, 64)
        for name, conv in CONVS.items():
            if large and nodes > 10_000 and name != "GCNConv":
                continue
            runs = []
            for guarded in (False, True):
                torch.manual_seed(0)
                model = PicardConv(conv(), alpha=0.0, max_iter=8, rtol=0.0)
                if guarded:
                    contractive(model, 0.95, edges, nodes)
                runs.append(training_step(model, x, edges))
            free, bound = timed(
                repeats if nodes < 10_000 else max(3, repeats // 2), *runs
            )
            row = [name, where, f"{free:.1f}", f"{bound:.1f}"]
            table.append([*row, f"{bound / free:.2f}", "1.3"])
    for name, (module, shape) in MODULES.items():
        x, runs = torch.randn(shape), []
        for guarded in (False, True):
            torch.manual_seed(0)
            model = module()
            if guarded:
                contractive(model, 0.95, num_nodes=shape[-2])
            runs.append(training_step(Solved(model), x, None))
        free, bound = timed(repeats, *runs)
        row = [name, f"rows {list(shape)}", f"{free:.1f}", f"{bound:.1f}"]
        table.append([*row, f"{bound / free:.2f}", "-"])
    return table


class Solved(nn.Module):
    """Eight iterations of a module by fixed_point."""

    def __init__(self, module: nn.Module):
        super().__init__()
        self.module = module

    def forward(self, x: Tensor, edges: None) -> Tensor:
        return fixed_point(self.module, x, max_iter=8, rtol=0.0).value


def training_step(
    model: nn.Module, x: Tensor, edges: Tensor | None
) -> Callable[[], None]:
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-3)

    def run() -> None:
        optimiser.zero_grad()
        model(x, edges).square().mean().backward()
        optimiser.step()

    return run


# -- showing ------------------------------------------------------------------


def show(title: str, table: Table) -> None:
    widths = [max(map(len, column)) for column in zip(*table)]
    print(f"\n{title}\n")
    for line in table:
        cells = [c.ljust(w) for c, w in zip(line, widths)]
        print("  ".join(cells).rstrip(), flush=True)


def rst(title: str, table: Table) -> str:
    lines = [f"{title}:", "", ".. list-table::", "   :header-rows: 1", ""]
    for row in table:
        lines += [
            f"   {'*' if i == 0 else ' '} - {cell}".rstrip()
            for i, cell in enumerate(row)
        ]
    return "\n".join([*lines, ""])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--write", type=Path, metavar="DIR")
    parser.add_argument(
        "--small", action="store_true", help="leave out the large graph"
    )
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    how = f"torch {torch.__version__}, {options.threads} thread(s), medians"
    sections: dict[str, tuple[str, Callable[[], Table]]] = {
        "norms": (
            f"The true norm of a weight in training, target {TARGET}",
            norms_in_training,
        ),
        "radii": ("Spectral radius of linear maps", spectral_radii),
        "tightness": (
            "Bounds of a layer with PyTorch's initial weights, in l2",
            tightness,
        ),
        "gram": (
            f"The Gram bound in float32, {how}",
            lambda: gram(options.repeats),
        ),
        "cost": (
            "A training step of PicardConv(conv, alpha=0, max_iter=8), 64 "
            f"features, {how}",
            lambda: cost(options.repeats, not options.small),
        ),
    }
    for name, (title, run) in sections.items():
        table = run()
        show(title, table)
        if options.write:
            path = options.write / f"contraction_{name}.inc"
            path.write_text(rst(title, table))


if __name__ == "__main__":
    main()
