"""The bounds bound, and are the formulas of the theorems."""

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.contraction.maps import Affine, Tanh, picard
from torch_picard import Phantom, Picard, fixed_point, problems
from torch_picard.contraction import (
    Certificate,
    a_posteriori_bound,
    a_priori_bound,
    ball_invariance,
    injection_bound,
    kantorovich,
    krasnoselskii_mann_bound,
    neumann_bound,
    one_sided_alpha,
    one_sided_rate,
    residual_bound,
)

SEEDS = st.integers(0, 10_000)
BELOW_ONE = st.floats(0.05, 0.95)
ALPHAS = st.floats(0.0, 0.95)
MAPS = st.sampled_from([Affine, Tanh])
# relative for the bound's own rounding, absolute for the iterates'
SLACK, FLOOR = 1 + 1e-12, 1e-13


@given(make=MAPS, seed=SEEDS, lipschitz=BELOW_ONE, alpha=ALPHAS)
def test_every_bound_holds_on_every_iterate(make, seed, lipschitz, alpha):
    p = make(seed, lipschitz)
    exact = p.solution()
    x = picard(p, p.x0, alpha, 40)
    q = Certificate(lipschitz).smoothed(alpha).constant
    first = (x[1] - x[0]).norm().item()
    for n, here in enumerate(x):
        error = (here - exact).norm().item()
        residual = (p(here) - here).norm().item()
        bounds = [
            residual_bound(lipschitz, residual),
            a_priori_bound(q, first, n),
        ]
        if n:
            step = (here - x[n - 1]).norm().item()
            bounds.append(a_posteriori_bound(q, step))
        assert error <= min(bounds) * SLACK + FLOOR
        assert residual <= (1 + lipschitz) * error * SLACK + FLOOR


@given(
    make=MAPS,
    seed=SEEDS,
    lipschitz=BELOW_ONE,
    alpha=st.floats(0.0, 0.8),
    eps=st.floats(1e-8, 1.0),
)
def test_never_more_iterations_than_certified(
    make, seed, lipschitz, alpha, eps
):
    p = make(seed, lipschitz)
    exact = p.solution()
    smooth = Certificate(lipschitz).smoothed(alpha)
    first = (1 - alpha) * (p(p.x0) - p.x0).norm()
    n = smooth.iterations_for(eps, first)
    x, spent = p.x0, 0
    while (x - exact).norm() > eps:
        x, spent = alpha * x + (1 - alpha) * p(x), spent + 1
        assert spent <= n


@given(make=MAPS, seed=SEEDS, lipschitz=BELOW_ONE, alpha=ALPHAS)
def test_the_engine_needs_no_more_either(make, seed, lipschitz, alpha):
    """The solve ends once r <= (1-L)*eps, which r(x_n) <= q^n r(x_0) and
    the certificate's count imply."""
    p = make(seed, lipschitz)
    eps = 1e-6
    smooth = Certificate(lipschitz).smoothed(alpha)
    r0 = (p(p.x0) - p.x0).norm()
    n = smooth.iterations_for(eps, (1 - alpha) * r0)
    solution = fixed_point(
        p,
        p.x0,
        method=Picard(alpha),
        rtol=0.0,
        atol=(1 - lipschitz) * eps,
        max_iter=n + 1,
    )
    assert solution.converged.all()
    assert solution.iterations.item() <= n
    assert (solution.value - p.solution()).norm() <= eps * SLACK


@pytest.mark.parametrize("lam", [1.5, -2.0, 0.3])
def test_banach_is_reached_with_equality(lam):
    """F1: the strict < of the paper's Theorem 2 is false."""
    p = problems.separable_fredholm(lam=lam)
    x = picard(p.operator, p.x0, 0.0, 12)
    errors = torch.stack([(here - p.solution).norm() for here in x])
    q, first = abs(lam) / 3, (x[1] - x[0]).norm()
    bound = a_priori_bound(q, first, torch.arange(13))
    if lam > 0:
        torch.testing.assert_close(errors, bound, rtol=1e-11, atol=1e-14)
        steps = [(b - a).norm() for a, b in itertools.pairwise(x)]
        posterior = a_posteriori_bound(q, torch.stack(steps))
        torch.testing.assert_close(
            errors[1:], posterior, rtol=1e-7, atol=1e-14
        )
    assert (errors <= bound * SLACK + FLOOR).all()


@given(seed=SEEDS, alpha=st.floats(0.01, 0.99), theta=st.floats(0.0, 3.14))
def test_krasnoselskii_mann(seed, alpha, theta):
    p = problems.rotation(theta)
    x = picard(p.operator, p.x0, alpha, 50)
    distance = p.error(p.x0)
    for k, here in enumerate(x):
        r = (p.operator(here) - here).norm().item()
        assert r <= krasnoselskii_mann_bound(distance, k, alpha) * SLACK


def rotate_and_scale(seed, lipschitz, m, size=6):
    """A linear map with <Jv, v> = m|v|^2 and |Jv| = L|v| for every v."""
    angle = math.acos(m / lipschitz)
    c, s = math.cos(angle), math.sin(angle)
    turn = torch.tensor([[c, -s], [s, c]], dtype=torch.float64)
    return lipschitz * torch.block_diag(*[turn] * (size // 2))


@given(
    seed=SEEDS,
    lipschitz=st.floats(0.1, 3.0),
    cosine=st.floats(-1.0, 1.0),
    alpha=ALPHAS,
)
def test_the_one_sided_rate_is_exact_for_scaled_rotations(
    seed, lipschitz, cosine, alpha
):
    m = lipschitz * cosine
    j = rotate_and_scale(seed, lipschitz, m)
    smooth = alpha * torch.eye(6, dtype=torch.float64) + (1 - alpha) * j
    norm = torch.linalg.matrix_norm(smooth, 2).item()
    # near 0 a square root of rounding errors
    assert one_sided_rate(lipschitz, m, alpha) == pytest.approx(
        norm, rel=1e-9, abs=1e-7
    )


@given(seed=SEEDS, lipschitz=st.floats(0.1, 4.0), alpha=ALPHAS)
def test_the_one_sided_rate_bounds_any_matrix(seed, lipschitz, alpha):
    j = Affine(seed, lipschitz).matrix
    m = torch.linalg.eigvalsh((j + j.T) / 2)[-1].item()
    smooth = alpha * torch.eye(6, dtype=torch.float64) + (1 - alpha) * j
    norm = torch.linalg.matrix_norm(smooth, 2).item()
    assert norm <= one_sided_rate(lipschitz, m, alpha) * SLACK + 1e-12


@given(
    lipschitz=st.floats(0.0, 5.0),
    m=st.floats(-6.0, 0.999),
    other=ALPHAS,
)
def test_one_sided_alpha_is_the_best_one(lipschitz, m, other):
    alpha = one_sided_alpha(lipschitz, m)
    best = one_sided_rate(lipschitz, m, alpha)
    assert 0 <= alpha < 1
    assert best <= one_sided_rate(lipschitz, m, other) * (1 + 1e-9) + 1e-7
    if m < 0.99:
        assert best < 1


def test_one_sided_certifies_the_green_kernel():
    """lam = -1.5 pi^2: Picard diverges, smoothing contracts iff alpha > .2."""
    assert one_sided_rate(1.5, -1.5, 0.2) >= 1
    assert one_sided_rate(1.5, -1.5, 0.21) < 1
    assert one_sided_alpha(1.5, -1.5) == pytest.approx(0.6)
    assert one_sided_alpha(0.5, 0.4) == 0.0  # plain Picard is the best


@given(seed=SEEDS, lipschitz=BELOW_ONE, k=st.integers(0, 12))
def test_neumann(seed, lipschitz, k):
    p = Affine(seed, lipschitz)
    eye = torch.eye(6, dtype=torch.float64)
    exact = torch.linalg.inv(eye - p.matrix)
    terms = sum(
        (torch.linalg.matrix_power(p.matrix, i) for i in range(k)), 0 * eye
    )
    missing = torch.linalg.matrix_norm(exact - terms, 2).item()
    assert missing <= neumann_bound(lipschitz, k) * SLACK + FLOOR


@pytest.mark.parametrize("k", [1, 2, 5])
def test_phantom_gradients_miss_no_more_than_the_neumann_bound(k):
    p = Affine(0, 0.8)
    b = p.b.clone().requires_grad_()
    solution = fixed_point(
        lambda x: p.matrix @ x + b,
        p.x0,
        rtol=1e-13,
        max_iter=1000,
        gradient=Phantom(steps=k, alpha=0.0),
    )
    g = torch.ones(6, dtype=torch.float64)
    (found,) = torch.autograd.grad(solution.value, b, g)
    eye = torch.eye(6, dtype=torch.float64)
    exact = torch.linalg.solve((eye - p.matrix).T, g)
    miss = (found - exact).norm()
    assert 0 < miss <= neumann_bound(0.8, k) * g.norm()


@given(make=MAPS, seed=SEEDS, lipschitz=BELOW_ONE)
def test_injection(make, seed, lipschitz):
    p, q = make(seed, lipschitz), make(seed, lipschitz)
    q.b = p.x0
    apart = (p.solution() - q.solution()).norm().item()
    inputs = (p.b - q.b).norm().item()
    assert apart <= injection_bound(lipschitz, inputs) * SLACK + FLOOR
    assert apart >= inputs / (1 + lipschitz) / SLACK - FLOOR


# -- Newton-Kantorovich ----------------------------------------------------


@given(start=st.floats(0.3, 3.0), a=st.floats(0.5, 4.0))
def test_kantorovich_on_a_parabola(start, a):
    """F(x) = x^2 - a: the theorem is sharp for quadratics, its radius is
    the distance to the root and the other radius to the other one."""
    beta, K = 1 / (2 * start), 2.0
    eta = abs(start**2 - a) / (2 * start)
    found = kantorovich(beta, eta, K)
    root = math.sqrt(a)
    if not found.converges:
        assert found.h > 0.5 and math.isnan(found.radius)
        return
    if start >= root:
        assert start - root == pytest.approx(found.radius, abs=1e-7)
        assert start + root == pytest.approx(found.uniqueness_radius, abs=1e-7)
    x = start
    for _ in range(60):
        x = x - (x * x - a) / (2 * x)
        assert abs(x - start) <= found.radius + 1e-12
    assert x == pytest.approx(root)


def test_kantorovich_of_an_affine_map_is_one_step():
    found = kantorovich(beta=2.0, eta=3.0, K=0.0)
    assert found.h == 0 and found.converges
    assert found.radius == 3.0 and found.uniqueness_radius == math.inf
    tiny = kantorovich(beta=1.0, eta=1.0, K=1e-18)
    assert tiny.radius == pytest.approx(1.0)


def test_kantorovich_at_the_edge():
    edge = kantorovich(1.0, 0.5, 1.0)
    assert edge.converges and edge.radius == edge.uniqueness_radius == 1.0
    beyond = kantorovich(1.0, 0.5000001, 1.0)
    assert not beyond.converges
    assert not 0.1 <= beyond.radius  # NaN: nothing passes a comparison


# -- Theorem 3 -------------------------------------------------------------


@given(seed=SEEDS, radius=st.floats(0.5, 5.0), lam=st.floats(-0.2, 0.2))
def test_an_invariant_ball_holds_the_iterates_and_the_solution(
    seed, radius, lam
):
    """T(x) = |x|^2 u: sup|T| = R^2, sup|T'| = 2R on the ball."""
    rng = torch.Generator().manual_seed(seed)
    u, f = torch.randn(2, 5, generator=rng, dtype=torch.float64)
    u, f = u / u.norm(), f / f.norm()

    slack = ball_invariance(radius, 0.0, radius**2, lam).slack
    f = f * max(slack, 0.0) * 0.999
    found = ball_invariance(
        radius, f.norm(), radius**2, lam, derivative_sup=2 * radius
    )
    assert found.invariant == (slack > 0)
    assert found.constant == pytest.approx(abs(lam) * 2 * radius)
    if not found.converges:
        return
    x = radius * torch.randn(5, generator=rng, dtype=torch.float64).sign()
    x = x / 5**0.5
    for _ in range(400):
        x = f + lam * x.square().sum() * u
        assert x.norm() <= radius * (1 + 1e-12)
    r = (f + lam * x.square().sum() * u - x).norm().item()
    assert r <= found.constant**400 * radius * 10 + 1e-13


def test_ball_invariance_says_only_what_it_was_given():
    found = ball_invariance(2.0, 0.5, 1.0)
    assert found.invariant and found.slack == 0.5
    assert math.isnan(found.constant)
    assert not found.contracts and not found.converges
    outside = ball_invariance(1.0, 0.5, 1.0, derivative_sup=0.1)
    assert outside.contracts and not outside.converges
    assert outside.slack == -0.5
    # the sign of lam does not matter, though lam*M < 1 as the paper has it
    negative = ball_invariance(1.0, 0.0, 0.1, lam=-5.0, derivative_sup=1.0)
    assert not negative.contracts and negative.constant == 5.0


# -- kinds of input --------------------------------------------------------


def test_tensors_keep_their_shape_and_precision():
    r = torch.rand(3, 2)
    assert residual_bound(0.5, r).dtype == torch.float32
    assert torch.equal(residual_bound(0.5, r), r / 0.5)
    assert residual_bound(0.5, r.bfloat16()).dtype == torch.float32
    assert a_priori_bound(0.5, r, 2).shape == (3, 2)
    curve = a_priori_bound(0.5, 1.0, torch.arange(4))
    assert curve.tolist() == [2.0, 1.0, 0.5, 0.25]
    assert a_priori_bound(0.5, torch.tensor(4), torch.tensor(1)).item() == 4
    assert isinstance(residual_bound(torch.tensor(0.5), 1.0), float)


BAD = {
    "q 1": (lambda: a_priori_bound(1.0, 1.0, 1), ValueError, "q must"),
    "q nan": (lambda: a_posteriori_bound(math.nan, 1.0), ValueError, "q must"),
    "q text": (lambda: a_priori_bound("q", 1.0, 1), TypeError, "q must"),
    "step": (lambda: a_priori_bound(0.5, -1.0, 1), ValueError, "first_step"),
    "n": (lambda: a_priori_bound(0.5, 1.0, -1), ValueError, "n must"),
    "n float": (lambda: a_priori_bound(0.5, 1.0, 1.5), TypeError, "n must"),
    "n tensor": (
        lambda: a_priori_bound(0.5, 1.0, torch.tensor([-1])),
        ValueError,
        "n must",
    ),
    "n float tensor": (
        lambda: a_priori_bound(0.5, 1.0, torch.tensor([1.0])),
        TypeError,
        "n must",
    ),
    "last": (
        lambda: a_posteriori_bound(0.5, torch.tensor([-1.0])),
        ValueError,
        "last_step",
    ),
    "complex": (
        lambda: residual_bound(0.5, torch.tensor([1j])),
        TypeError,
        "residual",
    ),
    "constant": (lambda: residual_bound(1.2, 1.0), ValueError, "constant"),
    "residual": (lambda: residual_bound(0.2, None), TypeError, "residual"),
    "residual nan": (
        lambda: residual_bound(0.2, math.nan),
        ValueError,
        "residual",
    ),
    "alpha 0": (
        lambda: krasnoselskii_mann_bound(1.0, 1, 0.0),
        ValueError,
        "alpha",
    ),
    "distance": (
        lambda: krasnoselskii_mann_bound(-1.0, 1, 0.5),
        ValueError,
        "distance",
    ),
    "k": (
        lambda: krasnoselskii_mann_bound(1.0, -1, 0.5),
        ValueError,
        "k must",
    ),
    "k bool": (lambda: neumann_bound(0.5, True), TypeError, "k must"),
    "L": (lambda: one_sided_rate(-1.0, 0.0, 0.5), ValueError, "lipschitz"),
    "L inf": (
        lambda: one_sided_rate(math.inf, 0.0, 0.5),
        ValueError,
        "lipschitz",
    ),
    "m": (lambda: one_sided_rate(1.0, math.nan, 0.5), ValueError, "m must"),
    "m 1": (lambda: one_sided_alpha(2.0, 1.0), ValueError, "m must"),
    "alpha 1": (lambda: one_sided_rate(1.0, 0.0, 1.0), ValueError, "alpha"),
    "beta": (lambda: kantorovich(0.0, 1.0, 1.0), ValueError, "beta"),
    "eta": (lambda: kantorovich(1.0, -1.0, 1.0), ValueError, "eta"),
    "K": (lambda: kantorovich(1.0, 1.0, math.nan), ValueError, "K must"),
    "radius": (lambda: ball_invariance(0.0, 1.0, 1.0), ValueError, "radius"),
    "f_norm": (lambda: ball_invariance(1.0, -1.0, 1.0), ValueError, "f_norm"),
    "T_sup": (
        lambda: ball_invariance(1.0, 1.0, math.inf),
        ValueError,
        "T_sup",
    ),
    "lam": (
        lambda: ball_invariance(1.0, 1.0, 1.0, lam=math.inf),
        ValueError,
        "lam",
    ),
    "derivative": (
        lambda: ball_invariance(1.0, 1.0, 1.0, derivative_sup=-1.0),
        ValueError,
        "derivative_sup",
    ),
    "difference": (
        lambda: injection_bound(0.5, -1.0),
        ValueError,
        "difference",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_names_the_argument(name):
    make, kind, argument = BAD[name]
    with pytest.raises(kind, match=argument):
        make()
