"""Estimates at a point: against dense linear algebra, and of every kind of
operator and state."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.func import jacrev
from torch.nn.attention import SDPBackend, sdpa_kernel

from tests.contraction.maps import Affine, Tanh
from tests.nn.graphs import EDGES, features, make
from torch_picard import problems
from torch_picard.contraction import (
    estimate_lipschitz,
    one_sided_alpha,
    one_sided_constant,
    one_sided_rate,
    spectral_radius,
)

ESTIMATES = [estimate_lipschitz, spectral_radius, one_sided_constant]
SEEDS = st.integers(0, 10_000)


def matrix(rows, dtype=torch.float64):
    return torch.tensor(rows, dtype=dtype)


def of(m, **options):
    """All three of a linear map: norm, radius, one-sided constant."""
    x = torch.zeros(len(m), dtype=m.dtype)
    found = [f(lambda v: m @ v, x, **options) for f in ESTIMATES]
    return found[0].constant, found[1].constant, found[2]


def truth(m):
    return (
        torch.linalg.matrix_norm(m, 2).item(),
        torch.linalg.eigvals(m).abs().max().item(),
        torch.linalg.eigvalsh((m + m.T) / 2)[-1].item(),
    )


def dense(operator, x):
    """The Jacobian as a matrix."""
    flat = jacrev(lambda v: operator(v.reshape(x.shape)).reshape(-1))
    return flat(x.reshape(-1)).detach()


# -- against dense linear algebra ------------------------------------------


@given(seed=SEEDS, size=st.integers(1, 12))
@settings(max_examples=8)
def test_random_matrices(seed, size):
    rng = torch.Generator().manual_seed(seed)
    m = torch.randn(size, size, generator=rng, dtype=torch.float64)
    norm, radius, one_sided = truth(m)
    found = of(m, num_iter=60)
    assert found[0] <= norm * (1 + 1e-12)
    assert found[0] == pytest.approx(norm, rel=1e-2)
    assert found[1] == pytest.approx(radius, rel=1e-6)
    assert found[2] <= one_sided + 1e-12
    assert found[2] == pytest.approx(one_sided, rel=1e-6, abs=1e-9)


def test_power_iteration_approaches_from_below():
    rng = torch.Generator().manual_seed(0)
    m = torch.randn(50, 50, generator=rng, dtype=torch.float64)
    x, norm = torch.zeros(50, dtype=torch.float64), truth(m)[0]
    found = [
        estimate_lipschitz(lambda v: m @ v, x, n).constant / norm
        for n in (1, 3, 5, 10, 50, 200)
    ]
    assert found == sorted(found) and found[-1] <= 1 + 1e-12
    assert found[0] > 0.5 and found[3] > 0.95 and found[5] > 0.99999


@given(theta=st.floats(0.05, 3.1), scale=st.floats(0.1, 2.0))
@settings(max_examples=8)
def test_a_complex_leading_pair(theta, scale):
    c, s = math.cos(theta), math.sin(theta)
    m = scale * torch.block_diag(
        matrix([[c, -s], [s, c]]), 0.5 * torch.eye(5, dtype=torch.float64)
    )
    norm, radius, one_sided = of(m)
    assert norm == pytest.approx(scale) and radius == pytest.approx(scale)
    assert one_sided == pytest.approx(scale * max(c, 0.5))


def test_a_rotation_times_point_nine_gives_point_nine():
    p = problems.rotation(1.0)
    found = spectral_radius(lambda x: 0.9 * p.operator(x), p.x0)
    assert found.constant == pytest.approx(0.9, abs=1e-12)
    assert found.kind == "estimate" and not found.contracts
    assert "spectral radius" in str(found)


def test_a_non_normal_matrix():
    norm, radius, _ = of(matrix([[0.5, 50.0], [0.0, 0.5]]))
    assert norm == pytest.approx(50.005, abs=1e-3)
    assert radius == pytest.approx(0.5, abs=1e-6)


@pytest.mark.parametrize("size", [1, 2, 20, 50])
def test_a_nilpotent_matrix_gives_zero(size):
    rng = torch.Generator().manual_seed(size)
    m = torch.randn(size, size, generator=rng, dtype=torch.float64).triu(1)
    norm, radius, one_sided = of(m, num_iter=100)
    assert radius == 0.0
    assert norm == pytest.approx(truth(m)[0], rel=1e-6)
    assert one_sided == pytest.approx(truth(m)[2], abs=1e-9)


@pytest.mark.parametrize(
    "operator", [torch.zeros_like, lambda x: 0 * x + 1, lambda x: x.sign()]
)
def test_a_zero_jacobian_gives_zero(operator):
    x = torch.ones(4)
    assert [f(operator, x) for f in ESTIMATES[2:]] == [0.0]
    assert [f(operator, x).constant for f in ESTIMATES[:2]] == [0.0, 0.0]


def test_a_negative_one_sided_constant():
    """What smoothing lives on: P = -1.5x, of constant 1.5."""
    m = one_sided_constant(lambda x: -1.5 * x, torch.ones(7))
    assert m == pytest.approx(-1.5)
    assert one_sided_rate(1.5, m, one_sided_alpha(1.5, m)) < 1e-3
    m = -Affine(0, 2.0, size=30).matrix
    m = -m @ m.T - 0.1 * torch.eye(30, dtype=torch.float64)
    assert of(m, num_iter=60)[2] == pytest.approx(truth(m)[2], abs=1e-3)


def test_the_estimate_stays_below_a_known_constant():
    p = Tanh(0, 0.9, size=20)
    at_zero = estimate_lipschitz(p, torch.zeros_like(p.x0), 200)
    assert at_zero.constant == pytest.approx(0.9, rel=1e-3)
    assert estimate_lipschitz(p, p.x0, 200).constant < 0.9
    assert at_zero.kind == "estimate" and not at_zero.contracts


# -- segments --------------------------------------------------------------


def test_a_constant_for_every_segment():
    scale = torch.tensor([[0.5], [2.0], [0.0]], dtype=torch.float64)
    x = torch.randn(3, 4, dtype=torch.float64)
    for f in ESTIMATES:
        found = f(lambda v: scale * v, x, segments="leading")
        found = getattr(found, "constant", found)
        torch.testing.assert_close(found, scale[:, 0])


def test_segments_of_different_size_and_kind():
    """A rotation, a nilpotent and a single number; segment 2 is empty."""
    c, s = 0.9 * math.cos(1.0), 0.9 * math.sin(1.0)
    m = torch.block_diag(
        matrix([[c, -s], [s, c]]),
        torch.ones(4, 4, dtype=torch.float64).triu(1),
        matrix([[-3.0]]),
    )
    batch = torch.tensor([0, 0, 1, 1, 1, 1, 3])
    x = torch.zeros(7, 1, dtype=torch.float64)
    found = [f(lambda v: m @ v, x, segments=batch) for f in ESTIMATES]
    norm = truth(torch.ones(4, 4, dtype=torch.float64).triu(1))
    expected = [
        [0.9, norm[0], 0.0, 3.0],
        [0.9, 0.0, 0.0, 3.0],
        [c, norm[2], 0.0, -3.0],
    ]
    for value, target in zip(found, expected):
        value = getattr(value, "constant", value)
        torch.testing.assert_close(value, torch.tensor(target).double())


@pytest.mark.slow
def test_a_segment_is_worth_what_it_is_alone():
    torch.manual_seed(0)
    layer = torch.nn.Linear(6, 6).double()
    x = features(3, 5, 6)

    def operator(v):
        return torch.tanh(layer(v)) + v.mean(1, keepdim=True)

    for f in ESTIMATES:
        # Power iteration is slow where two singular values are close.
        together = f(operator, x, 400, segments="leading")
        alone = [f(operator, t[None], 400) for t in x]
        together = getattr(together, "constant", together)
        alone = [getattr(a, "constant", a) for a in alone]
        torch.testing.assert_close(
            together, torch.tensor(alone).double(), rtol=1e-3, atol=1e-6
        )


# -- operators, structures, precisions, modes ------------------------------

CONVS = ["gcn", "gat", "sage max", "own"]


@pytest.mark.parametrize("name", CONVS)
def test_graph_convs(name):
    conv, x = make(name), features(4, 4)

    def operator(v):
        return conv(v, EDGES)

    j = dense(operator, x)
    norm, radius, one_sided = truth(j)
    found = estimate_lipschitz(operator, x, 60).constant
    assert found == pytest.approx(norm, rel=1e-3)
    assert spectral_radius(operator, x).constant == pytest.approx(
        radius, rel=1e-6, abs=1e-6
    )
    assert one_sided_constant(operator, x) == pytest.approx(one_sided)


@pytest.mark.parametrize("mode", [True, False])
def test_attention(mode):
    """In eval mode and without gradients torch takes fused kernels, which
    have no forward derivative."""
    torch.manual_seed(0)
    layer = torch.nn.TransformerEncoderLayer(
        8, 2, 16, dropout=0.0, batch_first=True, dtype=torch.float64
    ).train(mode)
    x = features(1, 5, 8)
    with sdpa_kernel(SDPBackend.MATH):
        norm, radius, one_sided = truth(dense(layer.train(), x))
    layer.train(mode)
    with torch.no_grad():
        found = estimate_lipschitz(layer, x, 100).constant
        assert found == pytest.approx(norm, rel=1e-3)
        assert one_sided_constant(layer, x) == pytest.approx(
            one_sided, rel=1e-6
        )
        assert spectral_radius(layer, x).constant == pytest.approx(
            radius, rel=1e-3
        )
    assert torch.backends.mha.get_fastpath_enabled()


@pytest.mark.parametrize("kind", ["tuple", "list", "dict"])
def test_states_with_a_structure(kind):
    m = Affine(0, 1.7, size=6).matrix
    pack = {
        "tuple": lambda a, b: (a, b),
        "list": lambda a, b: [a, b],
        "dict": lambda a, b: {"a": a, "b": b},
    }[kind]

    def operator(state):
        parts = state.values() if kind == "dict" else state
        out = m @ torch.cat([p.reshape(-1) for p in parts])
        return pack(out[:2].reshape(1, 2), out[2:].reshape(2, 2))

    x = pack(torch.zeros(1, 2).double(), torch.zeros(2, 2).double())
    norm, radius, one_sided = truth(m)
    assert estimate_lipschitz(operator, x, 200).constant == pytest.approx(norm)
    assert spectral_radius(operator, x).constant == pytest.approx(radius)
    assert one_sided_constant(operator, x) == pytest.approx(one_sided)


@pytest.mark.parametrize(
    "dtype, rel",
    [(torch.float64, 1e-9), (torch.float32, 1e-5), (torch.bfloat16, 2e-2)],
)
def test_precisions(dtype, rel):
    m = Affine(0, 1.3, size=8).matrix.to(dtype)
    norm, radius, one_sided = truth(m.double())
    found = of(m, num_iter=200)
    assert found[0] == pytest.approx(norm, rel=rel)
    assert found[1] == pytest.approx(radius, rel=10 * rel)
    assert found[2] == pytest.approx(one_sided, rel=rel)


def test_under_autocast():
    torch.manual_seed(0)
    layer, x = torch.nn.Linear(16, 16), torch.zeros(4, 16)
    plain = estimate_lipschitz(layer, x, 100).constant
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = estimate_lipschitz(layer, x, 100).constant
        # the cached casts must not have lost their gradient
        layer(x).float().square().sum().backward()
    assert cast == pytest.approx(plain, rel=2e-2) and cast != plain
    assert layer.weight.grad is not None


@pytest.mark.parametrize(
    "mode", [torch.enable_grad, torch.no_grad, torch.inference_mode]
)
@pytest.mark.parametrize("f", ESTIMATES)
def test_every_gradient_mode_gives_the_same(f, mode):
    torch.manual_seed(0)
    layer = torch.nn.Sequential(torch.nn.Linear(5, 5), torch.nn.Tanh())
    with mode():
        x = torch.ones(3, 5)
        found = f(layer, x)
    reference = f(layer, torch.ones(3, 5, requires_grad=True))
    both = [getattr(v, "constant", v) for v in (found, reference)]
    assert both[0] == both[1]
    assert all(p.grad is None for p in layer.parameters())


def test_results_repeat_and_leave_the_random_state_alone():
    operator = Affine(3, 1.0, size=40)
    before = torch.get_rng_state()
    found = [estimate_lipschitz(operator, operator.x0, 3) for _ in range(2)]
    assert torch.equal(before, torch.get_rng_state())
    assert found[0].constant == found[1].constant
    other = estimate_lipschitz(operator, operator.x0, 3, seed=1)
    assert other.constant != found[0].constant


def test_dropout_is_one_map():
    """Else J and J' would belong to different masks."""
    drop = torch.nn.Dropout(0.5)
    x = torch.ones(200)
    assert estimate_lipschitz(drop, x).constant == pytest.approx(2.0)
    assert spectral_radius(drop, x).constant == pytest.approx(2.0)
    m = one_sided_constant(lambda v: -3 - drop(v), x)
    assert m == pytest.approx(0.0, abs=1e-6)


# -- what is refused -------------------------------------------------------


@pytest.mark.parametrize("f", ESTIMATES)
@pytest.mark.parametrize(
    "operator, x",
    [
        (lambda x: x * math.nan, torch.ones(3)),
        (lambda x: x / 0.0, torch.ones(3)),
        (lambda x: (x - 1).sqrt(), torch.ones(3)),
        (torch.tanh, torch.tensor([0.0, math.inf])),
    ],
)
def test_what_is_not_finite_is_an_error(f, operator, x):
    with pytest.raises(ValueError, match="not finite"):
        f(operator, x)


def test_the_segment_that_is_not_finite_is_named():
    x = torch.tensor([[1.0], [0.0], [4.0]])
    with pytest.raises(ValueError, match=r"in segments \[1\]"):
        estimate_lipschitz(torch.sqrt, x, segments="leading")


@pytest.mark.parametrize("f", ESTIMATES)
def test_two_different_derivatives_are_an_error(f):
    def operator(x):
        with torch.no_grad():
            scale = x.norm()
        return x / scale

    with pytest.raises(RuntimeError, match="no_grad"):
        f(operator, torch.ones(5, dtype=torch.float64))


BAD = {
    "operator": (
        lambda f: f(1.0, torch.ones(2)),
        TypeError,
        "operator must be callable",
    ),
    "no tensor": (lambda f: f(torch.tanh, [1.0]), TypeError, "x must be a"),
    "complex": (
        lambda f: f(torch.tanh, torch.ones(2) * 1j),
        ValueError,
        "x must be of a real floating dtype",
    ),
    "integer": (
        lambda f: f(torch.tanh, torch.ones(2).long()),
        ValueError,
        "x must be of a real floating dtype",
    ),
    "empty": (lambda f: f(torch.tanh, torch.ones(0)), ValueError, "empty"),
    "shape": (
        lambda f: f(lambda x: x[:1], torch.ones(2)),
        ValueError,
        "operator changed the shape",
    ),
    "num_iter": (
        lambda f: f(torch.tanh, torch.ones(2), 0),
        ValueError,
        "num_iter",
    ),
    "num_iter float": (
        lambda f: f(torch.tanh, torch.ones(2), 1.5),
        TypeError,
        "num_iter",
    ),
    "segments": (
        lambda f: f(torch.tanh, torch.ones(2), segments="rows"),
        ValueError,
        "segments",
    ),
    "seed": (
        lambda f: f(torch.tanh, torch.ones(2), seed=0.5),
        TypeError,
        "seed",
    ),
}


@pytest.mark.parametrize("f", ESTIMATES)
@pytest.mark.parametrize("name", BAD)
def test_bad_input_names_the_argument(f, name):
    call, kind, argument = BAD[name]
    with pytest.raises(kind, match=argument):
        call(f)
