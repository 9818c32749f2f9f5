"""torch_picard against torchdeq and a bare loop, in one run.

    python benchmarks/engine.py [--threads 1] [--repeats 25]

Prints four tables: evaluations of P on the bank of exact problems; a graph
of 500 nodes; errors of first and second derivatives; and what watching the
residual costs. Needs torchdeq (``pip install torch-picard[bench]``).
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor
from torchdeq import get_deq

from torch_picard import (
    Adaptive,
    Anderson,
    Broyden,
    Implicit,
    NewtonKrylov,
    OneStep,
    Picard,
    Unrolled,
    fixed_point,
)
from torch_picard.problems import bank, random_graph
from torch_picard.problems.graph import gcn_matrix

RTOL = 1e-8
CAP = 4000
OURS = {
    "Picard(0)": Picard(alpha=0.0),
    "Picard(.5)": Picard(alpha=0.5),
    "Adaptive": Adaptive(),
    "Anderson": Anderson(),
    "Broyden": Broyden(),
    "Newton": NewtonKrylov(),
}
THEIRS = {
    "td picard": "fixed_point_iter",
    "td anderson": "anderson",
    "td broyden": "broyden",
}


class Counted:
    """P, counting its calls."""

    def __init__(self, operator: Callable[[Tensor], Tensor]):
        self.operator, self.calls = operator, 0

    def __call__(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.operator(x)


def residual(operator, x: Tensor) -> float:
    """|P(x) - x| / |P(x)| of what was returned."""
    with torch.no_grad():
        z = operator(x)
        return ((z - x).norm() / z.norm()).item()


def ours(operator, x0, method, cap: int = CAP) -> tuple[int, float]:
    with torch.no_grad():
        solution = fixed_point(
            operator,
            x0,
            method=method,
            rtol=RTOL,
            max_iter=cap,
            on_failure="ignore",
        )
    return solution.evaluations, residual(operator, solution.value)


def theirs(
    operator, x0, solver: str, batched: bool, cap: int = CAP
) -> tuple[int, float]:
    """torchdeq takes dim 0 as the batch: a vector gets one in front."""
    shape = x0.shape
    start = x0[None].flatten(1) if batched else x0
    counted = Counted(lambda x: operator(x.reshape(shape)).reshape_as(start))
    deq = get_deq(
        f_solver=solver, f_max_iter=cap, f_tol=RTOL, f_stop_mode="rel"
    )
    deq.eval()
    with torch.no_grad():
        out, _ = deq(counted, start)
    return counted.calls, residual(operator, out[-1].reshape(shape))


def cell(result: tuple[int, float]) -> str:
    """Evaluations; in brackets the residual where it did not pass."""
    calls, left = result
    return f"{calls}" if left <= 2 * RTOL else f"{calls} ({left:.0e})"


def table(title: str, head: list[str], rows: list[list[str]]) -> None:
    widths = [
        max(len(row[i]) for row in [head, *rows]) for i in range(len(head))
    ]
    print(f"\n{title}\n")
    for row in [head, *rows]:
        print("  ".join(c.rjust(w) for c, w in zip(row, widths)), flush=True)


def evaluations() -> None:
    rows = []
    for problem in bank():
        p, x0 = problem.operator, problem.x0
        mine = [cell(ours(p, x0, method)) for method in OURS.values()]
        peer = [cell(theirs(p, x0, name, True)) for name in THEIRS.values()]
        rows.append([problem.name, *mine, *peer])
    table(
        f"Evaluations to |P(x) - x| <= {RTOL:g} |P(x)|, float64, the state "
        "as one vector (in brackets: the residual where that failed)",
        ["problem", *OURS, *THEIRS],
        rows,
    )


def graph() -> None:
    """A [nodes, features] state as it is: dim 0 are nodes, not problems."""
    edge_index = random_graph(500)
    matrix = gcn_matrix(edge_index, 500)
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(16, 16, generator=generator, dtype=torch.float64)
    weight = 0.95 * weight / torch.linalg.matrix_norm(weight, 2)
    f = torch.randn(500, 16, generator=generator, dtype=torch.float64)

    def operator(x: Tensor) -> Tensor:
        return torch.tanh(matrix @ x @ weight + 0.1 * f)

    x0, cap = torch.zeros_like(f), 300
    row = [cell(ours(operator, x0, m, cap)) for m in OURS.values()]

    def peers(batched: bool) -> list[str]:
        found = [
            theirs(operator, x0, s, batched, cap) for s in THEIRS.values()
        ]
        return [cell(result) for result in found]

    as_is, flat = peers(False), peers(True)
    none = ["-"] * len(OURS)
    table(
        f"A nonlinear GCN on 500 nodes, 16 features: evaluations (<= {cap})",
        ["state as", *OURS, *THEIRS],
        [["[500, 16]", *row, *as_is], ["[1, 8000]", *none, *flat]],
    )


def derivatives() -> None:
    """A map with Lipschitz constant 1/2; the truth is a long unrolled
    solve, differentiated once and twice."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(20, 20, generator=generator, dtype=torch.float64)
    weight = 0.5 * weight / torch.linalg.matrix_norm(weight, 2)
    weight.requires_grad_()
    f = torch.randn(8, 20, generator=generator, dtype=torch.float64)
    c = torch.randn(8, 20, generator=generator, dtype=torch.float64)

    def operator(x: Tensor) -> Tensor:
        return torch.tanh(x @ weight.T + f)

    def mine(gradient, **options) -> Callable[[], Tensor]:
        return lambda: (
            fixed_point(
                operator,
                torch.zeros_like(f),
                rtol=1e-12,
                max_iter=200,
                gradient=gradient,
                segments="leading",
                **options,
            ).value
        )

    def deq(**options) -> Callable[[], Tensor]:
        solver = get_deq(
            f_max_iter=200, f_tol=1e-12, b_max_iter=200, **options
        )
        solver.train()
        return lambda: solver(operator, torch.zeros_like(f))[0][-1]

    def first(solve, scale: float = 1.0) -> Tensor:
        loss = scale * (solve() * c).sum()
        return torch.autograd.grad(loss, weight)[0] / scale

    def second(solve) -> Tensor:
        loss = (solve() * c).sum()
        grad = torch.autograd.grad(loss, weight, create_graph=True)[0]
        return torch.autograd.grad(grad.square().sum(), weight)[0]

    truth = mine(Unrolled(), method=Picard(alpha=0.0))
    g1, g2 = first(truth), second(truth)
    columns = [
        (lambda solve: first(solve), g1),
        (lambda solve: first(solve, 1e-5), g1),
        (second, g2),
    ]
    rows = []
    for name, solve in {
        "Unrolled() (default)": mine(Unrolled()),
        "Implicit()": mine(Implicit()),
        "OneStep()": mine(OneStep()),
        "td default": deq(),
        "td ift": deq(ift=True),
        "td hook_ift": deq(hook_ift=True),
    }.items():
        row = [name]
        for run, true in columns:
            try:
                error = (run(solve) - true).norm() / true.norm()
                row.append(f"{error.item():.1e}")
            except RuntimeError as failure:
                row.append(type(failure).__name__)
        rows.append(row)
    table(
        "Relative errors of derivatives, 1/2-Lipschitz map, 8 problems",
        ["gradient", "first", "first, loss*1e-5", "second"],
        rows,
    )


def overhead(repeats: int) -> None:
    """40 iterations of tanh(Linear(64, 64)) on [1000, 64], float32."""
    torch.manual_seed(0)
    linear = torch.nn.Linear(64, 64)
    x0 = torch.randn(1000, 64)
    steps = 40

    def operator(x: Tensor) -> Tensor:
        return torch.tanh(linear(x))

    def bare() -> None:
        x = x0
        for _ in range(steps):
            x = 0.5 * x + 0.5 * operator(x)

    def mine(method, rtol: float = 1e-30) -> Callable[[], object]:
        return lambda: fixed_point(
            operator,
            x0,
            method=method,
            rtol=rtol,
            max_iter=steps,
            on_failure="ignore",
        )

    def deq(solver: str) -> Callable[[], object]:
        module = get_deq(f_solver=solver, f_max_iter=steps, f_tol=1e-30)
        module.eval()
        return lambda: module(operator, x0)

    runs = {
        "bare loop": bare,
        "Picard, fixed count": mine(Picard(alpha=0.5), 0.0),
        "Picard": mine(Picard(alpha=0.5)),
        "Adaptive": mine(Adaptive()),
        "Anderson": mine(Anderson()),
        "Broyden": mine(Broyden()),
        **{name: deq(solver) for name, solver in THEIRS.items()},
    }
    times: dict[str, list[float]] = {name: [] for name in runs}
    with torch.no_grad():
        for run in runs.values():
            run()
        for _ in range(repeats):
            for name, run in runs.items():
                start = time.perf_counter()
                run()
                times[name].append(time.perf_counter() - start)
    base = times["bare loop"]
    rows = []
    for name, spent in times.items():
        ratio = statistics.median(a / b for a, b in zip(spent, base))
        rows.append(
            [name, f"{1e3 * statistics.median(spent):.1f}", f"{ratio:.2f}"]
        )
    table(
        f"40 evaluations of tanh(Linear 64) on [1000, 64], median of "
        f"{repeats} interleaved runs",
        ["method", "ms", "bare loops"],
        rows,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=25)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(f"torch {torch.__version__}, {options.threads} thread(s)")
    evaluations()
    graph()
    derivatives()
    overhead(options.repeats)


if __name__ == "__main__":
    main()
