"""Slopes of kernels, enclosed: never below what is found by sampling; and
the certificates of learned equations."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from torch_picard.anie import (
    FNODEQ,
    NIDE,
    NIE,
    GaussLegendre,
    IntegralEquation,
    Trapezoid,
)
from torch_picard.anie.enclosures import NoRule, slope_bounds
from torch_picard.contraction import Ball, contractive, lipschitz_bound

torch.manual_seed(0)
MATRIX = torch.randn(2, 2).double()
NET = nn.Sequential(
    nn.Linear(2, 5), nn.GELU(), nn.Linear(5, 4), nn.SiLU(), nn.Linear(4, 3),
    nn.Softplus(), nn.Linear(3, 3), nn.ELU(), nn.Linear(3, 2),
    nn.LeakyReLU(),
).double()  # fmt: skip

KERNELS = {
    "matrix": lambda x, t, u: u @ MATRIX,
    "linear": lambda x, t, u: F.linear(u, MATRIX, MATRIX[0]),
    "net": lambda x, t, u: NET(u),
    "maximum": lambda x, t, u: torch.maximum(u, x * u.flip(-1)),
    "clamp": lambda x, t, u: u.clamp(-0.5, 0.3) - torch.relu(u - t),
    "where": lambda x, t, u: torch.where(x > t, u.sin(), 2 * u),
    "softplus": lambda x, t, u: F.softplus(3 * u, beta=2.0),
    "gelu": lambda x, t, u: F.gelu(4 * u),
    "silu": lambda x, t, u: F.silu(5 * u),
    "root": lambda x, t, u: (u + 5) ** 0.5 + (u + 6) ** -1.5,
    "alpha": lambda x, t, u: torch.add(x, u, alpha=3) - torch.sub(t, u),
    "square": lambda x, t, u: u / (1 + u * u),
    "parts": lambda x, t, u: torch.cat(
        [u[..., :1] * u[..., 1:], u.sum(-1, keepdim=True)], -1
    ),
    "mean": lambda x, t, u: u - u.mean(-1, keepdim=True),
}


@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize("width", [0.05, 1.0])
def test_an_enclosure_holds_all_slopes(name, width):
    kernel = KERNELS[name]
    torch.manual_seed(1)
    x, t = torch.rand(3, 1, 1).double(), torch.rand(1, 4, 1).double()
    center = torch.randn(1, 4, 2).double()
    bound = slope_bounds(kernel, x, t, center - width, center + width)
    assert bound.shape == (3, 4, 2, 2) and bool(bound.isfinite().all())
    seen = torch.zeros_like(bound)
    for _ in range(60):
        u = center + width * (2 * torch.rand(1, 4, 2).double() - 1)
        u = u.expand(3, 4, 2).clone().requires_grad_()
        values = kernel(x, t, u).expand(3, 4, 2)
        for i in range(2):
            (slope,) = torch.autograd.grad(
                values[..., i].sum(), u, retain_graph=True
            )
            seen[..., i, :] = torch.maximum(seen[..., i, :], slope.abs())
    assert bool((seen <= bound + 1e-12).all())
    if width < 0.1 and name not in ("parts", "net"):
        assert bool((bound <= 1.5 * seen + 0.5).all())


def test_what_mixes_nodes_or_jumps_has_no_enclosure():
    low = torch.full((1, 4, 2), -1.0).double()
    x = torch.rand(3, 1, 1).double()
    for kernel in (
        lambda x, t, u: u.sum(-2, keepdim=True),
        lambda x, t, u: u[:, :1],
        lambda x, t, u: u[..., 0].sum(-1),
        lambda x, t, u: u.mean((1, 2), keepdim=True),
        lambda x, t, u: u.flip(1),
        lambda x, t, u: torch.ones(4, 4).double() @ u,
        lambda x, t, u: torch.where(u > 0, u + 1, u),
        lambda x, t, u: u[..., 0] * u,
        lambda x, t, u: torch.cat([u, u], 1),
    ):
        with pytest.raises(NoRule):
            slope_bounds(kernel, x, x.mT, low, -low)


def test_systems_and_quotients_get_a_certificate():
    turn = torch.tensor([[0.0, 0.5], [-0.5, 0.0]])
    system = IntegralEquation(
        lambda x, t, u: u @ turn.T, torch.ones(8, 2), GaussLegendre(8), (0, 1)
    )
    assert system.certificate().constant == pytest.approx(0.5, rel=1e-6)
    bell = IntegralEquation(
        lambda x, t, u: u / (1 + u * u), lambda x: x, Trapezoid(8), (0, 1)
    )
    assert bell.certificate(Ball(0.5)).constant < 2
    # nothing is claimed, and it is said why
    steep = IntegralEquation(
        lambda x, t, u: 1 / u, lambda x: x, Trapezoid(8), (0, 1)
    ).certificate(Ball(0.5))
    assert steep.constant == math.inf and "smaller" in steep.reason


# -- learned equations -------------------------------------------------------


@pytest.mark.parametrize("norm", ["l2", "l1", "linf"])
def test_a_nie_keeps_its_promise(norm):
    torch.manual_seed(0)
    nie = NIE(2, 1, hidden=16, layers=3, domain=(0, 2)).double()
    coords = torch.rand(9, 1).double()
    certificate = nie.certificate(norm)
    assert certificate.kind == "certified"
    order = {"l2": 2, "l1": 1, "linf": math.inf}[norm]
    f = torch.randn(1, 9, 2).double()
    sharper = nie.equation(f, coords).certificate(norm=norm)
    near = nie.equation(f, coords).certificate(Ball(0.1), norm)
    assert sharper.constant < math.inf and near.constant < math.inf
    for scale in (1e-3, 1.0):
        u = 0.05 * torch.randn(1, 9, 2).double()
        v = u + scale * 0.05 * torch.randn(1, 9, 2).double()
        moved = nie.integral(u, coords) - nie.integral(v, coords)
        ratio = torch.linalg.vector_norm(moved, order) / (
            torch.linalg.vector_norm(u - v, order)
        )
        assert ratio <= certificate.constant
        assert ratio <= sharper.constant


def test_a_nie_can_be_made_to_contract():
    torch.manual_seed(0)
    nie = NIE(2, 1, hidden=16, alpha=0.0, max_iter=200)
    contractive(nie, 0.9)
    assert nie.certificate().constant <= 0.9 * (1 + 1e-6)
    _, solution = nie(
        torch.randn(3, 9, 2), torch.rand(9, 1), return_solution=True
    )
    assert bool(solution.converged.all())
    given = NIE(2, 1, kernel=lambda x, t, u: u.sin()).certificate()
    assert given.constant == math.inf and "equation(" in given.reason


@pytest.mark.parametrize("solver", ["rk4", "dopri5"])
@pytest.mark.parametrize("volterra", [True, False])
def test_a_nide_keeps_its_promise(solver, volterra):
    torch.manual_seed(0)
    nide = NIDE(2, hidden=8, solver=solver, volterra=volterra, substeps=2)
    nide = nide.double()
    times = torch.tensor([0.0, 0.1, 0.3, 0.35, 0.5]).double()
    certificate = nide.certificate(times)
    assert certificate.norm == "linf" and certificate.kind == "certified"
    y0 = torch.randn(5, 2).double()
    u, v = torch.randn(2, 5, 5, 2).double()
    moved = nide._trajectory(u, y0, times) - nide._trajectory(v, y0, times)
    ratio = moved.abs().amax((1, 2)) / (u - v).abs().amax((1, 2))
    assert 0 < ratio.max() <= certificate.constant < 100
    with pytest.raises(ValueError, match="certificate"):
        lipschitz_bound(nide)


def test_a_nide_with_unknown_parts_claims_nothing():
    times = torch.linspace(0, 1, 5)
    for given, name in (
        ({"derivative": lambda t, y: y}, "derivative"),
        ({"kernel": lambda t, s, y: y}, "kernel"),
    ):
        found = NIDE(2, **given).certificate(times)
        assert found.constant == math.inf and name in found.reason
    with pytest.raises(ValueError, match="times"):
        NIDE(2).certificate(times.flip(0))
    with pytest.raises(ValueError, match="must increase and be finite"):
        NIDE(2)(torch.ones(1, 2), torch.tensor([0.0, 1.0, math.inf]))
    with pytest.raises(TypeError, match="kernel must"):
        NIDE(2, kernel=lambda t, s, y: 1.0)(torch.ones(1, 2), times)


@pytest.mark.parametrize("bound", [None, 0.8])
def test_a_bounded_fourier_operator_keeps_its_promise(bound):
    torch.manual_seed(0)
    model = FNODEQ(1, 1, width=4, modes=3, layers=2, bound=bound).double()
    with torch.no_grad():
        for p in model.layers.parameters():
            p.mul_(3)
    certificate = lipschitz_bound(model)
    assert certificate.kind == "certified"
    assert bound is None or certificate.constant <= bound * (1 + 1e-9)
    operator = model.operator(torch.randn(1, 4, 8, 8).double())
    u, v = torch.randn(2, 1, 4, 8, 8).double()
    ratio = (operator(u) - operator(v)).norm() / (u - v).norm()
    assert ratio <= certificate.constant
    assert lipschitz_bound(model, norm="linf").constant == math.inf
    with pytest.raises(ValueError, match="bound="):
        contractive(model, 0.9)
    with pytest.raises(TypeError, match="bound"):
        FNODEQ(1, 1, bound="a")


@pytest.mark.parametrize(
    "name", ["softplus", "gelu", "silu", "alpha", "square", "parts", "mean"]
)
def test_slopes_are_enclosed_on_the_device_of_the_nodes(name):
    x, t = torch.rand(3, 1, 1, device="meta"), torch.rand(1, 4, 1).to("meta")
    low = torch.zeros(1, 4, 2, dtype=torch.double, device="meta")
    bound = slope_bounds(KERNELS[name], x.double(), t.double(), low, low)
    assert bound.device.type == "meta"
