"""Steady Darcy flow: a Fourier layer iterated to its fixed point, against
Fourier neural operators of one pass.

    python examples/darcy_fno_deq.py
    python examples/darcy_fno_deq.py --scale full

All models learn on 1000 samples of 16 x 16 points and are tested there and,
without further training, on the same test samples at 32 x 32. Every run is
kept in --out as it ends; an interrupted command goes on where it was. Prints
tables and saves a picture; --write FOLDER puts them there as darcy.inc and
darcy.png. --search is how the learning rates were found: on a part of the
training data.

The data are the files of TORCH_PICARD_DATA where it is set, else generated.
"""

import statistics
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from operator_runs import Runs, Table, key, number_of, parser, report
from torch import Tensor, nn
from tqdm import tqdm

from torch_picard import Anderson, Implicit
from torch_picard.anie import FNO, FNODEQ
from torch_picard.contraction import JacobianPenalty
from torch_picard.datasets import Darcy, solve_darcy

#: Of the training data, what --search validates on.
VALIDATION = 100
LATER = [1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 64]


@dataclass(frozen=True)
class Scale:
    """width is that of FNO-DEQ; most: evaluations of its map in training."""

    width: int
    modes: int
    epochs: int
    most: int
    batch: int = 20


SCALES = {
    "small": Scale(width=24, modes=6, epochs=10, most=14),
    "full": Scale(width=32, modes=8, epochs=100, most=24),
    "tiny": Scale(width=4, modes=2, epochs=1, most=3),  # to try it out
}


#: Learning rates, by --search at small scale, on validation data.
CHOSEN = {
    "FNO-DEQ": 2.4e-2,
    "FNO": 2.4e-2,
    "FNO, longer": 2.4e-2,
    "untied": 1.2e-2,
    "single pass": 2.4e-2,
}
SEARCHED = (3e-3, 6e-3, 1.2e-2, 2.4e-2)
WEIGHT_DECAY = 1e-4
#: Of the hinge (|J| - 1.3)^2, |J| the norm of the derivative of FNO-DEQ's
#: map at its solutions: without it, training leaves the maps that converge.
PENALTY, NORM = 0.3, 1.3
#: More epochs for "FNO, longer".
LONGER = 3
LABELS = {
    "FNO-DEQ": "FNO-DEQ",
    "FNO": "FNO, equal parameters",
    "FNO, longer": f"FNO, equal parameters, {LONGER} times the epochs",
    "untied": "untied depth, equal evaluations",
    "single pass": "single pass of the same layer",
}


def build(model: str, scale: Scale) -> nn.Module:
    """Half the width and four layers are as many parameters as one layer of
    the full width; a layer of an FNODEQ counts as one evaluation."""
    width, modes = scale.width, scale.modes
    if model.startswith("FNO") and model != "FNO-DEQ":
        return FNO(1, 1, width=width // 2, modes=modes, layers=4)
    if model == "FNO-DEQ":
        return FNODEQ(
            1, 1, width=width, modes=modes, max_iter=scale.most, rtol=1e-2,
            method=Anderson(window=3),
            gradient=Implicit(rtol=3e-2, max_iter=10), on_failure="ignore",
        )  # fmt: skip
    layers = scale.most if model == "untied" else 1
    return FNODEQ(
        1, 1, width=width, modes=modes, layers=layers, alpha=0.0, max_iter=1,
        rtol=0.0,
    )  # fmt: skip


class Fields:
    """Coefficients and solutions [B, 1, s, s], in units of the training
    data; a model's output times ``unit`` is a solution."""

    def __init__(self, root: Path, train: int | None = None):
        self.a, self.u = stack(Darcy(root, split="train", num_samples=train))
        self.test = {}
        for s in (16, 32):
            self.test[s] = stack(Darcy(root, split="test", resolution=s))
        mean, std = self.a.mean(), self.a.std()
        self.raw = {s: a for s, (a, _) in self.test.items()}
        self.a = (self.a - mean) / std
        self.test = {
            s: ((a - mean) / std, u) for s, (a, u) in self.test.items()
        }
        self.unit = self.u.std()

    def to(self, device: str) -> "Fields":
        self.a, self.u = self.a.to(device), self.u.to(device)
        self.unit = self.unit.to(device)
        self.test = {
            s: (a.to(device), u.to(device)) for s, (a, u) in self.test.items()
        }
        return self

    def split(self) -> "Fields":
        """Validation data in place of the test data."""
        order = torch.randperm(
            len(self.a), generator=torch.Generator().manual_seed(0)
        ).to(self.a.device)
        held, rest = order[:VALIDATION], order[VALIDATION:]
        self.test = {16: (self.a[held], self.u[held])}
        self.a, self.u = self.a[rest], self.u[rest]
        return self


def stack(data: Darcy) -> tuple[Tensor, Tensor]:
    a, u = zip(*data)
    return torch.stack(a)[:, None], torch.stack(u)[:, None]


@dataclass(frozen=True)
class Place:
    """Where a run finds its data, and where it computes."""

    root: Path
    samples: int | None
    device: str
    validation: bool

    def fields(self) -> Fields:
        fields = Fields(self.root, self.samples).to(self.device)
        return fields.split() if self.validation else fields


def errors(found: Tensor, u: Tensor) -> Tensor:
    """Relative l2 error of each sample."""
    size = torch.linalg.vector_norm(u.flatten(1), dim=1)
    return torch.linalg.vector_norm((found - u).flatten(1), dim=1) / size


def train(
    net: nn.Module, fields: Fields, epochs: int, batch: int, lr: float
) -> None:
    n = len(fields.a)
    steps = epochs * -(-n // batch)
    optimizer = torch.optim.AdamW(
        net.parameters(), lr=lr, weight_decay=WEIGHT_DECAY
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, lr, total_steps=steps, pct_start=0.2
    )
    penalty = JacobianPenalty("spectral", NORM)
    net.train()
    bar = tqdm(total=steps, desc="steps", leave=False)
    for _ in range(epochs):
        for rows in torch.randperm(n).to(fields.a.device).split(batch):
            optimizer.zero_grad()
            a, u = fields.a[rows], fields.u[rows]
            out, more = forward(net, a, penalty)
            loss = errors(fields.unit * out, u).mean()
            (loss + more).backward()
            nn.utils.clip_grad_norm_(net.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            bar.update()
            bar.set_postfix(loss=f"{loss.item():.3f}", refresh=False)
    bar.close()


def forward(
    net: nn.Module, a: Tensor, penalty: JacobianPenalty
) -> tuple[Tensor, Tensor | float]:
    """The output, and what the loss gets added."""
    if not solves(net):
        return net(a), 0.0
    out, solution = net(a, return_solution=True)
    operator = net.operator(net.lift(a))
    return out, PENALTY * penalty(operator, solution.value.detach())


def solves(net: nn.Module) -> bool:
    """Whether it is FNO-DEQ, and no fixed number of layers."""
    return isinstance(net, FNODEQ) and not net.counted


@torch.no_grad()
def evaluate(net: nn.Module, fields: Fields) -> dict:
    """Errors of each test sample; for FNO-DEQ, solved to 1e-4, also how the
    solves ended and the error after other numbers of evaluations."""
    net.eval()
    deep = solves(net)
    result: dict = {"errors": {}}
    if deep:
        net.rtol, net.max_iter = 1e-4, 100
    for s, (a, u) in fields.test.items():
        if deep:
            out, solution = net(a, return_solution=True)
            size = torch.linalg.vector_norm(solution.value.flatten(1), dim=1)
            result.setdefault("solves", {})[str(s)] = {
                "converged": int(solution.converged.sum()),
                "of": len(a),
                "iterations": short(solution.iterations),
                "residual": short(solution.residual / size),
            }
        else:
            out = net(a)
        result["errors"][str(s)] = short(errors(fields.unit * out, u))
    if deep:
        a, u = fields.test[16]
        net.rtol = 0.0
        result["later"] = [
            float(errors(fields.unit * net(a, max_iter=k), u).mean())
            for k in LATER
        ]
    return result


def short(values: Tensor) -> list[float]:
    return [float(f"{float(v):.4g}") for v in values]


def run(model: str, seed: int, lr: float, scale: Scale, place: Place) -> dict:
    fields = place.fields()
    torch.manual_seed(seed)
    net = build(model, scale).to(place.device)
    epochs = scale.epochs * (LONGER if model == "FNO, longer" else 1)
    train(net, fields, epochs, scale.batch, lr)
    found = {"parameters": number_of(net), "layers": len(net.layers)}
    return found | evaluate(net, fields)


def baselines(fields: Fields) -> dict[str, list[float]]:
    """What needs no network: the errors at 16 x 16 and 32 x 32."""
    mean = fields.u.mean(0, keepdim=True)
    # the last point is 1/16 off the boundary, where u is 0
    wide = F.interpolate(
        F.pad(mean, (0, 1, 0, 1)), size=(33, 33), mode="bilinear",
        align_corners=True,
    )[..., :32, :32]  # fmt: skip
    rows: dict[str, list[float]] = {}
    for s, field in ((16, mean), (32, wide)):
        u = fields.test[s][1]
        volumes = on_pixels(fields.raw[s][:, 0])[:, None].to(u)
        for name, guess in (
            ("zero", 0 * u),
            ("mean field", field),
            ("finite volumes on the same pixels", volumes),
        ):
            error = float(errors(guess, u).mean())
            rows.setdefault(name, []).append(error)
    return rows


def on_pixels(a: Tensor, parts: int = 4) -> Tensor:
    """solve_darcy for a [B, s, s] that is known at i/s only: constant on the
    square around each point, each cut into ``parts`` x ``parts`` cells."""
    s = a.size(-1)
    nearest = (torch.arange(s * parts) + parts // 2) // parts
    nearest = nearest.clamp(max=s - 1)
    u = solve_darcy(a[:, nearest][:, :, nearest])
    # a point is a corner of four cells; the first are on the boundary
    u = F.avg_pool2d(F.pad(u, (1, 0, 1, 0)), 2, stride=1)
    u = u[:, ::parts, ::parts].clone()
    u[:, 0], u[:, :, 0] = 0.0, 0.0
    return u


def accuracy(runs: dict[str, list[dict]], bare: dict) -> Table:
    rows = [
        ["", "parameters", "evaluations", "error at 16 x 16",
         "error at 32 x 32", "CPU s"]
    ]  # fmt: skip
    for model, found in runs.items():
        calls = found[0]["layers"]
        if model == "FNO-DEQ":
            calls = statistics.mean(
                k for r in found for k in r["solves"]["16"]["iterations"]
            )
        seconds = statistics.mean(r["seconds"] for r in found)
        rows.append(
            [LABELS[model], str(found[0]["parameters"]), f"{calls:.0f}",
             spread(found, "16"), spread(found, "32"), f"{seconds:.0f}"]
        )  # fmt: skip
    for name, (at16, at32) in bare.items():
        rows.append([name, "0", "-", f"{at16:.4f}", f"{at32:.4f}", "-"])
    return rows


def means(found: list[dict], s: str) -> list[float]:
    """The error of each run."""
    return [statistics.mean(r["errors"][s]) for r in found]


def spread(found: list[dict], s: str) -> str:
    each = means(found, s)
    sd = statistics.stdev(each) if len(each) > 1 else 0.0
    return f"{statistics.mean(each):.4f} ± {sd:.4f}"


def comparison(runs: dict[str, list[dict]]) -> Table:
    rows = [["against", "at", "ratio of errors", "smaller on"]]
    for other in list(runs)[1:]:
        for s in ("16", "32"):
            ours, theirs = (
                [statistics.mean(v) for v in zip(*(r["errors"][s] for r in f))]
                for f in (runs["FNO-DEQ"], runs[other])
            )
            wins = sum(a < b for a, b in zip(ours, theirs))
            ratio = statistics.mean(ours) / statistics.mean(theirs)
            rows.append(
                [LABELS[other], f"{s} x {s}", f"{ratio:.2f}",
                 f"{wins} of {len(ours)} samples"]
            )  # fmt: skip
    return rows


def solved(found: list[dict]) -> Table:
    rows = [["at", "converged", "evaluations", "median residual", "largest"]]
    for s in ("16", "32"):
        ends = [r["solves"][s] for r in found]
        residual = sorted(x for end in ends for x in end["residual"])
        calls = [k for end in ends for k in end["iterations"]]
        rows.append(
            [f"{s} x {s}",
             f"{sum(end['converged'] for end in ends)} of {len(residual)}",
             f"{min(calls):.0f} to {max(calls):.0f}",
             f"{statistics.median(residual):.1e}", f"{residual[-1]:.1e}"]
        )  # fmt: skip
    return rows


def picture(path: Path, runs: dict[str, list[dict]]) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(12, 4.5))
    for place, found in enumerate(runs.values()):
        for shift, s in ((-0.2, "16"), (0.2, "32")):
            each = means(found, s)
            sd = statistics.stdev(each) if len(each) > 1 else 0.0
            left.bar(
                place + shift, statistics.mean(each), 0.4, yerr=sd,
                color="C0" if s == "16" else "C1",
                label=None if place else f"{s} x {s}",
            )  # fmt: skip
    left.set_xticks(range(len(runs)), runs, rotation=20, ha="right")
    left.set_ylabel("relative l2 error, test")
    left.legend()
    for seed, found in enumerate(runs["FNO-DEQ"]):
        right.loglog(
            LATER, found["later"], marker=".", label=f"FNO-DEQ, seed {seed}"
        )
    right.axhline(statistics.mean(means(runs["FNO"], "16")), color="black",
                  linestyle="--", label=LABELS["FNO"])  # fmt: skip
    right.set_xlabel("evaluations allowed at test time")
    right.set_ylabel("relative l2 error at 16 x 16, test")
    right.legend()
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def main() -> None:
    options = parser(__doc__, "darcy", SCALES)
    options.add_argument("--search", action="store_true")
    options.add_argument("--samples", type=int, help="of the training data")
    options = options.parse_args()
    scale, device = SCALES[options.scale], options.device
    place = Place(
        options.out / "darcy", options.samples, device, options.search
    )
    fields = place.fields()  # generated here, if need be, once
    settings = {"scale": asdict(scale), "samples": len(fields.a),
                "unit": float(f"{float(fields.unit):.4g}")}  # fmt: skip
    if options.search:
        kept = Runs(options.out / f"darcy-{options.scale}-search.json",
                    settings)  # fmt: skip
        cells = {
            f"{model} {lr:g}": (model, 1000, lr, scale, place)
            for model in CHOSEN
            if model != "FNO, longer"
            for lr in SEARCHED
        }
        kept.complete(cells, run, options.workers)
        for name in cells:
            print(f"{name}: {means([kept.results[name]], '16')[0]:.4f}")
        return
    kept = Runs(options.out / f"darcy-{options.scale}.json",
                settings | {"learning rates": CHOSEN})  # fmt: skip
    seeds = range(options.seeds)
    kept.complete(
        {
            key((model,), seed): (model, seed, CHOSEN[model], scale, place)
            for seed in seeds
            for model in LABELS
        },
        run,
        options.workers,
    )
    runs = {
        model: [kept.results[key((model,), seed)] for seed in seeds]
        for model in LABELS
    }
    folder = options.write or options.out
    tables = {
        "Relative l2 error on the test samples": accuracy(
            runs, baselines(fields)
        ),
        "The error of FNO-DEQ, against others": comparison(runs),
        "The solves of FNO-DEQ to a tolerance of 1e-4": solved(
            runs["FNO-DEQ"]
        ),
    }
    report(tables, folder, "darcy")
    picture(folder / "darcy.png", runs)
    print(f"\nTables and picture: {folder}")


if __name__ == "__main__":
    main()
