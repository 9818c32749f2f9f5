"""Equations whose integral is learned."""

import copy
import io
import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.utils import parametrize

from torch_picard import Anderson, Implicit, Picard, Status, Unrolled
from torch_picard.anie import (
    ANIE,
    FNODEQ,
    NIDE,
    NIE,
    GaussLegendre,
    Points,
)
from torch_picard.contraction import contractive, estimate_lipschitz
from torch_picard.problems import (
    integral_equations,
    integro_differential_equations,
)

ATTENTIONS = ["softmax", "galerkin", "l2"]
SMALL = {"embed_dim": 8, "heads": 2}
POINTS = 7


@pytest.fixture(autouse=True)
def _double():
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)
    yield
    torch.set_default_dtype(before)


def data(batch=3, channels=2, dims=2):
    return torch.randn(batch, POINTS, channels), torch.rand(POINTS, dims)


def learned(kind, **options):
    if kind == "NIE":
        return NIE(2, 2, hidden=6, **options)
    return ANIE(2, 2, attention=kind, **SMALL, **options)


KINDS = [*ATTENTIONS, "NIE"]


# -- the equation -------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_the_value_solves_the_equation(kind):
    """y = f + T(y), f included."""
    f, coords = data()
    module = learned(kind, max_iter=300, rtol=1e-12)
    y, solution = module(f, coords, return_solution=True)
    assert bool(solution.converged.all())
    torch.testing.assert_close(
        y, f + module.integral(y, coords), rtol=1e-9, atol=1e-10
    )
    assert not torch.allclose(y, module(2 * f, coords))


@pytest.mark.parametrize("kind", KINDS)
def test_points_have_no_order(kind):
    """A value belongs to the point in the same row, nothing else."""
    f, coords = data()
    module = learned(kind, max_iter=200, rtol=1e-12)
    order = torch.randperm(POINTS)
    torch.testing.assert_close(
        module(f, coords)[:, order], module(f[:, order], coords[order])
    )
    moved = module(f, coords[order])
    assert not torch.allclose(module(f, coords), moved)


@pytest.mark.parametrize("kind", ["softmax", "galerkin", "NIE"])
def test_the_mean_over_points_is_an_integral(kind):
    """Every point taken twice weighs as before: the same function."""
    f, coords = data()
    module = learned(kind, max_iter=200, rtol=1e-12)
    twice = module(torch.cat([f, f], 1), torch.cat([coords, coords]))
    torch.testing.assert_close(twice[:, :POINTS], module(f, coords))


@pytest.mark.parametrize("kind", KINDS)
def test_a_sample_is_worth_what_it_is_alone(kind):
    f, coords = data()
    f[1] *= 1e-3
    module = learned(kind, max_iter=100, rtol=1e-6)
    together, solution = module(f, coords, return_solution=True)
    for b in range(len(f)):
        alone, single = module(f[b : b + 1], coords, return_solution=True)
        torch.testing.assert_close(together[b : b + 1], alone)
        assert solution.iterations[b] == single.iterations[0]


def test_points_of_each_sample():
    f, coords = data()
    module = learned("softmax", max_iter=100, rtol=1e-12)
    many = torch.stack([coords, coords + 1, coords])
    y = module(f, many)
    torch.testing.assert_close(y[1:2], module(f[1:2], coords + 1))
    torch.testing.assert_close(y[2:], module(f[2:], coords))


@pytest.mark.parametrize("kind", KINDS)
def test_the_number_of_iterations_at_the_call(kind):
    f, coords = data()
    module = learned(kind, max_iter=2, rtol=0.0, alpha=0.3)
    y, expected = f, {}
    for k in range(1, 5):
        y = 0.3 * y + 0.7 * (f + module.integral(y, coords))
        expected[k] = y
    torch.testing.assert_close(module(f, coords), expected[2])
    torch.testing.assert_close(module(f, coords, max_iter=4), expected[4])


# -- the published loop -------------------------------------------------------


@pytest.mark.parametrize("attention", ATTENTIONS)
@pytest.mark.parametrize("m", [1, 2, 5])
def test_upstream_is_the_published_recurrence(attention, m):
    """m smoothings with weight 1/2, then the image, unsmoothed."""
    f, coords = data()
    module = ANIE(
        2, 2, attention=attention, **SMALL, max_iter=m, rtol=0.0,
        atol=0.0, upstream=True,
    )  # fmt: skip
    y = f
    for _ in range(m):
        y = 0.5 * y + 0.5 * (f + module.integral(y, coords))
    image = f + module.integral(y, coords)
    out, solution = module(f, coords, return_solution=True)
    torch.testing.assert_close(out, image, rtol=1e-6, atol=1e-9)
    assert solution.evaluations == m + 1
    assert not torch.allclose(out, y)


@pytest.mark.parametrize("gain", [1.0, 40.0])
def test_upstream_as_it_comes_is_the_published_loop(gain):
    """With its tolerance, and also where it diverges: 30 smoothings."""
    f, coords = data()
    module = ANIE(
        2, 2, **SMALL, max_iter=30, upstream=True, on_failure="ignore"
    )
    assert (module.rtol, module.atol) == (0.0, 1e-6)
    with torch.no_grad():
        module.project.weight.mul_(gain)
    y = f
    for _ in range(30):
        y = 0.5 * y + 0.5 * (f + module.integral(y, coords))
    image = f + module.integral(y, coords)
    out, solution = module(f, coords, return_solution=True)
    scale = float(image.detach().abs().max())
    assert float((out - image).detach().abs().max()) < 1e-6 * max(1.0, scale)
    assert solution.evaluations <= 31


def test_upstream_says_how_it_ended():
    f, coords = data()
    for m, status in ((200, Status.CONVERGED), (2, Status.MAX_ITER)):
        module = learned("l2", upstream=True, max_iter=m, rtol=0.0,
                         atol=1e-6, on_failure="ignore")  # fmt: skip
        _, solution = module(f, coords, return_solution=True)
        assert solution.status.tolist() == [int(status)]


@pytest.mark.slow
def test_a_fixed_count_compiles_as_one_graph():
    f, coords = data()
    for attention in ATTENTIONS:
        module = ANIE(2, 2, attention=attention, **SMALL, rtol=0.0,
                      atol=0.0, max_iter=3)  # fmt: skip
        compiled = torch.compile(module, backend="eager", fullgraph=True)
        torch.testing.assert_close(compiled(f, coords), module(f, coords))


def test_upstream_stops_the_batch_as_a_whole():
    f, coords = data()
    module = learned("l2", max_iter=100, atol=1e-6, rtol=0.0, upstream=True)
    _, solution = module(f, coords, return_solution=True)
    assert solution.status.numel() == 1
    assert bool(solution.converged)


# -- gradients ----------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_implicit_gradients_are_those_of_the_loop(kind):
    f, coords = data()
    f.requires_grad_()
    found = []
    for gradient in (Unrolled(), Implicit(rtol=1e-12)):
        torch.manual_seed(0)
        module = learned(kind, max_iter=300, rtol=1e-12, gradient=gradient)
        loss = module(f, coords).square().sum()
        found.append(torch.autograd.grad(loss, [f, *module.parameters()]))
    for a, b in zip(*found):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-8)
        assert float(a.abs().max()) > 0


@pytest.mark.parametrize("kind", KINDS)
def test_gradcheck(kind):
    f, coords = data(batch=1)
    module = learned(
        kind, max_iter=300, rtol=1e-13, gradient=Implicit(rtol=1e-12)
    )
    weights = tuple(module.parameters())[:3]
    f.requires_grad_()
    assert torch.autograd.gradcheck(
        lambda f, *_: module(f, coords),
        (f, *weights),
        atol=1e-6,
        fast_mode=True,
    )


# -- certificates -------------------------------------------------------------


@pytest.mark.slow
@settings(max_examples=4, deadline=None)
@given(bound=st.floats(0.3, 0.95), seed=st.integers(0, 100))
def test_a_contractive_anie_keeps_its_promise(bound, seed):
    """Before and after a step of an optimiser that pulls it outwards."""
    torch.manual_seed(seed)
    f, coords = data()
    module = ANIE(
        2, 2, attention="l2", **SMALL, alpha=0.0, max_iter=400, rtol=1e-6
    )
    contractive(module, bound, num_nodes=POINTS)
    optimizer = torch.optim.SGD(module.parameters(), lr=10.0)
    for _ in range(2):
        certificate = module.certificate(POINTS)
        assert certificate.kind == "certified"
        assert certificate.constant <= bound * (1 + 1e-9)
        y, solution = module(f, coords, return_solution=True)
        assert bool(solution.converged.all())
        error = certificate.error_bound(solution.residual)
        with torch.no_grad(), parametrize.cached():
            steepest = estimate_lipschitz(
                lambda v: f + module.integral(v, coords), y, 20,
                segments="leading",
            ).constant  # fmt: skip
            exact = y
            for _ in range(400):
                exact = f + module.integral(exact, coords)
        assert float(steepest.max()) <= certificate.constant * (1 + 1e-9)
        moved = (y - exact).flatten(1).norm(dim=1)
        assert bool((moved <= error + 1e-9).all())
        optimizer.zero_grad()
        (-y.square().sum()).backward()
        optimizer.step()


def test_attention_without_a_constant_says_so():
    for attention in ("softmax", "galerkin"):
        certificate = learned(attention).certificate(POINTS)
        assert certificate.constant == math.inf
        assert attention in certificate.reason and "l2" in certificate.reason


# -- NIE ----------------------------------------------------------------------


def test_nie_with_a_given_kernel_is_the_integral_equation():
    """Nodes and weights of Gauss and Legendre: to quadrature accuracy."""
    for problem in integral_equations():
        if problem.volterra or problem.nodes == 0:
            continue
        rule = GaussLegendre(problem.nodes)
        equation = problem.equation(rule)
        module = NIE(
            1, 1,
            kernel=lambda x, t, u, p=problem: p.lam * p.kernel(x, t, u),
            alpha=0.0, max_iter=300, rtol=1e-13, on_failure="ignore",
        )  # fmt: skip
        y = module(
            equation.f[None], equation.nodes,
            weights=rule.weights(((0.0, 1.0),)),
        )  # fmt: skip
        error = (y[0] - problem.exact(equation.nodes)).abs().max()
        assert error < 1e-10, problem.name


def test_the_nodes_of_a_nie_are_the_same_in_every_iteration():
    """A residual at rounding: there is one equation that is solved."""
    f, coords = data()
    module = learned("NIE", max_iter=200, rtol=1e-14, on_failure="ignore")
    _, solution = module(f, coords, return_solution=True)
    assert float(solution.residual.max()) < 1e-12


def test_nie_in_blocks():
    f, coords = data()
    whole = learned("NIE", max_iter=20, rtol=0.0)
    blocks = copy.deepcopy(whole)
    blocks.memory = 1  # a row at a time
    torch.testing.assert_close(whole(f, coords), blocks(f, coords))
    results = []
    for module in (whole, blocks):
        loss = module(f, coords).square().sum()
        results.append(torch.autograd.grad(loss, module.parameters()))
    torch.testing.assert_close(*results)


def test_values_between_the_points():
    problem = integral_equations()[0]
    module = NIE(1, 1, kernel=lambda x, t, u: 0.8 * x * t * u)
    rule = GaussLegendre(8)
    nodes = rule.nodes(((0.0, 1.0),))
    equation = module.equation(
        problem.free, nodes, weights=rule.weights(((0.0, 1.0),))
    )
    solution = equation.solve(method=Picard(alpha=0.0), rtol=1e-13)
    x = torch.linspace(0, 1, 5)[:, None]
    torch.testing.assert_close(
        equation.evaluate(solution, x), problem.exact(x)
    )
    with pytest.raises(ValueError, match="nodes"):
        Points(nodes).nodes(((0.0, 1.0), (0.0, 1.0)))
    with pytest.raises(ValueError, match="weights"):
        Points(nodes, torch.ones(3))


# -- NIDE ---------------------------------------------------------------------

DIFFERENTIAL = {p.name: p for p in integro_differential_equations()}


def end_error(problem, count, solver="rk4", **options):
    times = torch.linspace(0, 1, count)
    module = problem.module(
        solver=solver, max_iter=100, rtol=1e-12, on_failure="ignore",
        **options,
    )  # fmt: skip
    y = module(torch.full((1, 1), problem.start), times)
    return float((y[0, :, 0] - problem.exact(times)).abs().max())


@pytest.mark.parametrize(
    "solver",
    ["rk4", "dopri5", pytest.param("torchdiffeq", marks=pytest.mark.slow)],
)
@pytest.mark.parametrize("name", DIFFERENTIAL)
def test_nide_converges_with_the_order_of_its_quadrature(name, solver):
    if solver == "torchdiffeq":
        pytest.importorskip("torchdiffeq")
    counts = (6, 11, 21) if solver == "torchdiffeq" else (11, 21, 41)
    errors = [end_error(DIFFERENTIAL[name], count, solver) for count in counts]
    for coarse, fine in pairwise(errors):
        assert 1.7 < math.log2(coarse / fine) < 2.4


@pytest.mark.parametrize("solver, order", [("rk4", 4), ("dopri5", 5)])
def test_without_an_integral_it_is_the_runge_kutta_method(solver, order):
    def error(count):
        module = NIDE(
            1, derivative=lambda t, y: -y * t.cos(),
            kernel=lambda t, s, y: 0 * y, solver=solver, max_iter=3,
        )  # fmt: skip
        times = torch.linspace(0, 2, count)
        y, solution = module(torch.ones(1, 1), times, return_solution=True)
        assert int(solution.iterations) <= 2  # nothing to iterate on
        return float((y[0, :, 0] - torch.exp(-times.sin())).abs().max())

    found = math.log2(error(41) / error(81))
    assert order - 0.3 < found < order + 0.3


def test_substeps_are_those_of_the_finer_grid():
    problem = DIFFERENTIAL["sine"]
    times = torch.tensor([0.0, 0.1, 0.4, 1.0])
    fine = problem.module()(torch.zeros(1, 1), torch.linspace(0, 1, 121))
    module = problem.module(substeps=20)
    coarse = module(torch.zeros(1, 1), times)
    # the trajectory in the integral is linear between four times
    assert float((coarse - fine[:, [0, 12, 48, 120]]).abs().max()) < 0.02


@pytest.mark.parametrize("volterra", [False, True])
def test_gradients_of_nide(volterra):
    times = torch.tensor([0.0, 0.2, 0.5, 0.6])
    y0 = torch.randn(2, 2, requires_grad=True)
    found = []
    for gradient in (Unrolled(), Implicit(rtol=1e-12)):
        torch.manual_seed(0)
        module = NIDE(
            2, hidden=5, volterra=volterra, rtol=1e-12, max_iter=200,
            gradient=gradient,
        )  # fmt: skip
        y, solution = module(y0, times, return_solution=True)
        assert bool(solution.converged.all())
        torch.testing.assert_close(y[:, 0], y0)
        loss = y.square().sum()
        found.append(torch.autograd.grad(loss, [y0, *module.parameters()]))
    for a, b in zip(*found):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-8)


def test_a_missing_torchdiffeq_is_named(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "torchdiffeq", None)
    with pytest.raises(ImportError, match=r"torch_picard\[ode\]"):
        NIDE(1, solver="torchdiffeq")


# -- habits of modules --------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_copies_files_and_resets(kind):
    f, coords = data()
    module = learned(kind, on_failure="ignore")
    expected = module(f, coords)
    torch.testing.assert_close(copy.deepcopy(module)(f, coords), expected)
    buffer = io.BytesIO()
    torch.save(module.state_dict(), buffer)
    buffer.seek(0)
    torch.manual_seed(5)
    other = learned(kind, on_failure="ignore")
    assert not torch.allclose(other(f, coords), expected)
    other.load_state_dict(torch.load(buffer))
    torch.testing.assert_close(other(f, coords), expected)
    other.reset_parameters()
    assert not torch.allclose(other(f, coords), expected)
    assert "alpha=0.5" in repr(module)


@pytest.mark.parametrize("kind", KINDS)
def test_it_learns(kind):
    f, coords = data(batch=8)
    target = 2 * f.mean(1, keepdim=True) + f
    module = learned(kind, max_iter=4, rtol=0.0)
    optimizer = torch.optim.Adam(module.parameters(), lr=1e-2)
    losses = []
    for _ in range(60):
        optimizer.zero_grad()
        loss = (module(f, coords) - target).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.5 * losses[0]


def test_other_methods_and_precisions():
    f, coords = data()
    module = learned("l2", method=Anderson(), max_iter=50, rtol=1e-10)
    _, solution = module(f, coords, return_solution=True)
    assert bool((solution.status == Status.CONVERGED).all())
    module = learned("l2", on_failure="ignore")
    low = module.float()(f.float(), coords)
    assert low.dtype == torch.float32


@pytest.mark.parametrize(
    "make, error, name",
    [
        (lambda: ANIE(0, 2), ValueError, "channels"),
        (lambda: ANIE(2, 2.0), TypeError, "coord_dim"),
        (lambda: ANIE(2, 2, embed_dim=6, heads=4), ValueError, "embed_dim"),
        (lambda: ANIE(2, 2, attention="dot"), ValueError, "attention.*dot"),
        (lambda: ANIE(2, 2, blocks=0), ValueError, "blocks"),
        (lambda: ANIE(2, 2, alpha=1.0), ValueError, "alpha"),
        (lambda: ANIE(2, 2, upstream=1), TypeError, "upstream"),
        (
            lambda: ANIE(2, 2, upstream=True, method=Anderson()),
            ValueError,
            "upstream",
        ),
        (lambda: NIE(2, 2, kernel=3), TypeError, "kernel"),
        (lambda: NIE(2, 2, layers=0), ValueError, "layers"),
        (lambda: NIDE(2, solver="euler"), ValueError, "solver.*euler"),
        (lambda: NIDE(2, substeps=0), ValueError, "substeps"),
        (lambda: NIDE(2, derivative=1), TypeError, "derivative"),
    ],
)
def test_wrong_options(make, error, name):
    with pytest.raises(error, match=name):
        make()


def test_another_precision_is_refused_by_name():
    f, coords = torch.randn(2, 7, 2).double(), torch.rand(7, 2)
    for call, name in (
        (lambda: ANIE(2, 2).float()(f, coords), "f must be of"),
        (lambda: NIE(2, 2).float()(f, coords), "f must be of"),
        (lambda: NIDE(2).float()(f[:, 0], coords[:, 0].sort().values),
         "y0 must be of"),
        (lambda: FNODEQ(1, 1).float()(f.new_ones(1, 1, 8, 8)), "x must be of"),
    ):  # fmt: skip
        with pytest.raises(TypeError, match=name):
            call()


def test_wrong_calls():
    f, coords = data()
    for kind in KINDS:
        module = learned(kind)
        for wrong, name in (
            ((f[0], coords), "f must be"),
            ((f[..., :1], coords), "f must be"),
            ((f, coords[:3]), "coords must be"),
            ((f, coords[:, :1]), "coords must be"),
        ):
            with pytest.raises(ValueError, match=name):
                module(*wrong)
        with pytest.raises(TypeError, match="f must be"):
            module(f.long(), coords)
        with pytest.raises(TypeError, match="coords must be"):
            module(f, [[0.0, 1.0]] * POINTS)
        with pytest.raises(ValueError, match="max_iter"):
            module(f, coords, max_iter=0)
    nide, y0 = NIDE(2), torch.randn(3, 2)
    for times, name in (
        (torch.zeros(3), "times must increase"),
        (torch.zeros(1), "times must be"),
        (torch.zeros(2, 2), "times must be"),
    ):
        with pytest.raises(ValueError, match=name):
            nide(y0, times)
    with pytest.raises(ValueError, match="y0"):
        nide(y0[:, :1], torch.linspace(0, 1, 3))
    wrong = NIDE(2, derivative=lambda t, y: y[:, :1])
    with pytest.raises(ValueError, match="derivative"):
        wrong(y0, torch.linspace(0, 1, 3))
    wrong = NIDE(2, kernel=lambda t, s, y: torch.ones(7, 7))
    with pytest.raises(ValueError, match="kernel"):
        wrong(y0, torch.linspace(0, 1, 3))
