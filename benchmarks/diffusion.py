"""What PicardSampler adds to its denoiser, against the sequential chain.

    python benchmarks/diffusion.py [--threads 1] [--device cpu] [--write DIR]

The denoiser is the exact one of Gaussian data and costs next to nothing, so
that what is left is the sampler's own time: seconds in all and outside of the
denoiser, and the peak of the memory above what was there before, of which the
noise that is drawn up front and the trajectory are the most. How many rounds a
trained model needs: examples/parallel_sampling.py. --write puts the table into
DIR.
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import torch
from _memory import peak
from _table import rst, show
from torch import Tensor

from torch_picard.diffusion import PicardSampler, reverse_chain
from torch_picard.problems import gaussian_diffusion

# samples, elements of one, steps, eta
CASES = [
    (4, 3 * 32 * 32, 1000, 1.0),
    (1, 4 * 64 * 64, 1000, 1.0),
    (1, 4 * 64 * 64, 100, 0.0),
]
WINDOW, TOL = 100, 0.1


class Timed:
    """The denoiser, and the seconds spent in it."""

    def __init__(self, denoiser: Callable[[Tensor, Tensor], Tensor]):
        self.denoiser, self.seconds = denoiser, 0.0

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        begin = now(x)
        out = self.denoiser(x, t)
        self.seconds += now(x) - begin
        return out


def now(x: Tensor) -> float:
    if x.is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter()


def rows(case: tuple, device: str, repeats: int) -> list[list[str]]:
    count, size, steps, eta = case
    problem = gaussian_diffusion(size, dtype=torch.float32)
    problem = type(problem)(
        problem.mean.to(device),
        problem.variance.to(device),
        problem.alphas_cumprod.to(device),
    )
    denoiser = Timed(problem.denoiser)
    given = (denoiser, problem.alphas_cumprod, steps)
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(count, size, generator=draw).to(device)

    def chain() -> int:
        generator = torch.Generator().manual_seed(1)
        reverse_chain(*given, x, generator=generator, eta=eta)
        return steps

    def parallel(method: str) -> Callable[[], int]:
        sampler = PicardSampler(*given, WINDOW, TOL, method, eta=eta)

        def run() -> int:
            generator = torch.Generator().manual_seed(1)
            return sampler(x, generator=generator)[1].rounds or 0

        return run

    kinds = {"chain": chain}
    kinds |= {name: parallel(name) for name in ("picard", "anderson")}
    found = []
    for name, run in kinds.items():
        spent = []
        for _ in range(repeats):
            denoiser.seconds = 0.0
            begin = now(x)
            rounds = run()
            whole = now(x) - begin
            spent.append((whole, whole - denoiser.seconds))
        whole, outside = sorted(spent)[len(spent) // 2]
        found.append(
            [f"{count} of {size}, N = {steps}, eta = {eta:g}", name,
             str(rounds), f"{whole:.2f}", f"{outside:.2f}",
             f"{1000 * outside / rounds:.1f}",
             f"{megabytes(run, device):.0f}"]
        )  # fmt: skip
    return found


def megabytes(run: Callable[[], object], device: str) -> float:
    if device == "cpu":
        return peak(run)
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    run()
    return (torch.cuda.max_memory_allocated() - before) / 2**20


def main() -> None:
    options = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    options.add_argument("--threads", type=int, default=1)
    options.add_argument("--device", default="cpu")
    options.add_argument("--repeats", type=int, default=3)
    options.add_argument("--write", type=Path, metavar="DIR")
    args = options.parse_args()
    torch.set_num_threads(args.threads)
    table = [
        ["samples", "", "rounds", "seconds", "outside the denoiser",
         "of it per round, ms", "peak MiB"]
    ]  # fmt: skip
    for case in CASES:
        table += rows(case, args.device, args.repeats)
    where = f"{args.threads} thread(s)"
    if args.device != "cpu":
        where = torch.cuda.get_device_name()
    title = (
        f"Gaussian data, window {WINDOW}, tol {TOL:g}, float32, torch "
        f"{torch.__version__}, {where}"
    )
    show(title, table)
    if args.write is not None:
        args.write.mkdir(parents=True, exist_ok=True)
        (args.write / "diffusion_cost.inc").write_text(rst(title, table))


if __name__ == "__main__":
    main()
