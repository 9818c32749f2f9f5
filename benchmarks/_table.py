"""The table of propagate.py: rows, what is kept of an earlier run, a plot."""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

Lines = list[list[str]]


@dataclass
class Row:
    """Ours against a peer, in ms. ``floor`` is the least that the memory,
    and for a PicardConv the dense maps, allow."""

    case: str
    ours: float
    peer: str
    theirs: float
    target: float | None = None
    floor: float | None = None

    @property
    def ratio(self) -> float:
        return self.theirs / self.ours

    @property
    def missed(self) -> bool:
        return bool(self.target) and self.ratio < self.target

    def cells(self) -> list[str]:
        reached = self.floor and f"{100 * self.floor / self.ours:.0f}%"
        aim = number(self.target)
        return [
            self.case, number(self.ours), self.peer, number(self.theirs),
            f"{self.ratio:.2f}", f"{aim} missed" if self.missed else aim,
            number(self.floor), reached or "-",
        ]  # fmt: skip

    def why(self) -> str:
        """What a missed aim would have needed."""
        least = "no floor was measured"
        if self.floor:
            least = (
                f"at its floor of {number(self.floor)} ms it would be "
                f"{self.theirs / self.floor:.1f}"
            )
        return (
            f"{self.case}, against {self.peer}: {self.ratio:.2f} of the "
            f"{number(self.target)} aimed at; {least}."
        )


HEAD = ["case", "ms", "peer", "its ms", "ratio", "aim", "floor ms", "of it"]


class Results:
    """What was measured, task by task; with a folder it is kept there after
    every task, and a run that was interrupted goes on where it was."""

    def __init__(self, title: str, folder: Path | None):
        self.title, self.folder = title, folder
        self.rows: dict[str, list[Row]] = {}
        self.memory: dict[str, dict[str, str]] = {}
        if folder is not None and self._file.exists():
            kept = json.loads(self._file.read_text())
            if kept["title"] == title:
                self.memory = kept["memory"]
                for task, rows in kept["rows"].items():
                    self.rows[task] = [Row(**row) for row in rows]

    @property
    def _file(self) -> Path:
        assert self.folder is not None
        return self.folder / "kernels.json"

    def measure(self, task: str, run: Callable[[], list[Row]]) -> None:
        if task in self.rows:
            return
        self.rows[task] = run()
        for row in self.rows[task]:
            print(f"{row.case} / {row.peer}: {row.ratio:.2f}", flush=True)
        self._keep()

    def weigh(self, task: str, peer: str, run: Callable[[], str]) -> None:
        line = self.memory.setdefault(task, {})
        if peer not in line:
            line[peer] = run()
            self._keep()

    def _keep(self) -> None:
        if self.folder is None:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        rows = {
            task: [asdict(row) for row in rows]
            for task, rows in self.rows.items()
        }
        kept = {"title": self.title, "rows": rows, "memory": self.memory}
        self._file.write_text(json.dumps(kept, indent=1))

    def all(self) -> list[Row]:
        return [row for rows in self.rows.values() for row in rows]

    def tables(self, peers: Sequence[str]) -> dict[str, Lines]:
        found = {self.title: [HEAD, *(row.cells() for row in self.all())]}
        if self.memory:
            head = ["MiB above what was there before", *peers]
            lines = [
                [task, *(line.get(peer, "-") for peer in peers)]
                for task, line in self.memory.items()
            ]
            found["Peak memory"] = [head, *lines]
        return found

    def missed(self) -> list[str]:
        return [row.why() for row in self.all() if row.missed]

    def write(self, peers: Sequence[str]) -> None:
        """kernels.inc and kernels.png, for docs/source/kernels.rst."""
        assert self.folder is not None
        parts = [rst(*table) for table in self.tables(peers).items()]
        if self.missed():
            parts.append("Missed:\n\n" + _bullets(self.missed()))
        (self.folder / "kernels.inc").write_text("\n".join(parts))
        plot(self.all(), self.folder / "kernels.png", self.title)


def number(value: float | None) -> str:
    if not value:
        return "-"
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def show(title: str, table: Lines) -> None:
    widths = [max(map(len, column)) for column in zip(*table)]
    print(f"\n{title}\n")
    for line in table:
        cells = [c.ljust(w) for c, w in zip(line, widths)]
        print("  ".join(cells).rstrip(), flush=True)


def rst(title: str, table: Lines) -> str:
    lines = [f"{title}:", "", ".. list-table::", "   :header-rows: 1", ""]
    for row in table:
        lines += [
            f"   {'*' if i == 0 else ' '} - {cell}".rstrip()
            for i, cell in enumerate(row)
        ]
    return "\n".join([*lines, ""])


def _bullets(texts: list[str]) -> str:
    return "".join(f"- {text}\n" for text in texts)


def plot(rows: list[Row], path: Path, title: str) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(12, 0.32 * len(rows) + 1.2))
    names = [f"{row.case} / {row.peer}" for row in rows]
    axes.barh(names, [row.ratio for row in rows], color="#4477aa")
    for i, row in enumerate(rows):
        if row.target:
            axes.plot([row.target] * 2, [i - 0.4, i + 0.4], color="#cc3311")
    axes.axvline(1.0, color="black", linewidth=0.8)
    axes.set_xscale("log")
    axes.set_xlabel("times faster than the peer (red: aimed at)")
    axes.set_title(title, fontsize=9)
    axes.tick_params(axis="y", labelsize=6)
    axes.invert_yaxis()
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)
