"""The space a solve happens in: its structure, its segments, its norms.

A state is a Tensor or a tuple, list or dict of Tensors. Inside the engine it
is always a tuple of leaves; everything that is *per segment* is a tensor of
shape ``[S]``, whatever ``segments`` was.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

Leaves = tuple[Tensor, ...]

#: those that can be added and multiplied
_DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


class Whole:
    """The whole state is one vector: S = 1."""

    size = 1

    def norm(self, i: int, t: Tensor, dtype: torch.dtype) -> Tensor:
        if t.dtype == dtype:  # BLAS reads a vector twice as fast
            flat = t.reshape(-1)
            return torch.dot(flat, flat).sqrt().reshape(1)
        return torch.linalg.vector_norm(t, dtype=dtype).reshape(1)

    def dot(self, i: int, u: Tensor, v: Tensor) -> Tensor:
        return torch.dot(u.reshape(-1), v.reshape(-1)).reshape(1)

    def spread(self, i: int, c: Tensor, like: Tensor) -> Tensor:
        return c.reshape(())

    def occupied(self) -> Tensor | None:
        return None

    def ptr(self, i: int, rows: int) -> Tensor | None:
        return None


class Leading:
    """Each index of dim 0 is one vector: S = x.size(0)."""

    def __init__(self, size: int):
        self.size = size

    def norm(self, i: int, t: Tensor, dtype: torch.dtype) -> Tensor:
        return torch.linalg.vector_norm(_rows(t), dim=1, dtype=dtype)

    def dot(self, i: int, u: Tensor, v: Tensor) -> Tensor:
        return _rows(u * v).sum(1)

    def spread(self, i: int, c: Tensor, like: Tensor) -> Tensor:
        return c.reshape((-1,) + (1,) * (like.dim() - 1))

    def occupied(self) -> Tensor | None:
        return None

    def ptr(self, i: int, rows: int) -> Tensor | None:
        return torch.arange(rows + 1)


class Batched:
    """A sorted vector says which segment a row is in (PyG's ``batch``)."""

    def __init__(self, index: Sequence[Tensor], size: int):
        self.index = tuple(index)
        self.size = size

    def norm(self, i: int, t: Tensor, dtype: torch.dtype) -> Tensor:
        rows = torch.linalg.vector_norm(_rows(t), dim=1, dtype=dtype)
        return self._add(i, rows.square()).sqrt()

    def dot(self, i: int, u: Tensor, v: Tensor) -> Tensor:
        return self._add(i, _rows(u * v).sum(1))

    def spread(self, i: int, c: Tensor, like: Tensor) -> Tensor:
        rows = c.index_select(0, self.index[i])
        return rows.reshape((-1,) + (1,) * (like.dim() - 1))

    def occupied(self) -> Tensor | None:
        full = torch.zeros(self.size, dtype=torch.bool)
        for index in self.index:
            full[index.cpu()] = True
        return full

    def ptr(self, i: int, rows: int) -> Tensor | None:
        count = torch.bincount(self.index[i], minlength=self.size)
        return torch.cat([count.new_zeros(1), count.cumsum(0)])

    def _add(self, i: int, rows: Tensor) -> Tensor:
        return rows.new_zeros(self.size).index_add(0, self.index[i], rows)


class Space:
    """Structure, dtypes and segments of a state, and the algebra on leaves.

    Args:
        x0: the initial state; fixes structure, shapes, dtypes and device.
        segments: ``None``, ``"leading"``, a sorted LongTensor [N], or a
            structure of such tensors that matches ``x0``.
        distance: the residual is ``distance(x, P(x))``, [S], instead of the
            l2 norm of their difference.
        called: the argument that P was given as, for errors.
    """

    def __init__(
        self,
        x0: Any,
        segments: Any = None,
        distance: Callable[[Any, Any], Tensor] | None = None,
        called: str = "operator",
    ):
        if isinstance(x0, Tensor):
            self.spec, leaves = None, (x0,)
        else:
            flat, self.spec = pytree.tree_flatten(x0)
            leaves = tuple(flat)
        _check_leaves(leaves)
        self.shapes = [t.shape for t in leaves]
        self.dtypes = [t.dtype for t in leaves]
        self.device = leaves[0].device
        double = any(t == torch.float64 for t in self.dtypes)
        #: dtype of norms, coefficients and accelerator algebra
        self.dtype = torch.float64 if double else torch.float32
        self.mixed = any(t != self.dtype for t in self.dtypes)
        self.start: Leaves = leaves
        self.segments = _segments(segments, leaves, self.spec)
        self.size = self.segments.size
        self.distance = distance
        self.called = called
        self._ptr: list[Tensor | None] | None = None

    @property
    def ptr(self) -> list[Tensor | None]:
        """Offsets [S+1] of the segments in the rows of every leaf, or None
        where the whole leaf is in the one segment."""
        if self._ptr is None:
            self._ptr = []
            for i, t in enumerate(self.start):
                ptr = self.segments.ptr(i, t.size(0) if t.dim() else 1)
                self._ptr.append(None if ptr is None else ptr.to(self.device))
        return self._ptr

    @property
    def local(self) -> bool:
        """Whether all that a norm needs is in this process."""
        return not hasattr(self.segments, "group")

    # -- structure ---------------------------------------------------------

    def pack(self, leaves: Leaves) -> Any:
        """Leaves back to the user's structure."""
        if self.spec is None:
            return leaves[0]
        return pytree.tree_unflatten(list(leaves), self.spec)

    def image(self, out: Any) -> Leaves:
        """Leaves of what the operator returned, or an error that says what
        differs from the state."""
        if self.spec is None:
            flat = [out]
        else:
            try:
                flat = self.spec.flatten_up_to(out)
            except (ValueError, TypeError) as error:
                raise ValueError(
                    f"{self.called} must return the structure that it is "
                    f"given, but: {error}"
                ) from None
        return tuple(self._leaf(i, t) for i, t in enumerate(flat))

    def _leaf(self, i: int, t: Any) -> Tensor:
        where = "" if self.spec is None else f" in leaf {i}"
        if not isinstance(t, Tensor):
            raise TypeError(
                f"{self.called} must return a Tensor{where}, got "
                f"{type(t).__name__}"
            )
        if t.shape != self.shapes[i]:
            raise ValueError(
                f"{self.called} changed the shape{where}: x is "
                f"{list(self.shapes[i])}, P(x) is {list(t.shape)}; a fixed "
                "point needs P(x) to have the shape of x"
            )
        if t.device != self.device:
            raise ValueError(
                f"{self.called} changed the device{where}: x is on "
                f"{self.device}, P(x) on {t.device}"
            )
        if t.dtype != self.dtypes[i]:
            if not (t.is_floating_point() and _autocast_on(self.device)):
                raise ValueError(
                    f"{self.called} changed the dtype{where}: x is "
                    f"{self.dtypes[i]}, P(x) is {t.dtype}; cast one of them "
                    "(only under autocast is P(x) cast back)"
                )
            t = t.to(self.dtypes[i])
        return t

    # -- algebra on leaves -------------------------------------------------

    def lift(self, leaves: Leaves) -> Leaves:
        """To the dtype of the algebra (float32 for half precision)."""
        if not self.mixed:
            return leaves
        return tuple(t.to(self.dtype) for t in leaves)

    def lower(self, leaves: Leaves) -> Leaves:
        """Back to the dtypes of the state."""
        if not self.mixed:
            return leaves
        return tuple(t.to(d) for t, d in zip(leaves, self.dtypes))

    def norm(self, leaves: Leaves, dtype: torch.dtype | None = None) -> Tensor:
        """l2 norm per segment, [S], outside the autograd graph."""
        norms = [
            self.segments.norm(i, t.detach(), dtype or self.dtype)
            for i, t in enumerate(leaves)
        ]
        if len(norms) == 1:
            return norms[0]
        return torch.linalg.vector_norm(torch.stack(norms), dim=0)

    def any_norm(self, leaves: Leaves) -> Tensor:
        """The same of float64 leaves whose squares may vanish or overflow:
        those segments are measured on another scale, as Blue has it (ACM
        Trans. Math. Softw. 4, 1978)."""
        norm = self.norm(leaves, torch.float64)
        for scale in (2.0**600, 2.0**-600):
            other = tuple(t * scale for t in leaves)
            scaled = self.norm(other, torch.float64) / scale
            off = norm < 1e-150 if scale > 1 else ~(norm < 1e150)
            norm = torch.where(off, scaled, norm)
        return norm

    def residual(self, x: Leaves, z: Leaves) -> Tensor:
        """How far x is from z = P(x), [S], outside the autograd graph."""
        x, z = detach(x), detach(z)
        if self.distance is None:
            return self.norm(sub(self.lift(z), self.lift(x)))
        r = self.distance(self.pack(x), self.pack(z))
        if not isinstance(r, Tensor) or r.numel() != self.size:
            shape = list(r.shape) if isinstance(r, Tensor) else type(r)
            raise ValueError(
                f"distance must return one number for each of {self.size} "
                f"segments, got {shape}"
            )
        return r.detach().reshape(-1).to(self.device, self.dtype)

    def extent(self, z: Leaves) -> Tensor:
        """|z| per segment, [S]: what a relative tolerance is relative to,
        and not finite where z is not. 0 beside a ``distance``, which has
        units of its own."""
        norm = self.norm(detach(z))
        return norm if self.distance is None else 0 * norm

    def rounding(self, u: Leaves) -> Tensor:
        """What one rounding of u to the dtypes of the state may do to |u|,
        [S]."""
        units = [torch.finfo(dtype).eps for dtype in self.dtypes]
        if min(units) == max(units):
            return units[0] * self.norm(self.lift(u))
        return self.norm(tuple(e * t for e, t in zip(units, self.lift(u))))

    def dot(self, u: Leaves, v: Leaves) -> Tensor:
        """Inner product per segment, [S]."""
        sums = [
            self.segments.dot(i, a, b) for i, (a, b) in enumerate(zip(u, v))
        ]
        return sums[0] if len(sums) == 1 else torch.stack(sums).sum(0)

    def scale(self, c: Tensor, u: Leaves) -> Leaves:
        """c[s] * u, segment by segment."""
        return tuple(
            self.segments.spread(i, c, t) * t for i, t in enumerate(u)
        )

    def axpy(self, c: Tensor, u: Leaves, v: Leaves) -> Leaves:
        """c[s] * u + v, segment by segment."""
        return tuple(
            torch.addcmul(b, self.segments.spread(i, c, a), a)
            for i, (a, b) in enumerate(zip(u, v))
        )

    def where(self, mask: Tensor, u: Leaves, v: Leaves) -> Leaves:
        """u on the segments where mask [S] is true, v on the others."""
        return tuple(
            torch.where(self.segments.spread(i, mask, a), a, b)
            for i, (a, b) in enumerate(zip(u, v))
        )


def add(u: Leaves, v: Leaves) -> Leaves:
    return tuple(a + b for a, b in zip(u, v))


def sub(u: Leaves, v: Leaves) -> Leaves:
    return tuple(a - b for a, b in zip(u, v))


def detach(u: Leaves) -> Leaves:
    return tuple(t.detach() for t in u)


def tree_map(fn: Callable[[Tensor], Any], tree: Any) -> Any:
    """fn on every Tensor of a nested structure or dataclass-free carry."""
    return pytree.tree_map_only(Tensor, fn, tree)


def _rows(t: Tensor) -> Tensor:
    return t.flatten(1) if t.dim() > 1 else t[:, None]


def _autocast_on(device: torch.device) -> bool:
    return torch.is_autocast_enabled(device.type)


def _check_leaves(leaves: Sequence[Any]) -> None:
    if not leaves:
        raise ValueError("x0 must hold at least one Tensor, got none")
    for t in leaves:
        if not isinstance(t, Tensor):
            raise TypeError(
                "x0 must be a Tensor or a tuple, list or dict of Tensors, "
                f"got a {type(t).__name__}"
            )
        if t.dtype not in _DTYPES:
            how = "torch.view_as_real(x0)" if t.is_complex() else "x0.float()"
            raise ValueError(
                "x0 must be of a real floating dtype (float64, float32, "
                f"bfloat16, float16), got {t.dtype}; convert it, e.g. with "
                f"{how}"
            )
        if t.layout != torch.strided:
            raise ValueError(
                f"x0 must be dense, got layout {t.layout}; use x0.to_dense()"
            )
        if t.is_meta:
            raise ValueError(
                "x0 must hold values, got a Tensor on the meta device"
            )
        if t.device != leaves[0].device:
            raise ValueError(
                "x0 must be on one device, got "
                f"{leaves[0].device} and {t.device}"
            )
    # one of several may be: a node type of which a graph has no nodes
    if not any(t.numel() for t in leaves):
        shapes = ", ".join(str(list(t.shape)) for t in leaves)
        raise ValueError(f"x0 must not be empty, got shape {shapes}")


def _segments(segments: Any, leaves: Leaves, spec: Any):
    if segments is None:
        return Whole()
    if hasattr(segments, "check"):  # shared.py, which imports this
        segments.check(leaves)
        return segments
    if isinstance(segments, str):
        return _leading(segments, leaves)
    if isinstance(segments, Tensor):
        index = [segments] * len(leaves)
    elif spec is None:
        raise TypeError(
            "segments must be None, 'leading' or a sorted LongTensor [N], "
            f"got {type(segments).__name__}"
        )
    else:
        try:
            index = spec.flatten_up_to(segments)
        except (ValueError, TypeError) as error:
            raise ValueError(
                "segments must be None, 'leading', a LongTensor, or a "
                f"structure of LongTensors that matches x0, but: {error}"
            ) from None
    for batch, leaf in zip(index, leaves):
        _check_batch(batch, leaf)
    size = 1 + max(int(batch[-1]) for batch in index if batch.numel())
    if torch.compiler.is_compiling():
        torch._check(size >= 1)  # unknown to the compiler otherwise
    return Batched(index, size)


def _leading(segments: str, leaves: Leaves) -> Leading:
    if segments != "leading":
        raise ValueError(
            "segments must be None, 'leading' or a sorted LongTensor [N], "
            f"got {segments!r}"
        )
    sizes = {t.size(0) if t.dim() else None for t in leaves}
    if len(sizes) > 1 or None in sizes:
        raise ValueError(
            "segments='leading' needs leaves of equal dim 0, got shapes "
            f"{[list(t.shape) for t in leaves]}"
        )
    return Leading(leaves[0].size(0))


def _check_batch(batch: Any, leaf: Tensor) -> None:
    if not isinstance(batch, Tensor):
        raise TypeError(
            f"segments must hold LongTensors, got {type(batch).__name__}"
        )
    if batch.dtype != torch.long or batch.dim() != 1:
        raise ValueError(
            "segments must be a LongTensor of shape [N], got "
            f"{batch.dtype} of shape {list(batch.shape)}"
        )
    rows = leaf.size(0) if leaf.dim() else None
    if batch.numel() != rows:
        raise ValueError(
            f"segments must have one entry a row of x0: got {batch.numel()} "
            f"entries for a leaf of shape {list(leaf.shape)}; leaves of "
            "different dim 0 take a matching structure of batch vectors"
        )
    if batch.device != leaf.device:
        raise ValueError(
            f"segments must be on the device of x0, got {batch.device} "
            f"and {leaf.device}"
        )
    if torch.compiler.is_compiling() or not rows:
        return
    if int(batch[0]) < 0:
        raise ValueError(f"segments must not be negative, got {int(batch[0])}")
    if bool((batch[1:] < batch[:-1]).any()):
        raise ValueError(
            "segments must be sorted (non-decreasing), as PyG's batch is; "
            "sort the rows of x0 by segment first"
        )
