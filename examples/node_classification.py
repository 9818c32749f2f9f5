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
import statistics
import time
from pathlib import Path

import torch
from node_models import MODELS, build, num_parameters
from node_training import (
    DATASETS,
    at_least,
    evaluate,
    load,
    prepare,
    probability,
    read_json,
    train,
    write_json,
)
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


def well_formed(stored) -> bool:
    """Of the form that Results writes."""
    try:
        entries = [e for c in stored["cells"].values() for e in c.values()]
        return {"dataset", "features"} <= set(stored) and all(
            isinstance(entry["setting"], dict)
            and all("test" in run for run in entry["runs"])
            for entry in entries
        )
    except (AttributeError, KeyError, TypeError):
        return False


class Results:
    """Runs by noise level and model, kept in a file if there is one."""

    def __init__(self, path: Path | None, dataset: str, features: str):
        self.path = path
        self.content = {"dataset": dataset, "features": features, "cells": {}}
        if path is not None and path.exists():
            stored = read_json(path, "the results of this script")
            if not well_formed(stored):
                raise SystemExit(
                    f"{path} holds no results of this script: choose another "
                    "file"
                )
            for name in ("dataset", "features"):
                self._same(name, stored[name], self.content[name])
            self.content = stored

    def _same(self, name, stored, asked) -> None:
        if stored != asked:
            raise SystemExit(
                f"{self.path} was made with {name} = {stored}, this run has "
                f"{name} = {asked}: choose another file"
            )

    def count(self, noise: float, model: str) -> int:
        """Runs that are there."""
        cell = self.content["cells"].get(f"{noise:g}", {})
        return len(cell[model]["runs"]) if model in cell else 0

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


def complete(
    results: Results, base, noise: float, models: list[str], chosen: dict,
    count: int, bar: tqdm,
) -> dict[str, list[dict]]:  # fmt: skip
    """So many runs of every model; those that `results` lacks are made, each
    written as it ends."""
    dataset, features = (results.content[k] for k in ("dataset", "features"))
    name = key(dataset, noise, features)
    cell = borrowed(chosen, name)
    settings = {model: settings_of(model, cell, name) for model in models}
    runs = {m: results.runs(noise, m, s) for m, s in settings.items()}
    for seed in range(count):
        todo = [model for model in models if len(runs[model]) <= seed]
        data = prepare(base, noise, features, seed) if todo else None
        for model in todo:
            bar.set_description(f"{dataset} {features} {noise:g} {model}")
            runs[model].append(run_once(model, settings[model], data, seed))
            results.save()
            bar.update()
    return {model: found[:count] for model, found in runs.items()}


def row(noise: float, model: str, runs: list[dict]) -> list[str]:
    test = [100 * run["test"] for run in runs]
    spread = statistics.stdev(test) if len(test) > 1 else 0.0
    cells = [
        f"{noise:g}",
        model,
        str(runs[0]["parameters"]),
        f"{statistics.mean(test):.1f} +- {spread:.1f}",
        "-",
        "-",
        "-",
    ]
    if "iterations" in runs[0]:
        cells[4] = f"{statistics.mean(r['iterations'] for r in runs):.1f}"
        cells[5] = f"{statistics.median(r['residual'] for r in runs):.1e}"
    if "converged" in runs[0]:
        share = statistics.mean(r["converged"] for r in runs)
        cells[6] = f"{100 * share:.0f}%"
    return cells


def table(title: str, by_noise: dict[float, dict[str, list[dict]]]) -> str:
    head = ["noise", "model", "parameters", "test accuracy", "iterations"]
    parts = [[[*head, "residual", "converged"]]]
    for noise, results in by_noise.items():
        parts.append([row(noise, model, r) for model, r in results.items()])
    rows = [cells for part in parts for cells in part]
    widths = [max(len(r[i]) for r in rows) for i in range(len(rows[0]))]
    rule = "-" * (sum(widths) + 2 * len(widths) - 2)
    lines = [title]
    for part in parts:
        for cells in part:
            first = [c.ljust(w) for c, w in zip(cells, widths)][:2]
            rest = [c.rjust(w) for c, w in zip(cells, widths)][2:]
            lines.append("  ".join([*first, *rest]))
        lines.append(rule)
    return "\n".join(lines)


def mean_test(runs: list[dict]) -> float:
    return 100 * statistics.mean(run["test"] for run in runs)


def notice(by_noise: dict[float, dict[str, list[dict]]]) -> str:
    """What the reader should see, from the numbers, in a line."""
    parts = []
    for noise, results in by_noise.items():
        mean = {model: mean_test(runs) for model, runs in results.items()}
        ours = {m: v for m, v in mean.items() if m.startswith("PIGN")}
        others = {m: v for m, v in mean.items() if not m.startswith("PIGN")}
        if not ours or not others:
            return ""
        best, other = max(ours, key=ours.get), max(others, key=others.get)
        gap = ours[best] - others[other]
        verb = "leads" if gap > 0 else "trails"
        parts.append(
            f"with noise {noise:g} {best} {verb} {other}, the best model "
            f"without a fixed point, by {abs(gap):.1f} points "
            f"({ours[best]:.1f} against {others[other]:.1f})"
        )
    return f"Notice: {'; '.join(parts)}."


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
        type=probability,
        nargs="+",
        help="drop-in noise levels (default: 0 0.8 for DigitsGraph, else 0)",
    )
    parser.add_argument("--runs", type=at_least(1), default=3)
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
        type=at_least(1),
        default=1,
        help="threads of torch: graphs this small gain nothing from more",
    )
    args = parser.parse_args()
    if args.out is not None and args.out.is_dir():
        parser.error(f"--out must be a file, and {args.out} is a folder")
    if args.noise is None:
        args.noise = [0.0, 0.8] if args.dataset == DATASETS[0] else [0.0]
    return args


def main() -> None:
    args = parse()
    torch.set_num_threads(args.threads)
    chosen = read_json(args.settings, "the settings found by search.py")
    results = Results(args.out, args.dataset, args.features)
    base = load(args.dataset, args.root, args.cache)
    cells = [(noise, model) for noise in args.noise for model in args.models]
    done = sum(min(results.count(*cell), args.runs) for cell in cells)
    with tqdm(total=len(cells) * args.runs, initial=done) as bar:
        by_noise = {
            noise: complete(
                results, base, noise, args.models, chosen, args.runs, bar
            )
            for noise in args.noise
        }

    title = f"{args.dataset}, {args.features} features, {args.runs} runs:"
    print(table(title, by_noise))
    print(notice(by_noise))
    picture(args.picture, args.dataset, by_noise)
    print(f"Picture: {args.picture}")


if __name__ == "__main__":
    main()
