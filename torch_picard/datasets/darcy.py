"""Steady Darcy flow on the unit square: solver and data."""

from __future__ import annotations

import hashlib
import json
import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset
from tqdm import tqdm

from ..engine.methods.base import check_count
from .stored import load_or_make, row_of

#: Samples that are computed together and share a file.
_CHUNK = 16
_SPLITS = {"train": 1000, "test": 50}
#: What the files' False and True stand for, when the right-hand side is 1.
_OF_FILES = (0.02, 0.36)


def darcy_coefficients(
    num: int,
    resolution: int,
    *,
    values: tuple[float, float] = (3.0, 12.0),
    generator: torch.Generator | None = None,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    r"""Random coefficients of two values: where a Gaussian random field of
    covariance :math:`(-\Delta + 9)^{-2}`, with zero Neumann boundary and
    without its mean, is negative, the first; elsewhere the second.

    Args:
        num: how many.
        resolution: s, cells along each axis.
        values: two positive numbers.
        generator: on the CPU; where the random numbers come from.
        dtype: float32 or float64.

    Returns:
        [num, s, s], at the centres (i + 1/2)/s of the cells.

    Raises:
        ValueError: an argument is out of range.
        TypeError: an argument is of the wrong type.

    Source: the Darcy data of Li et al. 2021, "Fourier Neural Operator for
    Parametric Partial Differential Equations".
    """
    check_count("num", num)
    check_count("resolution", resolution)
    _check_dtype("dtype", dtype)
    low, high = _check_values(values)
    s = resolution
    k = torch.arange(s, dtype=torch.float64)
    waves = torch.cos(math.pi * k * (k[:, None] + 0.5) / s)  # [point, wave]
    size = 1 / (math.pi**2 * (k[:, None] ** 2 + k**2) + 9)
    size[0, 0] = 0.0
    white = torch.randn(num, s, s, generator=generator, dtype=torch.float64)
    field = waves @ (size * white) @ waves.T
    return torch.where(field < 0, low, high).to(dtype)


def solve_darcy(
    a: Tensor, forcing: float | Tensor = 1.0, *, progress: bool = False
) -> Tensor:
    r"""Solves :math:`-\nabla \cdot (a \nabla u) = f` on the unit square, with
    u = 0 on its boundary.

    Finite volumes: both fields live at the centres of s x s cells, and the
    flux between two cells takes the harmonic mean of their coefficients, as
    is right for coefficients that jump between cells. Second order for
    smooth ones. Each sample is one sparse factorisation, in float64.

    Args:
        a: [B, s, s], positive, float32 or float64, at ((i + 1/2)/s,
            (j + 1/2)/s); x is dim -2, y is dim -1.
        forcing: f, a number or a Tensor [s, s] or [B, s, s].
        progress: whether to show a progress bar.

    Returns:
        u [B, s, s], of the dtype of a and on its device. No gradient.

    Raises:
        ValueError: an argument is out of range or of a wrong shape.
        TypeError: an argument is of the wrong type.
        ImportError: scipy is missing.
    """
    _check_coefficient(a)
    f = _forcing(forcing, a)
    out = torch.empty(a.shape, dtype=torch.float64)
    rows = tqdm(range(len(a)), "Darcy", disable=not progress)
    for row in rows:
        cells = a[row].detach().double().cpu().numpy()
        out[row] = torch.from_numpy(_solve(cells, f[row]))
    return out.to(a)


def _solve(a: np.ndarray, f: np.ndarray) -> np.ndarray:
    """One sample; the equation of a cell is times its area 1/s^2."""
    sparse, linalg = _scipy()
    s = len(a)
    cell = np.arange(s * s).reshape(s, s)
    diagonal = np.zeros((s, s))
    rows, columns, entries = [], [], []
    pairs = (
        (np.s_[:-1, :], np.s_[1:, :]),
        (np.s_[:, :-1], np.s_[:, 1:]),
    )
    for before, after in pairs:
        flux = 2 / (1 / a[before] + 1 / a[after])
        diagonal[before] += flux
        diagonal[after] += flux
        rows += [cell[before], cell[after]]
        columns += [cell[after], cell[before]]
        entries += [-flux, -flux]
    # the boundary is half a cell away
    for edge in (np.s_[0], np.s_[-1], np.s_[:, 0], np.s_[:, -1]):
        diagonal[edge] += 2 * a[edge]
    parts = [
        np.concatenate([part.ravel() for part in (*given, own)])
        for given, own in (
            (entries, diagonal), (rows, cell), (columns, cell),
        )
    ]  # fmt: skip
    matrix = sparse.csc_matrix((parts[0], (parts[1], parts[2])))
    factors = linalg.splu(
        matrix,
        permc_spec="MMD_AT_PLUS_A",
        diag_pivot_thresh=0.0,
        options={"SymmetricMode": True},
    )
    return factors.solve(f.ravel() / s**2).reshape(s, s)


class Darcy(Dataset):
    r"""Steady Darcy flow: from a coefficient to the pressure.

    .. math::

        -\nabla \cdot (a \nabla u) = 1 \text{ on } (0,1)^2, \qquad
        u = 0 \text{ on the boundary}

    ``source="files"``: the files ``darcy_{split}_{resolution}.pt`` of the
    folder ``darcy`` in the folder that the environment variable
    ``TORCH_PICARD_DATA`` names; a takes the values 0.02 and 0.36.
    ``source="generated"``: :func:`darcy_coefficients`, solved by
    :func:`solve_darcy` on ``fine`` x ``fine`` cells and thinned out: samples
    of one ``fine`` are the same at every resolution. Computed once and kept
    on disk; files are written as they are finished, and an interrupted run
    goes on where it stopped. A sample depends on its index and the arguments
    only.

    Either way the first point along an axis is half a fine cell off the
    boundary, and the points are 1/resolution apart: nearly at i/resolution.

    Args:
        root: the folder to keep generated files in.
        resolution: s, points along each axis.
        split: ``"train"`` or ``"test"``.
        num_samples: how many. (default: all there are in the file; 1000 and
            50 where they are generated)
        seed: of the coefficients, where they are generated.
        source: ``"files"`` or ``"generated"``. (default: files where
            ``TORCH_PICARD_DATA`` has a folder ``darcy``)
        fine: cells along each axis to solve on, a multiple of s.
        values: the two values of a generated coefficient.
        progress: whether to show a progress bar.

    ``ds[i]`` is ``(a [s, s], u [s, s])``, float32; ``ds.source`` says where
    it comes from.

    Raises:
        ValueError: an argument is out of range.
        TypeError: an argument is of the wrong type.
        FileNotFoundError: there is no such file.
        IndexError: there is no such sample.

    Source: Li et al. 2021, "Fourier Neural Operator for Parametric Partial
    Differential Equations".
    """

    def __init__(
        self,
        root: str | Path,
        *,
        resolution: int = 16,
        split: str = "train",
        num_samples: int | None = None,
        seed: int = 0,
        source: str | None = None,
        fine: int = 128,
        values: tuple[float, float] = (3.0, 12.0),
        progress: bool = True,
    ):
        check_count("resolution", resolution)
        if num_samples is not None:
            check_count("num_samples", num_samples)
        if split not in _SPLITS:
            raise ValueError(
                f"split must be one of {', '.join(_SPLITS)}, got {split!r}"
            )
        folder = os.environ.get("TORCH_PICARD_DATA")
        given = None if folder is None else Path(folder) / "darcy"
        if source is None:
            found = given is not None and given.is_dir()
            source = "files" if found else "generated"
        self.resolution, self.split, self.source = resolution, split, source
        if isinstance(seed, bool) or not isinstance(seed, int):
            raise TypeError(f"seed must be an integer, got {seed!r}")
        self.seed = seed
        self._chunk: tuple[int, Any] = (-1, None)
        if source == "files":
            self._open(given, num_samples)
        elif source == "generated":
            self.num_samples = num_samples or _SPLITS[split]
            self._generate(Path(root), fine, values, progress)
        else:
            raise ValueError(
                f"source must be 'files' or 'generated', got {source!r}"
            )

    def __len__(self) -> int:
        return self.num_samples

    def __getitem__(self, i: int) -> tuple[Tensor, Tensor]:
        i = row_of(i, self.num_samples)
        if self.source == "files":
            return self._a[i].clone(), self._u[i].clone()
        chunk, row = divmod(i, _CHUNK)
        if self._chunk[0] != chunk:
            path = self._path(chunk)
            loaded = load_or_make(path, lambda: self._compute(chunk))
            self._chunk = (chunk, loaded)
        high, u = self._chunk[1]
        step = self.fine // self.resolution
        low, top = self.values
        a = torch.where(high[row, ::step, ::step], top, low)
        return a, u[row, ::step, ::step].clone()

    def _open(self, folder: Path | None, num_samples: int | None) -> None:
        name = f"darcy_{self.split}_{self.resolution}.pt"
        if folder is None or not (folder / name).is_file():
            where = "TORCH_PICARD_DATA is not set"
            if folder is not None:
                where = f"{folder} has none"
            raise FileNotFoundError(
                f"there is no file {name}: {where}; source='generated' makes "
                "other data of the same kind"
            )
        loaded = torch.load(folder / name, weights_only=True)
        there = len(loaded["x"])
        self.num_samples = there if num_samples is None else num_samples
        if self.num_samples > there:
            raise ValueError(
                f"num_samples must be at most the {there} of {name}, got "
                f"{num_samples}"
            )
        low, high = _OF_FILES
        self._a = torch.where(loaded["x"].bool(), high, low)
        self._u = loaded["y"].float()

    def _generate(
        self, root: Path, fine: int, values: Any, progress: bool
    ) -> None:
        check_count("fine", fine)
        if fine % self.resolution:
            raise ValueError(
                f"fine must be a multiple of resolution={self.resolution}, "
                f"got {fine}"
            )
        self.fine, self.values = fine, _check_values(values)
        facts = {
            "fine": fine, "values": self.values, "seed": self.seed,
            "split": self.split, "format": 1,
        }  # fmt: skip
        text = json.dumps(facts, sort_keys=True)
        name = hashlib.sha256(text.encode()).hexdigest()[:16]
        self.folder = root / f"darcy_{name}"
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / "arguments.json").write_text(text + "\n")
        chunks = range(math.ceil(self.num_samples / _CHUNK))
        missing = [c for c in chunks if not self._path(c).exists()]
        for c in tqdm(missing, "Darcy", disable=not (progress and missing)):
            self._compute(c)

    def _path(self, chunk: int) -> Path:
        return self.folder / f"{chunk:05d}.pt"

    def _compute(self, chunk: int) -> None:
        """Always a whole chunk: what a sample is does not depend on how many
        were asked for."""
        fields = []
        for i in range(chunk * _CHUNK, (chunk + 1) * _CHUNK):
            text = f"{self.seed}/{self.split}/{i}"
            digest = hashlib.sha256(text.encode()).digest()
            number = int.from_bytes(digest[:7], "big")
            generator = torch.Generator().manual_seed(number)
            fields.append(
                darcy_coefficients(
                    1,
                    self.fine,
                    values=self.values,
                    generator=generator,
                    dtype=torch.float64,
                )
            )
        a = torch.cat(fields)
        kept = (a == self.values[1], solve_darcy(a).float())
        temporary = self._path(chunk).with_suffix(".tmp")
        torch.save(kept, temporary)
        temporary.replace(self._path(chunk))


def _scipy() -> tuple[Any, Any]:
    try:
        from scipy import sparse
        from scipy.sparse import linalg
    except ImportError as error:
        raise ImportError(
            "solve_darcy needs scipy: pip install 'torch-picard[datasets]'"
        ) from error
    return sparse, linalg


def _forcing(forcing: Any, a: Tensor) -> np.ndarray:
    """[B, s, s]"""
    if isinstance(forcing, Tensor):
        if forcing.shape not in (a.shape, a.shape[1:]):
            raise ValueError(
                f"forcing must have shape {list(a.shape[1:])} or "
                f"{list(a.shape)}, got {list(forcing.shape)}"
            )
        f = forcing.detach().double().cpu().expand(a.shape)
    elif isinstance(forcing, (int, float)) and not isinstance(forcing, bool):
        f = torch.full(a.shape, float(forcing), dtype=torch.float64)
    else:
        raise TypeError(
            "forcing must be a number or a Tensor, got "
            f"{type(forcing).__name__}"
        )
    if not bool(torch.isfinite(f).all()):
        raise ValueError("forcing must be finite")
    return f.numpy()


def _check_coefficient(a: Any) -> None:
    if not isinstance(a, Tensor):
        raise TypeError(f"a must be a Tensor, got {type(a).__name__}")
    if a.dim() != 3 or a.size(-1) != a.size(-2) or a.numel() == 0:
        raise ValueError(f"a must have shape [B, s, s], got {list(a.shape)}")
    _check_dtype("a", a.dtype)
    if not bool(((a > 0) & torch.isfinite(a)).all()):
        raise ValueError(
            "a must be positive and finite, got values from "
            f"{float(a.min()):g} to {float(a.max()):g}"
        )


def _check_dtype(name: str, dtype: Any) -> None:
    if dtype not in (torch.float32, torch.float64):
        raise ValueError(f"{name} must be float32 or float64, got {dtype}")


def _check_values(values: Any) -> tuple[float, float]:
    numbers = (int, float)
    if (
        not isinstance(values, (tuple, list))
        or len(values) != 2
        or not all(isinstance(v, numbers) and 0 < v < math.inf for v in values)
    ):
        raise ValueError(f"values must be two positive numbers, got {values}")
    return float(values[0]), float(values[1])
