"""What a monitor remembers of solves: a few of them in full, all in sums."""

from __future__ import annotations

import math
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from ..engine import Solution, Status
from ..engine.solution import observed_rate


@dataclass(frozen=True, eq=False)
class Record:
    """One call of :func:`fixed_point`, as its :class:`Solution` told it, on
    the CPU. S segments, of which the W that did worst are kept.

    Attributes:
        size: S.
        evaluations: of P, spent on the whole call.
        segments: [W] long, increasing, which segments these are.
        status: [W] long, values of :class:`Status`.
        iterations: [W] long.
        residual: [W].
        rate: [W], observed; NaN after one evaluation.
        residual_history: [K, W]; see ``last``.
        last: [W] long, index of each segment's last own residual in the
            history: what follows repeats it.
    """

    size: int
    evaluations: int
    segments: Tensor
    status: Tensor
    iterations: Tensor
    residual: Tensor
    rate: Tensor
    residual_history: Tensor
    last: Tensor

    def curves(self) -> list[tuple[Status, Tensor]]:
        """Of every kept segment its status and its own residuals [<= K]."""
        return [
            (Status(code), self.residual_history[: last + 1, column])
            for column, (code, last) in enumerate(
                zip(self.status.tolist(), self.last.tolist())
            )
        ]

    def worst(self, count: int) -> Record:
        """With at most ``count`` segments: failures before others, then
        those with the most iterations, then the largest residual."""
        kept = self.segments.numel()
        if kept <= count:
            return self
        columns = torch.arange(kept, device="cpu")
        failed = torch.tensor([s.failed for s in Status], device="cpu")
        # Stable sorts, the least important key first; NaN counts as largest.
        for key in (self.residual, self.iterations, failed[self.status].int()):
            order = key[columns].argsort(descending=True, stable=True)
            columns = columns[order]
        return self._columns(columns[:count].sort().values)

    def part(self, start: int, stop: int, evaluations: int) -> Record:
        """One call of several, with memory of its own."""
        part = self._columns(torch.arange(start, stop, device="cpu"))
        return replace(
            part,
            size=stop - start,
            evaluations=evaluations,
            segments=part.segments - start,
        )

    def _columns(self, which: Tensor) -> Record:
        return Record(
            self.size,
            self.evaluations,
            self.segments[which],
            self.status[which],
            self.iterations[which],
            self.residual[which],
            self.rate[which],
            self.residual_history[:, which],
            self.last[which],
        )


@dataclass(frozen=True, eq=False)
class Pending:
    """The same where the solve left it: on its device, not waited for. It
    holds neither the value of the solve nor any graph."""

    evaluations: int
    status: Tensor
    iterations: Tensor
    residual: Tensor
    residual_history: Tensor
    last: Tensor

    @classmethod
    def of(cls, solution: Solution) -> Pending | None:
        """None where the numbers cannot be read: transforms of torch.func
        put others in their place."""
        history = solution.residual_history
        if solution.ending is None:
            last = torch.full_like(solution.status, len(history) - 1)
        else:
            last = solution.ending.last
        tensors = (
            solution.status, solution.iterations, solution.residual, history,
            last,
        )  # fmt: skip
        if not all(_readable(t) for t in tensors):
            return None
        return cls(solution.evaluations, *(t.detach() for t in tensors))

    @property
    def size(self) -> int:
        return self.status.numel()

    @property
    def kind(self) -> tuple[Any, ...]:
        """Solves of one kind can be read together."""
        history = self.residual_history
        return len(history), history.dtype, history.device


@torch.no_grad()
def read(solves: Sequence[Pending]) -> Record:
    """All segments of these solves, which are of one kind, side by side.
    Waits for the device."""

    def joined(name: str) -> Tensor:
        return torch.cat([getattr(s, name) for s in solves], dim=-1).cpu()

    history, last = joined("residual_history"), joined("last")
    return Record(
        size=last.numel(),
        evaluations=sum(s.evaluations for s in solves),
        segments=torch.arange(last.numel(), device="cpu"),
        status=joined("status"),
        iterations=joined("iterations"),
        residual=joined("residual"),
        rate=observed_rate(history, last),
        residual_history=history,
        last=last,
    )


def read_all(
    solves: Sequence[Pending], keep: int
) -> tuple[Tally, list[Record]]:
    """The sums over ``solves``, and the last ``keep`` of them one by one."""
    kinds: dict[tuple[Any, ...], list[int]] = {}
    for place, solve in enumerate(solves):
        kinds.setdefault(solve.kind, []).append(place)
    tally, records = Tally(), {}
    for places in kinds.values():
        together = read([solves[place] for place in places])
        tally.add(together, calls=len(places))
        stop = 0
        for place in places:
            start, stop = stop, stop + solves[place].size
            if place >= len(solves) - keep:
                spent = solves[place].evaluations
                records[place] = together.part(start, stop, spent)
    return tally, [records[place] for place in sorted(records)]


def _readable(t: Tensor) -> bool:
    wrapped = torch._C._functorch.is_functorch_wrapped_tensor(t)
    return type(t) is Tensor and not wrapped


@dataclass
class Average:
    """Mean and maximum of the numbers that are finite."""

    total: float = 0.0
    count: int = 0
    largest: float = -math.inf

    @classmethod
    def of(cls, values: Tensor) -> Average:
        values = values[torch.isfinite(values)].double()
        if values.numel() == 0:
            return cls()
        return cls(float(values.sum()), values.numel(), float(values.max()))

    def merge(self, other: Average) -> None:
        self.total += other.total
        self.count += other.count
        self.largest = max(self.largest, other.largest)

    @property
    def mean(self) -> float:
        return self.total / self.count if self.count else math.nan


@dataclass
class Tally:
    """Sums over calls.

    Attributes:
        calls: of ``fixed_point``.
        segments: of all calls together; each ends with a status of its own.
        statuses: how many segments ended with each :class:`Status`.
        evaluations: of P, over all calls.
        iterations, rate, residual: over the segments; where a residual was
            not finite, or no rate observed, that segment is not in it.
    """

    calls: int = 0
    segments: int = 0
    evaluations: int = 0
    statuses: dict[Status, int] = field(
        default_factory=lambda: dict.fromkeys(Status, 0)
    )
    iterations: Average = field(default_factory=Average)
    rate: Average = field(default_factory=Average)
    residual: Average = field(default_factory=Average)

    def copy(self) -> Tally:
        return deepcopy(self)

    def add(self, record: Record, calls: int = 1) -> None:
        """``record`` has all segments of these calls."""
        counts = torch.bincount(record.status, minlength=len(Status)).tolist()
        self.merge(
            Tally(
                calls,
                record.size,
                record.evaluations,
                dict(zip(Status, counts)),
                Average.of(record.iterations),
                Average.of(record.rate),
                Average.of(record.residual),
            )
        )

    def merge(self, other: Tally) -> None:
        self.calls += other.calls
        self.segments += other.segments
        self.evaluations += other.evaluations
        for status, count in other.statuses.items():
            self.statuses[status] += count
        self.iterations.merge(other.iterations)
        self.rate.merge(other.rate)
        self.residual.merge(other.residual)

    def metrics(self) -> dict[str, float]:
        """By name; what is not known is left out."""
        named: dict[str, float] = {
            "calls": self.calls,
            "segments": self.segments,
            "evaluations": self.evaluations,
        }
        for status, count in self.statuses.items():
            named[f"status_{status.name.lower()}"] = count
        averages = {
            "iterations": self.iterations,
            "rate": self.rate,
            "residual": self.residual,
        }
        for name, average in averages.items():
            if average.count:
                named[f"{name}_mean"] = average.mean
                named[f"{name}_max"] = average.largest
        return {name: float(value) for name, value in named.items()}


def occurring(tallies: Sequence[Tally]) -> list[Status]:
    """CONVERGED, and every other status that some segment ended with."""
    return [
        status
        for status in Status
        if status is Status.CONVERGED
        or any(tally.statuses[status] for tally in tallies)
    ]
