"""Node classification from few labels, with and without iteration.

    python examples/node_classification.py
    python examples/node_classification.py --dataset Cora --root FOLDER \\
        --noise 0.5 --features centred --runs 100 --out results.json

Trains two-layer GCN and GAT, the same with as many parameters as PIGN,
IterGNN and PIGN on the same graph with the same splits; prints one table and
saves a picture. Run i uses seed i for the initialisation, dropout and, with
--noise, a noise draw of its own, the same for all models. The settings are
those of settings.json, found by search.py on validation accuracy.

With --out, results are written after every run and an existing file is
continued.
"""

import argparse
import json
import statistics
import time
from pathlib import Path

import torch
from node_models import MODELS, build, num_parameters
from node_training import DATASETS, evaluate, load, prepare, train, write_json
from search import SETTINGS, key, split
from tqdm import tqdm


def settings_of(model: str, cell: dict, cell_name: str) -> dict:
    """The chosen setting of `model`; matched models borrow theirs."""
    base, _, suffix = model.partition("-")
    source = base if suffix == "matched" else model
    try:
        setting = dict(cell[source])
        if suffix == "matched":
            setting.pop("hidden_channels")
            if base == "GAT":
                setting["heads"] = 1  # divides every width
            setting["match"] = split(dict(cell[f"PIGN-{base}"]))[1]
            setting["match"].pop("val", None)
    except KeyError as missing:
        raise SystemExit(
            f"no setting for {missing} in cell {cell_name}: run search.py"
        ) from None
    setting.pop("val", None)
    return setting


def borrowed(chosen: dict, name: str) -> dict:
    """The settings of a cell of the table; where none were searched for,
    those of Cora, with a word about it."""
    if name in chosen:
        return chosen[name]
    _, noise, features = name.split("/")
    noisy = "0" if noise == "0" else "0.5"
    options = [f"Cora/{noisy}/{features}", f"Cora/{noisy}/raw"]
    other = next((o for o in options if o in chosen), None)
    if other is None:
        raise SystemExit(f"no settings for {name}: run search.py")
    print(f"No settings were searched for {name}: using those of {other}.")
    return chosen[other]


class Results:
    """Runs by noise level and model, kept in a file if there is one."""

    def __init__(self, path: Path | None, dataset: str, features: str):
        self.path = path
        self.content = {"dataset": dataset, "features": features, "cells": {}}
        if path is not None and path.exists():
            stored = json.loads(path.read_text())
            for name in ("dataset", "features"):
                self._same(name, stored.get(name), self.content[name])
            self.content = stored

    def _same(self, name, stored, asked) -> None:
        if stored != asked:
            raise SystemExit(
                f"{self.path} was made with {name} = {stored}, this run has "
                f"{name} = {asked}: choose another --out"
            )

    def runs(self, noise: float, model: str, setting: dict) -> list[dict]:
        cell = self.content["cells"].setdefault(f"{noise:g}", {})
        entry = cell.setdefault(model, {"setting": setting, "runs": []})
        self._same(f"the setting of {model}", entry["setting"], setting)
        return entry["runs"]

    def save(self) -> None:
        if self.path is not None:
            write_json(self.path, self.content)


def run_once(model: str, setting: dict, data, seed: int) -> dict:
    torch.manual_seed(seed)
    training, options = split(setting)
    classes = int(data.y.max()) + 1
    net = build(model, options, data.x.size(1), classes)
    start = time.perf_counter()
    run = {"seed": seed, "parameters": num_parameters(net)}
    run |= train(net, data, **training)
    run |= evaluate(net, data)
    run["seconds"] = round(time.perf_counter() - start, 2)
    if seed > 0:  # one curve is enough for the picture
        run.pop("curve", None)
    return run


def row(model: str, runs: list[dict]) -> list[str]:
    test = [100 * run["test"] for run in runs]
    spread = statistics.stdev(test) if len(test) > 1 else 0.0
    cells = [
        model,
        str(runs[0]["parameters"]),
        f"{statistics.mean(test):.1f} +- {spread:.1f}",
        "-",
        "-",
        "-",
    ]
    if "iterations" in runs[0]:
        cells[3] = f"{statistics.mean(r['iterations'] for r in runs):.1f}"
        cells[4] = f"{statistics.median(r['residual'] for r in runs):.1e}"
    if "converged" in runs[0]:
        share = statistics.mean(r["converged"] for r in runs)
        cells[5] = f"{100 * share:.0f}%"
    return cells


def table(title: str, results: dict[str, list[dict]]) -> str:
    head = ["model", "parameters", "test accuracy", "iterations"]
    rows = [[*head, "residual", "converged"]]
    rows += [row(model, runs) for model, runs in results.items()]
    widths = [max(len(r[i]) for r in rows) for i in range(len(rows[0]))]
    lines = [title]
    for cells in rows:
        first = cells[0].ljust(widths[0])
        rest = [c.rjust(w) for c, w in zip(cells, widths, strict=True)][1:]
        lines.append("  ".join([first, *rest]))
    return "\n".join(lines)


def mean_test(runs: list[dict]) -> float:
    return 100 * statistics.mean(run["test"] for run in runs)


def notice(noise: float, results: dict[str, list[dict]]) -> str:
    """What the reader should see, from the numbers."""
    mean = {model: mean_test(runs) for model, runs in results.items()}
    ours = {m: v for m, v in mean.items() if m.startswith("PIGN")}
    others = {m: v for m, v in mean.items() if not m.startswith("PIGN")}
    if not ours or not others:
        return ""
    best, other = max(ours, key=ours.get), max(others, key=others.get)
    gap = ours[best] - others[other]
    verb = "leads" if gap > 0 else "trails"
    return (
        f"Notice (noise {noise:g}): {best} {verb} the best model without a "
        f"fixed point, {other}, by {abs(gap):.1f} points "
        f"({ours[best]:.1f} against {others[other]:.1f})."
    )


def picture(path: Path, title: str, by_noise: dict) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(
        2, len(by_noise), figsize=(6 * len(by_noise), 7), squeeze=False
    )
    for column, (noise, results) in enumerate(by_noise.items()):
        top, bottom = axes[0, column], axes[1, column]
        for place, (model, runs) in enumerate(results.items()):
            test = [100 * run["test"] for run in runs]
            spread = statistics.stdev(test) if len(test) > 1 else 0.0
            colour = "C1" if model.startswith("PIGN") else "C0"
            top.bar(place, statistics.mean(test), yerr=spread, color=colour)
            if "curve" in runs[0]:
                bottom.semilogy(runs[0]["curve"], marker=".", label=model)
        top.set_xticks(range(len(results)), results, rotation=30, ha="right")
        top.set_ylabel("test accuracy [%]")
        top.set_title(f"{title}, noise {noise:g}")
        bottom.set_xlabel("iteration")
        bottom.set_ylabel("|P(x) - x| / |x|")
        bottom.legend()
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--dataset", choices=DATASETS, default=DATASETS[0])
    parser.add_argument(
        "--root",
        help="folder with raw files, never written to "
        "(default: TORCH_PICARD_DATA, else a download)",
    )
    parser.add_argument("--cache", help="where the working copy goes")
    parser.add_argument(
        "--noise",
        type=float,
        nargs="+",
        help="drop-in noise levels (default: 0 0.8 for DigitsGraph, else 0)",
    )
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument(
        "--features", choices=["raw", "centred"], default="raw"
    )
    parser.add_argument(
        "--models", nargs="+", choices=MODELS, default=MODELS, metavar="MODEL"
    )
    parser.add_argument("--out", type=Path, help="results, resumable")
    parser.add_argument(
        "--picture", type=Path, default=Path("outputs/node_classification.png")
    )
    parser.add_argument("--settings", type=Path, default=SETTINGS)
    parser.add_argument(
        "--threads",
        type=int,
        default=1,
        help="threads of torch: graphs this small gain nothing from more",
    )
    args = parser.parse_args()
    if args.runs < 1:
        parser.error("--runs must be positive")
    if args.noise is None:
        args.noise = [0.0, 0.8] if args.dataset == DATASETS[0] else [0.0]
    return args


def main() -> None:
    args = parse()
    torch.set_num_threads(args.threads)
    chosen = json.loads(args.settings.read_text())
    base = load(args.dataset, args.root, args.cache)
    results = Results(args.out, args.dataset, args.features)
    by_noise: dict = {}
    bar = tqdm(total=len(args.noise) * args.runs * len(args.models))
    for noise in args.noise:
        name = key(args.dataset, noise, args.features)
        cell = borrowed(chosen, name)
        settings = {
            model: settings_of(model, cell, name) for model in args.models
        }
        runs = {m: results.runs(noise, m, s) for m, s in settings.items()}
        for seed in range(args.runs):
            todo = [m for m in args.models if len(runs[m]) <= seed]
            data = prepare(base, noise, args.features, seed) if todo else None
            bar.update(len(args.models) - len(todo))
            for model in todo:
                bar.set_description(f"noise {noise:g} {model}")
                runs[model].append(
                    run_once(model, settings[model], data, seed)
                )
                results.save()
                bar.update()
        by_noise[noise] = {m: r[: args.runs] for m, r in runs.items()}
    bar.close()

    title = f"{args.dataset} ({args.features} features, {args.runs} runs)"
    for noise, runs in by_noise.items():
        print(table(f"{title}, noise {noise:g}", runs), end="\n\n")
    for noise, runs in by_noise.items():
        print(notice(noise, runs))
    picture(args.picture, args.dataset, by_noise)
    print(f"Picture: {args.picture}")


if __name__ == "__main__":
    main()
