"""Sampling in rounds: a digits DDPM, step by step and in parallel.

    python examples/parallel_sampling.py
    python examples/parallel_sampling.py --device cuda

Trains a small DDPM on scikit-learn's digits (kept, and loaded the next time)
and samples it with DDPM, T = 1000, and with DDIM, N = 100: one step after the
other; by diffusers' parallel schedulers, in the loop of its ParaDiGMS
pipeline; by PicardSampler with method "picard" and "anderson". A round is one
call of the model; an evaluation is one step of one sample. All start from the
same noise, drawn anew for each seed, and the difference is the largest of any
pixel of any sample to the samples of the first row. Prints one table.
"""

import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusion_models import (
    Denoiser,
    Images,
    build,
    diffusion_loss,
    noise_level,
)
from operator_runs import Table, fit, parser, report
from torch import Tensor

from torch_picard.diffusion import PicardSampler, reverse_chain

sys.path.append(str(Path(__file__).resolve().parents[1] / "benchmarks"))
from _memory import peak

SCALES = {
    "small": {"width": 256, "blocks": 3, "updates": 8000, "samples": 16},
    "full": {"width": 1024, "blocks": 6, "updates": 50000, "samples": 64},
}
STEPS, TOL, BATCH, LR = 1000, 0.1, 128, 2e-3


@dataclass
class Case:
    """What is sampled; ``windows`` of PicardSampler, the first of which is
    the peer's, too."""

    name: str
    steps: int
    eta: float
    windows: list[int]


CASES = [
    Case("DDPM, T = 1000", 1000, 1.0, [100, 200, 400]),
    Case("DDIM, N = 100", 100, 0.0, [100]),
]


def trained(setting: dict, folder: Path, device: str, seed: int) -> Denoiser:
    found = Images("digits", device)
    torch.manual_seed(seed)
    net = build(setting, found.train.shape[1:], STEPS).to(device)
    kept = folder / f"digits_ddpm_{setting['width']}_{seed}.pt"
    if kept.exists():
        net.load_state_dict(torch.load(kept, map_location=device))
        return net.eval()
    alphas = noise_level(STEPS, rescaled=False).to(device)

    def loss() -> Tensor:
        rows = torch.randint(len(found.train), (BATCH,))
        return diffusion_loss(net, found.train[rows], alphas)

    last = fit(net, loss, setting["updates"], LR)
    print(f"Trained for {setting['updates']} updates: loss {last:.4f}")
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(net.state_dict(), kept)
    return net


def peer(
    net: Callable, case: Case, window: int, x: Tensor, noise: Tensor
) -> tuple[Tensor, int, int]:
    """Samples, rounds and evaluations of ParaDiGMS with diffusers' parallel
    schedulers: what its pipeline does, in our words. One window for all
    samples, moved on when the worst of them allows it."""
    import diffusers

    name = "DDPMParallelScheduler" if case.eta else "DDIMParallelScheduler"
    scheduler = getattr(diffusers, name)(clip_sample=False)
    scheduler.set_timesteps(case.steps)
    times, count = scheduler.timesteps, case.steps
    variance = torch.zeros(count + 1, device=x.device)
    for i, t in enumerate(times):
        options = (t,)
        if not case.eta:
            options = (t, t - STEPS // count)
        variance[i] = scheduler._get_variance(*options)
    kicks = torch.zeros_like(noise)
    if case.eta:
        spread = variance[:-1].sqrt().view(-1, *[1] * x.dim())
        kicks = spread * noise
    points = torch.stack([x] * (count + 1))
    begin, end, rounds, evaluations = 0, min(window, count), 0, 0
    while begin < count:
        block = points[begin:end]
        t = times[begin:end].to(x.device).repeat_interleave(len(x))
        flat = block.flatten(0, 1)
        step = scheduler.batch_step_no_noise(net(flat, t), t, flat)
        change = step.view_as(block) - block + kicks[begin:end]
        new = points[begin] + change.cumsum(0)
        error = (new - points[begin + 1 : end + 1]).flatten(2).square().mean(2)
        worst = (error / variance[begin + 1 : end + 1, None]).amax(1)
        passed = (worst <= TOL**2).long().cumprod(0).sum()
        points[begin + 1 : end + 1] = new
        rounds, evaluations = rounds + 1, evaluations + len(flat)
        begin += min(int(passed) + 1, end - begin)
        points[end + 1 : begin + window + 1] = points[end]
        end = min(begin + window, count)
    return points[-1], rounds, evaluations


@dataclass
class Measured:
    rounds: int
    evaluations: float
    difference: float
    seconds: float
    memory: float


def measure(
    sample: Callable[[], tuple[Tensor, int, int]], want: Tensor
) -> Measured:
    begin = time.perf_counter()
    out, rounds, evaluations = sample()
    if out.is_cuda:
        torch.cuda.synchronize()
    seconds = time.perf_counter() - begin
    difference = float((out - want).abs().max())
    memory = peak_memory(sample, out.device)
    return Measured(
        rounds, evaluations / len(out), difference, seconds, memory
    )


def line(runs: list[Measured]) -> list[str]:
    """Rounds for every seed; means; the largest difference; medians."""
    largest = max(run.difference for run in runs)
    return [
        ", ".join(str(run.rounds) for run in runs),
        f"{statistics.mean(run.evaluations for run in runs):.0f}",
        f"{largest:.1e}" if largest else "0",
        f"{statistics.median(run.seconds for run in runs):.2f}",
        f"{statistics.median(run.memory for run in runs):.0f}",
    ]


def peak_memory(run: Callable[[], object], device: torch.device) -> float:
    """MiB above what was there before."""
    if device.type != "cuda":
        return peak(run)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    run()
    return (torch.cuda.max_memory_allocated() - before) / 2**20


Sample = Callable[[], tuple[Tensor, int, int]]


def samplers(net, case: Case, x: Tensor, noise: Tensor) -> dict[tuple, Sample]:
    """By title and window; the chain comes first."""
    alphas = noise_level(STEPS, rescaled=False)
    given = (net, alphas, case.steps)

    def chain() -> tuple[Tensor, int, int]:
        out = reverse_chain(*given, x, noise=noise, eta=case.eta)
        return out, case.steps, case.steps * len(x)

    def ours(window: int, method: str) -> Sample:
        sampler = PicardSampler(
            *given, window, TOL, method, eta=case.eta, on_failure="raise"
        )

        def sample() -> tuple[Tensor, int, int]:
            out, solution = sampler(x, noise=noise)
            return out, solution.rounds, solution.evaluations

        return sample

    first = case.windows[0]
    found: dict[tuple, Sample] = {("one after the other", 1): chain}
    found["diffusers' parallel scheduler", first] = lambda: peer(
        net, case, first, x, noise
    )
    for window in case.windows:
        for method in ("picard", "anderson"):
            found[method, window] = ours(window, method)
    return found


def rows(net, case: Case, count: int, device: str, seeds: int) -> Table:
    runs: dict[tuple, list[Measured]] = {}
    for seed in range(seeds):
        draw = torch.Generator().manual_seed(seed)
        x = torch.randn(count, 1, 8, 8, generator=draw).to(device)
        noise = torch.randn(case.steps, *x.shape, generator=draw).to(device)
        ways = samplers(net, case, x, noise)
        want = next(iter(ways.values()))()[0]
        for title, sample in ways.items():
            with torch.no_grad():
                measured = measure(sample, want)
            runs.setdefault(title, []).append(measured)
    return [
        [case.name, sampler, str(window), *line(found)]
        for (sampler, window), found in runs.items()
    ]


HEAD = [
    "chain", "sampler", "window", "rounds", "evaluations a sample",
    "largest difference", "seconds", "peak MiB",
]  # fmt: skip


def main() -> None:
    options = parser(__doc__, "parallel_sampling", SCALES)
    args = options.parse_args()
    torch.set_num_threads(1)
    setting = SCALES[args.scale]
    net = trained(setting, args.out, args.device, 0)
    table = [HEAD]
    for case in CASES:
        count = setting["samples"]
        table += rows(net, case, count, args.device, args.seeds)
    title = f"{setting['samples']} samples, tol {TOL:g}, {args.device}"
    report({title: table}, args.write, "parallel_sampling")


if __name__ == "__main__":
    main()
