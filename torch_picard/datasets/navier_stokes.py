"""Two-dimensional Navier-Stokes in vorticity form: solver and data."""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset
from tqdm import tqdm

from .stored import load_or_make, row_of

_DTYPES = (torch.float32, torch.float64)
#: Samples that are computed together and share a file.
_CHUNK = 16
#: Time steps between two looks at the speed of the flow.
_BLOCK = 50
_COURANT = 0.35
#: Beyond this many between two looks, nobody would wait for the result.
_MOST_IN_ALL = 1e8
_MOST_STEPS = 1e6


def gaussian_random_field(
    num: int,
    resolution: int,
    alpha: float = 2.5,
    tau: float = 7.0,
    generator: torch.Generator | None = None,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    r"""Periodic Gaussian random fields on the unit square with mean zero and
    covariance :math:`\tau^{2(\alpha-1)} (-\Delta + \tau^2)^{-\alpha}`.

    Args:
        num: how many.
        resolution: s, points along each axis.
        alpha: smoothness, above 1 (the variance is infinite otherwise).
        tau: inverse length scale, positive.
        generator: on the CPU; where the random numbers come from.
        dtype: float32 or float64.

    Returns:
        [num, s, s]; x is dim -2, y is dim -1.

    Raises:
        ValueError: an argument is out of range.

    Source: the initial vorticity of Li et al. 2021, "Fourier Neural Operator
    for Parametric Partial Differential Equations".
    """
    _check_count("num", num)
    _check_count("resolution", resolution)
    _check_dtype(dtype)
    _check_number("alpha", alpha, 1.0, False)
    _check_number("tau", tau, 0.0, False)
    s = resolution
    white = torch.randn(num, s, s, generator=generator, dtype=torch.float64)
    kx, ky = _wave_numbers(s, torch.float64, white.device)
    spectrum = 4 * math.pi**2 * (kx**2 + ky**2) + tau**2
    spectrum = s * tau ** (alpha - 1) * spectrum ** (-alpha / 2)
    spectrum[0, 0] = 0.0
    field = torch.fft.irfft2(torch.fft.rfft2(white) * spectrum, s=(s, s))
    return field.to(dtype)


def solve_navier_stokes(
    w0: Tensor,
    viscosity: float,
    t_end: float,
    dt: float = 1e-2,
    forcing: str | Tensor | None = None,
    frames: int = 1,
    *,
    progress: bool = False,
) -> Tensor:
    r"""Vorticity of an incompressible flow on the periodic unit square:

    .. math::

        \partial_t w + u \cdot \nabla w = \nu \Delta w + f, \qquad
        u = (\partial_y \psi, -\partial_x \psi), \quad -\Delta \psi = w

    Pseudo-spectral, alias-free by the 2/3 rule; exponential
    Adams-Bashforth steps of second order, exact for the viscosity.

    Args:
        w0: [B, s, s], float32 or float64, on any device; x is dim -2, y is
            dim -1. Its mean does not move the flow and stays as it is.
        viscosity: :math:`\nu`, not negative.
        t_end: the time to reach, positive.
        dt: the longest time step; shortened so that frames are met, and
            where the flow is too fast for it.
        forcing: :math:`f`: :obj:`None`; ``"fno"`` for
            :math:`0.1 (\sin 2\pi(x+y) + \cos 2\pi(x+y))`; or a Tensor
            [s, s] or [B, s, s].
        frames: how many states to return, at ``t_end*k/frames``, k = 1, ...
        progress: whether to show a progress bar.

    Returns:
        [B, frames, s, s], of the dtype of w0.

    Raises:
        ValueError: an argument is out of range or of a wrong shape.
        FloatingPointError: the flow became infinite, or so fast that steps
            would have to be millions of times shorter.

    Source: the data of Li et al. 2021 (there by explicit Euler steps with
    Crank-Nicolson for the viscosity); the steps, Cox and Matthews 2002,
    "Exponential Time Differencing for Stiff Systems".
    """
    _check_state(w0)
    _check_times(viscosity, t_end, dt)
    _check_count("frames", frames)
    flow = _Flow(w0, viscosity, forcing)
    interval = t_end / frames
    out = w0.new_empty(w0.size(0), frames, *w0.shape[1:])
    what = torch.fft.rfft2(w0)
    with tqdm(total=t_end, disable=not progress, desc="flow") as bar:
        for frame in range(frames):
            blocks = max(1, math.ceil(interval / (_BLOCK * dt) - 1e-9))
            for _ in range(blocks):
                what = flow.advance(what, interval / blocks, dt)
                bar.update(interval / blocks)
            w = torch.fft.irfft2(what, s=w0.shape[1:])
            if not bool(torch.isfinite(w).all()):
                raise FloatingPointError(
                    f"dt={dt:g} is too long: the vorticity became infinite "
                    f"before t={interval * (frame + 1):g}; take less"
                )
            out[:, frame] = w
    return out


class _Flow:
    """The right-hand side, in Fourier space."""

    def __init__(self, w0: Tensor, viscosity: float, forcing: Any):
        s = w0.size(-1)
        kx, ky = _wave_numbers(s, w0.dtype, w0.device)
        self.size = (s, s)
        turn = 2 * math.pi
        square = turn**2 * (kx**2 + ky**2)
        self.damping = viscosity * square
        inverse = torch.where(square > 0, 1 / square.clamp_min(1.0), 0.0)
        # products of what is kept have no alias among what is kept
        keep = ((3 * kx.abs() < s) & (3 * ky.abs() < s)).to(w0.dtype)
        self.u = 1j * turn * ky * inverse * keep
        self.v = -1j * turn * kx * inverse * keep
        self.keep = keep
        self.dx, self.dy = 1j * turn * kx * keep, 1j * turn * ky * keep
        self.top = turn * float((kx.abs() * keep).max())
        self.before: Tensor | None = None
        self.h = 0.0
        self.forcing = None
        field = _forcing(forcing, w0)
        if field is not None:
            self.forcing = torch.fft.rfft2(field)

    def advance(self, what: Tensor, time: float, dt: float) -> Tensor:
        """Steps of equal length, as short as the speed of the flow demands:
        Adams-Bashforth is stable for k u h up to some 0.4."""
        speed = float(self._speed(what))
        if not math.isfinite(speed):
            return what  # the caller sees it
        longest = min(dt, _COURANT / max(speed, 1e-12))
        if time / longest > _MOST_STEPS:
            raise FloatingPointError(
                f"the flow is too fast: speed times wave number is {speed:g},"
                f" which takes {time / longest:.0e} steps for a time of "
                f"{time:g}; scale w0 or forcing down"
            )
        steps = max(1, math.ceil(time / longest - 1e-9))
        h = time / steps
        decay, first, second = self._weights(h)
        for _ in range(steps):
            now = self._explicit(what)
            start = decay * what + first * now
            if self.before is None:  # Runge-Kutta, of the same order
                slope = self._explicit(start) - now
            else:
                slope = (h / self.h) * (now - self.before)
            what = start + second * slope
            self.before, self.h = now, h
        return what

    def _weights(self, h: float) -> tuple[Tensor, Tensor, Tensor]:
        r"""The step is exact for the viscosity and for a right-hand side
        that is linear in time: with :math:`z = -\nu k^2 h`, :math:`e^z`,
        :math:`h (e^z-1)/z` and :math:`h (e^z-1-z)/z^2`."""
        z = (-self.damping * h).double()
        safe = torch.where(z < -1e-4, z, torch.full_like(z, -1.0))
        first = torch.where(
            z < -1e-4, torch.expm1(safe) / safe, 1 + z / 2 + z**2 / 6
        )
        second = torch.where(
            z < -1e-4,
            (torch.expm1(safe) - safe) / safe**2,
            0.5 + z / 6 + z**2 / 24,
        )
        dtype = self.damping.dtype
        return z.exp().to(dtype), (h * first).to(dtype), (h * second).to(dtype)

    def _speed(self, what: Tensor) -> Tensor:
        """max |u_x| k_x + |u_y| k_y over all that is kept."""
        fields = torch.fft.irfft2(
            torch.stack([self.u * what, self.v * what]), s=self.size
        )
        return fields.abs().sum(0).amax() * self.top

    def _explicit(self, what: Tensor) -> Tensor:
        fields = torch.stack([self.u * what, self.v * what, self.keep * what])
        u, v, w = torch.fft.irfft2(fields, s=self.size)
        uw, vw = torch.fft.rfft2(torch.stack([u * w, v * w]))
        out = -(self.dx * uw + self.dy * vw)
        return out if self.forcing is None else out + self.forcing


class NavierStokes2D(Dataset):
    r"""Flows from random initial vorticity, computed once and kept on disk.

    Sample i depends on its index and the arguments only. Files are written
    as they are finished: an interrupted run goes on where it stopped.

    Args:
        root: the folder to keep files in.
        num_samples: how many flows.
        resolution: points along each axis.
        viscosity, t_end, dt, frames, forcing: see
            :func:`solve_navier_stokes`.
        seed: of the initial vorticity.
        dtype: float32 or float64.
        device: where to compute. (default: :obj:`"cpu"`)
        progress: whether to show a progress bar.

    ``ds[i]`` is ``(w0 [s, s], w [frames, s, s])``.

    Raises:
        ValueError: an argument is out of range.
        IndexError: there is no such sample.
    """

    def __init__(
        self,
        root: str | Path,
        num_samples: int,
        *,
        resolution: int = 64,
        viscosity: float = 1e-3,
        t_end: float = 50.0,
        dt: float = 1e-2,
        frames: int = 50,
        forcing: str | None = "fno",
        seed: int = 0,
        dtype: torch.dtype = torch.float32,
        device: str | torch.device = "cpu",
        progress: bool = True,
    ):
        _check_count("num_samples", num_samples)
        _check_count("resolution", resolution)
        _check_count("frames", frames)
        _check_dtype(dtype)
        if isinstance(seed, bool) or not isinstance(seed, int):
            raise TypeError(f"seed must be an integer, got {seed!r}")
        _check_times(viscosity, t_end, dt)
        if forcing not in (None, "fno"):
            raise ValueError(f"forcing must be None or 'fno', got {forcing!r}")
        self.num_samples, self.seed, self.dtype = num_samples, seed, dtype
        self.resolution, self.device = resolution, device
        self.options: dict[str, Any] = {
            "viscosity": float(viscosity), "t_end": float(t_end),
            "dt": float(dt), "frames": frames, "forcing": forcing,
        }  # fmt: skip
        facts = {
            **self.options, "resolution": resolution, "seed": seed,
            "dtype": str(dtype), "format": 1,
        }  # fmt: skip
        text = json.dumps(facts, sort_keys=True)
        name = hashlib.sha256(text.encode()).hexdigest()[:16]
        self.folder = Path(root) / f"navier_stokes_{name}"
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / "arguments.json").write_text(text + "\n")
        self._chunk: tuple[int, Any] = (-1, None)
        chunks = range(math.ceil(num_samples / _CHUNK))
        missing = [c for c in chunks if not self._path(c).exists()]
        for c in tqdm(missing, "flows", disable=not (progress and missing)):
            self._compute(c)

    def __len__(self) -> int:
        return self.num_samples

    def __getitem__(self, i: int) -> tuple[Tensor, Tensor]:
        chunk, row = divmod(row_of(i, self.num_samples), _CHUNK)
        if self._chunk[0] != chunk:
            path = self._path(chunk)
            loaded = load_or_make(path, lambda: self._compute(chunk))
            self._chunk = (chunk, loaded)
        w0, w = self._chunk[1]
        return w0[row].clone(), w[row].clone()

    def _path(self, chunk: int) -> Path:
        return self.folder / f"{chunk:05d}.pt"

    def _compute(self, chunk: int) -> None:
        """Always a whole chunk: what a sample is does not depend on how many
        were asked for."""
        fields = []
        for i in range(chunk * _CHUNK, (chunk + 1) * _CHUNK):
            digest = hashlib.sha256(f"{self.seed}/{i}".encode()).digest()
            number = int.from_bytes(digest[:7], "big")
            generator = torch.Generator().manual_seed(number)
            fields.append(
                gaussian_random_field(
                    1, self.resolution, generator=generator, dtype=self.dtype
                )
            )
        w0 = torch.cat(fields)
        w = solve_navier_stokes(w0.to(self.device), **self.options).cpu()
        temporary = self._path(chunk).with_suffix(".tmp")
        torch.save((w0, w), temporary)
        temporary.replace(self._path(chunk))


def _wave_numbers(s: int, dtype: torch.dtype, device: Any):
    kx = torch.fft.fftfreq(s, 1 / s, dtype=dtype, device=device)
    ky = torch.fft.rfftfreq(s, 1 / s, dtype=dtype, device=device)
    return kx[:, None], ky[None, :]


def _forcing(forcing: Any, w0: Tensor) -> Tensor | None:
    if forcing is None:
        return None
    if isinstance(forcing, Tensor):
        if forcing.shape not in (w0.shape, w0.shape[1:]):
            raise ValueError(
                f"forcing must have shape {list(w0.shape[1:])} or "
                f"{list(w0.shape)}, got {list(forcing.shape)}"
            )
        if forcing.is_complex():
            raise TypeError(f"forcing must be real, got {forcing.dtype}")
        if not bool(torch.isfinite(forcing).all()):
            raise ValueError("forcing must be finite")
        return forcing.to(w0)
    if forcing != "fno":
        raise ValueError(
            f"forcing must be None, 'fno' or a Tensor, got {forcing!r}"
        )
    grid = torch.arange(w0.size(-1), dtype=w0.dtype, device=w0.device)
    grid = grid / w0.size(-1)
    angle = 2 * math.pi * (grid[:, None] + grid[None, :])
    return 0.1 * (angle.sin() + angle.cos())


def _check_times(viscosity: Any, t_end: Any, dt: Any) -> None:
    _check_number("viscosity", viscosity, 0.0, True)
    _check_number("t_end", t_end, 0.0, False)
    _check_number("dt", dt, 0.0, False)
    if t_end / dt > _MOST_IN_ALL:
        raise ValueError(
            f"dt must be at least t_end/{_MOST_IN_ALL:.0e}, got dt={dt:g} "
            f"for t_end={t_end:g}"
        )


def _check_state(w0: Any) -> None:
    if not isinstance(w0, Tensor):
        raise TypeError(f"w0 must be a Tensor, got {type(w0).__name__}")
    if w0.dim() != 3 or w0.size(-1) != w0.size(-2) or w0.numel() == 0:
        raise ValueError(f"w0 must have shape [B, s, s], got {list(w0.shape)}")
    _check_dtype(w0.dtype, "w0")
    if not bool(torch.isfinite(w0).all()):
        raise ValueError("w0 must be finite")


def _check_dtype(dtype: Any, name: str = "dtype") -> None:
    if dtype not in _DTYPES:
        raise ValueError(f"{name} must be float32 or float64, got {dtype}")


def _check_count(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(
            f"{name} must be an integer, got {type(value).__name__}"
        )
    if value < 1:
        raise ValueError(f"{name} must be at least 1, got {value}")


def _check_number(name: str, value: Any, least: float, equal: bool) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} must be a number, got {type(value).__name__}")
    if not (least < value < math.inf or (equal and value == least)):
        raise ValueError(
            f"{name} must be finite and {'at least' if equal else 'above'} "
            f"{least:g}, got {value}"
        )
