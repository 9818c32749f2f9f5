"""Memory and time of a training step against the number of iterations.

    python benchmarks/memory.py [--threads 1] [--write DIR]

PicardConv(GCNConv) with injection, 64 features, on a random graph of 10,000
nodes and 200,000 edges: forward and backward with each way to differentiate,
at a fixed number of iterations. Memory is the peak of what the tensors hold
above what was there before; time the median of several, interleaved. --write
puts the table and a picture into DIR.
"""

import argparse
import gc
import statistics
import time
from pathlib import Path

import torch
from _memory import peak
from _table import rst, show
from torch_geometric.nn import GCNConv

from torch_picard import Implicit, OneStep, Phantom, PicardConv, Unrolled

COUNTS = [8, 16, 32, 64, 128, 256]
NODES, EDGES, WIDTH = 10_000, 200_000, 64
MODES = {
    "Unrolled": Unrolled(),
    "Unrolled(checkpoint=True)": Unrolled(checkpoint=True),
    "Implicit": Implicit(),
    "Phantom(steps=5)": Phantom(steps=5),
    "OneStep": OneStep(),
}


def step(mode: str, count: int):
    """A training step, to be called."""
    torch.manual_seed(0)
    conv = GCNConv(WIDTH, WIDTH, cached=True)
    with torch.no_grad():
        conv.lin.weight.mul_(
            0.7 / torch.linalg.matrix_norm(conv.lin.weight, 2)
        )
    # not told to stop: the memory of so many iterations is the question
    picard = PicardConv(
        conv, alpha=0.0, max_iter=count, rtol=0.0, inject=True,
        activation="tanh", gradient=MODES[mode],
    )  # fmt: skip
    x = torch.randn(NODES, WIDTH)
    edge_index = torch.randint(NODES, (2, EDGES))
    picard(x, edge_index)  # the graph in compressed rows

    def run() -> None:
        picard.zero_grad(set_to_none=True)
        picard(x, edge_index).square().mean().backward()

    return run


def measured(repeats: int) -> tuple[dict, dict]:
    memory, spent = {}, {}
    for count in COUNTS:
        runs = {mode: step(mode, count) for mode in MODES}
        times = {mode: [] for mode in MODES}
        for run in runs.values():
            run()
        for _ in range(repeats):
            for mode, run in runs.items():
                start = time.perf_counter()
                run()
                times[mode].append(1000 * (time.perf_counter() - start))
        for mode, run in runs.items():
            gc.collect()
            memory[mode, count] = peak(run)
            spent[mode, count] = statistics.median(times[mode])
    return memory, spent


def table(found: dict, digits: int) -> list[list[str]]:
    rows = [["", *(f"{count} iterations" for count in COUNTS), "256 / 8"]]
    for mode in MODES:
        values = [found[mode, count] for count in COUNTS]
        rows.append(
            [mode, *(f"{v:.{digits}f}" for v in values),
             f"{values[-1] / values[0]:.2f}"]
        )  # fmt: skip
    return rows


def picture(memory: dict, spent: dict, path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(10, 4))
    for ax, found, label in zip(axes, (memory, spent), ("MiB", "ms")):
        for mode in MODES:
            ax.plot(COUNTS, [found[mode, c] for c in COUNTS], "o-", label=mode)
        ax.set_xscale("log", base=2)
        ax.set_yscale("log")
        ax.set_xlabel("iterations")
        ax.set_ylabel(f"{label} of a training step")
    axes[0].legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=90)
    plt.close(figure)


def main() -> None:
    options = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    options.add_argument("--threads", type=int, default=1)
    options.add_argument("--repeats", type=int, default=3)
    options.add_argument("--write", type=Path)
    args = options.parse_args()
    torch.set_num_threads(args.threads)
    memory, spent = measured(args.repeats)
    where = f"torch {torch.__version__}, {args.threads} thread(s)"
    tables = {
        f"Peak memory in MiB, {where}": table(memory, 1),
        f"Milliseconds, medians, {where}": table(spent, 0),
    }
    for title, rows in tables.items():
        show(title, rows)
    if args.write is not None:
        args.write.mkdir(parents=True, exist_ok=True)
        parts = [rst(title, rows) for title, rows in tables.items()]
        (args.write / "memory.inc").write_text("\n".join(parts))
        picture(memory, spent, args.write / "memory.png")


if __name__ == "__main__":
    main()
