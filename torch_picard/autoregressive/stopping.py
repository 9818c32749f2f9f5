"""Where a text ends."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor


class Stop:
    """Ends by EOS, and by the criteria of transformers.

    With an EOS, a text that has ended is padded. Without, transformers writes
    on in every text until all have met their criteria, and so it is here.

    Args:
        eos: the tokens that end a text, long [n], or None.
        criteria: callables (ids [B, n], scores) -> bool [B], asked after
            every settled token.
        clocks: the same, asked after every round: they end all.
    """

    def __init__(
        self,
        eos: Tensor | None,
        criteria: Sequence[Callable],
        clocks: Sequence[Callable],
        rows: int,
    ):
        self._eos, self._criteria, self._clocks = eos, criteria, clocks
        self._met = torch.full((rows,), -1)

    def ends(
        self,
        text: Tensor,
        image: Tensor,
        run: Tensor,
        at: Tensor,
        prompt: int,
        device: torch.device,
    ) -> Tensor:
        """[B, W] bool: the text ends with this position.

        Args:
            text: [B, n], with the images in it.
            image: [B, W].
            run: [B], how many of them are about to be settled.
            at: [B], settled before.
        """
        found = torch.zeros_like(image, dtype=torch.bool)
        if self._eos is not None:
            found = torch.isin(image, self._eos)
        if not self._criteria:
            return found
        place = at[:, None] + torch.arange(image.size(1))
        asked = torch.arange(image.size(1)) < run[:, None]
        asked &= (self._met < 0)[:, None]
        ids = text.to(device)
        for length in place[asked].unique().tolist():
            part = ids[:, : prompt + length + 1]
            row, column = (asked & (place == length)).nonzero(as_tuple=True)
            for criterion in self._criteria:
                done = criterion(part, None)
                if getattr(done, "shape", None) != part.shape[:1]:
                    raise ValueError(
                        "stopping_criteria must return a bool Tensor "
                        f"[{len(part)}], but {type(criterion).__name__} has "
                        f"returned {done!r}"
                    )
                found[row, column] |= done.cpu().bool()[row]
        return found

    def ended(self, at: Tensor, met: Tensor, stuck: Tensor) -> Tensor:
        """[B]: rows that are done, after a round.

        Args:
            at: [B], settled.
            met: [B], whether the last of them ends its text.
            stuck: [B], rows that ended otherwise.
        """
        if self._eos is not None:
            return met
        first = (met | stuck) & (self._met < 0)
        self._met = torch.where(first, at, self._met)
        return at >= self.limit if self.limit is not None else first & False

    @property
    def limit(self) -> int | None:
        """Without an EOS: the length at which all have met their criteria."""
        if self._eos is not None or bool((self._met < 0).any()):
            return None
        return int(self._met.max())

    def time_is_up(self, ids: Tensor) -> bool:
        return any(bool(c(ids, None).all()) for c in self._clocks)
