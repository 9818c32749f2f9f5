"""What a monitor has seen, as a table, as a picture, and in a logger."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from os import PathLike
from typing import Any

from ..engine import Status
from .records import Record, Tally, occurring

#: Distinct for colour-blind readers, too (Okabe and Ito).
COLOURS = {
    Status.CONVERGED: "#009E73",
    Status.MAX_ITER: "#E69F00",
    Status.DIVERGED: "#D55E00",
    Status.STAGNATED: "#CC79A7",
    Status.NONFINITE: "#000000",
    Status.STOPPED: "#0072B2",
}


def table(tallies: Mapping[str, Tally]) -> str:
    """One row a module."""
    statuses = occurring(list(tallies.values()))
    head = ["module", "calls", "segments", *(s.name for s in statuses)]
    for name in ("iterations", "rate", "residual"):
        head += [f"{name}: mean", "max"]
    head.append("evaluations")
    rows = [head]
    for name, tally in tallies.items():
        row = [name, str(tally.calls), str(tally.segments)]
        row += [str(tally.statuses[s]) for s in statuses]
        for average, form in (
            (tally.iterations, ".1f"),
            (tally.rate, ".3f"),
            (tally.residual, ".1e"),
        ):
            whole = ".0f" if average is tally.iterations else form
            known = average.count > 0
            row.append(format(average.mean, form) if known else "-")
            row.append(format(average.largest, whole) if known else "-")
        rows.append([*row, str(tally.evaluations)])
    widths = [max(map(len, column)) for column in zip(*rows)]
    lines = []
    for row in rows:
        cells = [row[0].ljust(widths[0])]
        cells += [c.rjust(w) for c, w in zip(row[1:], widths[1:])]
        lines.append("  ".join(cells))
    return "\n".join(lines)


def picture(
    records: Mapping[str, Sequence[Record]],
    path: str | PathLike[str] | None = None,
):
    """One panel a module, one curve a segment; see
    :meth:`ConvergenceMonitor.plot`."""
    if path is not None and not isinstance(path, (str, PathLike)):
        raise TypeError(
            f"path must be the name of a file or None, got {path!r}"
        )
    try:
        # Not pyplot, which would keep the figure and choose a window.
        from matplotlib.figure import Figure
        from matplotlib.lines import Line2D
        from matplotlib.ticker import MaxNLocator
    except ImportError as error:
        raise ImportError(
            "plot() needs matplotlib: pip install 'torch-picard[examples]'"
        ) from error

    records = records or {"nothing watched": []}
    columns = min(len(records), 3)
    rows = math.ceil(len(records) / columns)
    figure = Figure(figsize=(4.5 * columns, 3.4 * rows), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).flatten()
    seen = set()
    for panel, (name, solves) in zip(panels, records.items()):
        for solve in solves:
            for status, curve in solve.curves():
                seen.add(status)
                marker = "." if curve.numel() == 1 else None
                panel.plot(
                    curve.numpy(), color=COLOURS[status], alpha=0.6,
                    linewidth=1, marker=marker,
                )  # fmt: skip
        panel.set_title(_title(name, solves))
        if any((line.get_ydata() > 0).any() for line in panel.lines):
            panel.set_yscale("log")
        panel.set_xlabel("iteration")
        panel.set_ylabel("residual |P(x) - x|")
        panel.xaxis.set_major_locator(MaxNLocator(integer=True))
    for panel in panels[len(records) :]:
        panel.remove()
    if seen:
        handles = [
            Line2D([], [], color=COLOURS[s], label=s.name)
            for s in sorted(seen)
        ]
        figure.legend(handles=handles, loc="outside lower center", ncols=6)
    if path is not None:
        figure.savefig(path, dpi=120)
    return figure


def _title(name: str, solves: Sequence[Record]) -> str:
    """Says what is not shown."""
    if not solves:
        return f"{name}: no solve recorded"
    shown = sum(solve.status.numel() for solve in solves)
    total = sum(solve.size for solve in solves)
    what = f"last {len(solves)} calls" if len(solves) > 1 else "last call"
    if shown < total:
        what += f", worst {shown} of {total} segments"
    return f"{name}: {what}"


def writer(
    logger: Any, step: int | None
) -> Callable[[Mapping[str, float]], None]:
    """What logs plain numbers by name at ``step``; see
    :meth:`ConvergenceMonitor.log_to`."""
    if step is not None and not isinstance(step, int):
        raise TypeError(f"step must be an int or None, got {step!r}")
    log_metrics = getattr(logger, "log_metrics", None)
    add_scalar = getattr(logger, "add_scalar", None)
    if callable(log_metrics):
        return lambda metrics: log_metrics(dict(metrics), step)
    if callable(add_scalar):

        def write(metrics: Mapping[str, float]) -> None:
            for name, value in metrics.items():
                add_scalar(name, value, step)

        return write
    raise TypeError(
        "logger must have log_metrics(dict, step), as Lightning's do, or "
        "add_scalar(name, value, step), as TensorBoard's SummaryWriter, "
        f"got {type(logger).__name__}"
    )
