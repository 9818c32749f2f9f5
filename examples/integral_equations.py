"""Integral equations with known solutions: solved, and checked against what
is certified about them.

    python examples/integral_equations.py

For every equation of torch_picard.problems.integral_equations: the error of
the solve at the nodes of Gauss and Legendre, the largest that the solve
itself admits (residual over 1 - L), the iterations taken and the most that
the certificate allows. Then the integro-differential ones. Prints a table
and saves a picture: errors by the number of nodes, for three rules.
"""

import argparse
import math
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from torch_picard import Picard
from torch_picard.anie import GaussLegendre, MonteCarlo, Trapezoid
from torch_picard.problems import (
    ExactEquation,
    integral_equations,
    integro_differential_equations,
)

PLAIN = {"method": Picard(alpha=0.0), "max_iter": 300, "on_failure": "ignore"}
COUNTS = (4, 8, 16, 32, 64, 128)
RULES = {
    "Gauss-Legendre": GaussLegendre,
    "trapezoid": Trapezoid,
    "Monte Carlo": MonteCarlo,
}


def largest(v: Tensor) -> float:
    return float(v.abs().max())


def row(problem: ExactEquation) -> list[str]:
    """The error of a solve, and what its certificate promises: how far the
    solve may be from the solution at these nodes, and in how many steps."""
    equation = problem.equation(GaussLegendre(problem.nodes or 64))
    solution = equation.solve(rtol=1e-12, **PLAIN)
    u = solution.value
    certificate = equation.certificate(problem.region(equation))
    bound = allowed = "-"
    if certificate.contracts:
        most = certificate.error_bound(largest(equation(u) - u))
        first = largest(equation(equation.f) - equation.f)
        bound = f"{most:.0e}"
        allowed = str(certificate.iterations_for(max(most, 1e-13), first))
    finite = certificate.constant < math.inf
    return [
        problem.name,
        str(equation.nodes.size(0)),
        f"{largest(u - problem.exact(equation.nodes)):.0e}",
        bound,
        str(int(solution.iterations)),
        allowed,
        f"{certificate.constant:.3f}" if finite else "none",
        certificate.kind if finite else "-",
        "yes" if bool(solution.converged) else "no",
    ]


def errors(problem: ExactEquation, rule) -> list[float]:
    """By the number of nodes; of Monte Carlo the root of the mean square over
    ten draws."""
    found = []
    for count in COUNTS:
        draws = []
        for seed in range(10 if rule is MonteCarlo else 1):
            chosen = (
                MonteCarlo(count, seed) if rule is MonteCarlo else rule(count)
            )
            equation = problem.equation(chosen)
            value = equation.solve(rtol=1e-14, **PLAIN).value
            draws.append(largest(value - problem.exact(equation.nodes)))
        found.append(math.sqrt(sum(d**2 for d in draws) / len(draws)))
    return found


def picture(path: Path, curves: dict[str, dict[str, list[float]]]) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, len(RULES), figsize=(14, 4), sharey=True)
    for axis, (name, lines) in zip(axes, curves.items()):
        for label, line in lines.items():
            axis.loglog(COUNTS, [max(e, 1e-16) for e in line], label=label)
        order = {"trapezoid": -2, "Monte Carlo": -0.5}.get(name)
        if order is not None:
            axis.loglog(
                COUNTS,
                [(n / COUNTS[0]) ** order for n in COUNTS],
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


def show(rows: list[list[str]]) -> None:
    widths = [max(len(r[i]) for r in rows) for i in range(len(rows[0]))]
    for line in rows:
        print("  ".join(c.rjust(w) for c, w in zip(line, widths)))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--picture", type=Path, default=Path("results/integral_equations.png")
    )
    options = parser.parse_args()
    torch.set_default_dtype(torch.float64)
    problems = integral_equations()
    rows = [
        ["", "nodes", "error", "bound", "iterations", "at most", "L", "kind",
         "converged"]
    ]  # fmt: skip
    show([*rows, *(row(p) for p in tqdm(problems, desc="equations"))])

    times = torch.linspace(0, 1, 201)
    rows = [["", "times", "error", "iterations"]]
    for p in integro_differential_equations():
        module = p.module(solver="dopri5", max_iter=100, rtol=1e-10)
        start = torch.full((1, 1), p.start)
        y, solution = module(start, times, return_solution=True)
        error = largest(y[0, :, 0] - p.exact(times))
        rows.append(
            [p.name, "201", f"{error:.0e}", f"{int(solution.iterations)}"]
        )
    print()
    show(rows)

    curves = {
        name: {
            p.name: errors(p, rule)
            for p in tqdm(problems, desc=name, leave=False)
        }
        for name, rule in RULES.items()
    }
    picture(options.picture, curves)
    print(f"\nErrors by the number of nodes: {options.picture}")


if __name__ == "__main__":
    main()
