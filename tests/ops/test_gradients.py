"""The gradients are those of the formulas, twice over."""

from functools import partial
from itertools import combinations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.ops.cases import (
    ACTIVATIONS,
    DIFFERENTIABLE,
    FLOATS,
    REDUCTIONS,
    assert_within,
    bits,
    cases,
    check_gradients,
    generator,
    poison,
    random_case,
    smooth,
    stored,
)
from torch_picard.ops import smoothed_propagate, smoothed_update

SEGMENTED = {
    "ptr": torch.tensor([0, 2, 2, 5]),
    "active": torch.tensor([False, True, True]),
}


@settings(max_examples=40)
@given(
    case=cases(poisoned=False),
    learned=st.sampled_from([None, torch.float32, torch.float64]),
    expanded=st.booleans(),
)
def test_propagate(backend, case, learned, expanded):
    """Of all arguments, in every precision, against float64."""
    if learned is not None:
        case["alpha"] = torch.as_tensor(case["alpha"], dtype=learned)
    elif isinstance(case["alpha"], torch.Tensor):
        case["alpha"] = float(case["alpha"])
    x = case["x"]
    gy = torch.randn(x.shape, generator=generator(1)).to(x.dtype)
    if expanded:  # as y.sum() has it
        gy = gy[:1, :1].expand_as(gy)
    check_gradients(case, gy, backend)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("segmented", [False, True])
@pytest.mark.parametrize("shape", [(5,), (5, 3), (5, 2, 7), (5, 4200)])
def test_update(backend, dtype, segmented, shape):
    g = generator(0)
    x, z, gy = (torch.randn(shape, generator=g).to(dtype) for _ in range(3))
    on = torch.tensor([not segmented] * 2 + [True] * 3)
    leaves = [x, z, torch.tensor(0.3)]
    got = torch.autograd.grad(
        smoothed_update(
            *(t.requires_grad_() for t in leaves),
            **(SEGMENTED if segmented else {}),
            backend=backend,
        )[0],
        leaves,
        gy,
    )
    exactly = [t.detach().double().requires_grad_() for t in leaves]
    rows = exactly[0].flatten(1) if x.dim() > 1 else exactly[0][:, None]
    others = exactly[1].reshape(rows.shape)
    y = smooth(rows, others, exactly[2], on).reshape(shape)
    want = torch.autograd.grad(y, exactly, gy.double())
    eps = torch.finfo(
        torch.float64 if dtype == torch.float64 else torch.float32
    ).eps
    size = gy.double().abs()
    terms = size * (x.double().abs() + z.double().abs())
    bounds = [8 * eps * size, 8 * eps * size, x.numel() * eps * terms.sum()]
    for a, b, bound, leaf in zip(got, want, bounds, leaves):
        assert (a.dtype, a.shape) == (leaf.dtype, leaf.shape)
        assert_within(a, b, bound + stored(b, a.dtype), "gradient")


# -- by differences, in float64 -----------------------------------------------


def leaves_of(case, names):
    case["alpha"] = torch.tensor(0.3, dtype=torch.float64)
    return [case[name].detach().clone().requires_grad_() for name in names]


def propagate(case, names, backend, *leaves):
    case = case | dict(zip(names, leaves))
    return smoothed_propagate(**case, backend=backend)[0]


@pytest.mark.parametrize("reduce", REDUCTIONS)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_gradcheck_of_all_together(backend, reduce, activation):
    case = random_case(
        3, 2, 5, 2, seed=1, reduce=reduce, activation=activation
    )
    case["ptr"] = torch.tensor([0, 1, 1, 3])
    case["active"] = torch.tensor([False, True, True])
    leaves = leaves_of(case, DIFFERENTIABLE)
    fn = partial(propagate, case, DIFFERENTIABLE, backend)
    assert torch.autograd.gradcheck(fn, leaves)
    assert torch.autograd.gradgradcheck(fn, leaves)


@pytest.mark.parametrize("reduce", REDUCTIONS)
@pytest.mark.parametrize("name", DIFFERENTIABLE)
def test_gradcheck_of_each_alone(backend, name, reduce):
    """The others have no gradient, or are not there."""
    for activation, bare in (("none", False), ("none", True), ("tanh", False)):
        case = random_case(
            3, 2, 4, 2, seed=2, reduce=reduce, activation=activation
        )
        leaves = leaves_of(case, [name])
        if bare:
            for other in {"value", "bias", "inject"} - {name}:
                case[other] = None
        fn = partial(propagate, case, [name], backend)
        assert torch.autograd.gradcheck(fn, leaves)
        assert torch.autograd.gradgradcheck(fn, leaves)


@pytest.mark.parametrize("segments", [{}, SEGMENTED], ids=["one", "three"])
def test_gradcheck_of_update(backend, segments):
    g = generator(0)
    x, z = (torch.randn(5, 2, generator=g).double() for _ in range(2))
    leaves = [x, z, torch.tensor(0.3).double()]
    for count in (1, 2, 3):
        for chosen in combinations(range(3), count):
            inputs = tuple(
                t.clone().requires_grad_(i in chosen)
                for i, t in enumerate(leaves)
            )

            def fn(*a):
                return smoothed_update(*a, **segments, backend=backend)[0]

            assert torch.autograd.gradcheck(fn, inputs)
            assert torch.autograd.gradgradcheck(fn, inputs)


@pytest.mark.parametrize("reduce", REDUCTIONS)
def test_arguments_that_depend_on_each_other(backend, reduce):
    """Each is a function of the one before, as a weight, what it is
    multiplied into and an injection may be in a layer that is iterated."""
    case = random_case(4, 4, 9, 3, seed=3, reduce=reduce, activation="tanh")
    leaf = case["h"].detach().clone().requires_grad_()

    def steps(h):
        x = torch.sin(h)
        y = smoothed_propagate(
            **case
            | {
                "h": h,
                "x": x,
                "inject": h * x,
                "bias": x.mean(0),
                "value": case["value"] * (h * x).sum(),
                "alpha": torch.sigmoid(x.mean()),
            },
            backend=backend,
        )[0]
        return smoothed_update(
            h, y * x, torch.sigmoid(h.mean()), backend=backend
        )[0]

    assert torch.autograd.gradcheck(steps, leaf)
    assert torch.autograd.gradgradcheck(steps, leaf)
    first = torch.autograd.grad(steps(leaf).square().sum(), leaf)
    again = torch.autograd.grad(
        steps(leaf).square().sum(), leaf, create_graph=True
    )
    torch.testing.assert_close(first, again)


# -- what is peculiar ---------------------------------------------------------


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("width", [1, 8, 40])
def test_the_first_of_equal_maxima_has_the_gradient(backend, dtype, width):
    h = torch.tensor([1.0, 3.0, 3.0, 3.0], dtype=dtype)
    h = h[:, None].repeat(1, width).requires_grad_()
    value = torch.tensor([1, 2, 1, 1, 1, 1], dtype=dtype, requires_grad=True)
    y, _ = smoothed_propagate(
        torch.tensor([0, 3, 6, 6]),
        torch.tensor([1, 0, 2, 3, 2, 1]),
        torch.cat([value[:1], value[2:3] * 0, value[2:]]),
        h,
        torch.zeros(3, width, dtype=dtype),
        0.0,
        reduce="max",
        backend=backend,
    )
    assert y[:, 0].tolist() == [3, 3, 0]
    gh, gvalue = torch.autograd.grad(y.sum(), (h, value))
    assert gh[:, 0].tolist() == [0, 1, 0, 1]
    assert gvalue.tolist() == [3 * width, 0, 0, 3 * width, 0, 0]


@pytest.mark.parametrize("place", [0, 1, 2])
def test_the_first_nan_has_the_gradient_of_the_maximum(backend, place):
    h = torch.tensor([[1.0], [5.0], [2.0]])
    h[place] = h[2] = torch.nan
    h.requires_grad_()
    y, _ = smoothed_propagate(
        torch.tensor([0, 3]), torch.tensor([0, 1, 2]), None, h,
        torch.zeros(1, 1), 0.0, reduce="max", backend=backend,
    )  # fmt: skip
    (gh,) = torch.autograd.grad(y.sum(), h)
    assert y.isnan().all()
    assert gh.flatten().tolist() == [float(i == place) for i in range(3)]


@pytest.mark.parametrize("reduce", REDUCTIONS)
def test_infinite_messages_have_their_gradients(backend, reduce):
    h = torch.full((2, 3), -torch.inf, requires_grad=True)
    y, _ = smoothed_propagate(
        torch.tensor([0, 2]), torch.tensor([1, 0]), None, h,
        torch.zeros(1, 3), 0.0, reduce=reduce, backend=backend,
    )  # fmt: skip
    (gh,) = torch.autograd.grad(y, h, torch.ones(1, 3))
    want = {"sum": [1, 1], "mean": [0.5, 0.5], "max": [0, 1]}[reduce]
    assert gh[:, 0].tolist() == want


def test_relu_has_slope_0_at_0(backend):
    x, h = torch.zeros(3, 5), torch.zeros(3, 5, requires_grad=True)
    index = torch.arange(4)
    y, _ = smoothed_propagate(
        index, index[:3], None, h, x, 0.5, activation="relu", backend=backend
    )
    (gh,) = torch.autograd.grad(y.sum(), h)
    assert (gh == 0).all()


@pytest.mark.parametrize("reduce", REDUCTIONS)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_rows_that_are_not_active_pass_the_gradient_on(
    backend, reduce, activation
):
    """And what they hold, be it NaN, reaches no other gradient."""
    case = random_case(reduce=reduce, activation=activation, **SEGMENTED)
    poison(case, entries=False)
    leaves = leaves_of(case, DIFFERENTIABLE)
    y = propagate(case, DIFFERENTIABLE, backend, *leaves)
    gy = torch.randn(y.shape, generator=generator(2)).double()
    grads = dict(zip(DIFFERENTIABLE, torch.autograd.grad(y, leaves, gy)))
    assert all(g.isfinite().all() for g in grads.values())
    assert torch.equal(grads["x"][:2], gy[:2])
    assert (grads["inject"][:2] == 0).all()
    assert (grads["value"][: case["rowptr"][2]] == 0).all()


def test_gradients_reach_what_has_no_entries(backend):
    """They are 0, and not missing."""
    case = random_case(3, 2, 0, 4)
    for reduce in REDUCTIONS:
        case["reduce"] = reduce
        leaves = leaves_of(case, ["value", "h"])
        y = propagate(case, ["value", "h"], backend, *leaves)
        value, h = torch.autograd.grad(y.sum(), leaves)
        assert (value.shape, h.shape) == ((0,), (2, 4))
        assert (h == 0).all()


def test_the_residual_has_no_gradient(backend):
    case = random_case()
    case["h"].requires_grad_()
    y, residual = smoothed_propagate(**case, backend=backend)
    assert y.requires_grad and not residual.requires_grad
    x, z = case["h"], case["h"] * 2
    y, residual = smoothed_update(x, z, 0.5, backend=backend)
    assert y.requires_grad and not residual.requires_grad


def test_under_no_grad_there_is_no_graph(backend):
    case = random_case()
    case["h"].requires_grad_()
    with torch.no_grad():
        y, _ = smoothed_propagate(**case, backend=backend)
    assert not y.requires_grad


def test_inference_mode(backend):
    case = random_case(reduce="mean")
    want, _ = smoothed_propagate(**case, backend=backend)
    with torch.inference_mode():
        case = {
            k: t.clone() if isinstance(t, torch.Tensor) else t
            for k, t in case.items()
        }
        for _ in range(2):
            y, _ = smoothed_propagate(**case, backend=backend)
    assert torch.equal(bits(y), bits(want))


def test_gradients_follow_an_optimiser(backend):
    """A weight that is written to between two calls is not remembered."""
    case = random_case(reduce="mean")
    weight = case["value"].requires_grad_()
    case["h"].requires_grad_()

    def gradients(case):
        y, _ = smoothed_propagate(**case, backend=backend)
        return torch.autograd.grad(y.sum(), (case["h"], case["value"]))

    gradients(case)
    with torch.no_grad():
        weight.mul_(-2)
    fresh = case | {"value": weight.detach().clone().requires_grad_()}
    for a, b in zip(gradients(case), gradients(fresh)):
        assert torch.equal(a, b)


# -- forward mode and torch.func ----------------------------------------------


@pytest.mark.parametrize("reduce", REDUCTIONS)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_forward_mode(backend, reduce, activation):
    """J v against u: (u, J v) = (J^T u, v)."""
    case = random_case(reduce=reduce, activation=activation, **SEGMENTED)
    leaves = leaves_of(case, DIFFERENTIABLE)
    fn = partial(propagate, case, DIFFERENTIABLE, backend)
    g = generator(3)
    v = tuple(torch.randn(t.shape, generator=g).double() for t in leaves)
    u = torch.randn(case["x"].shape, generator=g).double()
    y, forward = torch.func.jvp(fn, tuple(t.detach() for t in leaves), v)
    want = fn(*leaves)
    torch.testing.assert_close(y, want.detach(), rtol=1e-14, atol=1e-14)
    backward = torch.autograd.grad(want, leaves, u)
    both = sum((a * b).sum() for a, b in zip(backward, v))
    torch.testing.assert_close((u * forward).sum(), both)


@pytest.mark.parametrize("reduce", REDUCTIONS)
def test_torch_func(backend, reduce):
    """torch.func.grad and torch.func.vjp are autograd's gradients."""
    case = random_case(reduce=reduce, activation="tanh")
    leaves = leaves_of(case, DIFFERENTIABLE)
    fn = partial(propagate, case, DIFFERENTIABLE, backend)

    def loss(*leaves):
        return fn(*leaves).square().sum()

    want = torch.autograd.grad(loss(*leaves), leaves)
    plain = [t.detach() for t in leaves]
    places = tuple(range(len(leaves)))
    got = torch.func.grad(loss, argnums=places)(*plain)
    value, pull = torch.func.vjp(loss, *plain)
    pulled = pull(torch.ones_like(value))
    for a, b, c in zip(got, pulled, want):
        torch.testing.assert_close(a, c, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(b, c, rtol=1e-12, atol=1e-12)


def test_forward_mode_of_update(backend):
    g = generator(0)
    x, z = (torch.randn(4, 3, generator=g).double() for _ in range(2))
    a = torch.tensor(0.3).double()
    tangents = torch.randn_like(x), torch.randn_like(z), torch.tensor(2.0)

    def fn(x, z, a):
        return smoothed_update(x, z, a, backend=backend)[0]

    _, got = torch.func.jvp(
        fn, (x, z, a), (*tangents[:2], tangents[2] + 0 * a)
    )
    want = a * tangents[0] + (1 - a) * tangents[1] + 2 * (x - z)
    torch.testing.assert_close(got, want)
    gradient = torch.func.grad(lambda *t: fn(*t).sum(), argnums=(0, 1, 2))
    gx, gz, ga = gradient(x, z, a)
    torch.testing.assert_close(gx, a.expand_as(x))
    torch.testing.assert_close(gz, (1 - a).expand_as(x))
    torch.testing.assert_close(ga, (x - z).sum())
