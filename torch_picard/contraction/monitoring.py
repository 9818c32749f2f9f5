"""How the solves of a model end, while it is trained or used."""

from __future__ import annotations

import threading
import weakref
from collections import deque
from os import PathLike
from typing import Any

from torch.nn import Module

from ..engine import Solution, observers
from ..engine.methods.base import check_count
from . import reports
from .records import Pending, Record, Tally, read_all
from .watching import Running, solvers, watch

#: Solves read from their device at once. Each reading waits for the device.
PENDING = 64
#: The same in residuals, so that what waits stays below some megabytes.
PENDING_NUMBERS = 2**20


class ConvergenceMonitor:
    r"""Watches how the solves of a model end, by hooks on its
    :class:`PicardConv` modules and on every other module with an attribute
    ``solves_fixed_point = True``: each :func:`fixed_point` is counted for
    the innermost of them whose forward runs at that moment.

    It watches within ``with ConvergenceMonitor(model) as monitor:`` or from
    :meth:`attach` to :meth:`remove`. What the model computes, its gradients,
    its ``state_dict`` and its copies are the same with and without it. It
    keeps numbers only, without values and graphs, and reads them from their
    device in bundles, so that it does not make a solve wait.

    Under ``torch.compile`` it records nothing, and :meth:`summary` says so:
    run the model uncompiled to watch it.

    Args:
        model (torch.nn.Module, optional): Whose modules to watch; those that
            it has when :meth:`attach` is called. :obj:`None` watches calls
            of :func:`fixed_point` alone and needs :obj:`bare`.
            (default: :obj:`None`)
        keep (int, optional): Of how many calls a module the single residuals
            are kept; older ones are only counted. (default: :obj:`16`)
        segments (int, optional): Of how many segments a call, at most: those
            that did worst. (default: :obj:`32`)
        bare (bool, optional): Whether to record calls of
            :func:`fixed_point` outside of all watched modules, in the whole
            process, under the name ``"fixed_point"``.
            (default: :obj:`False`)

    Raises:
        TypeError: An argument is of the wrong type.
        ValueError: A number is not positive, or there is nothing to watch.
    """

    def __init__(
        self,
        model: Module | None = None,
        *,
        keep: int = 16,
        segments: int = 32,
        bare: bool = False,
    ):
        if model is not None and not isinstance(model, Module):
            raise TypeError(
                f"model must be a torch.nn.Module or None, got {model!r}"
            )
        if not isinstance(bare, bool):
            raise TypeError(f"bare must be True or False, got {bare!r}")
        check_count("keep", keep)
        check_count("segments", segments)
        self.model, self.bare = model, bare
        self.keep, self.segments = keep, segments
        self._start(self._names_of(self._solvers()))

    def _start(self, names: list[str]) -> None:
        self._names = names
        self._running = Running()
        self._lock = threading.RLock()
        self._detach: weakref.finalize | None = None
        self.reset()

    def attach(self) -> ConvergenceMonitor:
        """Start watching, and return the monitor. Modules that are added to
        the model later are not watched before the next call."""
        self.remove()
        modules = self._solvers()
        with self._lock:
            self._names = self._names_of(modules)
            for name in self._names:
                self._known(name)
        handles = watch(modules, self._running)
        observers.add(self)

        def detach() -> None:
            for handle in handles:
                handle.remove()

        # Hooks go with the monitor, too, when nobody can read it any more.
        self._detach = weakref.finalize(self, detach)
        self._detach.atexit = False
        return self

    def remove(self) -> None:
        """Stop watching. What was recorded stays."""
        if self._detach is None:
            return
        observers.remove(self)
        self._detach()
        self._detach = None

    def __enter__(self) -> ConvergenceMonitor:
        return self if self.attached else self.attach()

    def __exit__(self, *error: object) -> None:
        self.remove()

    @property
    def attached(self) -> bool:
        return self._detach is not None

    def reset(self) -> None:
        """Forget all that was recorded."""
        with self._lock:
            self._totals: dict[str, Tally] = {}
            self._recent: dict[str, Tally] = {}
            self._records: dict[str, deque[Record]] = {}
            self._pending: list[tuple[str, Pending]] = []
            self._waiting = 0
            self._unreadable = 0
            self._running.compiled = False
            for name in self._names:
                self._known(name)

    def solved(self, solution: Solution) -> None:
        """What the engine calls at the end of each solve."""
        name = self._running.innermost()
        if name is None:
            if not self.bare:
                return
            name = self._bare_name
        pending = Pending.of(solution)
        with self._lock:
            if pending is None:
                self._unreadable += 1
                return
            self._pending.append((name, pending))
            self._waiting += pending.residual_history.numel()
            many = len(self._pending) >= PENDING
            if many or self._waiting >= PENDING_NUMBERS:
                self._read()

    def records(self) -> dict[str, list[Record]]:
        """The last ``keep`` calls of each watched module, oldest first."""
        with self._lock:
            self._read()
            return {name: list(r) for name, r in self._records.items()}

    def tallies(self) -> dict[str, Tally]:
        """Counts and averages over all calls of each watched module since
        the monitor was made or :meth:`reset`."""
        with self._lock:
            self._read()
            return {name: tally.copy() for name, tally in self._totals.items()}

    def metrics(self, *, restart: bool = False) -> dict[str, float]:
        """Counts and averages since the last restart, as plain numbers by
        ``"module/what"``.

        ``what`` is ``calls``, ``segments``, ``evaluations``, one of
        ``status_converged`` to ``status_stopped`` (numbers of segments), and
        ``iterations``, ``rate`` or ``residual`` with ``_mean`` or ``_max``
        (over the segments). What is not known is left out: everything for a
        module that was not called, the rate where no segment had two
        residuals.

        Args:
            restart (bool, optional): Whether the next call is to start from
                here; :meth:`summary` and :meth:`plot` go on.
                (default: :obj:`False`)
        """
        with self._lock:
            self._read()
            named = {
                f"{name}/{what}": value
                for name, tally in self._recent.items()
                for what, value in tally.metrics().items()
            }
            if restart:
                self._recent = {}
        return named

    def log_to(self, logger: Any, step: int | None = None) -> None:
        """Log :meth:`metrics` since the last log, for instance once a
        training step.

        Args:
            logger: A Lightning logger or anything else with
                ``log_metrics(dict, step)``, or a TensorBoard
                ``SummaryWriter`` or anything else with
                ``add_scalar(name, value, step)``.
            step (int, optional): The step, as the logger takes it.

        Raises:
            TypeError: ``logger`` has neither, or ``step`` is no int.
        """
        reports.writer(logger, step)(self.metrics(restart=True))

    def summary(self) -> str:
        """A table, one row a module: calls, segments, how many of these
        ended with which status, iterations, observed rate and residual
        (mean and maximum over the segments), and evaluations of P."""
        text = reports.table(self.tallies())
        if self._running.compiled:
            text += (
                "\nnot recorded: what ran under torch.compile; run the model "
                "uncompiled to watch it"
            )
        if self._unreadable:
            text += (
                f"\nnot recorded: {self._unreadable} calls of fixed_point "
                "inside torch.func transforms"
            )
        return text

    def plot(self, path: str | PathLike[str] | None = None):
        """The residuals over the iterations of the last ``keep`` calls: one
        panel a module, one curve a segment in the colour of its status.

        Args:
            path (str, optional): Where to save the picture; its ending says
                in which format. (default: :obj:`None`, not at all)

        Returns:
            The ``matplotlib.figure.Figure``.

        Raises:
            ImportError: matplotlib is not installed.
        """
        return reports.picture(self.records(), path)

    def __repr__(self) -> str:
        state = "attached" if self.attached else "not attached"
        return f"<ConvergenceMonitor, {state}>\n{self.summary()}"

    def __getstate__(self) -> dict[str, Any]:
        """A copy, alone or in one of the model, is empty and not attached."""
        options = ("model", "keep", "segments", "bare", "_bare_name")
        return {name: getattr(self, name) for name in options}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._start([])  # the model may not be complete yet

    def _solvers(self) -> dict[str, Module]:
        if self.model is None:
            if self.bare:
                return {}
            raise ValueError("model must be given unless bare=True")
        modules = solvers(self.model)
        if not modules and not self.bare:
            raise ValueError(
                f"model {type(self.model).__name__} has no PicardConv and no "
                "other module with solves_fixed_point = True; bare=True "
                "records all calls of fixed_point"
            )
        return modules

    def _names_of(self, modules: dict[str, Module]) -> list[str]:
        """And a name for the calls outside that is none of theirs."""
        self._bare_name = "fixed_point"
        while self._bare_name in modules:
            self._bare_name += "_"
        return [*modules, self._bare_name] if self.bare else [*modules]

    def _known(self, name: str) -> None:
        if name not in self._totals:
            self._totals[name] = Tally()
            self._records[name] = deque(maxlen=self.keep)

    def _read(self) -> None:
        """Wait for what is pending, and count it."""
        pending, self._pending, self._waiting = self._pending, [], 0
        solves: dict[str, list[Pending]] = {}
        for name, solve in pending:
            solves.setdefault(name, []).append(solve)
        for name, group in solves.items():
            tally, records = read_all(group, self.keep)
            self._known(name)
            self._totals[name].merge(tally)
            self._recent.setdefault(name, Tally()).merge(tally)
            self._records[name].extend(
                record.worst(self.segments) for record in records
            )
