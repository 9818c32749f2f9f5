"""The sweeps: guesses, one call of the model, what is settled."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor

from ..engine.solution import Solution
from ..engine.status import Status
from ..engine.triangular import Front
from .choice import Choice
from .distance import Change
from .guesses import Guesses
from .stopping import Stop


class Model(Protocol):
    """See :class:`Whole` and :class:`Cached`."""

    def logits(self, text: Tensor, at: Tensor, width: int) -> Tensor: ...

    def settle(self, moved: Tensor) -> None: ...

    def keep(self, index: Tensor) -> None: ...


class Decoder:
    """A batch of texts [B, P+N] on its way to the fixed point.

    Args:
        model: gives the logits.
        choice: gives the tokens.
        stop: says where a text ends.
        guesses: for positions to come.
        prompt: [B, P], on the CPU.
        new: N, tokens that are allowed behind it.
        window: positions of a round.
        pad: fills texts that end before others.
        measure: whether to measure how far distributions move.
        streamer: see :meth:`_stream`.
    """

    def __init__(
        self,
        model: Model,
        choice: Choice,
        stop: Stop,
        guesses: Guesses,
        prompt: Tensor,
        new: int,
        window: int,
        pad: int,
        measure: bool,
        streamer: Any,
        device: torch.device,
    ):
        self.model, self.choice, self.stop = model, choice, stop
        self.guesses, self.window, self.pad = guesses, window, pad
        self.change = Change() if measure else None
        self.streamer, self.streamed, self.device = streamer, 0, device
        rows, self.prompt = prompt.shape
        self.text = torch.cat([prompt, prompt.new_full((rows, new), pad)], 1)
        self.front = Front(torch.full((rows,), new), window)
        self.rows = torch.arange(rows)
        self.evaluations = torch.zeros(rows, dtype=torch.long)

    def run(self) -> tuple[Tensor, Solution]:
        """The texts, padded and no longer than the longest, and how they
        came about."""
        while self.front.running:
            self._keep_active()
            self._round()
            if self.stop.time_is_up(self.text[:, : self.prompt + 1]):
                self.front.finish(self.front.active, Status.STOPPED)
            self._stream()
        if self.streamer is not None:
            self.streamer.end()
        length = self.front.at
        if self.stop.limit is not None:
            length = length.clamp(max=self.stop.limit)
        place = torch.arange(self.text.size(1)) - self.prompt
        ids = self.text.where(place < length[:, None], self.pad)
        ids = ids[:, : self.prompt + int(length.max())]
        return ids, self._solution(ids, length)

    def _keep_active(self) -> None:
        """Texts that have ended cost nothing any more."""
        active = self.front.active[self.rows]
        if bool(active.all()):
            return
        index = active.nonzero()[:, 0]
        self.rows = self.rows[index]
        self.model.keep(index)
        if self.change is not None:
            self.change.keep(index)

    def _round(self) -> None:
        rows, text = self.rows, self.text
        at, width = self.front.at[rows], self.front.width[rows]
        wide = int(width.max())
        column = torch.arange(wide)
        inside = column < width[:, None]
        for row, a, w in zip(rows.tolist(), at.tolist(), width.tolist()):
            self.guesses.fill(text, row, a, w)
        logits = self.model.logits(text[rows], at, wide)
        change = torch.full((len(rows), wide), torch.nan)
        if self.change is not None:
            change = self.change(logits)
        # behind the end: nowhere
        place = self.prompt + at[:, None] + column
        place = place.where(inside, text.size(1))
        image, finite = self.choice(logits, text, rows, place)
        self.evaluations[rows] += width
        moved = self._settle(image, change, finite, place, inside)
        self.model.settle(moved)
        if self.change is not None:
            self.change.settle(moved)

    def _settle(
        self,
        image: Tensor,
        change: Tensor,
        finite: Tensor,
        place: Tensor,
        inside: Tensor,
    ) -> Tensor:
        """[R], how many positions have been settled."""
        rows, text, front = self.rows, self.text, self.front
        fed = text[rows[:, None], place.clamp(max=text.size(1) - 1)]
        row, column = inside.nonzero(as_tuple=True)
        text[rows[row], place[row, column]] = image[row, column]

        def of_all(part: Tensor) -> Tensor:
            whole = part.new_zeros(len(text), part.size(1))
            whole[rows] = part
            return whole

        passed = of_all((image == fed) & inside)
        run = passed.long().cumprod(1).sum(1) + 1
        run = torch.minimum(run, front.width)
        at = front.at.clone()
        ends = self.stop.ends(
            text, of_all(image), run, at, self.prompt, self.device
        )
        active = front.active
        moved = front.advance(of_all(change), passed & ~ends, of_all(finite))
        last = (moved - 1).clamp(min=0)[:, None]
        met = ends.gather(1, last)[:, 0] & (moved > 0) & active
        stuck = front.status == Status.NONFINITE
        done = self.stop.ended(front.at, met & ~stuck, stuck)
        front.finish(done, Status.CONVERGED)
        for r, row in enumerate(rows.tolist()):
            width = int(inside[r].sum())
            self.guesses.learn(
                row,
                int(at[row]),
                fed[r, :width].tolist(),
                image[r, :width].tolist(),
                int(moved[row]),
            )
        return moved[rows]

    def _stream(self) -> None:
        """One token of each text at a time, as soon as none can change."""
        if self.streamer is None:
            return
        front = self.front
        ready = front.at.clone()
        ready[~front.active] = int(front.at.max())
        if self.stop.limit is not None:
            ready = ready.clamp(max=self.stop.limit)
        end = int(ready.min())
        for j in range(self.streamed, end):
            column = self.text[:, self.prompt + j].clone()
            column[j >= front.at] = self.pad
            self.streamer.put(column)
        self.streamed = max(self.streamed, end)

    def _solution(self, ids: Tensor, length: Tensor) -> Solution:
        spent = self.evaluations
        solution = self.front.solution(ids, int(spent.sum()))
        solution.info |= {"positions": length, "evaluations": spent}
        # A settled token was chosen with the text before it as it is.
        exact = solution.converged
        last = solution.residual_history[-1]
        solution.residual = torch.where(exact, torch.zeros_like(last), last)
        return solution
