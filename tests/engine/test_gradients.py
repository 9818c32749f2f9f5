"""Derivatives against finite differences, for everything P depends on."""

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

from torch_picard import (
    Adaptive,
    Anderson,
    Broyden,
    Implicit,
    NewtonKrylov,
    Phantom,
    Picard,
    Unrolled,
    fixed_point,
)

EXACT = {
    "unrolled": Unrolled(),
    "checkpointed": Unrolled(checkpoint=True),
    "implicit": Implicit(rtol=1e-13),
    "implicit by Anderson": Implicit(Anderson(), rtol=1e-13, max_iter=300),
    "implicit by Picard": Implicit(Picard(0.0), rtol=1e-13, max_iter=300),
}


@pytest.fixture(params=EXACT.values(), ids=EXACT.keys())
def gradient(request):
    return request.param


#: for what takes longer: two of them, and the others where it may
ALL = pytest.mark.parametrize(
    "gradient",
    [
        pytest.param(
            gradient,
            id=name,
            marks=() if name in ("unrolled", "implicit") else pytest.mark.slow,
        )
        for name, gradient in EXACT.items()
    ],
)


def options(gradient, method=None):
    return {
        "gradient": gradient,
        "method": method or Picard(0.2),
        "rtol": 1e-14,
        "atol": 1e-14,
        "max_iter": 300,
        "on_failure": "ignore",
    }


def inputs(*shapes, seed=0):
    rng = torch.Generator().manual_seed(seed)
    return tuple(
        torch.randn(s, generator=rng, dtype=torch.float64).requires_grad_()
        for s in shapes
    )


def check(fn, args):
    assert gradcheck(fn, args)
    assert gradgradcheck(fn, args)


@ALL
def test_closure_leaves_and_injected_x0(gradient):
    """The weight is a leaf; x0 is the start and is injected as well."""

    def solve(w, x0):
        return fixed_point(
            lambda x: torch.tanh(0.3 * x @ w) + x0, x0, **options(gradient)
        ).value

    check(solve, inputs((2, 2), (3, 2)))


@ALL
def test_closure_tensors_that_are_not_leaves(gradient):
    def solve(a, b):
        w, bias = 0.3 * torch.sin(a), b.exp()
        return fixed_point(
            lambda x: torch.tanh(x @ w + bias),
            torch.zeros(2, 2, dtype=torch.float64),
            **options(gradient),
        ).value

    check(solve, inputs((2, 2), (2,)))


@ALL
def test_closure_tensors_that_depend_on_each_other(gradient):
    """Each gets its own part of the gradient, and none twice."""

    def solve(a, x0):
        b = a.tanh()
        c = b[0] * a
        return fixed_point(
            lambda x: 0.3 * torch.sin(x * a) + 0.1 * b * c * torch.cos(x),
            x0,
            **options(gradient),
        ).value

    check(solve, inputs((2,), (2,)))


def test_module_parameters(gradient):
    torch.manual_seed(0)
    layer = torch.nn.Linear(2, 2, dtype=torch.float64)

    def solve(weight, bias):
        def operator(x):
            return 0.5 * torch.tanh(
                torch.func.functional_call(
                    layer, {"weight": weight, "bias": bias}, (x,)
                )
            )

        x0 = torch.zeros(2, 2, dtype=torch.float64)
        return fixed_point(operator, x0, **options(gradient)).value

    check(solve, inputs((2, 2), (2,)))


def test_a_closure_tensor_returned_as_it_is(gradient):
    def solve(a):
        b = 2 * a
        return fixed_point(
            lambda x: b, torch.zeros_like(a), **options(gradient)
        ).value

    check(solve, inputs((3,)))


@ALL
def test_dicts_and_segments(gradient):
    def solve(a, b):
        value = fixed_point(
            lambda x: {
                "u": 0.4 * torch.sin(x["v"]) + a,
                "v": 0.3 * torch.cos(x["u"]) * b,
            },
            {"u": torch.zeros_like(a), "v": torch.zeros_like(b)},
            segments="leading",
            **options(gradient),
        ).value
        return value["u"], value["v"] * value["u"]

    check(solve, inputs((2, 2), (2, 2)))


def test_batch_vectors(gradient):
    batch = torch.tensor([0, 0, 2])  # and an empty segment

    def solve(a):
        return fixed_point(
            lambda x: 0.5 * torch.sin(x) * a + a,
            torch.zeros_like(a),
            segments=batch,
            **options(gradient),
        ).value

    check(solve, inputs((3, 2)))


def test_third_order():
    def third(gradient):
        (a,) = inputs((2,))
        x = fixed_point(
            lambda x: 0.4 * torch.sin(x * a) + a.exp(),
            torch.zeros_like(a),
            **options(gradient),
        ).value
        for _ in range(3):
            (x,) = torch.autograd.grad(x.sum(), a, create_graph=True)
        return x

    torch.testing.assert_close(
        third(Implicit(rtol=1e-14)), third(Unrolled()), rtol=1e-8, atol=0
    )


@pytest.mark.parametrize("kind", ["implicit", "checkpointed"])
def test_every_method_has_the_same_gradient(method, kind):
    def derivatives(gradient, method):
        w, x0 = inputs((3, 3), (4, 3))
        x = fixed_point(
            lambda x: torch.tanh(0.25 * x @ w) + x0,
            x0,
            **options(gradient, method),
        ).value
        first = torch.autograd.grad(
            x.square().sum(), (w, x0), create_graph=True
        )
        second = torch.autograd.grad(first[0].square().sum(), (w, x0))
        return (*first, *second)

    exact = derivatives(Unrolled(), Picard(0.0))
    for mine, theirs in zip(derivatives(EXACT[kind], method), exact):
        torch.testing.assert_close(mine, theirs, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize(
    "method", [Anderson(), Broyden(), Adaptive()], ids=repr
)
def test_unrolled_is_the_derivative_of_what_was_done(method):
    """After 4 steps, far from convergence."""

    def solve(a, x0):
        return fixed_point(
            lambda x: torch.tanh(0.8 * x * a) + a,
            x0,
            method=method,
            max_iter=4,
            rtol=0.0,
        ).value

    assert gradcheck(solve, inputs((4,), (4,)))


def test_segments_that_ended_do_not_spoil_the_gradient(method):
    """The differences of one that has converged are 0, a column of length 0
    to an accelerator, whose derivative is infinite."""
    factor = torch.tensor([[0.0], [0.5], [0.9]], dtype=torch.float64)
    (b,) = inputs((3, 2))
    x = fixed_point(
        lambda x: factor * torch.tanh(x) + b,
        torch.zeros_like(b),
        segments="leading",
        **options(Unrolled(), method),
    ).value
    (g,) = torch.autograd.grad(x.sum(), b, create_graph=True)
    exact = 1 / (1 - factor * (1 - torch.tanh(x.detach()) ** 2))
    torch.testing.assert_close(g, exact, rtol=1e-6, atol=0)
    (g,) = torch.autograd.grad(g.sum(), b)
    assert g.isfinite().all()


def test_a_singular_system_does_not_spoil_the_gradient():
    """df = R dx is orthogonal to dx: Broyden's 1 x 1 system is 0."""
    (a,) = inputs((2, 2))
    turn = torch.tensor([[0.0, -1.0], [1.0, 0.0]], dtype=torch.float64)
    x = fixed_point(
        lambda x: x + (turn + 0 * a) @ x + 1,
        torch.zeros(2, dtype=torch.float64),
        method=Broyden(),
        rtol=0.0,
        max_iter=3,
    ).value
    (g,) = torch.autograd.grad(x.sum(), a)
    assert x.isfinite().all() and g.isfinite().all()


def test_a_learned_alpha():
    def solve(alpha, x0):
        return fixed_point(
            lambda x: torch.cos(x) + 0.1 * x0,
            x0,
            method=Picard(alpha),
            max_iter=4,
            rtol=0.0,
        ).value

    alpha = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    per_channel = torch.tensor([0.1, 0.5], dtype=torch.float64)
    (x0,) = inputs((3, 2))
    check(solve, (alpha, x0))
    check(solve, (per_channel.requires_grad_(), x0))


def test_the_start_does_not_matter_at_a_fixed_point():
    (x0,) = inputs((3,))
    s = fixed_point(
        lambda x: 0.5 * torch.sin(x) + 1, x0, **options(Implicit())
    )
    (g,) = torch.autograd.grad(s.value.sum(), x0)
    assert torch.equal(g, torch.zeros_like(g))


def test_no_grad(gradient, method):
    w, x0 = inputs((2, 2), (3, 2))
    with torch.no_grad():
        s = fixed_point(
            lambda x: torch.tanh(0.3 * x @ w) + x0,
            x0,
            **options(gradient, method),
        )
    assert not s.value.requires_grad
    with torch.inference_mode():
        t = fixed_point(
            lambda x: torch.tanh(0.3 * x @ w) + x0,
            x0,
            **options(gradient, method),
        )
    assert not t.value.requires_grad


def test_nothing_to_differentiate(gradient):
    s = fixed_point(
        lambda x: 0.5 * x + 1,
        torch.zeros(3, dtype=torch.float64),
        **options(gradient),
    )
    assert not s.value.requires_grad


def test_the_solution_holds_no_graph(method):
    w, x0 = inputs((2, 2), (3, 2))
    s = fixed_point(lambda x: torch.tanh(0.3 * x @ w) + x0, x0, method=method)
    assert s.value.requires_grad
    for t in (
        s.residual,
        s.residual_history,
        s.rate,
        s.error_bound,
        *s.info.values(),
    ):
        assert not t.requires_grad


def test_checkpointing_stores_less():
    def saved(gradient):
        w, x0 = inputs((8, 8), (50, 8))
        count = 0

        def pack(t):
            nonlocal count
            count += t.numel()
            return t

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            fixed_point(
                lambda x: torch.tanh(torch.tanh(0.1 * x @ w) @ w * 0.1) + x0,
                x0,
                max_iter=20,
                rtol=0.0,
                gradient=gradient,
            )
        return count

    assert saved(Unrolled(checkpoint=True)) < 0.5 * saved(Unrolled())


@pytest.mark.parametrize("checkpoint", [False, True])
@pytest.mark.parametrize("mate", ["ended at once", "NaN", "usual"])
def test_mates_that_end_first_do_not_change_a_gradient(
    method, mate, checkpoint
):
    """At a usual tolerance, where the last update decides; that of a mate
    whose solve fails is not asked for."""
    torch.manual_seed(0)
    weight = torch.randn(20, 20, dtype=torch.float64) / 20**0.5
    weight = (0.7 * weight).requires_grad_()
    b = torch.randn(4, 20, dtype=torch.float64)
    b *= torch.tensor([[1.0], [20.0], [0.01], [3.0]])
    if mate == "ended at once":
        b[1] = 0.0
    elif mate == "NaN":
        b[1] = torch.nan

    def solve(b):
        return fixed_point(
            lambda x: torch.tanh(x @ weight) + b, torch.zeros_like(b),
            method=method, gradient=Unrolled(checkpoint=checkpoint),
            segments="leading", rtol=1e-4, max_iter=200, on_failure="ignore",
        )  # fmt: skip

    others = [0, 2, 3]
    together = solve(b)
    assert len(set(together.iterations.tolist())) > 1
    loss = together.value[others].square().sum()
    (g,) = torch.autograd.grad(loss, weight)
    alone = [solve(b[i : i + 1]) for i in others]
    want = torch.autograd.grad(
        sum(s.value.square().sum() for s in alone), weight
    )[0]
    torch.testing.assert_close(g, want, rtol=1e-8, atol=1e-10)


def test_one_unknown_by_newton():
    """GMRES needs one product, and what is left of the second is exactly 0."""
    a = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    s = fixed_point(
        lambda x: a * x + 1, torch.zeros(1, dtype=torch.float64),
        method=NewtonKrylov(),
    )  # fmt: skip
    (g,) = torch.autograd.grad(s.value.sum(), a, create_graph=True)
    torch.testing.assert_close(g.item(), 4.0)
    (g,) = torch.autograd.grad(g, a)
    torch.testing.assert_close(g.item(), 16.0)


def test_phantom_steps_leave_what_has_failed_where_it_is():
    """Two steps more would overflow, and 0 * inf is NaN in what is shared."""
    weight = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    x0 = torch.ones(2, 3, dtype=torch.float64)
    options = {
        "rtol": 1e-10,
        "segments": "leading",
        "gradient": Phantom(3, alpha=0.2),
        "on_failure": "ignore",
    }
    grads = []
    for size in (1, 2):
        s = fixed_point(
            lambda x: torch.cat(
                [torch.tanh(weight * x[:1]) + 1, weight * x[1:] * 1e200]
            ),
            x0[:size], **options,
        )  # fmt: skip
        grads += torch.autograd.grad(s.value[0].sum(), weight)
    torch.testing.assert_close(*grads)
