"""How far a round has moved the distributions of its positions."""

from __future__ import annotations

import math

import torch
from torch import Tensor


class Change:
    """Kullback-Leibler divergence of a position's new distribution from that
    of the round before, in nats; before its first, that is the uniform one.
    Of the model's own distributions, without processors."""

    def __init__(self) -> None:
        self._old: Tensor | None = None

    def __call__(self, logits: Tensor) -> Tensor:
        """[R, W] of logits [R, W, V], on the CPU."""
        new = logits.float().log_softmax(-1)
        if self._old is None:
            self._old = torch.full_like(new, -math.log(new.size(-1)))
        old = self._old[:, : new.size(1)]
        mass = new.exp()
        term = torch.where(mass > 0, mass * (new - old), mass)
        self._old = new
        # nothing is known of what is not finite
        return term.sum(-1).nan_to_num(nan=torch.inf).clamp(min=0).cpu()

    def settle(self, moved: Tensor) -> None:
        """The window moves on by so many positions, [R]."""
        assert self._old is not None
        old = self._old
        width, uniform = old.size(1), -math.log(old.size(-1))
        index = moved[:, None] + torch.arange(width)
        seen = (index < width).to(old.device)[..., None]
        index = index.clamp(max=width - 1).to(old.device)
        row = torch.arange(len(old), device=old.device)[:, None]
        self._old = torch.where(seen, old[row, index], uniform)

    def keep(self, index: Tensor) -> None:
        """Only these rows go on."""
        if self._old is not None:
            self._old = self._old[index.to(self._old.device)]
