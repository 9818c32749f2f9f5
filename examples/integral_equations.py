"""Integral equations with known solutions: solved, and checked against what
is certified about them.

    python examples/integral_equations.py

For every equation of torch_picard.problems.integral_equations, at the nodes
of Gauss and Legendre: how far the values are from the solution; how far they
are from the exact solution of the system at the nodes, found by Newton's
method, beside the largest distance that the certificate admits (residual
over 1 - L); the iterations taken and the most that it allows. Then the
integro-differential ones, and errors by the number of nodes for three rules.

Prints tables and draws a picture. Results are kept in --out after each
equation: an interrupted run goes on. --scale full goes to more nodes.
"""

import argparse
import math
from pathlib import Path

import torch
from operator_runs import Runs, report
from torch import Tensor

from torch_picard import Picard
from torch_picard.anie import (
    GaussLegendre,
    IntegralEquation,
    MonteCarlo,
    Trapezoid,
)
from torch_picard.problems import (
    integral_equations,
    integro_differential_equations,
)

PLAIN = {"method": Picard(alpha=0.0), "max_iter": 300, "on_failure": "ignore"}
SCALES = {
    "small": {"counts": (4, 8, 16, 32, 64, 128), "draws": 10},
    "full": {"counts": (4, 8, 16, 32, 64, 128, 256, 512, 1024), "draws": 30},
}
RULES = {
    "Gauss-Legendre": GaussLegendre,
    "trapezoid": Trapezoid,
    "Monte Carlo": MonteCarlo,
}
PROBLEMS = {p.name: p for p in integral_equations()}
INTEGRO = {p.name: p for p in integro_differential_equations()}


def largest(v: Tensor) -> float:
    return float(v.abs().max())


def at_the_nodes(equation: IntegralEquation, u: Tensor) -> Tensor:
    """The solution of u = P(u) at the nodes, by Newton's method from u."""
    eye = torch.eye(u.numel())
    for _ in range(5):
        slope = torch.autograd.functional.jacobian(equation, u)
        step = torch.linalg.solve(
            eye - slope.reshape(eye.shape), (equation(u) - u).flatten()
        )
        u = u + step.view_as(u)
    return u


def solved(name: str) -> dict:
    """A solve with its errors, and what its certificate promises."""
    torch.set_default_dtype(torch.float64)
    problem = PROBLEMS[name]
    equation = problem.equation(GaussLegendre(problem.nodes or 64))
    solution = equation.solve(rtol=1e-12, **PLAIN)
    u = solution.value
    certificate = equation.certificate(problem.region(equation))
    found = {
        "nodes": len(equation.nodes),
        "error": largest(u - problem.exact(equation.nodes)),
        "distance": largest(u - at_the_nodes(equation, u)),
        "iterations": int(solution.iterations),
        "converged": bool(solution.converged),
        "L": None, "kind": "-", "bound": None, "allowed": None,
    }  # fmt: skip
    if certificate.constant < math.inf:
        found |= {"L": certificate.constant, "kind": certificate.kind}
    if certificate.contracts:
        most = certificate.error_bound(largest(equation(u) - u))
        first = largest(equation(equation.f) - equation.f)
        steps = certificate.iterations_for(max(most, 1e-13), first)
        found |= {"bound": most, "allowed": steps}
    return found


def integrated(name: str) -> dict:
    torch.set_default_dtype(torch.float64)
    problem, times = INTEGRO[name], torch.linspace(0, 1, 201)
    module = problem.module(solver="dopri5", max_iter=100, rtol=1e-10)
    start = torch.full((1, 1), problem.start)
    y, solution = module(start, times, return_solution=True)
    error = largest(y[0, :, 0] - problem.exact(times))
    return {"error": error, "iterations": int(solution.iterations)}


def curve(name: str, rule: str, counts: list[int], draws: int) -> dict:
    """Errors by the number of nodes; of Monte Carlo the root of the mean
    square over so many draws."""
    torch.set_default_dtype(torch.float64)
    problem, found = PROBLEMS[name], []
    for count in counts:
        rules = [RULES[rule](count)]
        if rule == "Monte Carlo":
            rules = [MonteCarlo(count, seed) for seed in range(draws)]
        squares = []
        for chosen in rules:
            equation = problem.equation(chosen)
            value = equation.solve(rtol=1e-14, **PLAIN).value
            squares.append(largest(value - problem.exact(equation.nodes)) ** 2)
        found.append(math.sqrt(sum(squares) / len(squares)))
    return {"errors": found}


def tables(results: dict) -> dict[str, list[list[str]]]:
    rows = [
        ["", "nodes", "error", "from the nodes' solution", "at most",
         "iterations", "at most", "L", "kind", "converged"]
    ]  # fmt: skip
    for name in PROBLEMS:
        r = results[f"solve {name}"]
        rows.append(
            [
                name,
                str(r["nodes"]),
                f"{r['error']:.1e}",
                f"{r['distance']:.1e}",
                "-" if r["bound"] is None else f"{r['bound']:.1e}",
                str(r["iterations"]),
                "-" if r["allowed"] is None else str(r["allowed"]),
                "none" if r["L"] is None else f"{r['L']:.3f}",
                r["kind"],
                "yes" if r["converged"] else "no",
            ]
        )
    more = [["", "times", "error", "iterations"]]
    for name in INTEGRO:
        r = results[f"solve {name}"]
        more.append([name, "201", f"{r['error']:.1e}", str(r["iterations"])])
    return {
        "Integral equations, Gauss-Legendre": rows,
        "Integro-differential equations, dopri5": more,
    }


def picture(path: Path, results: dict, counts: tuple[int, ...]) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, len(RULES), figsize=(14, 4), sharey=True)
    for axis, name in zip(axes, RULES):
        for label in PROBLEMS:
            line = results[f"{name} {label}"]["errors"]
            axis.loglog(counts, [max(e, 1e-16) for e in line], label=label)
        order = {"trapezoid": -2, "Monte Carlo": -0.5}.get(name)
        if order is not None:
            axis.loglog(
                counts,
                [(n / counts[0]) ** order for n in counts],
                "k--",
                label=f"order {-order:g}",
            )
        axis.set_title(name)
        axis.set_xlabel("nodes")
    axes[0].set_ylabel("largest error at the nodes")
    axes[-1].legend(ncols=2, fontsize=8)
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--scale", choices=list(SCALES), default="small")
    parser.add_argument("--workers", type=int, default=2, help="processes")
    parser.add_argument(
        "--out", type=Path, default=Path("outputs"),
        help="folder of the results (kept, and continued) and of the picture",
    )  # fmt: skip
    parser.add_argument(
        "--write", type=Path, help="folder for bank.inc and bank.png"
    )
    options = parser.parse_args()
    scale = SCALES[options.scale]
    counts, draws = scale["counts"], scale["draws"]
    file = options.out / f"integral_equations_{options.scale}.json"
    runs = Runs(file, scale)
    runs.complete(
        {f"solve {name}": (name,) for name in PROBLEMS}, solved,
        options.workers,
    )  # fmt: skip
    runs.complete(
        {f"solve {name}": (name,) for name in INTEGRO}, integrated,
        options.workers,
    )  # fmt: skip
    runs.complete(
        {
            f"{rule} {name}": (name, rule, list(counts), draws)
            for rule in RULES
            for name in PROBLEMS
        },
        curve,
        options.workers,
    )
    report(tables(runs.results), options.write, "bank")
    path = (options.write or options.out) / "bank.png"
    picture(path, runs.results, counts)
    print(f"\nErrors by the number of nodes: {path}")


if __name__ == "__main__":
    main()
