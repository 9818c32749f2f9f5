"""Diffusion models by their number of steps: Figures 2, 6 and 7 of the paper.

    python examples/figure2_diffusion_steps.py
    TORCH_PICARD_DATA=FOLDER python examples/figure2_diffusion_steps.py \\
        --data cifar10
    python examples/figure2_diffusion_steps.py --data cifar10 --scale full \\
        --device cuda

DDPMs are trained with T = 100 ... 1000 steps, all for as many updates, and
sampled with the same T: training and test loss, and the Frechet distance of
samples from the training images in the features of a small classifier. With
fixed betas a short chain does not end in noise (alphas_cumprod at T is
printed), which spoils samples that start there; so every T is run with betas
rescaled by 1000 / T, too. Last, one model of 1000 steps is sampled with
fewer. Prints a table and saves pictures; a run that was interrupted goes on.

digits are scikit-learn's; cifar10 and fashion-mnist are read from FOLDER, else
by torchvision. Full scale is the paper's: UNet2DModel, 200,000 updates.
"""

import statistics
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusion_models import (
    DATA,
    Images,
    build,
    diffusion_loss,
    noise_level,
)
from operator_runs import Runs, Table, View, key, number_of, parser, report
from torch import Tensor

from torch_picard.diffusion import reverse_chain

FEWER = [5, 10, 25, 50, 100, 250, 500, 1000]
SHOWN, CURVE = 10, 40
SMALL = {
    "steps": [100, 200, 400, 700, 1000], "updates": 3000, "batch": 128,
    "lr": 2e-3, "betas": [0.9, 0.999], "decay": 0.0, "warmup": 100,
    "samples": 1000,
}  # fmt: skip
PAPER = {
    "steps": list(range(100, 1001, 100)), "updates": 200_000, "batch": 64,
    "lr": 1e-4, "betas": [0.95, 0.999], "decay": 1e-6, "warmup": 500,
    "samples": 10_000, "widths": [128, 128, 256, 256, 512, 512],
    "attention": True,
}  # fmt: skip
SCALES = {
    "small": {
        "digits": SMALL | {"width": 128, "blocks": 3},
        "fashion-mnist": SMALL | {"widths": [16, 32, 32], "updates": 2000},
        "cifar10": SMALL | {"widths": [16, 32, 32], "updates": 2000},
    },
    "full": {
        "digits": SMALL | {"width": 512, "blocks": 6, "updates": 100_000},
        "fashion-mnist": PAPER,
        "cifar10": PAPER,
    },
}  # fmt: skip
_images: dict[tuple, Images] = {}


def images(data: str, device: str) -> Images:
    """Once in a process."""
    if (data, device) not in _images:
        _images[data, device] = Images(data, device)
    return _images[data, device]


def run(betas, steps, seed, data, setting, device) -> dict:
    """Trains and samples one model."""
    found = images(data, device)
    torch.manual_seed(seed)
    alphas = noise_level(steps, betas == "rescaled").to(device)
    net = build(setting, found.train.shape[1:], steps).to(device)
    result = {"parameters": number_of(net), "alpha": float(alphas[-1])}
    result |= train(net, found, alphas, setting)
    with torch.no_grad():
        start = torch.randn(
            setting["samples"], *found.train.shape[1:], device=device
        )
        samples = sample(net, alphas, steps, start, eta=1.0)
        result["finite"] = bool(torch.isfinite(samples).all())
        result["distance"] = found.distance(samples)
        if seed == 0:
            result["shown"] = grey(samples)
        if seed == 0 and steps == 1000:
            result |= fewer_steps(net, alphas, start, found)
    return result


def train(net, found: Images, alphas: Tensor, setting: dict) -> dict:
    """Losses: over the training as a curve, of its last tenth, of the test."""
    updates, warmup = setting["updates"], setting["warmup"]
    optimizer = torch.optim.AdamW(
        net.parameters(),
        setting["lr"],
        betas=tuple(setting["betas"]),
        weight_decay=setting["decay"],
    )
    rate = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda k: min(1.0, (k + 1) / warmup) * (1 - k / updates),
    )
    seen = torch.zeros(updates)
    for k in range(updates):
        rows = torch.randint(len(found.train), (setting["batch"],))
        loss = diffusion_loss(net, found.train[rows], alphas)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        rate.step()
        seen[k] = loss.detach()
    net.eval()
    with torch.no_grad():
        test = [
            float(diffusion_loss(net, part, alphas))
            for _ in range(20)
            for part in found.test[:2000].split(500)
        ]
    parts = min(CURVE, updates)
    return {
        "train": float(seen[-max(1, updates // 10) :].mean()),
        "test": {"loss": statistics.fmean(test)},
        "curve": [float(part.mean()) for part in seen.chunk(parts)],
    }


def sample(net, alphas, steps: int, x: Tensor, eta: float) -> Tensor:
    """A thousand at a time: as many noises as steps are kept."""
    parts = [
        reverse_chain(net, alphas, steps, part, eta=eta)
        for part in x.split(1000)
    ]
    return torch.cat(parts)


def fewer_steps(net, alphas: Tensor, start: Tensor, found: Images) -> dict:
    """The model of 1000 steps by DDIM, from the same noise."""
    distance, shown = {}, {}
    for count in FEWER:
        samples = sample(net, alphas, count, start, eta=0.0)
        distance[str(count)] = found.distance(samples)
        shown[str(count)] = grey(samples)
    return {"fewer": distance, "fewer_shown": shown}


def grey(samples: Tensor) -> list:
    some = samples[:SHOWN].nan_to_num().clamp(-1, 1)
    return ((some + 1) * 127.5).round().int().tolist()


def cells(steps: list[int]) -> list[tuple]:
    """(betas, T); at T = 1000 the two are the same."""
    fixed = [("fixed", count) for count in steps]
    return fixed + [("rescaled", count) for count in steps if count != 1000]


def cell(betas: str, count: int) -> tuple:
    return ("fixed" if count == 1000 else betas, count)


# -- tables and pictures ------------------------------------------------------


def spread(view: View, which: tuple, name: str) -> str:
    found = values(view, which, name)
    deviation = statistics.stdev(found) if len(found) > 1 else 0.0
    digits = 4 if name != "distance" else 2
    return f"{statistics.mean(found):.{digits}f} ± {deviation:.{digits}f}"


def values(view: View, which: tuple, name: str) -> list[float]:
    runs = view.runs(which)
    return [r["test"]["loss"] if name == "test" else r[name] for r in runs]


def tables(view: View, found: Images, steps: list[int]) -> dict[str, Table]:
    head = ["betas", "T", "alphas_cumprod at T", "training loss", "test loss"]
    main = [[*head, "Frechet distance"]]
    for betas in ("fixed", "rescaled"):
        for count in steps:
            which = cell(betas, count)
            line = [spread(view, which, n) for n in ("train", "test")]
            alpha = view.runs(which)[0]["alpha"]
            distance = spread(view, which, "distance")
            main.append([betas, str(count), f"{alpha:.2g}", *line, distance])
    noise = torch.randn_like(found.test)
    for title, other in (("test images", found.test), ("noise", noise)):
        main.append([title, *[""] * 4, f"{found.distance(other):.2f}"])
    fewer = view.runs(("fixed", 1000))[0]["fewer"]
    return {
        "Training and sampling with T steps": main,
        "One model of 1000 steps, sampled by DDIM with fewer": [
            ["steps", *fewer],
            ["Frechet distance", *(f"{d:.2f}" for d in fewer.values())],
        ],
    }


def curves(view: View, steps: list[int], updates: int, path: Path) -> None:
    plt = pyplot()
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(11, 3.2))
    for count in steps:
        curve = view.runs(("fixed", count))[0]["curve"]
        at = [updates * (i + 1) / len(curve) for i in range(len(curve))]
        left.plot(at, curve, label=f"T = {count}", linewidth=1)
    left.set(xlabel="updates", ylabel="training loss, fixed betas")
    left.set_yscale("log")
    left.legend(fontsize=7)
    panels = {
        "test": (middle, "test loss"),
        "distance": (right, "Frechet distance"),
    }
    for name, (axes, title) in panels.items():
        for betas in ("fixed", "rescaled"):
            found = [values(view, cell(betas, c), name) for c in steps]
            mean = [statistics.mean(v) for v in found]
            error = [statistics.stdev(v) if len(v) > 1 else 0 for v in found]
            axes.errorbar(steps, mean, error, label=f"{betas} betas")
        axes.set(xlabel="T", ylabel=title)
        axes.legend(fontsize=7)
    right.set_yscale("log")
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=90)
    plt.close(figure)


def grid(rows: dict[str, list], path: Path) -> None:
    """A row of samples for each name."""
    plt = pyplot()
    lines = [
        F.pad(
            torch.cat([*F.pad(torch.tensor(batch), (1, 1))], -1), (0, 0, 1, 1)
        )
        for batch in rows.values()
    ]
    canvas = torch.cat(lines, -2).permute(1, 2, 0).squeeze(-1)
    height, width = canvas.shape[:2]
    step = height // len(rows)
    figure, axes = plt.subplots(figsize=(5.5, 0.6 + 5 * height / width))
    axes.imshow(canvas.numpy(), cmap="gray", vmin=0, vmax=255)
    axes.set_yticks([step * (i + 0.5) for i in range(len(rows))], rows)
    axes.set_xticks([])
    figure.tight_layout()
    figure.savefig(path, dpi=90, bbox_inches="tight")
    plt.close(figure)


def pyplot():
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    return plt


def main() -> None:
    options = parser(__doc__, "figure2", SCALES)
    options.add_argument("--data", choices=DATA, default="digits")
    args = options.parse_args()
    setting = SCALES[args.scale][args.data]
    runs = Runs(args.out / f"figure2_{args.data}_{args.scale}.json", setting)
    todo = {
        key(which, seed): (*which, seed, args.data, setting, args.device)
        for seed in range(args.seeds)
        for which in cells(setting["steps"])
    }
    runs.complete(todo, run, args.workers)
    view, found = View(runs.results, args.seeds), images(args.data, "cpu")
    print(f"Features: {100 * found.accuracy:.1f}% of the test images right")
    name = "figure2" if args.data == "digits" else f"figure2_{args.data}"
    report(tables(view, found, setting["steps"]), args.write, name)
    folder = args.write or args.out
    curves(view, setting["steps"], setting["updates"], folder / f"{name}.png")
    shown = {
        f"{betas}, T = {count}": view.runs(cell(betas, count))[0]["shown"]
        for betas in ("fixed", "rescaled")
        for count in setting["steps"]
    }
    grid(shown, folder / f"{name}_trained.png")
    fewer = view.runs(("fixed", 1000))[0]["fewer_shown"]
    fewer = {f"{count} steps": rows for count, rows in fewer.items()}
    grid(fewer, folder / f"{name}_sampled.png")
    print(f"\nPictures: {folder}/{name}*.png")


if __name__ == "__main__":
    main()
