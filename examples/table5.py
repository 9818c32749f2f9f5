"""Table 5 of the paper beside what node_classification.py measured.

python examples/table5.py               # reads benchmarks/results
python examples/table5.py --write FILE  # the tables of the documentation
"""

import argparse
import json
import statistics
from pathlib import Path

RESULTS = Path(__file__).parents[1] / "benchmarks/results/node_classification"

# Test accuracy in %, mean and sd of 100 runs, as the paper prints them.
COLUMNS = [("Cora", "0"), ("Cora", "0.5"), ("CiteSeer", "0")]
COLUMNS += [("CiteSeer", "0.5")]
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


def load(folder: Path) -> dict:
    """Runs by (dataset, noise, features), then by model."""
    cells: dict = {}
    for path in sorted(folder.glob("*.json")):
        content = json.loads(path.read_text())
        for noise, models in content["cells"].items():
            name = (content["dataset"], noise, content["features"])
            count = min(len(entry["runs"]) for entry in models.values())
            if count > 1:
                cells[name] = {
                    model: entry["runs"][:count]
                    for model, entry in models.items()
                }
    return cells


def accuracy(runs: list[dict]) -> str:
    test = [100 * run["test"] for run in runs]
    return f"{statistics.mean(test):.1f} ± {statistics.stdev(test):.1f}"


def comparison(cells: dict, noise: str) -> list[list[str]]:
    """Paper and every preprocessing, for one noise level."""
    names, head = [], [""]
    for place, (dataset, level) in enumerate(COLUMNS):
        if level != noise:
            continue
        names.append(("paper", place))
        head.append(f"{dataset}, paper")
        for features in ("raw", "centred"):
            if (dataset, noise, features) in cells:
                names.append(("ours", (dataset, noise, features)))
                head.append(f"{dataset}, {features}")
    models = next(cells[name] for source, name in names if source == "ours")
    rows = [head]
    for model in models:
        row = [model]
        for source, name in names:
            if source == "paper":
                row.append(PAPER[model][name] if model in PAPER else "")
            else:
                row.append(accuracy(cells[name][model]))
        rows.append(row)
    counts = ["runs"]
    for source, name in names:
        ours = source == "ours"
        counts.append(str(len(cells[name]["GCN"])) if ours else "100")
    return [*rows, counts]


def loops(cells: dict) -> list[list[str]]:
    """How the solves of the iterating models ended."""
    rows = [["", "model", "runs", "iterations", "residual", "converged"]]
    for (dataset, noise, features), models in cells.items():
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


def text(rows: list[list[str]]) -> str:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths))
        for row in rows
    )


def rst(rows: list[list[str]]) -> str:
    lines = [".. list-table::", "   :header-rows: 1", ""]
    for row in rows:
        for place, cell in enumerate(row):
            mark = "   * -" if place == 0 else "     -"
            lines.append(f"{mark} {cell}".rstrip())
    return "\n".join(lines)


def report(cells: dict, show) -> str:
    parts = []
    for noise, title in [("0", "Clean:"), ("0.5", "Half of the zeros on:")]:
        if any(level == noise for _, level, _ in cells):
            parts += [title, show(comparison(cells, noise))]
    return "\n\n".join([*parts, "How the loops ended:", show(loops(cells))])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--write", type=Path, help="a file for the tables")
    args = parser.parse_args()
    cells = load(args.results)
    if not cells:
        raise SystemExit(f"no results in {args.results}")
    print(report(cells, text))
    if args.write:
        args.write.write_text(report(cells, rst) + "\n")


if __name__ == "__main__":
    main()
