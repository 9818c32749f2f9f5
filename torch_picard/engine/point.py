"""One evaluation: an iterate x, its image P(x), and what follows from them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from .space import Leaves, Space, detach, sub

#: Norms whose squares a dtype holds without loss.
_USUAL = {torch.float32: (1e-15, 1e18), torch.float64: (1e-150, 1e150)}


class Point:
    """x, z = P(x), f = z - x and r = |f|.

    Attributes:
        x, z: leaves in the dtypes of the state.
        residual: r(x) per segment [S], undamped, outside the graph.
        target: the residual that would pass, an array [S]; 0 if none does.
    """

    __slots__ = ("space", "x", "z", "residual", "target", "_f")

    #: the segments that were looked at, if not all
    active: Tensor | None = None

    def __init__(self, space: Space, x: Leaves, z: Leaves):
        self.space, self.x, self.z = space, x, z
        self.target: np.ndarray | float = 0.0
        self._f: Leaves | None = None
        # f is not kept: a method that does not ask for it should not hold
        # another state in the cache
        self.residual: Tensor = space.residual(x, z)

    @property
    def usual(self) -> tuple[float, float]:
        """Norms between these are measured without loss, as those of a
        kernel are, which sums products of the same dtype."""
        return _USUAL[self.space.dtype]

    @property
    def norm(self) -> Tensor:
        """|P(x)| per segment [S], outside the graph."""
        return self.space.extent(self.z)

    def measured(self) -> tuple[np.ndarray, np.ndarray]:
        """r(x) and |P(x)|, where squares vanish or overflow."""
        r, norm = _measured(self.space, self.x, self.z)
        self.residual = r.to(self.space.dtype)
        return to_host(r), to_host(norm)

    def release(self) -> None:
        """Nothing will be measured again."""

    def on_host(self) -> tuple[np.ndarray, np.ndarray | None]:
        """r(x), and |P(x)| if that costs nothing more."""
        return to_host(self.residual), None

    def smoothed(self, *alpha: float | Tensor) -> Leaves:
        """alpha*x + (1-alpha)*P(x): alpha weights the OLD state. One alpha,
        or one for each leaf."""
        if len(alpha) == 1:
            alpha = alpha * len(self.x)
        leaves = zip(self.x, self.z, alpha)
        return tuple(_smoothed(x, z, a) for x, z, a in leaves)

    @property
    def f(self) -> Leaves:
        """P(x) - x in the dtype of the algebra, inside the graph."""
        if self._f is None:
            lift = self.space.lift
            self._f = sub(lift(self.z), lift(self.x))
        return self._f

    def away(self, origin: Leaves) -> tuple[Tensor, Tensor]:
        """|x - origin| and the cosine between that and f, each [S]."""
        space, x = self.space, _double(self.x)
        way, f = sub(x, _double(origin)), sub(self._ahead(), x)
        far = space.norm(way, torch.float64)
        along = space.dot(way, f)
        return far, along / (far * space.norm(f, torch.float64))

    def _ahead(self) -> Leaves:
        """Where f points to from x, in float64."""
        return _double(self.z)

    def mend(self, sound: Tensor) -> None:
        """P(x) = x from here on where ``sound`` [S] is false: a NaN would
        reach the gradient of others through what they share (0 * NaN).
        The residual remains what it is."""
        rest = detach(self.x)
        self.z = self.space.where(sound, self.z, rest)
        self._f = None


class Smoothed(Point):
    """An evaluation that a kernel has already smoothed: there may be no z.

    Attributes:
        x, y: leaves, the iterate and alpha*x + (1-alpha)*P(x).
        stats: |P(x) - x|^2 and |P(x)|^2 per segment, float64 [S, 2].
        active: bool [S], the segments it was made for; None for all. The
            others have y = x and stats 0.
        image: makes z = P(x); None if there are no leaves here.
    """

    __slots__ = ("y", "stats", "active", "image", "_norms")

    def __init__(
        self,
        space: Space,
        x: Leaves,
        y: Leaves,
        stats: Tensor,
        active: Tensor | None,
        image: Callable[[], Leaves] | None,
    ):
        self.space, self.x, self.y = space, x, y
        self.stats, self.active, self.image = stats, active, image
        self.target: np.ndarray | float = 0.0
        self._norms: Tensor | None = None

    def release(self) -> None:
        """z is as large as x, and should not stay for a method that does
        not ask for it."""
        self.image = None

    @property
    def norms(self) -> Tensor:
        """r(x) and |P(x)| per segment, float64 [S, 2]."""
        return self.stats.sqrt() if self._norms is None else self._norms

    @property
    def residual(self) -> Tensor:  # type: ignore[override]
        return self.norms[:, 0].to(self.space.dtype)

    @property
    def norm(self) -> Tensor:
        return self.norms[:, 1].to(self.space.dtype)

    def on_host(self) -> tuple[np.ndarray, np.ndarray]:
        if self._norms is None:
            both = np.sqrt(self.stats.cpu().numpy())
        else:
            both = self._norms.cpu().numpy()
        return both[:, 0], both[:, 1]

    def measured(self) -> tuple[np.ndarray, np.ndarray]:
        """Of P(x), not of y: in half precision that may be x already."""
        if self.image is not None:
            norms = _measured(self.space, self.x, self.image())
            self._norms = torch.stack(norms, dim=1)
        return self.on_host()

    def away(self, origin: Leaves) -> tuple[Tensor, Tensor]:
        if self.image is None:
            unknown = torch.full_like(self.norms[:, 0], torch.nan)
            return unknown, unknown
        return super().away(origin)

    def _ahead(self) -> Leaves:
        return _double(self.y)

    def smoothed(self, *alpha: float | Tensor) -> Leaves:
        return self.y

    def mend(self, sound: Tensor) -> None:
        self.y = self.space.where(sound, self.y, detach(self.x))


def _smoothed(x: Tensor, z: Tensor, alpha: float | Tensor) -> Tensor:
    if isinstance(alpha, Tensor):
        return torch.lerp(x, z, (1 - alpha).to(x).expand_as(x))
    return z if alpha == 0 else torch.lerp(x, z, 1 - alpha)


def _measured(space: Space, x: Leaves, z: Leaves) -> tuple[Tensor, Tensor]:
    x, z = _double(x), _double(z)
    return space.any_norm(sub(z, x)), space.any_norm(z)


def _double(leaves: Leaves) -> Leaves:
    return tuple(t.detach().double() for t in leaves)


def to_host(t: Tensor) -> np.ndarray:
    return t.cpu().numpy().astype(np.float64)


def secant(
    space: Space, here: Point, previous: Point
) -> tuple[Tensor, Tensor]:
    """|dx| and |dx|/|df| of the last update, each [S].

    df = (J - I) dx for a linear P, so the second is a sample of
    |(I - J)^{-1}|: how many times larger than the residual the error is
    along the direction the iteration moves in.
    """
    # f is kept, and a method's step is made of it: so not under no_grad
    step = space.norm(sub(here.x, previous.x))
    turn = space.norm(sub(here.f, previous.f))
    return step, step / turn
