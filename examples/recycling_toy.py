"""Recycling of a small folding network: the study of Figures 3 to 5.

    python examples/recycling_toy.py
    python examples/recycling_toy.py --scale full --device cuda

Chains of CA atoms are to be found from some of their distances, measured with
noise. The network is AlphaFold's in small: blocks that update a single and a
pair representation (attention with a pair bias, triangle multiplication), a
structure module of shared weights applied four times, and recycling of
representations and coordinates. It is trained with 0 to 3 recycles at random
and the gradient of the last pass, and tested with up to 20, on chains of the
length of the training and on longer ones. Beside it: training without
recycling, and with a penalty on the Jacobian of the recycled map; and
smoothing of the two representations when recycling. Prints tables and saves a
picture; a run that was interrupted goes on.
"""

import math
import statistics

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

from torch_picard import Status
from torch_picard.contraction import jacobian_penalty
from torch_picard.recycling import Recycler, ca_distance

BOND = 3.8  # Angstrom between neighbours
RECYCLES = 20
SHOWN = [0, 1, 2, 4, 8, 12, 20]
TOLERANCE = 0.5
VARIANTS = {"single": 0.0, "plain": 0.0, "penalty": 1.0}
MOST_RECYCLES = {"single": 0, "plain": 3, "penalty": 3}  # in training
SMOOTHING = [0.0, 0.5]
SCALES = {
    "small": {
        "length": 16, "long": 26, "single": 24, "pair": 16, "blocks": 1,
        "batch": 16, "steps": 900, "lr": 4e-3, "test": 60,
    },
    "full": {
        "length": 48, "long": 80, "single": 64, "pair": 48, "blocks": 4,
        "batch": 32, "steps": 20000, "lr": 1e-3, "test": 500,
    },
}  # fmt: skip


# -- data ---------------------------------------------------------------------


def chains(count: int, length: int, rng: torch.Generator) -> Tensor:
    """Smooth compact curves with steps of 3.8 Angstrom, [count, length, 3]."""
    modes = max(4, length // 4)
    t = torch.linspace(0, 1, 8 * length)
    order = torch.arange(1, modes + 1)
    waves = torch.cos(math.pi * order[:, None] * t)  # [modes, fine]
    size = torch.randn(count, modes, 3, generator=rng) / order[:, None] ** 0.8
    curve = torch.einsum("bmd,mt->btd", size, waves)
    walked = curve.diff(dim=1).norm(dim=-1).cumsum(1)
    walked = F.pad(walked, (1, 0))
    want = torch.linspace(0, 1, length) * walked[:, -1:]
    at = torch.searchsorted(walked, want.contiguous()).clamp(1, len(t) - 1)
    points = curve.gather(1, at[..., None].expand(-1, -1, 3))
    steps = F.normalize(points.diff(dim=1), dim=-1) * BOND
    return F.pad(steps.cumsum(1), (0, 0, 1, 0))


def distances(x: Tensor) -> Tensor:
    return (x[:, :, None] - x[:, None]).square().sum(-1).add(1e-6).sqrt()


def measure(x: Tensor, rng: torch.Generator) -> tuple[Tensor, Tensor]:
    """Three in ten of all distances, 1 Angstrom off; which ones."""
    shape = x.shape[0], x.shape[1], x.shape[1]
    draw = torch.rand(shape, generator=rng)
    noise = torch.randn(shape, generator=rng)
    draw, noise = (t.triu(1) + t.triu(1).mT for t in (draw, noise))
    known = (draw < 0.3) & (draw > 0)
    return (distances(x) + noise) * known, known


class Targets:
    """Chains and what is known of them."""

    def __init__(self, count: int, length: int, rng: torch.Generator):
        self.x = chains(count, length, rng)
        self.seen, self.known = measure(self.x, rng)


# -- the network --------------------------------------------------------------


class Block(nn.Module):
    """Updates s [B, N, c] and z [B, N, N, d] by each other."""

    def __init__(self, c: int, d: int, heads: int = 4):
        super().__init__()
        self.heads = heads
        self.norm_s, self.norm_z = nn.LayerNorm(c), nn.LayerNorm(d)
        self.qkv, self.bias = nn.Linear(c, 3 * c), nn.Linear(d, heads)
        self.mix = nn.Linear(c, c)
        self.left, self.right = nn.Linear(c, d), nn.Linear(c, d)
        self.a, self.b, self.gate = (nn.Linear(d, d) for _ in range(3))
        self.norm_t, self.out = nn.LayerNorm(d), nn.Linear(d, d)
        self.moved_s, self.moved_z = transition(c), transition(d)

    def forward(self, s: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        u, v = self.norm_s(s), self.norm_z(z)
        q, k, w = self.qkv(u).unflatten(-1, (3, self.heads, -1)).unbind(2)
        logits = torch.einsum("bihc,bjhc->bijh", q, k) / q.size(-1) ** 0.5
        weight = (logits + self.bias(v)).softmax(2)
        s = s + self.mix(torch.einsum("bijh,bjhc->bihc", weight, w).flatten(2))
        s = s + self.moved_s(s)
        z = z + self.left(s)[:, :, None] + self.right(s)[:, None]
        a, b = self.a(v), self.b(v)
        triangle = torch.einsum("bikd,bjkd->bijd", a, b) / s.size(1)
        z = z + self.gate(v).sigmoid() * self.out(self.norm_t(triangle))
        return s, z + self.moved_z(z)


def transition(width: int) -> nn.Sequential:
    return nn.Sequential(
        nn.LayerNorm(width),
        nn.Linear(width, 2 * width),
        nn.ReLU(),
        nn.Linear(2 * width, width),
    )


class Structure(nn.Module):
    """Moves the atoms along the lines between them; equivariant. One set of
    weights, applied several times to an extended chain."""

    def __init__(self, c: int, d: int, times: int = 4):
        super().__init__()
        self.times = times
        self.edge = nn.Sequential(
            nn.Linear(2 * c + d + 1, c), nn.ReLU(), nn.Linear(c, c), nn.ReLU()
        )
        self.move, self.update = nn.Linear(c, 1), nn.Linear(c, c)

    def forward(self, s: Tensor, z: Tensor) -> Tensor:
        n = s.size(1)
        i = torch.arange(n, device=s.device, dtype=s.dtype)
        turn = 1.7 * i  # a helix: a straight line could not leave its line
        x = torch.stack([1.5 * i, 2.3 * turn.cos(), 2.3 * turn.sin()], -1)
        x = x.expand(len(s), n, 3)
        for _ in range(self.times):
            gap = x[:, :, None] - x[:, None]
            far = gap.square().sum(-1, keepdim=True).add(1e-6).sqrt()
            pairs = torch.cat(
                [
                    s[:, :, None].expand(*z.shape[:3], -1),
                    s[:, None].expand(*z.shape[:3], -1),
                    z,
                    far / 10,
                ],
                -1,
            )
            message = self.edge(pairs)
            x = x + (gap / (1 + far) * self.move(message)).sum(2)
            s = s + self.update(message.mean(2))
        return x


class Fold(nn.Module):
    """One pass: from what was measured and the recycled state to a state
    {"s", "z", "x"}."""

    def __init__(self, single: int, pair: int, blocks: int):
        super().__init__()
        self.single, self.pair = single, pair
        self.centers = nn.Buffer(torch.linspace(2, 30, 15))
        self.embed = nn.Linear(15 + 1 + 17, pair)
        self.begin = nn.Linear(pair, single)
        self.old_s, self.old_z = nn.LayerNorm(single), nn.LayerNorm(pair)
        self.old_x = nn.Linear(15, pair)
        self.blocks = nn.ModuleList(Block(single, pair) for _ in range(blocks))
        self.structure = Structure(single, pair)

    def bins(self, d: Tensor) -> Tensor:
        return torch.exp(-((d[..., None] - self.centers) / 2).square())

    def start(self, seen: Tensor) -> dict[str, Tensor]:
        b, n, _ = seen.shape
        return {
            "s": seen.new_zeros(b, n, self.single),
            "z": seen.new_zeros(b, n, n, self.pair),
            "x": seen.new_zeros(b, n, 3),
        }

    def forward(self, seen: Tensor, known: Tensor, state: dict) -> dict:
        n = seen.size(1)
        i = torch.arange(n, device=seen.device)
        offset = (i[:, None] - i).clamp(-8, 8) + 8
        where = F.one_hot(offset, 17).to(seen).expand(len(seen), n, n, 17)
        mask = known[..., None].to(seen)
        z = self.embed(torch.cat([self.bins(seen) * mask, mask, where], -1))
        s = self.begin(z.mean(2)) + self.old_s(state["s"])
        z = z + self.old_z(state["z"])
        z = z + self.old_x(self.bins(distances(state["x"])))
        for block in self.blocks:
            s, z = block(s, z)
        return {"s": s, "z": z, "x": self.structure(s, z)}


def on_coordinates(prev: dict, cur: dict) -> Tensor:
    return ca_distance(prev["x"], cur["x"])


def recycle(net: Fold, targets: Targets, **options):
    """The solution for all targets, each with its own stop."""
    recycler = Recycler(
        lambda state: net(targets.seen, targets.known, state),
        distance=on_coordinates, smooth=("s", "z"), on_failure="ignore",
        **options,
    )  # fmt: skip
    return recycler(net.start(targets.seen))


# -- quality ------------------------------------------------------------------


def lddt(x: Tensor, true: Tensor) -> Tensor:
    """Share of the distances below 15 Angstrom that are right to .5, 1, 2, 4
    Angstrom, in percent, [B]. Superpositions and mirrors do not matter."""
    want = distances(true)
    off = torch.eye(x.size(1), dtype=torch.bool, device=x.device)
    counts = (want < 15) & ~off
    error = (distances(x) - want).abs()
    right = sum((error < t).float() for t in (0.5, 1.0, 2.0, 4.0)) / 4
    return 100 * (right * counts).sum((1, 2)) / counts.sum((1, 2))


def rmsd(x: Tensor, true: Tensor) -> Tensor:
    """After the best superposition, mirrors allowed, [B]."""
    a, b = (t - t.mean(1, keepdim=True) for t in (x, true))
    overlap = torch.linalg.svdvals(a.mT @ b).sum(-1)
    square = a.square().sum((1, 2)) + b.square().sum((1, 2)) - 2 * overlap
    return (square.clamp(min=0) / x.size(1)).sqrt()


# -- runs ---------------------------------------------------------------------


def run(variant: str, seed: int, setting: dict, device: str) -> dict:
    torch.manual_seed(seed)
    sizes = setting["single"], setting["pair"], setting["blocks"]
    net = Fold(*sizes).to(device)
    rng = torch.Generator().manual_seed(1000 + seed)
    weight = VARIANTS[variant]

    def loss() -> Tensor:
        batch = Targets(setting["batch"], setting["length"], rng)
        most = MOST_RECYCLES[variant]
        passes = int(torch.randint(most + 1, (), generator=rng))
        found = recycle(net, batch, tol=0.0, max_recycles=passes).value
        error = distances(found["x"]) - distances(batch.x)
        value = F.smooth_l1_loss(error, torch.zeros_like(error))
        if weight:
            state = {name: t.detach() for name, t in found.items()}
            value = value + weight * jacobian_penalty(
                lambda s: net(batch.seen, batch.known, s), state
            )
        return value

    last = fit(net, loss, setting["steps"], setting["lr"])
    result = {"parameters": number_of(net), "train": last}
    fixed = torch.Generator().manual_seed(7)
    for name in ("length", "long"):
        targets = Targets(setting["test"], setting[name], fixed)
        for alpha in SMOOTHING:
            result[f"{name} {alpha}"] = study(net, targets, alpha)
    return result


def study(net: Fold, targets: Targets, alpha: float) -> dict:
    """Quality and change at every recycle, and how the passes would have
    ended at the tolerance."""
    quality, error, change = [], [], []
    with torch.no_grad():
        # all passes, whatever happens: so no verdict may end one
        state = net.start(targets.seen)
        for _ in range(RECYCLES + 1):
            out = net(targets.seen, targets.known, state)
            change.append(on_coordinates(state, out).tolist())
            quality.append(lddt(out["x"], targets.x).tolist())
            error.append(rmsd(out["x"], targets.x).tolist())
            mixed = {n: state[n].lerp(out[n], 1 - alpha) for n in ("s", "z")}
            state = {**out, **mixed}
        solution = recycle(
            net, targets, tol=TOLERANCE, max_recycles=RECYCLES, alpha=alpha
        )
    return {
        "lddt": quality,
        "rmsd": error,
        "change": change,
        "status": solution.status.tolist(),
        "passes": solution.iterations.tolist(),
        "stopped": lddt(solution.value["x"], targets.x).tolist(),
    }


# -- tables -------------------------------------------------------------------


def title(variant: str, alpha: float) -> str:
    trained = {
        "single": "trained without recycling",
        "plain": "trained with recycling",
        "penalty": "the same, Jacobian penalty",
    }
    return trained[variant] + (f", smoothed by {alpha}" if alpha else "")


def cells() -> list[tuple[str, float]]:
    return [(v, a) for v in VARIANTS for a in SMOOTHING]


def gathered(view: View, variant: str, name: str, alpha: float) -> list[dict]:
    return [r[f"{name} {alpha}"] for r in view.runs((variant,))]


def tables(view: View, setting: dict) -> dict[str, Table]:
    found = {}
    lengths = {"length": "of the training", "long": "longer"}
    for name, what in lengths.items():
        residues = f"{setting[name]} residues ({what})"
        for kind, unit in (("lddt", "lDDT"), ("rmsd", "RMSD, Angstrom")):
            rows = [["", *(f"{k} recycles" for k in SHOWN)]]
            for variant, alpha in cells():
                runs = gathered(view, variant, name, alpha)
                rows.append(
                    [title(variant, alpha)]
                    + [spread([r[kind][k] for r in runs]) for k in SHOWN]
                )
            found[f"{unit}, {residues}"] = rows
        rows = [
            ["", "converged", "stagnated", "diverged", "ran out", "passes",
             "lDDT where it stopped"]
        ]  # fmt: skip
        for variant, alpha in cells():
            runs = gathered(view, variant, name, alpha)
            status = [s for r in runs for s in r["status"]]
            passes = [p for r in runs for p in r["passes"]]
            shares = [
                f"{100 * status.count(int(s)) / len(status):.0f}%"
                for s in (
                    Status.CONVERGED, Status.STAGNATED, Status.DIVERGED,
                    Status.MAX_ITER,
                )
            ]  # fmt: skip
            mean = f"{statistics.mean(passes):.1f}"
            quality = spread([r["stopped"] for r in runs])
            rows.append([title(variant, alpha), *shares, mean, quality])
        found[f"Outcomes at {TOLERANCE} Angstrom, {residues}"] = rows
    return found


def spread(runs: list[list[float]]) -> str:
    """Mean over targets; mean and standard deviation over seeds."""
    means = [statistics.mean(values) for values in runs]
    deviation = statistics.stdev(means) if len(means) > 1 else 0.0
    return f"{statistics.mean(means):.1f} ± {deviation:.1f}"


def picture(view: View, path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, grid = plt.subplots(2, 3, figsize=(11, 6), sharex=True)
    for axes, name in zip(grid, ("length", "long")):
        for variant, alpha in cells():
            runs = gathered(view, variant, name, alpha)
            quality = torch.tensor([r["lddt"] for r in runs])
            change = torch.tensor([r["change"] for r in runs])
            label = title(variant, alpha)
            axes[0].plot(quality.mean((0, 2)), label=label)
            middle = change[:, 1:].median(2).values.mean(0)
            axes[1].plot(range(1, RECYCLES + 1), middle, label=label)
        one = torch.tensor(gathered(view, "plain", name, 0.0)[0]["change"])
        axes[2].plot(range(1, RECYCLES + 1), one[1:], color="C0", alpha=0.25)
        for ax in axes[1:]:
            ax.axhline(TOLERANCE, color="black", linewidth=0.8, linestyle=":")
            ax.set_yscale("log")
        longer = "longer chains" if name == "long" else "chains as trained"
        axes[0].set_ylabel(f"lDDT, {longer}")
        axes[1].set_ylabel("change, Angstrom, median")
        axes[2].set_ylabel("change, every target, not penalised")
    for ax in grid[1]:
        ax.set_xlabel("recycles")
    grid[0, 0].legend(fontsize=8)
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=90)
    plt.close(figure)


def main() -> None:
    args = parser(__doc__, "recycling", SCALES).parse_args()
    setting = SCALES[args.scale]
    runs = Runs(args.out / f"recycling_{args.scale}.json", setting)
    todo = {
        key((variant,), seed): (variant, seed, setting, args.device)
        for seed in range(args.seeds)
        for variant in VARIANTS
    }
    runs.complete(todo, run, args.workers)
    view = View(runs.results, args.seeds)
    report(tables(view, setting), args.write, "recycling")
    path = (args.write or args.out) / "recycling.png"
    picture(view, path)
    print(f"\nPicture: {path}")


if __name__ == "__main__":
    main()
