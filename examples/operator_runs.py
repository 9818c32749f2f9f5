"""What the examples on learned operators share: runs that are kept on disk,
training, and numbers in a table."""

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path

import torch
from node_training import at_least, read_json, write_json
from torch import Tensor
from torch.nn import Module
from tqdm import tqdm

Table = list[list[str]]


class Runs:
    """Results by the name of a run, kept in a file after each of them: who
    was interrupted goes on where he was.

    Args:
        path: the file.
        settings: all that the results depend on, apart from what their names
            say. A file made with others is refused.
    """

    def __init__(self, path: Path, settings: dict):
        self.path, self.results = path, {}
        self.settings = json.loads(json.dumps(settings))
        if path.exists():
            stored = read_json(path, "the results of this script")
            if not isinstance(stored, dict) or {*stored} != {
                "settings",
                "results",
            }:
                raise SystemExit(
                    f"{path} holds no results of this script: choose another "
                    "--out"
                )
            if stored["settings"] != self.settings:
                raise SystemExit(
                    f"{path} was made with {stored['settings']}, this run "
                    f"has {self.settings}: choose another --out"
                )
            self.results = stored["results"]

    def complete(
        self,
        cells: dict[str, tuple],
        work: Callable[..., dict],
        workers: int = 1,
    ) -> None:
        """``results[name] = work(*arguments)`` for those that are missing,
        in so many processes; with the CPU time, as ``"seconds"``."""
        todo = {n: a for n, a in cells.items() if n not in self.results}
        with tqdm(total=len(cells), initial=len(cells) - len(todo)) as bar:
            for name, result in _outcomes(todo, work, workers):
                self.results[name] = result
                content = {"settings": self.settings, "results": self.results}
                write_json(self.path, content)
                bar.set_description(name)
                bar.update()
        spent = sum(self.results[n]["seconds"] for n in cells)
        print(f"{len(cells)} runs, {spent:.0f} s of CPU time")


def _outcomes(
    todo: dict[str, tuple], work: Callable[..., dict], workers: int
) -> Iterable[tuple[str, dict]]:
    torch.set_num_threads(1)  # models this small gain nothing from more
    if workers == 1:
        for name, arguments in todo.items():
            yield name, _timed(work, arguments)
        return
    pool = ProcessPoolExecutor(
        workers, get_context("spawn"), torch.set_num_threads, (1,)
    )
    try:
        names = {pool.submit(_timed, work, a): n for n, a in todo.items()}
        for future in as_completed(names):
            yield names[future], future.result()
    finally:  # after an error or an interrupt nothing more is begun
        pool.shutdown(cancel_futures=True)


def _timed(work: Callable[..., dict], arguments: tuple) -> dict:
    start = time.process_time()
    result = work(*arguments)
    return result | {"seconds": round(time.process_time() - start, 1)}


def fit(
    model: Module, loss: Callable[[], Tensor], steps: int, lr: float
) -> float:
    """Adam, with a learning rate that rises to ``lr`` and falls to nothing.
    Returns the mean loss of the last tenth."""
    optimizer = torch.optim.Adam(model.parameters(), lr)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, steps)
    model.train()
    seen = []
    for _ in range(steps):
        value = loss()
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        schedule.step()
        seen.append(value.detach())
    model.eval()
    return float(torch.stack(seen[-max(1, steps // 10) :]).mean())


def number_of(model: Module) -> int:
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def key(which: tuple, seed: int) -> str:
    """The name of a run."""
    return f"{' '.join(map(str, which))} seed {seed}"


class View:
    """Results, by what one asks for: ``which`` is all but the seed."""

    def __init__(self, results: dict, seeds: int):
        self.results, self.seeds = results, seeds

    def runs(self, which: tuple) -> list[dict]:
        return [self.results[key(which, s)] for s in range(self.seeds)]

    def errors(self, which: tuple, tested: int) -> list[float]:
        return [run["test"][str(tested)] for run in self.runs(which)]

    def error(self, which: tuple, tested: int) -> float:
        return statistics.mean(self.errors(which, tested))

    def spread(self, which: tuple, tested: int) -> str:
        """mean ± standard deviation"""
        errors = self.errors(which, tested)
        deviation = statistics.stdev(errors) if len(errors) > 1 else 0.0
        return f"{statistics.mean(errors):.4f} ± {deviation:.4f}"


def text(rows: Table) -> str:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths))
        for row in rows
    )


def rst(rows: Table) -> str:
    lines = [".. list-table::", "   :header-rows: 1", ""]
    for row in rows:
        for place, cell in enumerate(row):
            mark = "   * -" if place == 0 else "     -"
            lines.append(f"{mark} {cell}".rstrip())
    return "\n".join(lines)


def report(tables: dict[str, Table], folder: Path | None, name: str) -> None:
    """Prints the tables; with a folder, writes them to name.inc there."""
    for title, rows in tables.items():
        print(f"\n{title}\n\n{text(rows)}")
    if folder is not None:
        parts = [
            f"{title}:\n\n{rst(rows)}\n" for title, rows in tables.items()
        ]
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{name}.inc").write_text("\n".join(parts))


def parser(description: str, name: str, scales: Iterable[str]):
    """The options that these examples have in common."""
    options = argparse.ArgumentParser(
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    options.add_argument("--scale", choices=list(scales), default="small")
    options.add_argument("--seeds", type=at_least(1), default=3)
    options.add_argument(
        "--workers",
        type=at_least(1),
        default=2,
        help="processes, one thread each",
    )
    options.add_argument("--device", default="cpu")
    options.add_argument(
        "--out", type=Path, default=Path("outputs"),
        help="folder of the runs (kept, and continued) and of the picture",
    )  # fmt: skip
    options.add_argument(
        "--write", type=Path, help=f"folder for {name}.inc and {name}.png"
    )
    return options
