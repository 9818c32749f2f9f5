"""The Jacobian penalty: what it measures, and that it trains."""

import math

import pytest
import torch
from torch.func import jacrev

from tests.contraction.maps import Affine
from tests.nn.graphs import EDGES, features, make
from torch_picard.contraction import (
    JacobianPenalty,
    estimate_lipschitz,
    jacobian_penalty,
)

DOUBLE = torch.float64


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def dense(operator, x):
    flat = jacrev(lambda v: operator(v.reshape(x.shape)).reshape(-1))
    return flat(x.reshape(-1))


# -- Frobenius -------------------------------------------------------------


def test_the_frobenius_penalty_is_unbiased():
    m = Affine(1, 1.5).matrix
    a = m @ m.T
    samples = 2000
    found = jacobian_penalty(
        lambda x: m @ x,
        torch.zeros(6, dtype=DOUBLE),
        num_samples=samples,
        generator=seeded(),
    )
    exact = a.trace() / 6
    # of random signs, exactly
    variance = 2 * (a.square().sum() - a.diagonal().square().sum()) / 36
    assert abs(found - exact) <= 4 * (variance / samples).sqrt()
    assert found != exact


def test_every_single_sample_is_exact_for_a_diagonal_jacobian():
    scale = torch.linspace(-1, 2, 7, dtype=DOUBLE)
    found = jacobian_penalty(lambda x: scale * x, torch.zeros_like(scale))
    torch.testing.assert_close(found, scale.square().mean())


@pytest.mark.parametrize("kind", ["frobenius", "spectral"])
@pytest.mark.parametrize("copies", [1, 5])
def test_the_size_of_the_state_does_not_matter(kind, copies):
    m = torch.tensor([[0.0, -2.0], [2.0, 0.0]], dtype=DOUBLE)
    x = torch.zeros(copies, 2, dtype=DOUBLE)
    found = jacobian_penalty(lambda v: v @ m, x, kind)
    torch.testing.assert_close(found, torch.tensor(4.0, dtype=DOUBLE))


# -- spectral --------------------------------------------------------------


def test_the_hinge():
    x = torch.zeros(5)
    for target, expected in ((None, 4.0), (0.5, 2.25), (2.0, 0.0), (3, 0.0)):
        found = jacobian_penalty(lambda v: 2 * v, x, "spectral", target)
        assert found.item() == pytest.approx(expected)


def test_the_persistent_vector_finds_the_norm_and_its_gradient():
    m = Affine(0, 1.5, size=20).matrix.requires_grad_()
    penalty = JacobianPenalty(target=0.9, generator=seeded())
    x = torch.zeros(20, dtype=DOUBLE)
    for _ in range(150):
        found = penalty(lambda v: m @ v, x)
    exact = (torch.linalg.matrix_norm(m, 2) - 0.9).square()
    assert found.item() == pytest.approx(exact.item(), rel=1e-5)
    (g,) = torch.autograd.grad(found, m)
    (h,) = torch.autograd.grad(exact, m)
    torch.testing.assert_close(g, h, rtol=1e-3, atol=1e-3)


def test_more_steps_see_more():
    m = Affine(0, 1.5, size=20).matrix
    x = torch.zeros(20, dtype=DOUBLE)
    found = [
        jacobian_penalty(
            lambda v: m @ v, x, "spectral", steps=n, generator=seeded()
        )
        for n in (1, 2, 5, 50)
    ]
    assert found == sorted(found) and found[-1] <= 1.5**2 * (1 + 1e-12)


def test_segments_have_a_hinge_each():
    scale = torch.tensor([[0.5], [2.0], [3.0]], dtype=DOUBLE)
    x = torch.zeros(3, 4, dtype=DOUBLE)
    found = JacobianPenalty(target=1.0)(
        lambda v: scale * v, x, segments="leading"
    )
    assert found.item() == pytest.approx((0 + 1 + 4) / 3)


@pytest.mark.parametrize("segments", [None, "leading"])
def test_the_vector_survives_another_batch_size(segments):
    """A smaller last batch, a larger one, and back."""
    m = Affine(0, 1.5, size=20).matrix
    penalty = JacobianPenalty(generator=seeded())
    shapes = [8] * 60 + [3] * 2 + [8] * 2 + [12] * 40
    found = [
        penalty(
            lambda v: torch.tanh(v @ m),
            torch.zeros(n, 20, dtype=DOUBLE),
            segments=segments,
        ).item()
        for n in shapes
    ]
    assert found[59] == pytest.approx(1.5**2, rel=1e-3)
    # what is left of the vector serves at once
    assert min(found[60:64]) >= 0.99 * found[59]
    assert found[-1] == pytest.approx(1.5**2, rel=1e-2)
    assert penalty.vector[0].shape == (12, 20)


def test_the_vector_starts_anew_where_it_must():
    penalty = JacobianPenalty(generator=seeded())
    assert penalty(lambda v: 2 * v, torch.zeros(4, 3)).item() == 4
    assert penalty(lambda v: 2 * v, torch.zeros(4, 5)).item() == 4
    pair = torch.zeros(2), torch.zeros(3, dtype=DOUBLE)
    found = penalty(lambda s: (2 * s[0], 2 * s[1]), pair).item()
    assert found == pytest.approx(4, rel=1e-6)  # one leaf is float32
    assert penalty(lambda v: 0 * v, torch.zeros(5)).item() == 0
    assert penalty(lambda v: 2 * v, torch.zeros(5)).item() == 4
    assert penalty(lambda v: v * math.nan, torch.zeros(5)).isnan()
    assert penalty(lambda v: 2 * v, torch.zeros(5)).item() == 4
    assert penalty(lambda v: 2 * v, torch.zeros(5).double()).item() == 4


# -- gradients -------------------------------------------------------------


@pytest.mark.parametrize("kind", ["frobenius", "spectral"])
def test_gradcheck(kind):
    p = Affine(0, 1.5, size=3)
    matrix, b = p.matrix.requires_grad_(), p.b.requires_grad_()
    x = p.x0.requires_grad_()
    # the gradient of a hinge on |J'u| belongs to a fixed u, which many
    # steps make independent of the weights to first order
    options = {"target": 0.1, "steps": 30} if kind == "spectral" else {}

    def loss(matrix, b, x):
        return jacobian_penalty(
            lambda v: torch.tanh(matrix @ v + b),
            x,
            kind,
            generator=seeded(),
            **options,
        )

    torch.autograd.gradcheck(loss, (matrix, b, x))


@pytest.mark.parametrize("kind", ["frobenius", "spectral"])
@pytest.mark.parametrize("name", ["gcn", "gat", "sage max", "own"])
def test_graph_convs(name, kind):
    conv, x = make(name), features(4, 4)

    def operator(v):
        return torch.tanh(conv(v, EDGES))

    j = dense(operator, x)
    if kind == "frobenius":
        found = jacobian_penalty(
            operator, x, num_samples=200, generator=seeded()
        )
        assert found.item() == pytest.approx(
            j.square().sum().item() / 16, rel=0.2
        )
    else:
        found = jacobian_penalty(operator, x, kind, steps=30)
        norm = torch.linalg.matrix_norm(j, 2).item()
        assert found.item() == pytest.approx(norm**2, rel=1e-3)
    found.backward()
    grads = [p.grad for p in conv.parameters() if p.grad is not None]
    assert grads and all(g.isfinite().all() for g in grads)
    assert any(g.abs().max() > 0 for g in grads)


@pytest.mark.parametrize("kind", ["frobenius", "spectral"])
def test_attention(kind):
    """Fused attention cannot be derived twice; it is replaced inside."""
    torch.manual_seed(0)
    layer = torch.nn.TransformerEncoderLayer(
        8, 2, 16, dropout=0.1, batch_first=True
    )
    x = torch.randn(3, 5, 8)
    jacobian_penalty(layer, x, kind).backward()
    for name, p in layer.named_parameters():
        if p.grad is not None:
            assert p.grad.isfinite().all(), name
    assert layer.self_attn.in_proj_weight.grad.abs().max() > 0


@pytest.mark.parametrize("kind", ["frobenius", "spectral"])
def test_under_autocast(kind):
    torch.manual_seed(0)
    layer, x = torch.nn.Linear(32, 32), torch.randn(4, 32)
    plain = jacobian_penalty(layer, x, kind, generator=seeded())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = jacobian_penalty(layer, x, kind, generator=seeded())
    assert cast.dtype == torch.float32 and cast != plain
    torch.testing.assert_close(cast, plain, rtol=2e-2, atol=0)
    cast.backward()
    assert layer.weight.grad.isfinite().all()


@pytest.mark.parametrize("kind", ["frobenius", "spectral"])
def test_half_precision(kind):
    torch.manual_seed(0)
    layer = torch.nn.Linear(16, 16).bfloat16()
    x = torch.zeros(2, 16, dtype=torch.bfloat16)
    found = jacobian_penalty(layer, x, kind, num_samples=50, steps=20)
    w = layer.weight.detach().double()
    exact = w.square().sum() / 16
    if kind == "spectral":
        exact = torch.linalg.matrix_norm(w, 2) ** 2
    assert found.item() == pytest.approx(exact.item(), rel=0.2)
    found.backward()
    assert layer.weight.grad.dtype == torch.bfloat16


def test_the_state_may_have_a_structure():
    w = torch.tensor(3.0, dtype=DOUBLE, requires_grad=True)
    x = {"a": torch.zeros(2, dtype=DOUBLE), "b": torch.zeros(1, dtype=DOUBLE)}

    def operator(s):
        return {"a": w * s["b"].expand(2), "b": 0.5 * s["a"][:1]}

    found = jacobian_penalty(operator, x, num_samples=500)
    assert found.item() == pytest.approx((9 + 9 + 0.25) / 3, rel=0.1)
    found = jacobian_penalty(operator, x, "spectral", steps=30)
    found.backward()
    assert found.item() == pytest.approx(18.0)
    assert w.grad.item() == pytest.approx(12.0)


def test_dropout_is_one_map():
    """With another mask in each product the norm would be none of any."""
    torch.manual_seed(0)
    drop = torch.nn.Dropout(0.5)
    found = jacobian_penalty(drop, torch.ones(100), "spectral", steps=20)
    assert found.item() == pytest.approx(4.0)


def test_where_no_gradient_is_wanted():
    layer = torch.nn.Linear(4, 4)
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            for kind in ("frobenius", "spectral"):
                found = jacobian_penalty(layer, torch.ones(2, 4), kind)
                assert not found.requires_grad and found > 0
    assert layer.weight.grad is None


def test_the_point_gets_a_gradient_unless_detached():
    w = torch.tensor(0.7, dtype=DOUBLE, requires_grad=True)
    x = torch.tensor([0.3], dtype=DOUBLE, requires_grad=True)
    state = 2 * x
    jacobian_penalty(lambda v: torch.sin(w * v), state).backward()
    # (w cos(2wx))^2 by x
    inner = w * 2 * x
    expected = -2 * w**3 * 2 * inner.cos() * inner.sin()
    torch.testing.assert_close(x.grad, expected.detach())
    x.grad = None
    jacobian_penalty(lambda v: torch.sin(w * v), (2 * x).detach()).backward()
    assert x.grad is None


@pytest.mark.parametrize("kind", ["frobenius", "spectral"])
def test_it_trains_an_expanding_map_to_contract(kind):
    torch.manual_seed(0)
    layer = torch.nn.Linear(16, 16)
    with torch.no_grad():
        layer.weight.mul_(4)
    x = torch.zeros(8, 16)

    def operator(v):
        return torch.tanh(layer(v))

    before = estimate_lipschitz(operator, x).constant
    target = 0.9 if kind == "spectral" else None
    penalty = JacobianPenalty(kind, target)
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.02)
    for _ in range(150):
        optimizer.zero_grad()
        penalty(operator, x).backward()
        optimizer.step()
    after = estimate_lipschitz(operator, x).constant
    assert before > 1.5 and after < 1.0
    if kind == "spectral":
        assert after > 0.8  # the hinge asks for no more


# -- what is refused -------------------------------------------------------

BAD = {
    "kind": ({"kind": "nuclear"}, ValueError, "kind"),
    "target": ({"kind": "spectral", "target": -0.1}, ValueError, "target"),
    "target nan": (
        {"kind": "spectral", "target": math.nan},
        ValueError,
        "target",
    ),
    "target text": (
        {"kind": "spectral", "target": "1"},
        TypeError,
        "target",
    ),
    "target of frobenius": ({"target": 0.9}, ValueError, "target"),
    "num_samples": ({"num_samples": 0}, ValueError, "num_samples"),
    "steps": ({"kind": "spectral", "steps": 0}, ValueError, "steps"),
    "steps float": (
        {"kind": "spectral", "steps": 1.0},
        TypeError,
        "steps",
    ),
    "generator": ({"generator": 0}, TypeError, "generator"),
    "segments": ({"segments": "rows"}, ValueError, "segments"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_names_the_argument(name):
    options, kind, argument = BAD[name]
    with pytest.raises(kind, match=argument):
        jacobian_penalty(torch.tanh, torch.ones(2), **options)


def test_bad_states_and_operators():
    with pytest.raises(TypeError, match="operator"):
        jacobian_penalty(None, torch.ones(2))
    with pytest.raises(ValueError, match="x must be of a real floating"):
        jacobian_penalty(torch.tanh, torch.ones(2) * 1j)
