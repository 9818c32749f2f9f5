"""solve_navier_stokes against a plain numpy version, in one run.

    python benchmarks/navier_stokes.py [--threads 1] [--write DIR]

The numpy version is the usual scheme of such data: real FFTs, the 2/3 rule,
Crank-Nicolson for the viscosity and an explicit Euler step for the rest, in
float64; once for all fields together and once field by field. Milliseconds per
field and step, medians; beside it what that step is worth: the relative error
at t = 2 against a float64 run of steps a tenth as long. Last, the time for 256
fields at 32 x 32 to T = 20. --write puts the table into DIR.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from _table import rst, show

from torch_picard.datasets import gaussian_random_field, solve_navier_stokes

VISCOSITY, DT, FIELDS = 1e-3, 1e-2, 16


def by_numpy(w0: np.ndarray, t_end: float, dt: float) -> np.ndarray:
    """Vorticity [B, s, s] at t_end."""
    s = w0.shape[-1]
    kx = 2 * np.pi * np.fft.fftfreq(s, 1 / s)[:, None]
    ky = 2 * np.pi * np.fft.rfftfreq(s, 1 / s)[None]
    laplacian = kx**2 + ky**2
    inverse = np.where(laplacian > 0, 1 / np.maximum(laplacian, 1e-30), 0)
    kept = np.maximum(abs(kx), ky) / (2 * np.pi) < s / 3
    x = np.arange(s) / s
    angle = 2 * np.pi * (x[:, None] + x[None])
    forcing = np.fft.rfft2(0.1 * (np.sin(angle) + np.cos(angle)))
    w = np.fft.rfft2(w0)
    half = 0.5 * dt * VISCOSITY * laplacian
    for _ in range(round(t_end / dt)):
        psi = w * inverse
        u = np.fft.irfft2(1j * ky * psi, s=(s, s))
        v = np.fft.irfft2(-1j * kx * psi, s=(s, s))
        w_x = np.fft.irfft2(1j * kx * w, s=(s, s))
        w_y = np.fft.irfft2(1j * ky * w, s=(s, s))
        advection = np.fft.rfft2(u * w_x + v * w_y) * kept
        w = (w - dt * advection + dt * forcing - half * w) / (1 + half)
    return np.fft.irfft2(w, s=(s, s))


def medians(
    runs: dict[str, Callable[[], object]], repeats: int
) -> dict[str, float]:
    """Seconds; interleaved, so that a slow moment hits all alike."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for run in runs.values():
        run()
    for _ in range(repeats):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(found) for name, found in seconds.items()}


def row(resolution: int, dtype: torch.dtype, repeats: int) -> list[str]:
    generator = torch.Generator().manual_seed(0)
    w0 = gaussian_random_field(
        FIELDS, resolution, generator=generator, dtype=torch.float64
    )
    given, array = w0.to(dtype), w0.numpy()
    t_end = 20 * DT

    def ours(until: float, dt: float, start: torch.Tensor) -> torch.Tensor:
        return solve_navier_stokes(
            start, VISCOSITY, until, dt=dt, forcing="fno"
        )[:, 0]

    found = medians(
        {
            "ours": lambda: ours(t_end, DT, given),
            "together": lambda: by_numpy(array, t_end, DT),
            "one by one": lambda: [
                by_numpy(field[None], t_end, DT) for field in array
            ],
        },
        repeats,
    )
    per_step = {
        name: 1e3 * seconds / (20 * FIELDS) for name, seconds in found.items()
    }
    exact = ours(2.0, DT / 10, w0)

    def error(w: torch.Tensor) -> str:
        return f"{float((w.double() - exact).norm() / exact.norm()):.1e}"

    theirs = torch.from_numpy(by_numpy(array, 2.0, DT))
    return [
        f"{resolution} x {resolution}",
        str(dtype).removeprefix("torch."),
        f"{per_step['ours']:.4f}",
        f"{per_step['together']:.4f}",
        f"{per_step['together'] / per_step['ours']:.1f}",
        f"{per_step['one by one']:.4f}",
        f"{per_step['one by one'] / per_step['ours']:.1f}",
        error(ours(2.0, DT, given)),
        error(theirs),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--write", type=Path, metavar="DIR")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    table = [
        ["grid", "dtype", "ms", "numpy, all fields", "ratio",
         "numpy, one by one", "ratio", "error", "numpy's error"]
    ]  # fmt: skip
    for resolution in (32, 64, 128):
        for dtype in (torch.float32, torch.float64):
            table.append(row(resolution, dtype, options.repeats))
    title = (
        f"Milliseconds per field and step, {FIELDS} fields, dt = {DT:g}, "
        f"torch {torch.__version__}, numpy {np.__version__}, "
        f"{options.threads} thread(s)"
    )
    show(title, table)
    w0 = gaussian_random_field(
        256, 32, generator=torch.Generator().manual_seed(0)
    )
    start = time.perf_counter()
    solve_navier_stokes(w0, VISCOSITY, 20.0, dt=DT, forcing="fno")
    seconds = time.perf_counter() - start
    last = f"256 fields at 32 x 32 to T = 20: {seconds:.0f} s"
    print(f"\n{last}")
    if options.write is not None:
        options.write.mkdir(parents=True, exist_ok=True)
        text = f"{rst(title, table)}\n{last}\n"
        (options.write / "navier_stokes.inc").write_text(text)


if __name__ == "__main__":
    main()
