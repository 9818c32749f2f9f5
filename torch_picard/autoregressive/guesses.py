"""What a position is guessed to be before it has been evaluated."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

INITS = ("repeat", "prompt_lookup", "lookahead")
# Less than SHORTEST tokens say less about what follows than an image does.
LONGEST, SHORTEST = 8, 3


class Pool:
    """What has followed n-grams of SHORTEST to LONGEST tokens."""

    def __init__(self) -> None:
        self._next: dict[tuple[int, ...], int] = {}

    def add(self, before: Sequence[int], token: int) -> None:
        for n in range(SHORTEST, min(LONGEST, len(before)) + 1):
            self._next[tuple(before[-n:])] = token

    def get(self, last: tuple[int, ...]) -> int | None:
        return self._next.get(last)


class Guesses:
    """The guesses of a batch of texts.

    Where a position was evaluated in the round before, its image is the guess
    (Jacobi's iteration). A position that enters the window repeats the last
    token. ``"prompt_lookup"`` goes before both: what followed the last tokens
    where they stood before, in the prompt or in what is settled (Saxena 2023).
    ``"lookahead"`` also looks into what the rounds have seen of guesses that
    were wrong where they stood (Fu et al. 2024, arXiv:2402.02057).
    """

    def __init__(self, init: str, prompt: Tensor, mask: Tensor):
        self._init, self._prompt = init, prompt.size(1)
        self._known = [0] * len(prompt)
        self._settled = [
            [t for t, m in zip(row, used) if m]
            for row, used in zip(prompt.tolist(), mask.tolist())
        ]
        self._seen = [Pool() for _ in prompt]
        self._tried = [Pool() for _ in prompt]
        if init != "repeat":
            for settled, pool in zip(self._settled, self._seen):
                for i in range(1, len(settled)):
                    pool.add(settled[max(0, i - LONGEST) : i], settled[i])

    def fill(self, text: Tensor, row: int, at: int, width: int) -> None:
        """Write guesses for positions at .. at+width-2 of a row."""
        if width < 2:
            return
        start = self._prompt + at
        guess = text[row, start - 1 : start + width - 1].tolist()
        for j in range(max(1, self._known[row] - at + 1), width):
            guess[j] = guess[j - 1]
        if self._init != "repeat":
            self._look_up(row, guess)
        text[row, start : start + width - 1] = text.new_tensor(guess[1:])

    def _look_up(self, row: int, guess: list[int]) -> None:
        last = self._settled[row][-LONGEST:]
        pools = [self._seen[row]]
        if self._init == "lookahead":
            pools.append(self._tried[row])
        for j in range(1, len(guess)):
            for n in range(min(LONGEST, len(last)), SHORTEST - 1, -1):
                key = tuple(last[-n:])
                found = [t for p in pools if (t := p.get(key)) is not None]
                if found:
                    guess[j] = found[0]
                    break
            last = [*last[-LONGEST + 1 :], guess[j]]

    def learn(
        self, row: int, at: int, fed: list[int], image: list[int], moved: int
    ) -> None:
        """After a round: ``fed`` were the guesses for positions at, at+1, ...,
        ``image`` came out, the first ``moved`` of which are settled."""
        self._known[row] = at + len(image)
        if self._init == "repeat":
            return
        settled = self._settled[row]
        if self._init == "lookahead":
            before = [*settled[-LONGEST:], *fed]
            offset = len(before) - len(fed)
            for j in range(moved, len(image)):
                i = offset + j
                self._tried[row].add(before[max(0, i - LONGEST) : i], image[j])
        for token in image[:moved]:
            self._seen[row].add(settled[-LONGEST:], token)
            settled.append(token)
