"""Who hears of finished solves."""

from __future__ import annotations

import threading
import weakref
from typing import Protocol

import torch

from .solution import Solution


class Observer(Protocol):
    def solved(self, solution: Solution) -> None:
        """A solve has ended, in the thread that calls. The solution is the
        caller's: to be read, not kept (it holds the value and its graph)."""


# Weak, as an observer that nobody holds has nobody to report to. Replaced as
# a whole, never changed: other threads may be walking through it.
_observers: tuple[weakref.ref[Observer], ...] = ()
_lock = threading.Lock()


def add(observer: Observer) -> None:
    """From now on it hears of every :func:`fixed_point` of this process."""
    global _observers
    with _lock:
        _observers = (*_living(observer), weakref.ref(observer))


def remove(observer: Observer) -> None:
    global _observers
    with _lock:
        _observers = _living(observer)


def notify(solution: Solution) -> None:
    """Nobody hears of a compiled solve: there is no moment at which it
    ends. Asked first, so that a compiled graph does not depend on who
    listens."""
    if torch.compiler.is_compiling() or not _observers:
        return
    for reference in _observers:
        observer = reference()
        if observer is not None:
            observer.solved(solution)


def _living(but: Observer) -> tuple[weakref.ref[Observer], ...]:
    pairs = ((r, r()) for r in _observers)
    return tuple(r for r, o in pairs if o is not None and o is not but)
