"""One solve, one map: random masks are drawn once and then reused.

A fixed point of a map that changes at every call does not exist. Dropout and
other draws from torch's global generators are therefore frozen for the
length of a solve, its gradient included. Draws from a generator of the
operator's own cannot be frozen here.

Those generators are one for all threads. So while a map that draws is solved,
no other thread may solve or draw: one would set back what the other draws
from, and a solve takes the draws of others for its own. A lock here could not
prevent it, as whoever else draws would not take it.
"""

from __future__ import annotations

from contextlib import contextmanager

import torch
from torch import Tensor
from torch._dynamo.decorators import skip_code
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode


class FrozenRandomness:
    """Replays the generator state of the first evaluation in all others.

    The generators are left as one evaluation leaves them, so consecutive
    solves see different masks.
    """

    def __init__(self, device: torch.device):
        self._device = device if device.type == "cuda" else None
        self._base = self._get()
        self._first = True
        self.stochastic = False

    @contextmanager
    def __call__(self):
        if self._first:
            yield
            self._first = False
            self.stochastic = any(
                not torch.equal(a, b) for a, b in zip(self._base, self._get())
            )
        elif self.stochastic:
            outside = self._get()
            self._set(self._base)
            try:
                yield
            finally:
                self._set(outside)
        else:
            yield

    @property
    def idle(self) -> bool:
        """Nothing to do around an evaluation any more."""
        return not (self._first or self.stochastic)

    def _get(self) -> list[Tensor]:
        states = [torch.get_rng_state()]
        if self._device is not None:
            states.append(torch.cuda.get_rng_state(self._device))
        return states

    def _set(self, states: list[Tensor]) -> None:
        torch.set_rng_state(states[0])
        if self._device is not None:
            torch.cuda.set_rng_state(states[1], self._device)


_MASKS = (F.dropout, F.dropout1d, F.dropout2d, F.dropout3d, torch.dropout)
_DRAWS = (
    torch.rand,
    torch.randn,
    torch.rand_like,
    torch.randn_like,
    torch.randint,
    torch.bernoulli,
    torch.randperm,
)
_REFUSED = (
    F.alpha_dropout,
    F.feature_alpha_dropout,
    F.rrelu,
    F.gumbel_softmax,
)


class ReplayedDraws(TorchFunctionMode):
    """The same under ``torch.compile``, which cannot trace generator states:
    the n-th random call of every evaluation returns what it returned in the
    first."""

    def __init__(self):
        super().__init__()
        self.drawn: list[Tensor] = []
        self.recording = True
        self.position = 0

    def begin(self, first: bool) -> None:
        """Called before each evaluation; the first one records."""
        self.recording = first
        self.position = 0

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func in _MASKS:
            x = args[0] if args else kwargs.pop("input")
            mask = self._replay(
                lambda: func(torch.ones_like(x), *args[1:], **kwargs)
            )
            return x * mask
        if func in _DRAWS:
            return self._replay(lambda: func(*args, **kwargs))
        attention = func is F.scaled_dot_product_attention
        if func in _REFUSED or (attention and kwargs.get("dropout_p")):
            raise NotImplementedError(
                f"{func.__name__} cannot be frozen under torch.compile; use "
                "dropout, or solve in eager mode"
            )
        return func(*args, **kwargs)

    def _replay(self, draw) -> Tensor:
        if self.recording:
            self.drawn.append(draw())
        self.position += 1
        return self.drawn[self.position - 1]


# It is traced within what it is called in. By itself, where the graph of a
# caller breaks, it would be compiled for one function and taken for others.
skip_code(ReplayedDraws.__torch_function__.__code__)
