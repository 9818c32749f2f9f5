"""Table 5 of the paper: node classification with and without noise.

    python examples/table5.py --root FOLDER --runs 100
    python examples/table5.py --root FOLDER --runs 100 --only "Cora raw 0.5"
    python examples/table5.py --no-run

Cora and CiteSeer, features raw and centred, clean and with half of the zeros
turned to one: eight cells, in each of them the models of
node_classification.py, with the settings that search.py found. Trains what is
not yet among the results, one run after another, each written as it ends: an
interrupted command goes on when it is called again, and a larger --runs adds
to what is there. Every cell has a file of its own, so commands with different
--only may run at the same time. Prints the tables, with the paper's numbers
beside ours, and saves a picture. FOLDER holds planetoid/Cora and
planetoid/CiteSeer (default: TORCH_PICARD_DATA, else PyG downloads them).
"""

import argparse
import statistics
from pathlib import Path

import torch
from node_classification import Results, complete
from node_models import MODELS
from node_training import at_least, load, read_json
from operator_runs import rst, text
from search import SETTINGS
from tqdm import tqdm

RESULTS = Path(__file__).parents[1] / "benchmarks/results/node_classification"
DATASETS, FEATURES = ["Cora", "CiteSeer"], ["raw", "centred"]
NOISES = {"0": "clean", "0.5": "half of the zeros on"}
Cell = tuple[str, str, str]
CELLS = [(d, f, n) for d in DATASETS for f in FEATURES for n in NOISES]

# Test accuracy in %, mean and sd of 100 runs, as the paper prints them.
COLUMNS = [(dataset, noise) for dataset in DATASETS for noise in NOISES]
PAPER = {
    "GCN": ["80.9 ± 0.6", "33.2 ± 12.2", "71.3 ± 0.6", "18.7 ± 6.3"],
    "GAT": ["80.4 ± 1.1", "56.3 ± 4.4", "69.9 ± 1.0", "26.4 ± 5.4"],
    "IterGNN-GCN": [
        "60.9 ± 17.4",
        "36.9 ± 13.3",
        "45.3 ± 10.1",
        "25.7 ± 7.4",
    ],
    "IterGNN-GAT": [
        "60.5 ± 17.5",
        "38.8 ± 15.2",
        "49.9 ± 4.9",
        "30.2 ± 7.2",
    ],
    "PIGN-GCN": ["76.7 ± 1.4", "43.4 ± 6.8", "68.4 ± 1.5", "31.0 ± 3.1"],
    "PIGN-GAT": ["79.2 ± 0.9", "57.3 ± 4.8", "66.1 ± 1.7", "34.3 ± 4.6"],
}


def results_of(folder: Path, cell: Cell) -> Results:
    dataset, features, _ = cell
    return Results(folder / f"{'-'.join(cell)}.json", dataset, features)


def selected(only: list[str]) -> list[Cell]:
    """The cells that have all words of one of the selections."""
    known = {*DATASETS, *FEATURES, *NOISES}
    cells = []
    for asked in only:
        words = set(asked.split())
        found = [cell for cell in CELLS if words <= set(cell)]
        if not found:
            raise SystemExit(
                f"--only {asked!r} selects no cell: it may have one each of "
                + ", ".join(sorted(known))
            )
        cells += found
    return [cell for cell in CELLS if cell in cells]


def run(
    cells: list[Cell], folder: Path, root: str | None, cache: str | None,
    settings: Path, count: int,
) -> None:  # fmt: skip
    """Completes the cells to so many runs of every model."""
    chosen = read_json(settings, "the settings found by search.py")
    results = {cell: results_of(folder, cell) for cell in cells}
    done = {
        cell: sum(
            min(results[cell].count(float(cell[2]), model), count)
            for model in MODELS
        )
        for cell in cells
    }
    each = count * len(MODELS)
    with tqdm(total=each * len(cells), initial=sum(done.values())) as bar:
        for cell in cells:
            if done[cell] < each:
                base = load(cell[0], root, cache)
                complete(
                    results[cell], base, float(cell[2]), MODELS, chosen,
                    count, bar,
                )  # fmt: skip


def read(folder: Path) -> dict[Cell, dict[str, list[dict]]]:
    """Runs by cell and model, equally many of each model; cells with fewer
    than two runs have no deviation, and are left out."""
    cells = {}
    for cell in CELLS:
        stored = results_of(folder, cell).content["cells"].get(cell[2], {})
        runs = {m: stored[m]["runs"] for m in MODELS if m in stored}
        count = min((len(found) for found in runs.values()), default=0)
        if count > 1:
            cells[cell] = {model: r[:count] for model, r in runs.items()}
    return cells


def numbers(runs: list[dict]) -> tuple[float, float]:
    """Mean and deviation in %."""
    test = [100 * run["test"] for run in runs]
    return statistics.mean(test), statistics.stdev(test)


def number_of_runs(cell: dict[str, list[dict]]) -> int:
    return len(next(iter(cell.values())))


def comparison(cells: dict, noise: str) -> list[list[str]]:
    """Paper and every preprocessing, for one noise level."""
    columns: list[dict[str, str]] = []
    for dataset, level in COLUMNS:
        if level != noise:
            continue
        place = COLUMNS.index((dataset, level))
        paper = {"": f"{dataset}, paper", "runs": "100"}
        columns.append(paper | {m: found[place] for m, found in PAPER.items()})
        for features in FEATURES:
            cell = cells.get((dataset, features, noise))
            if cell is None:
                continue
            column = {
                model: "{:.1f} ± {:.1f}".format(*numbers(runs))
                for model, runs in cell.items()
            }
            column |= {"runs": str(number_of_runs(cell))}
            columns.append({"": f"{dataset}, {features}"} | column)
    return [
        [name, *(column.get(name, "") for column in columns)]
        for name in ["", *MODELS, "runs"]
    ]


def loops(cells: dict) -> list[list[str]]:
    """How the solves of the iterating models ended."""
    rows = [["", "model", "runs", "iterations", "residual", "converged"]]
    for (dataset, features, noise), models in cells.items():
        for model, runs in models.items():
            if "iterations" not in runs[0]:
                continue
            steps = statistics.mean(run["iterations"] for run in runs)
            residual = statistics.median(run["residual"] for run in runs)
            share = ""
            if "converged" in runs[0]:
                share = 100 * statistics.mean(r["converged"] for r in runs)
                share = f"{share:.0f}%"
            title = f"{dataset}, noise {noise}, {features}"
            row = [title, model, str(len(runs)), f"{steps:.1f}"]
            rows.append([*row, f"{residual:.1e}", share])
    return rows


def report(cells: dict, show) -> str:
    parts = []
    for noise, title in NOISES.items():
        if any(cell[2] == noise for cell in cells):
            title = f"{title.capitalize()}:"
            parts += [title, show(comparison(cells, noise))]
    return "\n\n".join([*parts, "How the loops ended:", show(loops(cells))])


def picture(path: Path, cells: dict) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(
        len(NOISES), len(DATASETS), figsize=(9, 8), sharey=True, squeeze=False
    )
    looks = {
        "paper": ("D", "0.55"),
        "raw": ("o", "C0"),
        "centred": ("s", "C1"),
    }
    for place, (dataset, noise) in enumerate(COLUMNS):
        axis = axes[list(NOISES).index(noise), DATASETS.index(dataset)]
        found = {"paper": {
            model: tuple(map(float, of[place].split(" ± ")))
            for model, of in PAPER.items()
        }}  # fmt: skip
        counts = []
        for features in FEATURES:
            cell = cells.get((dataset, features, noise), {})
            found[features] = {m: numbers(runs) for m, runs in cell.items()}
            if cell:
                counts.append(f"{features} {number_of_runs(cell)}")
        for shift, (name, of) in zip((-0.25, 0.0, 0.25), found.items()):
            mark, colour = looks[name]
            axis.errorbar(
                [mean for mean, _ in of.values()],
                [MODELS.index(model) + shift for model in of],
                xerr=[deviation for _, deviation in of.values()],
                fmt=mark, color=colour, capsize=2, markersize=5, label=name,
            )  # fmt: skip
        for i, model in enumerate(MODELS):
            if model.startswith("PIGN"):
                axis.axhspan(i - 0.5, i + 0.5, color="C2", alpha=0.12, lw=0)
            elif i % 2:
                axis.axhspan(i - 0.5, i + 0.5, color="0.96", lw=0)
        runs = f"\nruns: {', '.join(counts)}" if counts else ""
        axis.set_title(f"{dataset}, {NOISES[noise]}{runs}", fontsize=10)
        axis.grid(axis="x", color="0.9")
        axis.set_axisbelow(True)
    axes[0, 0].set_yticks(range(len(MODELS)), MODELS)
    axes[0, 0].set_ylim(len(MODELS) - 0.5, -0.5)
    for axis in axes[-1]:
        axis.set_xlabel("test accuracy [%], mean and deviation")
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(
        handles, labels, loc="upper center", ncols=len(looks), frameon=False
    )
    figure.tight_layout(rect=(0, 0, 1, 0.96))
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--runs", type=at_least(2), default=20, help="of every model and cell"
    )
    parser.add_argument(
        "--only",
        nargs="+",
        default=[""],
        metavar="CELLS",
        help="cells to run, by words of their names, such as 'Cora raw 0.5' "
        "or centred (default: all); tables and picture show all results",
    )
    parser.add_argument(
        "--no-run", action="store_true", help="tables and picture only"
    )
    parser.add_argument(
        "--root",
        help="folder with raw files, never written to "
        "(default: TORCH_PICARD_DATA, else a download)",
    )
    parser.add_argument("--cache", help="where the working copy goes")
    parser.add_argument(
        "--results", type=Path, default=RESULTS, help="folder of the runs"
    )
    parser.add_argument("--settings", type=Path, default=SETTINGS)
    parser.add_argument(
        "--threads",
        type=at_least(1),
        default=1,
        help="threads of torch: graphs this small gain nothing from more",
    )
    parser.add_argument(
        "--out", type=Path, default=Path("outputs"), help="of the picture"
    )
    parser.add_argument(
        "--write", type=Path, help="folder for table5.inc and table5.png"
    )
    args = parser.parse_args()
    if args.write is not None and args.write.suffix == ".inc":
        parser.error(f"--write must be a folder, got {args.write}")
    return args


def main() -> None:
    args = parse()
    torch.set_num_threads(args.threads)
    chosen = selected(args.only)
    if not args.no_run:
        try:
            run(
                chosen, args.results, args.root, args.cache,
                args.settings, args.runs,
            )  # fmt: skip
        except KeyboardInterrupt:
            raise SystemExit(
                f"Interrupted. The runs that ended are in {args.results}; the "
                "same command goes on."
            ) from None
    cells = read(args.results)
    if not cells:
        raise SystemExit(f"no results in {args.results}: leave out --no-run")
    print(report(cells, text))
    folder = args.write or args.out
    folder.mkdir(parents=True, exist_ok=True)
    if args.write is not None:
        (folder / "table5.inc").write_text(report(cells, rst) + "\n")
    picture(folder / "table5.png", cells)
    print(f"\nPicture: {folder / 'table5.png'}")


if __name__ == "__main__":
    main()
