"""Vision transformers on Navier-Stokes, iterated: Table 2 of the paper.

    python examples/table2_navier_stokes_vit.py
    python examples/table2_navier_stokes_vit.py --scale full --device cuda

The task: from the vorticity at four times, one second apart, that at a later
time (torch_picard.datasets.NavierStokes2D, viscosity 1e-3). Four small vision
transformers in the manner of ViT, ViT for small datasets, parallel ViT and 3-D
ViT, of one block each, are iterated N = 1, 2, 3 times (Algorithm 2). Beside
them: what can be had for nothing, three blocks with weights of their own, one
pass trained for as long, the loop without injection, and a block that is
certified to contract. Prints tables and saves a picture; a run that was
interrupted goes on.
"""

import statistics
from pathlib import Path

import torch
import torch.nn.functional as F
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

from torch_picard.contraction import L2TransformerLayer, contractive
from torch_picard.datasets import NavierStokes2D
from torch_picard.vit import DenseReadout, PicardViT

MODELS = ["ViT", "ViTsmall", "ViTparallel", "ViT3D"]
COUNTS = [1, 2, 3]
ENDS = [1, 3]  # of variants and controls
TESTED = [1, 2, 3, 4, 6, 8, 16]
PAPER = {
    "ViT": (".2472", ".2121", ".0691"),
    "ViTsmall": (".2471", ".1672", ".0648"),
    "ViTparallel": (".2474", ".2172", ".2079"),
    "ViT3D": (".2512", ".2237", ".2529"),
}
#: frames are a second apart
SCALES = {
    "small": {
        "resolution": 16, "patch": 4, "given": [7, 8, 9, 10], "asked": 30,
        "train": 768, "test": 256, "dim": 48, "heads": 4, "batch": 32,
        "steps": 800, "lr": 6e-3, "alpha": 0.0, "viscosity": 1e-3,
    },
    "full": {
        "resolution": 64, "patch": 4, "given": [7, 8, 9, 10], "asked": 50,
        "train": 4096, "test": 512, "dim": 128, "heads": 4, "batch": 32,
        "steps": 20000, "lr": 1e-3, "alpha": 0.0, "viscosity": 1e-3,
    },
}  # fmt: skip


# -- data ---------------------------------------------------------------------


class Flows:
    """Inputs [n, 4, s, s] and targets [n, 1, s, s], for training and test.

    Attributes:
        mean: the mean of the targets of the training set.
        scale: of the vorticity: the standard deviation of the inputs.
    """

    def __init__(self, setting: dict, root: Path, device: str):
        train, test = setting["train"], setting["test"]
        data = NavierStokes2D(
            root, train + test, resolution=setting["resolution"],
            viscosity=setting["viscosity"], t_end=float(setting["asked"]),
            frames=setting["asked"],
        )  # fmt: skip
        w = torch.stack([data[i][1] for i in range(len(data))]).to(device)
        x = w[:, [t - 1 for t in setting["given"]]]
        y = w[:, [setting["asked"] - 1]]
        self.x, self.y = x[:train], y[:train]
        self.x_test, self.y_test = x[train:], y[train:]
        self.mean = self.y.mean(0)
        self.scale = self.x.std()

    def predict(self, model: nn.Module, x: Tensor, **options) -> Tensor:
        """All models learn the difference from the mean field."""
        return self.mean + self.scale * model(x / self.scale, **options)

    def trivial(self) -> dict[str, float]:
        y, last = self.y_test, self.x_test[:, -1:]
        found = {
            "zero": y,
            "persistence": y - last,
            "mean field": y - self.mean,
        }
        return {n: float(d.square().mean()) for n, d in found.items()}


# -- models -------------------------------------------------------------------


class Patches(nn.Module):
    """[B, 4, s, s] to tokens [B, n, dim]: patches of all frames together, or
    of every two frames; ``shifted`` adds the image moved by half a patch in
    four directions (the domain is periodic)."""

    def __init__(self, setting, frames=4, shifted=False):
        super().__init__()
        self.patch, self.frames, self.shifted = (
            setting["patch"],
            frames,
            shifted,
        )
        size = frames * self.patch**2 * (5 if shifted else 1)
        count = (4 // frames) * (setting["resolution"] // self.patch) ** 2
        self.norm = nn.LayerNorm(size) if shifted else nn.Identity()
        self.linear = nn.Linear(size, setting["dim"])
        self.positions = nn.Parameter(
            0.02 * torch.randn(count, setting["dim"])
        )

    def forward(self, x: Tensor) -> Tensor:
        if self.shifted:
            half = self.patch // 2
            moves = [(i, j) for i in (-half, half) for j in (-half, half)]
            moved = [torch.roll(x, move, (-2, -1)) for move in moves]
            x = torch.cat([x, *moved], 1)
        groups = x.split(self.frames * (5 if self.shifted else 1), 1)
        tokens = [
            F.unfold(g, self.patch, stride=self.patch).mT for g in groups
        ]
        return self.linear(self.norm(torch.cat(tokens, 1))) + self.positions


class Attention(nn.Module):
    """``local``: a token does not see itself, and the temperature is
    learned."""

    def __init__(self, dim, heads, local=False):
        super().__init__()
        self.heads, self.local = heads, local
        self.norm = nn.LayerNorm(dim)
        self.mix = nn.Linear(dim, 3 * dim, bias=False)
        self.out = nn.Linear(dim, dim)
        if local:
            start = 0.5 * torch.log(torch.tensor(float(heads) / dim))
            self.temperature = nn.Parameter(start)

    def forward(self, x: Tensor) -> Tensor:
        mixed = self.mix(self.norm(x)).unflatten(-1, (3, self.heads, -1))
        q, k, v = mixed.movedim(-3, 0).transpose(-3, -2)
        mask, scale = None, None
        if self.local:
            q, scale = q * self.temperature.exp(), 1.0
            mask = ~torch.eye(x.size(1), dtype=torch.bool, device=x.device)
        y = F.scaled_dot_product_attention(q, k, v, mask, scale=scale)
        return self.out(y.transpose(-3, -2).flatten(-2))


class Block(nn.Module):
    """x + attention, then x + feed-forward; in the parallel one, each the
    sum of two."""

    def __init__(self, setting, branches=1, local=False):
        super().__init__()
        dim, heads = setting["dim"], setting["heads"]
        self.attend = nn.ModuleList(
            Attention(dim, heads, local) for _ in range(branches)
        )
        self.feed = nn.ModuleList(
            nn.Sequential(
                nn.LayerNorm(dim), nn.Linear(dim, 2 * dim), nn.GELU(),
                nn.Linear(2 * dim, dim),
            )
            for _ in range(branches)
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        x = x + sum(part(x) for part in self.attend)
        return x + sum(part(x) for part in self.feed)


def build(model: str, variant: str, n: int, setting: dict) -> nn.Module:
    """``variant``: injected, literal, contractive, or untied (n blocks with
    weights of their own, once)."""
    dim, size = setting["dim"], setting["resolution"]
    embed = Patches(
        setting, frames=2 if model == "ViT3D" else 4,
        shifted=model == "ViTsmall",
    )  # fmt: skip
    branches = 2 if model == "ViTparallel" else 1
    blocks = [
        Block(setting, branches, local=model == "ViTsmall")
        for _ in range(n if variant == "untied" else 1)
    ]
    # of the four, only ViT has a norm behind its blocks
    norm = [nn.LayerNorm(dim)] if model == "ViT" else []
    operator = nn.Sequential(*blocks, *norm)
    if variant == "contractive":
        layer = L2TransformerLayer(dim, setting["heads"])
        operator = contractive(layer, 0.9, num_nodes=len(embed.positions))
    # the 3-D one reads the tokens of the last frames
    readout = nn.Sequential(
        nn.LayerNorm(dim), DenseReadout(dim, setting["patch"], 1, size)
    )
    once = variant == "untied"
    return PicardViT(
        (embed, operator, readout),
        1 if once else n,
        0.0 if once else setting["alpha"],
        inject=variant in ("injected", "contractive"),
        rtol=0.0,
    )


# -- runs ---------------------------------------------------------------------

_data: dict = {}


def flows(setting: dict, root: Path, device: str) -> Flows:
    """Once in a process."""
    name = (str(setting), root, device)
    if name not in _data:
        _data[name] = Flows(setting, root, device)
    return _data[name]


def run(model, variant, n, length, seed, setting, root, device) -> dict:
    """Trains for ``length`` times the usual number of steps, at n
    iterations."""
    data = flows(setting, root, device)
    torch.manual_seed(seed)
    net = build(model, variant, n, setting).to(device)

    def loss() -> Tensor:
        rows = torch.randint(len(data.x), (setting["batch"],), device=device)
        out = data.predict(net, data.x[rows])
        return F.mse_loss(out / data.scale, data.y[rows] / data.scale)

    last = fit(net, loss, length * setting["steps"], setting["lr"])
    result = {
        "parameters": number_of(net),
        "train": last * float(data.scale) ** 2,
    }
    tested = [1] if variant == "untied" else TESTED
    with torch.no_grad():
        result["test"] = {
            str(m): float(
                F.mse_loss(
                    data.predict(net, data.x_test, max_iter=m), data.y_test
                )
            )
            for m in tested
        }
        # |P(y) - y| / |y| of the state that was read out
        x = data.x_test / data.scale
        steps = net.max_iter
        _, end = net(x, max_iter=steps, return_solution=True)
        _, after = net(x, max_iter=steps + 1, return_solution=True)
        size = end.value.flatten(1).norm(dim=1)
        result["residual"] = float((after.residual / size).median())
    return result


def cells() -> list[tuple]:
    """(model, variant, N, length of the training)"""
    found = [(m, "injected", n, 1) for m in MODELS for n in COUNTS]
    for variant in ("literal", "contractive"):
        found += [("ViT", variant, n, 1) for n in ENDS]
    return [*found, ("ViT", "untied", 3, 1), ("ViT", "injected", 1, 3)]


# -- tables -------------------------------------------------------------------


def tables(view: View, trivial: dict[str, float]) -> dict[str, Table]:
    return {
        "Test MSE of the vorticity, iterated with injection": main_table(
            view, trivial
        ),
        "Variants and controls": controls(view),
        "Iterations other than those of the training": curves(view),
        "Relative residual of the state that is read": residuals(view),
    }


def main_table(view: View, trivial: dict[str, float]) -> Table:
    rows = [["", *(f"N = {n}" for n in COUNTS), "N = 3 / N = 1", "paper"]]
    for model in MODELS:
        which = [(model, "injected", n, 1) for n in COUNTS]
        errors = [view.error(w, n) for w, n in zip(which, COUNTS)]
        paper = PAPER[model]
        ratio = float(paper[2]) / float(paper[0])
        rows.append(
            [
                model,
                *(view.spread(w, n) for w, n in zip(which, COUNTS)),
                f"{errors[2] / errors[0]:.2f}",
                f"{' / '.join(paper)} ({ratio:.2f})",
            ]
        )
    for which, value in trivial.items():
        rows.append([which, *[f"{value:.4f}"] * 3, "1.00", ""])
    return rows


def controls(view: View) -> Table:
    def row(title, first, third, tested=3):
        count = view.runs(third)[0]["parameters"]
        errors = [view.spread(first, 1), view.spread(third, tested)]
        return [title, *errors, f"{count:,}"]

    def variant(title, name):
        return row(title, *(("ViT", name, n, 1) for n in ENDS))

    once, plain = ("ViT", "injected", 1, 1), ("ViT", "literal", 1, 1)
    untied, longer = ("ViT", "untied", 3, 1), ("ViT", "injected", 1, 3)
    return [
        ["ViT", "N = 1", "N = 3", "parameters at N = 3"],
        variant("injected (as above)", "injected"),
        variant("literal: nothing injected", "literal"),
        variant("certified to contract", "contractive"),
        row("N blocks with weights of their own", plain, untied, 1),
        row("one pass, trained N times as long", once, longer, 1),
    ]


def curves(view: View) -> Table:
    rows = [["ViT, trained at", *(f"tested at {m}" for m in TESTED)]]
    for variant, n in lines():
        which = ("ViT", variant, n, 1)
        errors = [f"{view.error(which, m):.4f}" for m in TESTED]
        rows.append([f"{variant}, N = {n}", *errors])
    return rows


def lines() -> list[tuple[str, int]]:
    """(variant, N) of the curves."""
    found = [("injected", n) for n in COUNTS]
    return found + [(v, n) for v in ("literal", "contractive") for n in ENDS]


def residuals(view: View) -> Table:
    rows, known = [["", *(f"N = {n}" for n in COUNTS)]], cells()
    variants = [(model, "injected") for model in MODELS]
    for which in [*variants, ("ViT", "literal"), ("ViT", "contractive")]:
        line = []
        for n in COUNTS:
            if (*which, n, 1) not in known:
                line.append("")
                continue
            runs = view.runs((*which, n, 1))
            line.append(f"{statistics.mean(r['residual'] for r in runs):.2g}")
        rows.append([", ".join(which), *line])
    return rows


def picture(view: View, trivial: dict[str, float], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.2))
    for model in MODELS:
        runs = [view.errors((model, "injected", n, 1), n) for n in COUNTS]
        mean = [statistics.mean(r) for r in runs]
        low = [m - min(r) for m, r in zip(mean, runs)]
        high = [max(r) - m for m, r in zip(mean, runs)]
        left.errorbar(COUNTS, mean, [low, high], marker="o", label=model)
    left.axhline(
        trivial["mean field"], color="grey", ls="--", label="mean field"
    )
    left.set(xlabel="iterations N", ylabel="test MSE", xticks=COUNTS)
    left.set_title("trained and tested at N")
    styles = {"injected": "-", "literal": ":", "contractive": "--"}
    for variant, n in lines():
        line = [view.error(("ViT", variant, n, 1), m) for m in TESTED]
        right.plot(
            TESTED, line, styles[variant], color=f"C{n}", marker=".",
            label=f"{variant}, trained at {n}",
        )  # fmt: skip
    right.set(xlabel="iterations at the test", xscale="log")
    right.set_xticks(TESTED, TESTED)
    right.set_title("ViT, other numbers of iterations")
    for axes in (left, right):
        axes.set_yscale("log")
        axes.legend(fontsize=7)
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main() -> None:
    options = parser(__doc__, "table2", SCALES)
    options.add_argument(
        "--data", type=Path, default=Path("outputs/data"),
        help="where the flows are kept",
    )  # fmt: skip
    args = options.parse_args()
    setting = SCALES[args.scale]
    data = flows(setting, args.data, args.device)
    runs = Runs(args.out / f"table2_{args.scale}.json", setting)
    shared = (setting, args.data, args.device)
    todo = {
        key(which, seed): (*which, seed, *shared)
        for seed in range(args.seeds)
        for which in cells()
    }
    runs.complete(todo, run, args.workers)
    view, trivial = View(runs.results, args.seeds), data.trivial()
    report(tables(view, trivial), args.write, "table2")
    path = (args.write or args.out) / "table2.png"
    picture(view, trivial, path)
    print(f"\nPicture: {path}")


if __name__ == "__main__":
    main()
