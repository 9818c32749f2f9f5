"""One solve, one map: weights that are computed are computed once."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module
from torch.nn.utils import parametrize


class Computed(Module):
    """A module with a weight that is computed from its parameters."""

    #: what :attr:`weight` is for the time of a solve
    held: Tensor | None = None

    @property
    def weight(self) -> Tensor:
        return self.computed() if self.held is None else self.held

    def computed(self) -> Tensor:
        raise NotImplementedError


Held = Sequence[tuple[Computed, Tensor]]

_HELD: ContextVar[Held] = ContextVar("held", default=())


def held_now() -> Held:
    """The weights that :func:`held_weights` holds."""
    return _HELD.get()


def are_in_place(held: Held) -> bool:
    return all(module.held is weight for module, weight in held)


@contextmanager
def put_in_place(held: Held) -> Iterator[None]:
    """Within, these weights are held: the backward pass may evaluate P when
    the solve is over."""
    before = [module.held for module, _ in held]
    for module, weight in held:
        module.held = weight
    try:
        yield
    finally:
        for (module, _), earlier in zip(held, before):
            module.held = earlier


@contextmanager
def held_weights(operator: Any) -> Iterator[None]:
    """Within, computed weights of a module (:class:`Computed` and
    ``torch.nn.utils.parametrize``) are what they are on entry, with the
    gradient that they have there: a solve may run without one and attach it
    afterwards. Some parametrisations, such as torch's spectral norm in
    training, also change at every access. What is no module is left alone."""
    known = isinstance(operator, Module)
    modules: list[Any] = list(operator.modules()) if known else []
    found = [m for m in modules if isinstance(m, Computed) and m.held is None]
    parts = [m for m in modules if parametrize.is_parametrized(m)]
    compiling = torch.compiler.is_compiling()
    if not compiling:
        _refuse_sharded((*found, *parts), modules)
    own = tuple((m, m.computed()) for m in found)
    if not own and (not parts or compiling):
        yield
        return
    with put_in_place(own):
        if compiling:
            yield
            return
        token = _HELD.set((*_HELD.get(), *own))
        try:
            if not parts:
                yield
                return
            with parametrize.cached():
                for part in parts:
                    for name in part.parametrizations:
                        getattr(part, name)
                yield
        finally:
            _HELD.reset(token)


def _refuse_sharded(computed: Sequence[Module], modules: list[Any]) -> None:
    """FSDP2 gathers what is sharded within P when P is called: too late for
    a weight that is computed before."""
    fsdp = sys.modules.get("torch.distributed.fsdp")
    kind = getattr(fsdp, "FSDPModule", None)
    if kind is None or not computed:
        return
    within = {
        m for top in modules if isinstance(top, kind) for m in top.modules()
    }
    for module in within.intersection(computed):
        if any(hasattr(p, "full_tensor") for p in module.parameters()):
            raise NotImplementedError(
                "the operator has fully_shard (FSDP2) in it, around a "
                f"{type(module).__name__} whose weight is computed once a "
                "solve, before P gathers what that needs. Shard the whole "
                "PicardConv, of a PIGN model.block, instead"
            )
