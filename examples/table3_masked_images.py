"""Masked images, completed by iteration: Table 3 of the paper.

    python examples/table3_masked_images.py
    TORCH_PICARD_DATA=FOLDER python examples/table3_masked_images.py \\
        --data cifar10
    python examples/table3_masked_images.py --data cifar10 --scale full \\
        --device cuda

75% of the pixels of an image are black; torch_picard.vit.MaskedPicardViT is to
give them back. It is trained at N = 1, 2, 3 iterations of
x_{i+1} = T(x_i)/2 + x_i/2, with the loss on the last, and tested at others.
Beside it: what can be had for nothing, N times as many layers, one pass
trained for as long, and the loop in which the known pixels are put back in
every iteration. Prints tables and saves a picture; a run that was interrupted
goes on.

The digits are scikit-learn's. CIFAR-10 is read from FOLDER/cifar10-jpg/*.zip
(JPEG files in a folder for each class), else by torchvision where that is
installed.
"""

import io
import os
import statistics
import zipfile
from pathlib import Path

import numpy as np
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
from torch import Tensor

from torch_picard.vit import MaskedPicardViT, patch_mask

COUNTS = [1, 2, 3]
TESTED = [1, 2, 3, 4, 6, 8]
PAPER = ["0.0126 ± 0.0006", "0.0121 ± 0.0006", "0.0122 ± 0.0006"]
SHOWN = 10
PAPER_SIZE = {
    "patch": 2, "dim": 192, "depth": 12, "decoder_depth": 4, "heads": 3
}  # fmt: skip
SCALES = {
    "small": {
        "digits": {
            "image_size": 8, "channels": 1, "train": 1497, "test": 300,
            "patch": 2, "dim": 48, "depth": 1, "decoder_depth": 1, "heads": 3,
            "batch": 16, "steps": 1000, "lr": 6e-3,
        },
        "cifar10": {
            "image_size": 32, "channels": 3, "train": 10000, "test": 500,
            "patch": 4, "dim": 48, "depth": 1, "decoder_depth": 1, "heads": 3,
            "batch": 8, "steps": 600, "lr": 6e-3,
        },
    },
    "full": {
        "digits": {
            "image_size": 8, "channels": 1, "train": 1497, "test": 300,
            **PAPER_SIZE, "batch": 64, "steps": 20000, "lr": 3e-4,
        },
        "cifar10": {
            "image_size": 32, "channels": 3, "train": 50000, "test": 10000,
            **PAPER_SIZE, "batch": 128, "steps": 50000, "lr": 3e-4,
        },
    },
}  # fmt: skip


# -- data ---------------------------------------------------------------------


class Images:
    """Images [n, C, s, s] in [0, 1], for training and test, and the masks of
    the test, which are the same for all."""

    def __init__(self, data: str, setting: dict, mask: int, device: str):
        train, test = setting["train"], setting["test"]
        given = digits() if data == "digits" else cifar10()
        rng = torch.Generator().manual_seed(0)
        if isinstance(given, tuple):
            parts = [
                part[torch.randperm(len(part), generator=rng)[:count]]
                for part, count in zip(given, (train, test))
            ]
        else:
            order = torch.randperm(len(given), generator=rng)
            parts = [given[order[:train]], given[order[train:][:test]]]
        self.train, self.test = (part.to(device) for part in parts)
        size = setting["image_size"]
        self.known = patch_mask(
            len(self.test), size, mask, generator=rng
        ).to(device)  # fmt: skip

    def trivial(self) -> dict[str, float]:
        """MSE over all pixels; known pixels are kept."""
        y, known = self.test, self.known
        count = known.float().mean((1, 2, 3), keepdim=True)
        visible = (y * known).mean((2, 3), keepdim=True) / count
        guesses = {
            "black": torch.zeros_like(y),
            "mean image": self.train.mean(0).expand_as(y),
            "mean of the known pixels": visible.expand_as(y),
            "mean of those nearby": nearby(y, known, visible),
        }
        return {
            name: float(F.mse_loss(torch.where(known, y, guess), y))
            for name, guess in guesses.items()
        }


def nearby(y: Tensor, known: Tensor, far: Tensor, width=1.0) -> Tensor:
    """Everywhere the mean of the known pixels, with Gaussian weights of so
    many pixels' width; ``far`` where there are none."""
    steps = torch.arange(-8, 9, device=y.device)
    weight = torch.exp(-0.5 * (steps / width) ** 2).to(y.dtype)
    weight = (weight[:, None] * weight)[None, None]
    count = y.size(1)
    total = F.conv2d(
        y * known, weight.expand(count, 1, -1, -1), padding=8, groups=count
    )
    weights = F.conv2d(known.to(y.dtype), weight, padding=8)
    return (total + 1e-12 * far) / (weights + 1e-12)


def digits() -> Tensor:
    from sklearn.datasets import load_digits

    return torch.from_numpy(load_digits().images / 16.0).float()[:, None]


def cifar10() -> tuple[Tensor, Tensor]:
    """Training and test images [n, 3, 32, 32]."""
    root = os.environ.get("TORCH_PICARD_DATA")
    folder = Path(root, "cifar10-jpg") if root else None
    if folder is not None and folder.is_dir():
        return tuple(
            torch.cat([unzip(p) for p in sorted(folder.glob(pattern))])
            for pattern in ("train*.zip", "test*.zip")
        )
    try:
        from torchvision.datasets import CIFAR10
    except ImportError:
        raise SystemExit(
            "no CIFAR-10: set TORCH_PICARD_DATA to a folder that holds "
            "cifar10-jpg/train*.zip and test*.zip, or install torchvision"
        ) from None
    parts = [
        torch.from_numpy(CIFAR10("outputs/data", train, download=True).data)
        for train in (True, False)
    ]
    return tuple(part.permute(0, 3, 1, 2) / 255.0 for part in parts)


def unzip(path: Path) -> Tensor:
    from PIL import Image

    images = []
    with zipfile.ZipFile(path) as archive:
        for name in sorted(archive.namelist()):
            if name.endswith(".jpg"):
                picture = Image.open(io.BytesIO(archive.read(name)))
                images.append(np.asarray(picture.convert("RGB")))
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2) / 255.0


# -- runs ---------------------------------------------------------------------

_data: dict = {}


def images(data: str, setting: dict, mask: int, device: str) -> Images:
    """Once in a process."""
    name = (data, str(setting), mask, device)
    if name not in _data:
        _data[name] = Images(data, setting, mask, device)
    return _data[name]


def build(variant: str, n: int, setting: dict) -> MaskedPicardViT:
    """``variant``: literal, known, or untied (n times the layers, once)."""
    times = n if variant == "untied" else 1
    return MaskedPicardViT(
        setting["image_size"],
        setting["channels"],
        setting["patch"],
        setting["dim"],
        times * setting["depth"],
        times * setting["decoder_depth"],
        setting["heads"],
        max_iter=1 if variant == "untied" else n,
    )


def run(variant, n, length, seed, data, setting, mask, device) -> dict:
    """Trains for ``length`` times the usual number of steps, at n
    iterations."""
    found = images(data, setting, mask, device)
    torch.manual_seed(seed)
    net = build(variant, n, setting).to(device)
    size, batch = setting["image_size"], setting["batch"]

    def complete(y: Tensor, known: Tensor, **options):
        kept = known if variant == "known" else None
        return net(y * known, known=kept, **options)

    def loss() -> Tensor:
        rows = torch.randint(len(found.train), (batch,), device=device)
        y = found.train[rows]
        known = patch_mask(batch, size, mask).to(device)
        return F.mse_loss(complete(y, known), y)

    last = fit(net, loss, length * setting["steps"], setting["lr"])
    result = {"parameters": number_of(net), "train": last}
    with torch.no_grad():
        result |= evaluate(net, complete, found, variant)
        if seed == 0 and length == 1 and variant != "untied":
            some = complete(found.test[:SHOWN], found.known[:SHOWN])
            grey = some.clamp(0, 1).mul(255).round().int()
            result["shown"] = grey.tolist()
    return result


def evaluate(net, complete, found: Images, variant: str) -> dict:
    """MSE over all pixels and over the hidden ones, by iterations at the
    test, and |P(x) - x| / |x| at the last iterate of the training."""
    count = net.max_iter
    tested = [1] if variant == "untied" else TESTED
    error = {m: [] for m in tested}
    hidden, residual = [], []
    for y, known in zip(found.test.split(100), found.known.split(100)):
        for m in tested:
            out = complete(y, known, max_iter=m)
            error[m] += (out - y).square().mean((1, 2, 3)).tolist()
            if m == count:
                missing = (~known).expand_as(y)
                hidden += (out - y).square()[missing].tolist()
        _, after = complete(y, known, max_iter=count + 1, return_solution=True)
        size = complete(y, known, max_iter=count).flatten(1).norm(dim=1)
        residual += (after.residual / size).tolist()
    return {
        "test": {str(m): statistics.fmean(e) for m, e in error.items()},
        "hidden": statistics.fmean(hidden),
        "residual": statistics.median(residual),
    }


def cells() -> list[tuple]:
    """(variant, N, length of the training)"""
    found = [("literal", n, 1) for n in COUNTS]
    found += [("known", n, 1) for n in COUNTS]
    for n in COUNTS[1:]:
        found += [("untied", n, 1), ("literal", 1, n)]
    return found


# -- tables -------------------------------------------------------------------


LOOPS = {"literal": "the paper's loop", "known": "known pixels put back"}


def rows() -> dict[str, tuple[list[tuple], list[int]]]:
    """What stands in a row: runs for N = 1, 2, 3, and the iterations at
    which they are tested."""
    plain = ("literal", 1, 1)
    found = {
        title: ([(short, n, 1) for n in COUNTS], COUNTS)
        for short, title in LOOPS.items()
    }
    untied = [plain, *(("untied", n, 1) for n in COUNTS[1:])]
    longer = [("literal", 1, n) for n in COUNTS]
    found["N times the layers, once"] = (untied, [1, 1, 1])
    found["one pass, trained N times as long"] = (longer, [1, 1, 1])
    return found


def tables(view: View, trivial: dict[str, float]) -> dict[str, Table]:
    head = ["", *(f"N = {n}" for n in COUNTS)]
    main = [[*head, "parameters at N = 3"], ["paper, CIFAR-10", *PAPER, ""]]
    for title, (which, tested) in rows().items():
        count = view.runs(which[-1])[0]["parameters"]
        errors = [view.spread(w, t) for w, t in zip(which, tested)]
        main.append([title, *errors, f"{count:,}"])
    for title, value in trivial.items():
        main.append([title, *[f"{value:.4f}"] * 3, ""])

    hidden = [head]
    for title, (which, _) in rows().items():
        found = [mean(view, w, "hidden") for w in which]
        hidden.append([title, *(f"{value:.4f}" for value in found)])

    curve = [["trained at", *(f"tested at {m}" for m in TESTED)]]
    residual = [head]
    for short, title in LOOPS.items():
        which = [(short, n, 1) for n in COUNTS]
        for n, w in zip(COUNTS, which):
            errors = [f"{view.error(w, m):.4f}" for m in TESTED]
            curve.append([f"{title}, N = {n}", *errors])
        found = [mean(view, w, "residual") for w in which]
        residual.append([title, *(f"{value:.2g}" for value in found)])
    return {
        "Test MSE over all pixels": main,
        "Over the hidden pixels": hidden,
        "Iterations other than those of the training": curve,
        "Relative residual of the last iterate": residual,
    }


def mean(view: View, which: tuple, field: str) -> float:
    return statistics.mean(run[field] for run in view.runs(which))


def picture(view: View, found: Images, path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    y, known = found.test[:SHOWN].cpu(), found.known[:SHOWN].cpu()
    rows = {"image": y, "masked": y * known}
    for short, title in [("literal", "paper's loop"), ("known", "put back")]:
        for n in COUNTS:
            grey = view.runs((short, n, 1))[0]["shown"]
            rows[f"{title}, N = {n}"] = torch.tensor(grey) / 255.0
    # one canvas, a line between two images
    lines = [
        F.pad(torch.cat([*F.pad(batch, (1, 1))], -1), (0, 0, 1, 1))
        for batch in rows.values()
    ]
    canvas = torch.cat(lines, -2).clamp(0, 1).permute(1, 2, 0).squeeze(-1)
    height, width = canvas.shape[:2]
    step = height // len(rows)
    figure, axes = plt.subplots(figsize=(8, 6.4 * height / width))
    axes.imshow(canvas.numpy(), cmap="gray", vmin=0, vmax=1)
    axes.set_yticks([step * (i + 0.5) for i in range(len(rows))], rows)
    axes.set_xticks([])
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=90, bbox_inches="tight")
    plt.close(figure)


def main() -> None:
    options = parser(__doc__, "table3", SCALES)
    options.add_argument(
        "--data", choices=["digits", "cifar10"], default="digits"
    )
    options.add_argument(
        "--mask", type=int, default=1,
        help="what is hidden: squares of so many pixels a side",
    )  # fmt: skip
    args = options.parse_args()
    setting = SCALES[args.scale][args.data]
    found = images(args.data, setting, args.mask, args.device)
    kept = args.out / f"table3_{args.data}_{args.scale}.json"
    runs = Runs(kept, setting | {"mask": args.mask})
    shared = (args.data, setting, args.mask, args.device)
    todo = {
        key(which, seed): (*which, seed, *shared)
        for seed in range(args.seeds)
        for which in cells()
    }
    runs.complete(todo, run, args.workers)
    view = View(runs.results, args.seeds)
    name = "table3" if args.data == "digits" else "table3_cifar10"
    report(tables(view, found.trivial()), args.write, name)
    path = (args.write or args.out) / f"{name}.png"
    picture(view, found, path)
    print(f"\nPicture: {path}")


if __name__ == "__main__":
    main()
