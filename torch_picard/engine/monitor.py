"""Watching residuals: who has converged, who never will.

One host transfer an evaluation, of the residuals and norms of all segments;
all decisions are then numpy on the host. The fixed-count watch makes none
and never leaves the device.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from .methods.base import Method
from .point import Point, secant, to_host
from .space import Leaves, Space, detach
from .status import Status

ACTIVE = -1

#: These return the best iterate.
BEST = (Status.DIVERGED, Status.STAGNATED, Status.NONFINITE)

#: A residual this many times the best one is not a transient any more.
BLOW_UP = 1e8
#: The same at the end of the evaluations, if it rose all along the last half.
STILL_RISING = 1e3
#: Evaluations over which an unchanging (or periodic) residual is a stall.
STALL_WINDOW = 12
#: The same for a residual that jitters without getting anywhere: at least,
#: and at most if that is a quarter of all evaluations.
JITTER_WINDOW, LONG_JITTER = 50, 200
#: Evaluations between two searches for a stall.
CHECK = 5


class _Rows:
    """Arrays [S], one after another, in a table that grows: many small ones
    between states would keep the allocator from reusing the memory of
    those."""

    def __init__(self, size: int):
        self._table = np.empty((32, size))
        self.count = 0

    def append(self, row: np.ndarray) -> None:
        if self.count == len(self._table):
            more = np.empty_like(self._table)
            self._table = np.concatenate([self._table, more])
        self._table[self.count] = row
        self.count += 1

    @property
    def rows(self) -> np.ndarray:
        return self._table[: self.count]


class FixedCount:
    """rtol = atol = 0: record residuals on the device, decide nothing."""

    def __init__(self, space: Space, method: Method, max_iter: int):
        # One table, not a list of small tensors between the large ones:
        # those keep the allocator from reusing the memory of the iterates.
        self._table = torch.zeros(
            max_iter, space.size, dtype=space.dtype, device=space.device
        )
        self.count = 0
        self.done = False
        self.said = Status.STOPPED
        self.stride = method.stride
        self.active = None

    def observe(self, here: Point, previous: Point | None) -> None:
        self._table[self.count] = here.residual
        self.count += 1

    def record(self, stats: Tensor) -> None:
        """Of all evaluations at once, [K, S, 2]."""
        self._table = stats[..., 0].sqrt().to(self._table.dtype)
        self.count = len(stats)

    @property
    def history(self) -> Tensor:
        """[K, S]"""
        return self._table[: self.count]

    def settle(self, x_next: Leaves, x: Leaves, here: Point) -> Leaves:
        return x_next

    def stop(self, said: Any, here: Point, previous: Point | None) -> None:
        if isinstance(said, Tensor) and says_how(said):
            if (said == ACTIVE).all():
                return
            raise ValueError(
                "callback can end a fixed count (rtol = atol = 0) for all "
                "segments at once, by True or a Status; got a LongTensor"
            )
        self.done, self.said = True, _stated(said)


class Monitor:
    """Per-segment bookkeeping of a solve that stops by itself.

    Args:
        rtol, atol: converged when r <= atol + rtol*|P(x)|; ``atol`` may be
            an array [S].
        method: says how many non-finite evaluations in a row it can take
            back (``patience``), and how far it moves (``stride``).
        images: whether P(x) is kept where x would be, for every outcome but
            MAX_ITER.

    Attributes:
        status: int array [S], ``ACTIVE`` or a :class:`Status`.
        residual: array [S], of the iterate that would be returned.
        iterations: int array [S], updates behind that iterate.
        last: int array [S], the last evaluation in which it was active.
        ended, some_ended, done: bool array [S], any of it, all of it.
        step, slope: arrays [S], |dx| (or a bound of it) and |dx|/|df| (or 0)
            of its last update.
    """

    def __init__(
        self,
        space: Space,
        rtol: float,
        atol: float | np.ndarray,
        method: Method,
        images: bool = False,
    ):
        self.space, self.rtol, self.images = space, rtol, images
        self.atol = np.full(space.size, atol, dtype=np.float64)
        self.patience, self.stride = method.patience, method.stride
        size = space.size
        self.status = np.full(size, ACTIVE)
        self.residual = np.full(size, np.nan)
        self.iterations = np.zeros(size, dtype=np.int64)
        self.last = np.zeros(size, dtype=np.int64)
        self.step = np.full(size, np.inf)
        self.slope = np.full(size, np.inf)
        self._residuals = _Rows(size)
        self.ended = np.zeros(size, dtype=bool)
        self.some_ended = self.done = False
        self._best = np.full(size, np.inf)
        self._best_x: Leaves = space.start
        self._best_at: np.ndarray | int = 0
        self._bests = _Rows(size)  # as of every CHECK-th evaluation
        self._largest = np.zeros(size)
        #: sum of all residuals: the length of the plain steps
        self._path = np.zeros(size)
        #: whether no residual was above an earlier one
        self._descends = np.ones(size, dtype=bool)
        self._scale = np.full(size, np.nan)
        self._unknown = np.full(size, np.inf)
        self._norm = self._unknown
        self._none = np.zeros(size, dtype=np.int64)
        self._nonfinite = self._none
        # of the state, if it has one: P(x) is rounded to that
        units = {torch.finfo(t).eps for t in space.dtypes}
        self._eps = units.pop() if len(units) == 1 else None
        # Who is watched for a stall: since when, from where, how far it got.
        self._since, self._far = np.full(size, -1), np.zeros(size)
        self._from: Leaves = space.start
        self._to_best: np.ndarray | None = None
        self._to_image: np.ndarray | None = None
        self._mask: Tensor | None = None
        occupied = space.segments.occupied()
        if occupied is not None:
            empty = ~occupied.numpy()
            self.residual[empty] = 0.0
            self._end(empty, Status.CONVERGED)

    @property
    def count(self) -> int:
        """Evaluations so far."""
        return self._residuals.count

    @property
    def history(self) -> np.ndarray:
        """Their residuals, [K, S]."""
        return self._residuals.rows

    def observe(self, here: Point, previous: Point | None) -> None:
        """Judge x_k by r(x_k) and |P(x_k)|."""
        k = self.count
        due = k % CHECK == 0
        r, norm, bar, ordinary = self._measured(here, due)
        self._residuals.append(r)
        self.residual, self._norm, here.target = r, norm, bar
        self._path = self._path + r
        before = self.ended
        if ordinary:
            self._best, self._best_x, self._best_at = r, self._kept(here), k
            self._nonfinite = self._none
        else:
            self._judge(here, r, norm)
        if due:
            self._bests.append(self._best)
            if k > CHECK:
                self._end(self._stalled(here), Status.STAGNATED)
        if self.ended is not before:
            self._finish(self.ended & ~before, here, previous)

    def _measured(
        self, here: Point, due: bool
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, bool]:
        """r(x_k), |P(x_k)| (or a bound of it where nothing more is needed),
        the residual that would pass, and whether all is ordinary."""
        seen, norm = here.on_host()
        r, exact = self._frozen(seen, self.residual), norm is not None
        norm = self._norm_at_most(r) if norm is None else norm
        norm = self._frozen(norm, self._norm)
        bar = self._bar(norm)
        ordinary = self._ordinary(here, r, norm, bar)
        if not exact and (due or not ordinary):
            norm = self._frozen(to_host(here.norm), self._norm)
            bar = self._bar(norm)
            ordinary = self._ordinary(here, r, norm, bar)
        if not ordinary and self.space.distance is None:
            unsure = self._unsure(here, r, norm, bar)
            if unsure.any():
                exact_r, exact_norm = here.measured()
                seen = np.where(unsure, exact_r, seen)
                r = self._frozen(seen, self.residual)
                norm = np.where(unsure, exact_norm, norm)
                bar = self._bar(norm)
        if not (ordinary and seen is r):
            sound = np.isfinite(seen)
            if not sound.all():
                here.mend(self._tensor(sound))
        return r, norm, bar, ordinary

    def _frozen(self, new: np.ndarray, old: np.ndarray) -> np.ndarray:
        """What has ended stays as it was, whatever becomes of P there."""
        return np.where(self.ended, old, new) if self.some_ended else new

    def _unsure(
        self, here: Point, r: np.ndarray, norm: np.ndarray, bar: np.ndarray
    ) -> np.ndarray:
        """Whether squares that vanish or overflow, or something that is not
        finite, leave it open who has passed."""
        least, most = here.usual
        passes = np.maximum(r, least) <= bar
        fails = r > np.maximum(bar + self.rtol * least, least)
        sure = (passes | fails) & (r < most) & (norm < most)
        return ~(sure | self.ended)

    def _norm_at_most(self, r: np.ndarray) -> np.ndarray:
        """A bound of |P(x_k)| that costs nothing where the method's stride
        is known: P(x) = x + f changes by at most |dx| + |df|."""
        if self.stride is None or not self.count:
            return self._unknown
        return self._norm + r + (1 + self.stride) * self.residual

    def _bar(self, norm: np.ndarray) -> np.ndarray:
        """atol + rtol*norm, also where rtol is 0 and the norm infinite."""
        return self.atol + self.rtol * norm if self.rtol else self.atol

    def _ordinary(
        self, here: Point, r: np.ndarray, norm: np.ndarray, bar: np.ndarray
    ) -> bool:
        """Usual numbers, of which nobody's can have passed, and everybody's
        is a new best residual: there is nothing else to look for."""
        least, most = here.usual
        if r.size == 1:  # plain floats: numpy would cost as much as a norm
            return bool(
                bar[0] < r[0] < self._best[0] < np.inf
                and least < r[0] < most
                and least < norm[0] < most
            )
        usual = (r > np.maximum(bar, least)) & (norm > least) & (norm < most)
        better = (r < self._best) & (self._best < np.inf) & (r < most)
        return bool((usual & better | self.ended).all())

    def _judge(
        self,
        here: Point,
        r: np.ndarray,
        norm: np.ndarray,
    ) -> None:
        active = ~self.ended
        finite = np.isfinite(r) & np.isfinite(norm)
        self._scale = np.where(
            np.isnan(self._scale) & finite,
            np.maximum(norm, r),
            self._scale,
        )
        self._largest = np.fmax(self._largest, np.where(finite, r, 0.0))
        noise = self._noise(here, norm)
        blind = finite & self._beyond_rounding(norm, noise)
        with np.errstate(invalid="ignore"):
            self._descends &= r <= self._best + 4 * noise
        self._keep_best(
            self._kept(here), active & finite & ~blind & (r < self._best)
        )
        # Written so that NaN passes nowhere.
        passed = finite & ~blind & (r <= here.target)
        if self.count > 1 and passed.any():
            passed &= self._earned(r, norm, noise)
        self._nonfinite = np.where(finite, 0, self._nonfinite + 1)
        self._end(passed, Status.CONVERGED)
        self._end(self._nonfinite > self.patience, Status.NONFINITE)
        self._end(finite & (r > BLOW_UP * self._best), Status.DIVERGED)

    def _kept(self, here: Point) -> Leaves:
        return here.z if self.images else here.x

    def _finish(
        self, mask: np.ndarray, here: Point, previous: Point | None
    ) -> None:
        """These have ended at x_k: what they return, and its report."""
        if not mask.any():
            return
        self._measure(here, previous, mask)
        if self.images:
            self._to_image = _either(mask, self._to_image)
            self.iterations = self.iterations + mask
        self._return_best(mask & np.isin(self.status, BEST))

    @property
    def active(self) -> Tensor | None:
        """The segments still iterated, bool [S]; None for all."""
        return self._unended() if self.some_ended else None

    def _unended(self) -> Tensor:
        if self._mask is None:
            self._mask = self._tensor(~self.ended)
        return self._mask

    def settle(self, x_next: Leaves, x: Leaves, here: Point) -> Leaves:
        """x_next where active; what is to be returned where ended."""
        if self._to_image is not None:
            x = self.space.where(self._tensor(self._to_image), here.z, x)
            self._to_image = None
        if self._to_best is not None:
            x = self.space.where(self._tensor(self._to_best), self._best_x, x)
            self._to_best = None
        if not self.some_ended:
            return x_next
        if self.done:
            return x
        mask = self._unended()
        if here.active is mask:
            return x_next  # there it is x outside of the mask already
        return self.space.where(mask, x_next, x)

    def stop(self, said: Any, here: Point, previous: Point | None) -> None:
        """The caller says how it ends, for all segments or for each."""
        before = self.ended
        if not isinstance(said, Tensor) or not says_how(said):
            self._end(~self.ended, _stated(said))
        else:
            codes = np.broadcast_to(to_host(said), before.shape)
            for code in np.unique(codes[codes >= 0]):
                self._end(codes == code, _stated(Status(int(code))))
        self._finish(self.ended & ~before, here, previous)

    def exhaust(self, here: Point, previous: Point | None) -> None:
        """No evaluation is left."""
        active = ~self.ended
        self._measure(here, previous, active)
        self._end(self._nonfinite > 0, Status.NONFINITE)
        self._end(self._still_rising(), Status.DIVERGED)
        self._return_best(active & self.ended)
        rest = ~self.ended
        self._end(rest, Status.MAX_ITER)
        self.iterations[rest] = self.count

    def _end(self, mask: np.ndarray, status: Status) -> None:
        mask = mask & ~self.ended
        if not mask.any():
            return
        self.status[mask] = status
        self.last[mask] = self.iterations[mask] = max(self.count - 1, 0)
        self.ended = self.ended | mask
        self.some_ended, self.done = True, bool(self.ended.all())
        self._mask = None

    def _keep_best(self, x: Leaves, improved: np.ndarray) -> None:
        if not improved.any():
            return
        if (improved | self.ended).all():
            self._best_x = x  # iterates are never written to: no copy
        else:
            mask = self._tensor(improved)
            self._best_x = self.space.where(mask, x, self._best_x)
        self._best = np.where(improved, self.residual, self._best)
        self._best_at = np.where(improved, self.count - 1, self._best_at)

    def _return_best(self, mask: np.ndarray) -> None:
        """These return their best iterate, so report that one."""
        if not mask.any():
            return
        at = self._best_at + (self.images & np.isfinite(self._best))
        self.iterations = np.where(mask, at, self.iterations)
        self.residual = np.where(mask, self._best, self.residual)
        self._to_best = _either(mask, self._to_best)

    def _measure(
        self,
        here: Point,
        previous: Point | None,
        mask: np.ndarray,
    ) -> None:
        if self.count < 2 or not mask.any():
            return
        if self.stride is not None:
            step = self.stride * self.history[-2]
            slope = np.zeros_like(step)
        else:
            assert previous is not None
            step, slope = map(to_host, secant(self.space, here, previous))
        self.step = np.where(mask, step, self.step)
        self.slope = np.where(mask, slope, self.slope)

    def _tensor(self, mask: np.ndarray) -> Tensor:
        return torch.from_numpy(mask.copy()).to(self.space.device)

    def _noise(self, here: Point, norm: np.ndarray) -> np.ndarray:
        """What |P(x)| owes to rounding; of leaves of several dtypes, as that
        of x, which is here in any case."""
        if self._eps is not None:
            return self._eps * norm
        return to_host(self.space.rounding(detach(here.x)))

    def _beyond_rounding(
        self, norm: np.ndarray, noise: np.ndarray
    ) -> np.ndarray:
        """So far out that rounding hides the residuals seen before: at 1e20
        a drift x + 1 measures 0."""
        grown = norm > 2 * self._scale
        return grown & (noise > 0.5 * self._largest)

    def _earned(
        self, r: np.ndarray, norm: np.ndarray, noise: np.ndarray
    ) -> np.ndarray:
        """A relative test may not be passed by growth of P(x) alone: x + 1
        drifts, its residual never falls, and r/|P(x)| goes to 0. So unless
        the residual passes on the scale of the start, it must have fallen:
        by the square root of the growth; or, where plain steps make up the
        way, without a rise, not ever faster, and by more than rounding can
        make it."""
        earned = r <= self._bar(self._scale)
        with np.errstate(divide="ignore", invalid="ignore"):
            share = np.minimum(0.5, np.sqrt(self._scale / norm))
            earned |= r <= share * self._largest
            k = self.count - 1
            first, half = self.history[0], self.history[k // 2]
            last = self.history[k // 2 * 2]
            fallen = self._descends & (r + noise <= 0.99 * half)
            # as r <= c*rate^k does, and a drift that begins to slow does not
            fallen &= half / first <= (1.001 * last + 8 * noise) / half
            earned |= fallen & (norm <= 2 * self._scale + self._path)
        return earned

    def _still_rising(self) -> np.ndarray:
        window = max(10, self.count // 2)
        if self.count <= window:
            return np.zeros_like(self.ended)
        tail = self.history[-window - 1 :]
        with np.errstate(invalid="ignore"):
            rising = (np.diff(tail, axis=0) > 0).all(axis=0)
            return rising & (tail[-1] > STILL_RISING * self._best)

    def _stalled(self, here: Point) -> np.ndarray:
        window = min(STALL_WINDOW, self.count - 1)
        falling = self.residual < 0.99 * self.history[-window - 1]
        if (falling | self.ended).all():
            self._since[:] = -1
            return np.zeros_like(self.ended)
        tail = self.history[-window - 1 :]
        with np.errstate(invalid="ignore", divide="ignore"):
            constant = self._periodic(tail) & ~falling
            stalled = self._gets_nowhere(here, constant)
            if self.count > JITTER_WINDOW:
                window = max(JITTER_WINDOW, self.count // 4)
                tail = self.history[-min(window, LONG_JITTER) :]
                stalled |= self._jitters(tail) & ~falling
        return stalled

    def _periodic(self, tail: np.ndarray) -> np.ndarray:
        """The residual is constant, or repeats with a period of up to 6."""
        found = np.zeros(tail.shape[1], dtype=bool)
        half = tail.shape[0] // 2
        for period in range(1, min(half, 6) + 1):
            shift = period * (half // period)
            change = np.abs(tail[shift:] - tail[:-shift])
            found |= (change <= 1e-6 * tail[shift:]).all(axis=0)
        return found

    def _gets_nowhere(self, here: Point, constant: np.ndarray) -> np.ndarray:
        """Of those whose residual stays as it is: x goes round (it comes
        nearer to where it was, or no farther than rounding), or straight
        on (P(x) - x points where x came). A wave that travels along a chain,
        with a constant residual until it arrives, does neither."""
        constant = constant & ~self.ended
        watched = constant & (self._since >= 0)
        found = np.zeros_like(constant)
        k = self.count - 1
        if watched.any():
            far, cosine = map(to_host, here.away(self._from))
            noise = self._noise(here, self._norm)
            around = (far < 0.999 * self._far) | (far <= noise)
            straight = cosine > 0.9999
            # and not in steps of rounding, slowly down
            straight &= ~(self.residual < 0.99 * self.history[k // 2])
            straight &= k - self._since > CHECK
            found = watched & (around | straight)
            self._far = np.maximum(self._far, far)
        fresh = constant & ~watched
        if fresh.any():
            mask = self._tensor(fresh)
            self._from = self.space.where(mask, here.x, self._from)
            self._far = np.where(fresh, 0.0, self._far)
        self._since = np.where(fresh, k, np.where(watched, self._since, -1))
        return found

    def _jitters(self, tail: np.ndarray) -> np.ndarray:
        """No better than before the window, no trend, and rough: rounding
        noise or chaos. Smooth transients of non-normal maps are not, nor is
        a slow descent in steps of rounding."""
        half = tail.shape[0] // 2
        before = self._bests.rows[(self.count - len(tail)) // CHECK]
        early, late = tail[:half].mean(axis=0), tail[half:].mean(axis=0)
        change = np.diff(tail, axis=0)
        turns = np.diff(np.sign(change), axis=0) != 0
        return (
            (tail.min(axis=0) >= 0.99 * before)
            & (late > 0.9 * early)
            & (late < 2.0 * early)
            & (early - late < 4.0 * change.std(axis=0) / np.sqrt(2 * half))
            & (turns.mean(axis=0) > 0.2)
        )


def _either(mask: np.ndarray, other: np.ndarray | None) -> np.ndarray:
    return mask if other is None else mask | other


def says_how(said: Any) -> bool:
    """Whether a callback's answer names outcomes; else it is yes or no."""
    if isinstance(said, Tensor):
        return said.dtype == torch.long
    return isinstance(said, Status)


def _stated(said: Any) -> Status:
    """What a callback's answer means; it may not claim success."""
    status = said if isinstance(said, Status) else Status.STOPPED
    if status in (Status.CONVERGED, Status.MAX_ITER):
        raise ValueError(
            "callback may end a solve as STOPPED (True), DIVERGED, STAGNATED "
            f"or NONFINITE, got {status.name}, which is for the residual to "
            "say"
        )
    return status
