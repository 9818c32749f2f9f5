"""Table 4 of the paper: ANIE on Navier-Stokes, by the number of iterations.

    python examples/table4_anie.py
    python examples/table4_anie.py --scale full --device cuda

From the first frame of a flow the next ten are predicted: f is that frame ten
times over, and y = f + T(y) is solved at the points of the grid by N smoothed
iterations with weight 1/2. Values are in units of the mean field's error: the
mean of the training flows at each point and time scores 1.

Beside the paper's four sizes (heads, blocks) stand controls of the size 1H1B:
the literal loop, in which f is the start and nothing else; the certified
variant; the published loop; N blocks with weights of their own, evaluated as
often; and a single evaluation, trained for as much time as N of them take.
Every net is also tested with other numbers of iterations. Prints tables and
saves a picture; what was run is kept, and a run that was interrupted goes on.
"""

from pathlib import Path
from statistics import fmean

import torch
from operator_runs import Runs, View, fit, key, number_of, parser, report
from torch import Tensor, nn

from torch_picard.anie import ANIE
from torch_picard.contraction import contractive
from torch_picard.datasets import NavierStokes2D

SIZES = {"1H1B": (1, 1), "4H1B": (4, 1), "2H2B": (2, 2), "4H4B": (4, 4)}
ITERATIONS = (1, 2, 4, 6, 8)
TESTED = (1, 2, 3, 4, 6, 8, 12, 16)
FRAMES = 10
PAPER = {
    "1H1B": (0.0564, 0.0474, 0.0448, 0.0446, 0.0442),
    "4H1B": (0.0610, 0.0516, 0.0512, 0.0480, 0.0478),
    "2H2B": (0.0476, 0.0465, 0.0458, 0.0451, 0.0439),
    "4H4B": (0.0458, 0.0461, 0.0453, 0.0453, 0.0445),
}
SCALES = {
    "small": {
        "resolution": 16, "stride": 2, "train": 256, "test": 64,
        "embed_dim": 32, "steps": 200, "batch": 8, "t_end": 10.0,
    },
    "full": {
        "resolution": 64, "stride": 2, "train": 1000, "test": 200,
        "embed_dim": 64, "steps": 20000, "batch": 32, "t_end": 20.0,
    },
}  # fmt: skip
CONTROLS = ("literal", "certified", "upstream", "untied", "longer")
CONTROLLED = (1, 4, 8)


class Literal(nn.Module):
    """y <- (y + (y + T(y))) / 2: f is where it starts."""

    def __init__(self, **options):
        super().__init__()
        self.anie = ANIE(FRAMES, 2, rtol=0.0, atol=0.0, **options)

    def forward(self, f: Tensor, coords: Tensor, max_iter: int) -> Tensor:
        y = f
        for _ in range(max_iter):
            y = y + 0.5 * self.anie.integral(y, coords)
        return y


class Untied(nn.Module):
    """The same iteration with weights of its own in every step."""

    def __init__(self, depth: int, **options):
        super().__init__()
        self.steps = nn.ModuleList(
            ANIE(FRAMES, 2, rtol=0.0, atol=0.0, **options)
            for _ in range(depth)
        )

    def forward(self, f: Tensor, coords: Tensor, max_iter: int) -> Tensor:
        y = f
        for step in self.steps:
            y = 0.5 * y + 0.5 * (f + step.integral(y, coords))
        return y


class Iterated(nn.Module):
    def __init__(self, points: int | None = None, **options):
        super().__init__()
        self.anie = ANIE(FRAMES, 2, rtol=0.0, atol=0.0, **options)
        if points is not None:
            contractive(self.anie, 0.95, num_nodes=points)

    def forward(self, f: Tensor, coords: Tensor, max_iter: int) -> Tensor:
        return self.anie(f, coords, max_iter=max_iter)


def flows(scale: dict, folder: Path, device: str, progress: bool = False):
    """f, y [B, N, frames] of training and test, and the points [N, 2]."""
    count = scale["train"] + scale["test"]
    data = NavierStokes2D(
        folder, count, resolution=scale["resolution"], viscosity=1e-3,
        t_end=scale["t_end"], frames=FRAMES, device=device,
        progress=progress,
    )  # fmt: skip
    first, frames = (
        torch.stack(part) for part in zip(*(data[i] for i in range(count)))
    )
    stride = scale["stride"]
    y = frames[..., ::stride, ::stride].flatten(2).mT
    f = first[:, None, ::stride, ::stride].flatten(2).mT.expand_as(y)
    n, cut = scale["resolution"] // stride, scale["train"]
    mean, mean_f = y[:cut].mean(0), f[:cut].mean(0)
    sd, sd_f = (y[:cut] - mean).std(), (f[:cut] - mean_f).std()
    y, f = (y - mean) / sd, (f - mean_f) / sd_f
    axis = torch.arange(n) / n
    points = torch.cartesian_prod(axis, axis)
    parts = f[:cut], y[:cut], f[cut:], y[cut:], points
    return tuple(p.contiguous().to(device) for p in parts)


def build(size: str, variant: str, depth: int, scale: dict, points: int):
    heads, blocks = SIZES[size]
    options = {
        "embed_dim": scale["embed_dim"], "heads": heads, "blocks": blocks,
    }  # fmt: skip
    if variant == "literal":
        return Literal(**options)
    if variant == "untied":
        return Untied(depth, **options)
    if variant == "certified":
        return Iterated(points, attention="l2", **options)
    return Iterated(upstream=variant == "upstream", **options)


def run(
    size: str, variant: str, count: int, seed: int, scale: dict,
    folder: Path, device: str,
) -> dict:  # fmt: skip
    """Trains a net with so many iterations, and tests it with others."""
    f, y, test_f, test_y, points = flows(scale, folder, device)
    torch.manual_seed(seed)
    model = build(size, variant, count, scale, len(points)).to(device)
    trained, steps = count, scale["steps"]
    if variant == "longer":
        trained, steps = 1, steps * count
    order = torch.Generator().manual_seed(seed)

    def loss() -> Tensor:
        batch = torch.randint(len(f), (scale["batch"],), generator=order)
        out = model(f[batch], points, max_iter=trained)
        return (out - y[batch]).square().mean()

    final = fit(model, loss, steps, 5e-3)

    def error(k: int) -> float:
        k = 1 if variant == "longer" else k
        out = model(test_f, points, max_iter=k)
        return float((out - test_y).square().mean())

    result = {"train": final, "parameters": number_of(model)}
    tested = (count,) if variant in ("untied", "longer") else TESTED
    with torch.no_grad():
        result["test"] = {str(k): error(k) for k in tested}
        if isinstance(model, Iterated):
            anie, model.anie.on_failure = model.anie, "ignore"
            _, solution = anie(
                test_f, points, max_iter=trained, return_solution=True
            )
            size_of = solution.value.flatten(1).norm(dim=1)
            result["residual"] = float((solution.residual / size_of).mean())
    return result


def cells(scale: dict, seeds: int, folder: Path, device: str) -> dict:
    """Arguments of :func:`run` by name."""
    wanted = [(s, "injected", n) for s in SIZES for n in ITERATIONS]
    for variant in CONTROLS:
        same = variant in ("untied", "longer")  # at N = 1, as injected
        wanted += [("1H1B", variant, n) for n in CONTROLLED[same:]]
    return {
        key(which, seed): (*which, seed, scale, folder, device)
        for seed in range(seeds)
        for which in wanted
    }


def tables(results: dict, seeds: int, baselines: dict[str, float]) -> dict:
    view = View(results, seeds)

    def row(size: str, variant: str, counts: tuple) -> list[str]:
        return [
            view.spread((size, variant, n), n)
            if key((size, variant, n), 0) in results
            else ""
            for n in counts
        ]

    def residuals(size: str, variant: str) -> list[str]:
        found = []
        for n in ITERATIONS:
            known = key((size, variant, n), 0) in results
            runs = view.runs((size, variant, n)) if known else []
            mean = fmean(r["residual"] for r in runs) if known else None
            found.append(f"{mean:.1e}" if known else "")
        return found

    head = ["", *(f"N = {n}" for n in ITERATIONS)]
    main = [head]
    for size in SIZES:
        main.append([size, *row(size, "injected", ITERATIONS)])
        main.append([f"{size}, paper", *(f"{v:.4f}" for v in PAPER[size])])
    names = {
        "injected": "injected", "literal": "literal, f only to start",
        "certified": "certified (L2 attention)",
        "upstream": "published loop, N + 1 evaluations",
        "untied": "N blocks of their own",
        "longer": "one evaluation, N times the steps",
    }  # fmt: skip
    controls = [["", *(f"N = {n}" for n in CONTROLLED)]]
    for variant, name in names.items():
        controls.append([name, *row("1H1B", variant, CONTROLLED)])
    rest = [head]
    rest += [[size, *residuals(size, "injected")] for size in SIZES]
    rest.append(["1H1B certified", *residuals("1H1B", "certified")])
    base = [["baseline", "MSE"]]
    base += [[name, f"{value:.3f}"] for name, value in baselines.items()]
    return {
        "Test MSE by iterations": main,
        "Controls of the size 1H1B": controls,
        "Relative residual of the last iterate": rest,
        "Baselines": base,
    }


def picture(path: Path, results: dict, seeds: int) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    view, variants = View(results, seeds), ("injected", "literal", "certified")
    figure, axes = plt.subplots(1, 3, figsize=(14, 4), sharey=True)
    for axis, variant in zip(axes, variants):
        for n in CONTROLLED:
            mean = [view.error(("1H1B", variant, n), k) for k in TESTED]
            (line,) = axis.semilogy(TESTED, mean, label=f"trained at {n}")
            axis.plot(n, mean[TESTED.index(n)], "o", color=line.get_color())
        axis.axhline(1.0, color="grey", linestyle=":")
        axis.set_ylim(0.05, 3)
        axis.set_title(f"1H1B, {variant}")
        axis.set_xlabel("iterations at test")
    axes[0].set_ylabel("test MSE, 1 is the mean field")
    axes[0].legend()
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main() -> None:
    options = parser(__doc__, "table4", SCALES).parse_args()
    scale, out = SCALES[options.scale], options.out
    folder = out / "flows"
    f, y, test_f, test_y, _ = flows(scale, folder, options.device, True)
    factor = (f * y).sum((0, 1)) / f.square().sum((0, 1))
    baselines = {
        "mean field": float(test_y.square().mean()),
        "persistence": float((test_f - test_y).square().mean()),
        "f times a number a frame": float(
            (factor * test_f - test_y).square().mean()
        ),
    }
    settings = {"scale": scale, "sizes": SIZES, "tested": TESTED}
    runs = Runs(out / f"table4_{options.scale}.json", settings)
    todo = cells(scale, options.seeds, folder, options.device)
    runs.complete(todo, run, options.workers)
    report(tables(runs.results, options.seeds, baselines), options.write,
           "table4")  # fmt: skip
    target = (options.write or out) / "table4.png"
    picture(target, runs.results, options.seeds)
    print(f"\nTrained at N, tested at others: {target}")


if __name__ == "__main__":
    main()
