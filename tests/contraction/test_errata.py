"""Where the paper (arXiv 2310.01618) is wrong: every correction, by the
counterexample and by the corrected statement holding.

The numbers E1 to E12 and the sections of docs/source/theorems.rst are the
same.
"""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.func import jacrev

from tests.contraction.maps import Affine, Tanh, picard
from torch_picard import (
    OperatorEquation,
    Picard,
    Status,
    fixed_point,
    problems,
)
from torch_picard.contraction import (
    Certificate,
    a_priori_bound,
    ball_invariance,
    estimate_lipschitz,
    one_sided_alpha,
    one_sided_rate,
    spectral_radius,
)

DOUBLE = torch.float64
SLACK, FLOOR = 1 + 1e-12, 1e-13
SEEDS = st.integers(0, 10_000)


def scalar(value):
    return torch.tensor([value], dtype=DOUBLE)


# -- E1: Theorem 1 loses a factor |lam| ------------------------------------


def test_e1_counterexample():
    """|y_{n+1} - y_n| <= |lam|^n k^n |T(y0)| fails at n = 1 by |lam|."""
    lam, k = 10.0, 0.05
    y = [1.0]
    for _ in range(2):
        y.append(lam * (1 + k * y[-1]) + 1.0)
    t0 = 1 + k * y[0]
    claimed = (lam * k) * t0
    assert y[2] - y[1] == pytest.approx(5.25)
    assert claimed == pytest.approx(0.525)
    assert lam**2 * k * t0 == pytest.approx(5.25)


@given(seed=SEEDS, k=st.floats(0.01, 1.0), lam=st.floats(-5.0, 5.0))
def test_e1_corrected(seed, k, lam):
    """|y_{n+1} - y_n| <= |lam|^{n+1} k^n |T(y0)| from y0 = f."""
    T = Tanh(seed, k)
    p = OperatorEquation(T, f=T.x0, lam=lam)
    y = picard(p, T.x0, 0.0, 8)
    t0 = T(T.x0).norm()
    for n in range(8):
        step = (y[n + 1] - y[n]).norm()
        bound = abs(lam) ** (n + 1) * k**n * t0
        assert step <= bound * SLACK + FLOOR * (1 + y[n].norm())


# -- E2: the strict < of Theorem 2 -----------------------------------------


def test_e2_affine_maps_give_equality():
    p = problems.separable_fredholm(lam=1.5)
    u = picard(p.operator, p.x0, 0.0, 10)
    q, first = 0.5, (u[1] - u[0]).norm()
    for n, here in enumerate(u):
        bound = a_priori_bound(q, first, n)
        assert p.error(here) == pytest.approx(bound.item(), rel=1e-11)


# -- E3: Corollary 2 needs a bounded range ---------------------------------


def steps_needed(T, f, lam, eps=1e-6):
    """Until |P(y) - y| < eps, from y0 = f."""
    y, n = f, 0
    while (lam * T(y) + f - y).norm() >= eps:
        y, n = lam * T(y) + f, n + 1
    return n


def test_e3_a_bounded_operator_is_not_enough():
    """T = y/2 maps bounded sets to bounded sets; no number of steps does
    for all f."""
    needed = [
        steps_needed(lambda y: 0.5 * y, scalar(10.0**j), 1.0)
        for j in range(0, 13, 3)
    ]
    assert needed == sorted(set(needed)) and needed[-1] > needed[0] + 30


@given(size=st.floats(-1e6, 1e6), lam=st.floats(-0.9, 0.9))
def test_e3_a_bounded_range_is(size, lam):
    """sup|T| <= M: the first step is at most |lam| M, whatever f is."""
    eps = 1e-3
    q = Certificate(1.0, reason="tanh").scaled(lam)
    # r(y_n) <= q^n |lam| M < eps is what Corollary 2 counts
    n = q.iterations_for(eps / (1 - q.constant), abs(lam) * 1.0)
    assert steps_needed(torch.tanh, scalar(size), lam, eps) <= n + 1


# -- E4: the attention of Lemma 2 is cubic ---------------------------------


class Cubic:
    """(y W_Q)(y W_K)'(y W_V), as in the proof of Lemma 2: no softmax."""

    def __init__(self, seed=0, size=4):
        rng = torch.Generator().manual_seed(seed)
        self.weights = torch.randn(3, size, size, generator=rng, dtype=DOUBLE)
        self.y = torch.randn(5, size, generator=rng, dtype=DOUBLE)

    def __call__(self, y):
        q, k, v = (y @ w for w in self.weights)
        return q @ k.T @ v

    def bound(self, radius):
        norms = torch.linalg.matrix_norm(self.weights, 2)
        return 3 * norms.prod().item() * radius**2


def test_e4_cubic_attention_has_no_constant():
    T = Cubic()
    near = estimate_lipschitz(T, T.y).constant
    far = estimate_lipschitz(T, 10 * T.y).constant
    assert far == pytest.approx(100 * near, rel=1e-6)


@given(seed=SEEDS, radius=st.floats(0.1, 5.0))
@settings(max_examples=10)
def test_e4_on_a_ball_it_has(seed, radius):
    """M <= 3 |W_Q| |W_K| |W_V| R^2 where |y| <= R."""
    T = Cubic(seed)
    y = radius * T.y / T.y.norm()
    assert estimate_lipschitz(T, y, 20).constant <= T.bound(radius) * SLACK


def test_e4_softmax_attention_has_no_constant_either():
    """Scores that tie: a step moves the softmax, and the values it chooses
    between are as far apart as the tokens are long."""

    def attention(y):
        return torch.softmax(y @ y.T, dim=-1) @ y

    y = torch.tensor([[0.0], [1.0], [-1.0]], dtype=DOUBLE)
    found = [
        estimate_lipschitz(attention, s * y, 20).constant
        for s in (1.0, 10.0, 100.0)
    ]
    assert found[1] > 10 * found[0] and found[2] > 50 * found[1]


# -- E5: Theorem 3 ---------------------------------------------------------


def hammerstein_ball(radius, lam=1.0):
    """What the theorem wants of H1 on |u| <= R: T(u) = x <x, u^2>."""
    p = problems.hammerstein(lam)
    x, n = p.solution, p.solution.numel()
    size = x.norm().item()
    # |<x, u^2>|/n <= max x * R^2/n, and the derivative is 2 x <x u, v>/n
    sup = size * x.max().item() * radius**2 / n
    slope = 2 * size * x.max().item() * radius / n
    f = (1 - lam / 4) * size
    return p, ball_invariance(radius, f, sup, lam, derivative_sup=slope)


def test_e5_a_small_derivative_is_not_enough():
    """lam*M < 1 on the ball around 0, yet f carries the iterates out of it:
    u = u^2/4 + 2.1 has no real solution."""
    radius, lam = 1.0, 0.25
    found = ball_invariance(radius, 2.1, radius**2, lam, derivative_sup=2.0)
    assert found.contracts and not found.invariant and not found.converges

    p = OperatorEquation(torch.square, f=scalar(2.1), lam=lam)
    solution = p.solve(method=Picard(0.0), max_iter=500, on_failure="ignore")
    assert not solution.converged.any()


def test_e5_two_solutions_and_one_is_not_found():
    p = problems.hammerstein(lam=1.0)
    inside = p.solve(method=Picard(0.0), max_iter=200, rtol=1e-12)
    assert p.error(inside.value) <= 1e-10
    beyond = fixed_point(
        p.operator,
        3.01 * p.solution,
        method=Picard(0.0),
        max_iter=200,
        on_failure="ignore",
    )
    assert not beyond.converged.any()


def test_e5_the_paper_forgets_f_and_the_sign_of_lam():
    """lam*M < 1 holds for lam = -5, M = 1; |lam|*M < 1 is what counts."""
    p = OperatorEquation(torch.sin, f=scalar(0.3), lam=-5.0)
    solution = p.solve(method=Picard(0.0), max_iter=500, on_failure="ignore")
    assert not solution.converged.any()
    found = ball_invariance(10.0, 0.3, 1.0, lam=-5.0, derivative_sup=1.0)
    assert found.invariant and not found.contracts


@given(lam=st.floats(-0.3, 0.3), start=st.floats(-1.0, 1.0))
def test_e5_corrected(lam, start):
    """An invariant ball on which P contracts: every start in it ends at the
    one solution in it."""
    radius = 6.0
    p, found = hammerstein_ball(radius, lam)
    assert found.converges
    n = p.solution.numel()
    u = start * radius * torch.ones(n, dtype=DOUBLE) / n**0.5
    for _ in range(300):
        u = p.operator(u)
        assert u.norm() <= radius * SLACK
    assert p.error(u) <= 1e-9


# -- E6: Lemma 3 and Theorem 4 ---------------------------------------------


def pooling(edge_index, num_nodes):
    """A_v(f) = max over u -> v of relu(f_u), and its out-degrees."""
    source, target = edge_index

    def operator(f):
        out = f.new_zeros(num_nodes, f.size(1))
        index = target[:, None].expand(-1, f.size(1))
        return out.scatter_reduce(0, index, f.relu()[source], "amax")

    return operator, torch.bincount(source, minlength=num_nodes)


def star(leaves):
    """A hub that sends to its leaves and to itself."""
    target = torch.arange(leaves + 1)
    return torch.stack([torch.zeros_like(target), target]), leaves + 1


def ratio(operator, f, g, ord):
    nodes = torch.linalg.vector_norm(operator(f) - operator(g), dim=1)
    before = torch.linalg.vector_norm(f - g, dim=1)
    norm = torch.linalg.vector_norm
    return (norm(nodes, ord) / norm(before, ord)).item()


def test_e6_the_constant_belongs_to_a_norm():
    """The hub of a star with 9 leaves: 10 in the sum of norms, as the paper
    adds them, sqrt(10) in the direct sum of Hilbert spaces it names, and 1
    in the maximum."""
    operator, degree = pooling(*star(9))
    f, g = torch.zeros(2, 10, 1, dtype=DOUBLE)
    f[0] = 1.0
    assert degree.max() == 10
    assert ratio(operator, f, g, 1) == pytest.approx(10)
    assert ratio(operator, f, g, 2) == pytest.approx(math.sqrt(10))
    assert ratio(operator, f, g, math.inf) == pytest.approx(1)


def test_e6_the_sharp_condition_is_weaker():
    """W = .3: L*alpha = 3 > 1 proves nothing, L*sqrt(10) < 1 does."""
    operator, degree = pooling(*star(9))
    sharp = Certificate(0.3 * math.sqrt(degree.max().item()))
    assert sharp.contracts and not Certificate(0.3 * 10).contracts
    f = torch.rand(10, 3, dtype=DOUBLE)
    solution = fixed_point(
        lambda y: operator(0.3 * y) + f,
        f,
        method=Picard(0.0),
        rtol=1e-10,
        max_iter=sharp.iterations_for(1e-9, operator(0.3 * f).norm()),
    )
    assert solution.converged.all()


@given(seed=SEEDS)
def test_e6_corrected_on_random_graphs(seed):
    rng = torch.Generator().manual_seed(seed)
    edges = torch.randint(8, (2, 20), generator=rng).unique(dim=1)
    operator, degree = pooling(edges, 8)
    f, g = torch.randn(2, 8, 3, generator=rng, dtype=DOUBLE)
    top = degree.max().item()
    assert ratio(operator, f, g, 2) <= math.sqrt(top) * SLACK
    assert ratio(operator, f, g, 1) <= top * SLACK


# -- E7: Algorithms 1 and 2 ------------------------------------------------


def test_e7_the_smoothed_step_hides_the_residual():
    """Algorithm 1 would stop at a residual of 8.8 that moves by .088."""
    x = scalar(17.6)
    step = (0.99 * x + 0.01 * (0.5 * x) - x).norm().item()
    residual = (0.5 * x - x).norm().item()
    assert step == pytest.approx(0.088)
    assert residual == pytest.approx(8.8)
    solution = fixed_point(
        lambda v: 0.5 * v,
        x,
        method=Picard(0.99),
        rtol=0.0,
        atol=0.1,
        on_failure="ignore",
    )
    assert not solution.converged.any() and solution.residual > 0.1


def test_e7_alpha_1_would_pass_at_once():
    with pytest.raises(ValueError, match="alpha"):
        Picard(1.0)
    with pytest.raises(ValueError, match="alpha"):
        Certificate(0.5).smoothed(1.0)


def test_e7_what_is_returned_is_what_was_measured():
    """Not x_n after an early stop at k < n, which does not exist."""
    p = Tanh(0, 0.5)
    solution = fixed_point(p, p.x0, rtol=1e-6, max_iter=1000)
    k = solution.iterations.item()
    assert k < 1000
    expected = picard(p, p.x0, 0.5, k)[-1]
    torch.testing.assert_close(solution.value, expected, rtol=1e-12, atol=0)
    measured = (p(solution.value) - solution.value).norm()
    assert solution.residual.item() == pytest.approx(measured.item())


def test_e7_without_f_the_input_is_forgotten():
    p = Tanh(0, 0.5)
    ends = [
        fixed_point(p, start, rtol=1e-14, max_iter=500).value
        for start in (p.x0, 100 * p.x0)
    ]
    torch.testing.assert_close(*ends, rtol=1e-12, atol=1e-12)
    ends = [
        OperatorEquation(p, f=f).solve(rtol=1e-14, max_iter=500).value
        for f in (p.x0, 100 * p.x0)
    ]
    assert (ends[0] - ends[1]).norm() >= 99 * p.x0.norm() / 1.5


def test_e7_lam_is_part_of_the_iteration():
    T = Tanh(0, 1.0)
    solution = OperatorEquation(T, f=T.x0, lam=0.3).solve(
        rtol=1e-13, max_iter=500
    )
    x = solution.value
    torch.testing.assert_close(0.3 * T(x) + T.x0, x, rtol=1e-11, atol=1e-11)


# -- E8: what smoothing does -----------------------------------------------


@pytest.mark.parametrize("alpha", [0.0, 0.5, 0.9, 0.99])
def test_e8_it_does_not_rescue_an_expanding_map(alpha):
    solution = fixed_point(
        lambda x: 2 * x + 1,
        scalar(0.5),
        method=Picard(alpha),
        max_iter=400,
        on_failure="ignore",
    )
    assert not solution.converged.any()
    assert solution.residual_history[-1] > solution.residual_history[0]


@pytest.mark.parametrize(
    "alpha, converges",
    [(0.0, False), (0.19, False), (0.21, True), (0.6, True)],
)
def test_e8_it_helps_where_the_spectrum_is_left_of_one(alpha, converges):
    """The Green's kernel with lam = -1.5 pi^2: L = 1.5, m = -1.5."""
    p = problems.green_fredholm(lam=-1.5 * math.pi**2)
    solution = p.solve(
        method=Picard(alpha), max_iter=4000, rtol=1e-6, on_failure="ignore"
    )
    assert bool(solution.converged.all()) == converges
    # the only mode of this start
    assert (one_sided_rate(p.rate, -p.rate, alpha) < 1) == converges


def test_e8_at_constant_one():
    p = problems.rotation()
    plain = p.solve(method=Picard(0.0), max_iter=300, on_failure="ignore")
    assert not plain.converged.any()
    assert p.solve(method=Picard(0.5), max_iter=300).converged.all()
    p = problems.reflection()
    assert p.error(picard(p.operator, p.x0, 0.5, 1)[-1]) <= 1e-12
    assert one_sided_alpha(1.0, -1.0) == 0.5


def test_e8_on_a_positive_spectrum_it_only_slows():
    p = problems.appnp()
    spent = [
        p.solve(method=Picard(alpha), rtol=1e-8, max_iter=5000).evaluations
        for alpha in (0.0, 0.3, 0.6, 0.9)
    ]
    assert spent == sorted(spent) and spent[-1] > 5 * spent[0]


# -- E9: the lambda of Table 3 is alpha ------------------------------------


def test_e9_table_3_smooths():
    """x <- (1-l) T(x) + l x with l = 1/2 has the fixed points of T; equation
    (1) with lam = 1/2 has others."""
    T = Affine(0, 0.9)
    x = T.x0
    for _ in range(3):
        x = 0.5 * T(x) + 0.5 * x
    ours = fixed_point(T, T.x0, method=Picard(alpha=0.5), max_iter=3, rtol=0.0)
    torch.testing.assert_close(ours.value, x)
    scaled = OperatorEquation(T, f=None, lam=0.5).solve(
        x0=T.x0, rtol=1e-12, max_iter=500
    )
    assert (scaled.value - T.solution()).norm() > 0.1


# -- E10: the reverse SDE --------------------------------------------------


def reverse_variance(drift, data, beta=1.0, end=6.0, steps=20_000):
    """Of the reverse SDE on Gaussian data of variance ``data``: its moment
    equation, integrated from the noise back to t = 0.

    dx = -beta (drift(x, v) + score) dt + sqrt(beta) dw with score -x/v; for
    a drift c*x the variance y obeys y' = 2 beta (c - 1/v) y + beta in
    reversed time. A constant drift moves the mean only, c = 0.
    """
    dt = end / steps
    y = 1 + (data - 1) * math.exp(-beta * end)
    for k in range(steps):
        t = end - (k + 0.5) * dt
        v = 1 + (data - 1) * math.exp(-beta * t)
        slope = 2 * beta * (drift - 1 / v)
        # exact for a constant slope
        grown = math.exp(slope * dt)
        y = grown * y + beta * (grown - 1) / slope
    return y


@pytest.mark.parametrize("data", [0.25, 0.5, 3.0])
def test_e10_the_drift_lacks_x(data):
    """-beta (x/2 + grad log p) returns to the data; with 1/2 for x/2, as
    printed, it does not, and has a mean besides."""
    assert reverse_variance(0.5, data) == pytest.approx(data, rel=1e-3)
    printed = reverse_variance(0.0, data)
    assert abs(printed - data) > 0.2 * data


# -- E11: triangular maps --------------------------------------------------


class Chain:
    """x_1 given, x_{i+1} = tanh(a x_i + b) + x_1/4: all N at once is
    triangular in i, as sampling steps and tokens are."""

    def __init__(self, size):
        self.size = size

    def __call__(self, x):
        step = torch.tanh(3 * x[:-1] + 0.2) + 0.25 * x[:1]
        return torch.cat([torch.full_like(x[:1], 0.7), step])

    def sequential(self):
        x = [torch.tensor(0.7, dtype=DOUBLE)]
        for _ in range(self.size - 1):
            x.append(torch.tanh(3 * x[-1] + 0.2) + 0.25 * x[0])
        return torch.stack(x)


def test_e11_alpha_0_is_exact_after_n_sweeps():
    p = Chain(12)
    x0 = torch.zeros(12, dtype=DOUBLE)
    assert torch.equal(picard(p, x0, 0.0, 12)[-1], p.sequential())
    # though the map is no contraction at all
    assert estimate_lipschitz(p, x0).constant > 2


@pytest.mark.parametrize("alpha", [0.1, 0.5])
def test_e11_any_smoothing_loses_that(alpha):
    """Every eigenvalue becomes alpha, the first entry shows it: its error
    is alpha^k. A nilpotent map has become one with a geometric tail."""
    p = Chain(12)
    x = picard(p, torch.zeros(12, dtype=DOUBLE), alpha, 40)
    for k in (12, 40):
        error = (x[k] - p.sequential())[0].item()
        assert error == pytest.approx(-0.7 * alpha**k, rel=1e-2, abs=1e-15)

    jacobian = jacrev(lambda v: alpha * v + (1 - alpha) * p(v))(x[0])
    assert (jacobian.diagonal() == alpha).all()
    assert not jacobian.triu(1).any()
    assert spectral_radius(p, x[0]).constant == 0.0


# -- E12: more iterations --------------------------------------------------


def test_e12_more_iterations_are_not_always_better():
    """P(x) = x/2 from 1 on, and a label that is no fixed point: the error
    falls for two steps and rises ever after, as it does for one of the four
    nets of the paper's Table 2."""
    x, errors = 1.0, []
    for _ in range(30):
        errors.append(abs(x - 0.3))
        x = x / 2
    best = min(range(30), key=errors.__getitem__)
    assert best == 2
    assert all(a > b for a, b in itertools.pairwise(errors[:3]))
    assert all(a < b for a, b in itertools.pairwise(errors[2:]))


@given(seed=SEEDS, lipschitz=st.floats(0.1, 0.9), alpha=st.floats(0, 0.9))
def test_e12_what_does_fall(seed, lipschitz, alpha):
    """The distance to the fixed point and the residual fall at every step
    of a contraction. The distance to a label need not: it ends at that of
    the fixed point."""
    p = Tanh(seed, lipschitz)
    exact = p.solution()
    x = picard(p, p.x0, alpha, 20)
    q = alpha + (1 - alpha) * lipschitz
    for a, b in itertools.pairwise(x):
        assert (b - exact).norm() <= q * (a - exact).norm() * SLACK + FLOOR
    # A label half a unit short of x*, seen from x0: iterates pass it by.
    way = p.x0 - exact
    label = exact + 0.5 * way / way.norm()
    errors = [float((here - label).norm()) for here in x]
    assert abs(errors[-1] - 0.5) <= float((x[-1] - exact).norm()) + FLOOR


def test_e12_a_solve_says_how_it_ended():
    p = problems.rotation()
    solution = p.solve(method=Picard(0.0), max_iter=400, on_failure="ignore")
    assert Status(solution.status[0]) is Status.STAGNATED
