"""Fixed points of triangular maps: x_i = P_i(x_0, ..., x_{i-1}), i = 1..N.

Sequences are such fixed points: the steps of a sampler, the tokens of a text.
A *round* evaluates P for a window of positions at once. The first of them has
final predecessors, so its image is final, and at most N rounds give what N
steps one after the other give; smoothing would lose that. A position
whose image is what it was already has shown its successor the right input:
the front moves past the whole run of these, and one further.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .loop import recorded
from .solution import Solution
from .status import Status

_GOING = -1


class Front:
    """How far each row of a batch is settled.

    Args:
        length: positions of every row, long [B].
        window: positions that a round evaluates behind the front.
        max_rounds: allowed; None: so many as can be needed.
        dtype: of the residuals.

    Attributes:
        at: long [B], positions settled: row b has 0..at[b]-1.
        status: long [B], a :class:`Status`, or -1 while it goes on.
        rounds: made so far.
        residual: [B, N], what every position changed by when it was
            settled; NaN before.
    """

    def __init__(
        self,
        length: Tensor,
        window: int,
        max_rounds: int | None = None,
        dtype: torch.dtype = torch.float32,
    ):
        self.length, self.window = length.clone(), window
        self.at = torch.zeros_like(length)
        self.status = torch.full_like(length, _GOING)
        self.rounds = 0
        self.max_rounds = max_rounds
        self._rounds = torch.zeros_like(length)
        self._history: list[Tensor] = []
        steps = int(length.max()) if length.numel() else 0
        self.residual = torch.full(
            (length.numel(), steps),
            torch.nan,
            dtype=dtype,
            device=length.device,
        )
        self._end(length <= 0, Status.CONVERGED)

    @property
    def active(self) -> Tensor:
        """[B] bool, rows that are not finished."""
        return self.status == _GOING

    @property
    def running(self) -> bool:
        """Whether there is another round to make. One host transfer."""
        if self.max_rounds is not None and self.rounds >= self.max_rounds:
            return False
        return bool(self.active.any())

    @property
    def width(self) -> Tensor:
        """[B], positions of the next round, at[b] to at[b]+width[b]-1; 0 for
        rows that are finished."""
        width = (self.length - self.at).clamp(0, self.window)
        return torch.where(self.active, width, torch.zeros_like(width))

    def advance(
        self,
        residual: Tensor,
        passed: Tensor,
        finite: Tensor | None = None,
        bounded: Tensor | None = None,
    ) -> Tensor:
        """After a round: what the positions changed by, and who is settled.

        Args:
            residual: [B, W], the change of position at[b] + j, in any unit.
            passed: [B, W] bool, whether that is small enough.
            finite: [B, W] bool, whether the image is finite; a settled one
                that is not ends its row NONFINITE.
            bounded: [B, W] bool, whether it is as small as it should be; else
                its row ends DIVERGED.

        Returns:
            long [B], how many positions have been settled.
        """
        width = self.width
        column = torch.arange(residual.size(1), device=residual.device)
        inside = column < width[:, None]
        run = (passed & inside).long().cumprod(1).sum(1)
        moved = torch.minimum(run + 1, width)
        ends = []
        for held, status in (
            (finite, Status.NONFINITE),
            (bounded, Status.DIVERGED),
        ):
            if held is None:
                continue
            # what is settled is final: the sequence itself is broken there
            lost = (column < moved[:, None]) & ~held
            broken = lost.any(1)
            moved = torch.where(broken, lost.long().argmax(1), moved)
            ends.append((broken, status))
        settled = column < moved[:, None]
        row, j = settled.nonzero(as_tuple=True)
        self.residual[row, self.at[row] + j] = residual[row, j].to(
            self.residual.dtype
        )
        seen = torch.where(inside, residual, -torch.inf).amax(1)
        old = self._history[-1] if self._history else torch.zeros_like(seen)
        self._history.append(torch.where(self.active, seen, old))
        self._rounds += self.active
        self.rounds += 1
        self.at += moved
        for broken, status in reversed(ends):
            self._end(broken, status)
        self._end(self.at >= self.length, Status.CONVERGED)
        return moved

    def finish(self, rows: Tensor, status: Status) -> None:
        """These rows [B] bool end here; CONVERGED: as they should, shorter
        than ``length``."""
        self._end(rows, status)

    def _end(self, rows: Tensor, status: Status) -> None:
        rows = rows & self.active
        self.status = torch.where(
            rows, torch.full_like(self.status, int(status)), self.status
        )

    def solution(self, value: object, evaluations: int) -> Solution:
        """Rows that still go on have run out of rounds."""
        self._end(self.active, Status.MAX_ITER)
        worst = torch.nan_to_num(self.residual, nan=-torch.inf)
        if worst.size(1):
            residual = worst.amax(1).clamp(min=0)
        else:
            residual = worst.new_zeros(len(worst))
        last = (self._rounds - 1).clamp(min=0)
        table = self._table()
        # what is not settled was never measured as final
        seen = torch.nan_to_num(table[-1], nan=torch.inf, posinf=torch.inf)
        failed = self.status != int(Status.CONVERGED)
        residual = torch.where(failed, seen.to(residual), residual)
        solution = recorded(self.status, self._rounds, residual, table, last)
        solution.value = value
        solution.evaluations = evaluations
        solution.rounds = self.rounds
        solution.info = {
            "positions": self.at,
            "residual_per_position": self.residual,
        }
        return solution

    def _table(self) -> Tensor:
        """[K, B]"""
        if not self._history:
            return self.residual.new_zeros(1, len(self.at))
        return torch.stack(self._history)
