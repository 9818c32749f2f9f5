"""What is known of a graph in compressed rows: whether its indices are sound,
and its transpose. Found out once for every pair of tensors."""

from __future__ import annotations

import weakref

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from .library import is_compiled
from .reference import accumulation_dtype

_DEFECTS = {
    1: "rowptr must start at 0, got {first}",
    2: "rowptr must end at len(col) = {entries}, got {last}",
    3: "rowptr must not decrease",
    4: "col must hold indices in [0, {sources}), the rows of h",
}


class Csr:
    """A graph whose row i holds the entries rowptr[i] to rowptr[i+1].

    Use :meth:`of`, which remembers.
    """

    _known = WeakTensorKeyDictionary()

    def __init__(self, rowptr: Tensor, col: Tensor, sources: int):
        self._rowptr, self._col = weakref.ref(rowptr), weakref.ref(col)
        self._versions = _versions(rowptr, col)
        self.sources = sources
        self._transposed: Transposed | None = None

    @classmethod
    def of(cls, rowptr: Tensor, col: Tensor, sources: int) -> Csr:
        """Checks the indices, unless these very tensors were checked before
        and not written to since.

        Raises:
            ValueError: ``rowptr`` or ``col`` is unsound.
        """
        known = cls._known.get(col)
        if known is not None and known._still(rowptr, col, sources):
            return known
        check_csr(rowptr, col, sources)
        new = cls(rowptr, col, sources)
        if new._versions is not None:
            cls._known[col] = new
        return new

    def _still(self, rowptr: Tensor, col: Tensor, sources: int) -> bool:
        return (
            self._rowptr() is rowptr
            and self.sources == sources
            and self._versions == _versions(rowptr, col)
        )

    def transposed(self, rowptr: Tensor, col: Tensor) -> Transposed:
        if self._transposed is None:
            self._transposed = Transposed(rowptr, col, self.sources)
        return self._transposed


class Transposed:
    """Column by column: place k of column j holds entry ``perm[k]``, which
    is in row ``row[k]``."""

    def __init__(self, rowptr: Tensor, col: Tensor, sources: int):
        self.colptr, self.perm = compress(col, sources)
        length = rowptr.diff()
        rows = torch.arange(length.numel(), dtype=col.dtype, device=col.device)
        rows = rows.repeat_interleave(length, output_size=col.numel())
        self.row = rows[self.perm]
        self._inverse = length.clamp(min=1).double().reciprocal()
        # value, what else the weights depend on, and the weights: replaced
        # together, as other threads may be asking
        self._kept: tuple[weakref.ref | None, tuple, Tensor] | None = None

    def weights(
        self, value: Tensor | None, mean: bool, dtype: torch.dtype
    ) -> Tensor | None:
        """value by place, divided by the row's length for a mean, in the
        accumulation dtype of ``dtype``; kept for the next iteration."""
        if value is None and not mean:
            return None
        version = None if value is None else _versions(value)
        key = (mean, dtype, version)
        kept = self._kept
        if kept is not None and (value is None or version is not None):
            of, known, weights = kept
            if known == key and (None if of is None else of()) is value:
                return weights
        out = None if value is None else value.detach()[self.perm]
        if mean:
            inverse = self._inverse[self.row]
            out = inverse if out is None else out * inverse
        assert out is not None
        out = out.to(accumulation_dtype(dtype))
        self._kept = (None if value is None else weakref.ref(value), key, out)
        return out


def compress(index: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """A stable sort by counting: ``perm`` brings equal indices together,
    those of i to the places ``ptr[i]`` to ``ptr[i+1]``."""
    index = index.contiguous()
    if index.device.type == "cpu" and is_compiled(index.device):
        ptr = index.new_empty(size + 1)
        perm = torch.empty_like(index)
        torch.ops.torch_picard._compress(index, size, ptr, perm)
        return ptr, perm
    ordered, perm = index.sort(stable=True)
    bounds = torch.arange(size + 1, dtype=index.dtype, device=index.device)
    ptr = torch.searchsorted(ordered, bounds)
    return ptr.to(index.dtype), perm.to(index.dtype)


def check_csr(rowptr: Tensor, col: Tensor, sources: int) -> None:
    """Raises a ValueError that says which index is wrong."""
    if col.device.type == "cpu" and is_compiled(col.device):
        defect = torch.ops.torch_picard._csr_defect(
            rowptr.contiguous(), col.contiguous(), sources
        )
    else:
        defect = _defect(rowptr, col, sources)
    if defect:
        raise ValueError(
            _DEFECTS[defect].format(
                first=int(rowptr[0]),
                last=int(rowptr[-1]),
                entries=col.numel(),
                sources=sources,
            )
        )


def _defect(rowptr: Tensor, col: Tensor, sources: int) -> int:
    broken = [
        rowptr[0] != 0,
        rowptr[-1] != col.numel(),
        (rowptr.diff() < 0).any(),
        ((col < 0) | (col >= sources)).any(),
    ]
    found = torch.stack(broken).tolist()  # one transfer
    return found.index(True) + 1 if True in found else 0


def _versions(*tensors: Tensor) -> tuple | None:
    """What changes with a write, or with the memory that a tensor has; None
    where writes cannot be noticed. (Those past torch, by way of numpy or of
    ``t.data``, never are.)"""
    if any(t.is_inference() for t in tensors):
        return None
    return tuple(
        (t._version, t.data_ptr(), t.shape, t.stride()) for t in tensors
    )
