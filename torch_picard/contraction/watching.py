"""Which module is solving: hooks that keep a stack while forwards run."""

from __future__ import annotations

import sys
import threading
from types import FrameType
from typing import Any

import torch
from torch.nn import Module
from torch.utils.hooks import RemovableHandle


class Running:
    """The watched modules whose forward runs, the innermost last, each with
    the frame that runs it. One stack a thread: the replicas of a
    DataParallel model run their hooks side by side."""

    def __init__(self) -> None:
        self._local = threading.local()
        #: A watched module ran under torch.compile, where nothing is seen.
        self.compiled = False

    @property
    def stack(self) -> list[tuple[str, FrameType]]:
        try:
            return self._local.stack
        except AttributeError:
            self._local.stack = []
            return self._local.stack

    def innermost(self) -> str | None:
        stack = self.stack
        while stack and _left(stack[-1][1]):
            stack.pop()
        return stack[-1][0] if stack else None


def _left(frame: FrameType) -> bool:
    """Whether it runs no more: hooks are called after an Exception, but not
    after a KeyboardInterrupt."""
    try:
        frame.clear()
    except RuntimeError:  # "cannot clear an executing frame"
        return False
    return True


class _Hook:
    """Of one module of one monitor. Copies of the module, by deepcopy or
    pickle, are not watched."""

    def __init__(self, running: Running, name: str):
        self.running, self.name = running, name

    def __reduce__(self) -> tuple[Any, ...]:
        return _no_hook, ()


class Enter(_Hook):
    def __call__(self, module: Module, args: Any) -> None:
        if torch.compiler.is_compiling():
            self.running.compiled = True
            return
        self.running.stack.append((self.name, sys._getframe(1)))


class Leave(_Hook):
    def __call__(self, module: Module, args: Any, output: Any) -> None:
        if torch.compiler.is_compiling():
            return
        # Not there if another hook failed before Enter was called.
        stack = self.running.stack
        names = [name for name, _ in stack]
        if self.name in names:
            del stack[len(names) - 1 - names[::-1].index(self.name) :]


def _no_hook():
    return _nothing


def _nothing(module: Module, args: Any, output: Any = None) -> None:
    """The hook of a copy."""


def solvers(model: Module) -> dict[str, Module]:
    """The modules that say that they solve fixed points, by their name in
    ``model``; that of ``model`` itself is its class."""
    return {
        name or type(module).__name__: module
        for name, module in model.named_modules()
        if getattr(module, "solves_fixed_point", False) is True
    }


def watch(
    modules: dict[str, Module], running: Running
) -> list[RemovableHandle]:
    """Keep ``running`` up to date, from now until the handles are removed."""
    handles = []
    for name, module in modules.items():
        enter, leave = Enter(running, name), Leave(running, name)
        # First in and, whatever happens in between, out.
        handles += [
            module.register_forward_pre_hook(enter, prepend=True),
            module.register_forward_hook(leave, always_call=True),
        ]
    return handles
