"""The fixed-count path is one graph for torch.compile."""

import pytest
import torch
from torch.nn import functional as F

from torch_picard import (
    Adaptive,
    Anderson,
    Broyden,
    OneStep,
    Phantom,
    Picard,
    Unrolled,
    fixed_point,
)

METHODS = {
    "picard": Picard(0.3),
    "anderson": Anderson(window=2),
    "broyden": Broyden(memory=2),
    "adaptive": Adaptive(),
}
SLOW = pytest.mark.slow
BACKENDS = ["eager", pytest.param("inductor", marks=SLOW)]
BATCH = torch.tensor([0, 0, 0, 1, 1])


@pytest.fixture(autouse=True)
def fresh():
    torch._dynamo.reset()
    torch.manual_seed(0)


def tensors():
    w = (0.2 * torch.randn(4, 4, dtype=torch.float64)).requires_grad_()
    return w, torch.randn(5, 4, dtype=torch.float64)


def both(fn, backend, *args):
    """Value and gradient of the first argument, in eager mode and compiled
    without a break."""
    compiled = torch.compile(fn, fullgraph=True, backend=backend)
    results = []
    for f in (fn, compiled):
        value = f(*args)
        (g,) = torch.autograd.grad(value.square().sum(), args[0])
        results.append((value.detach(), g))
    return results


@pytest.mark.parametrize(
    "name, segments, backend",
    [
        ("picard", None, "eager"),
        ("picard", "leading", "eager"),
        ("picard", "batch", "eager"),
        pytest.param("anderson", "batch", "eager", marks=SLOW),
        pytest.param("broyden", "batch", "eager", marks=SLOW),
        ("adaptive", "batch", "eager"),
        pytest.param("picard", "batch", "inductor", marks=SLOW),
        pytest.param("adaptive", "batch", "inductor", marks=SLOW),
        pytest.param("anderson", "batch", "aot_eager", marks=SLOW),
        pytest.param("broyden", "batch", "aot_eager", marks=SLOW),
        pytest.param("anderson", "batch", "inductor", marks=SLOW),
        pytest.param("broyden", "batch", "inductor", marks=SLOW),
    ],
)
def test_compiled_equals_eager(name, segments, backend):
    def solve(w, x0):
        return fixed_point(
            lambda x: torch.tanh(x @ w) + x0,
            x0,
            method=METHODS[name],
            max_iter=4,
            rtol=0.0,
            segments=BATCH if segments == "batch" else segments,
        ).value

    (value, g), (value_c, g_c) = both(solve, backend, *tensors())
    torch.testing.assert_close(value_c, value, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(g_c, g, rtol=1e-7, atol=1e-8)


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_report_is_traced_too(backend):
    def solve(w, x0):
        s = fixed_point(
            lambda x: torch.tanh(x @ w) + x0, x0, max_iter=5, rtol=0.0
        )
        return s.value, s.residual_history, s.rate, s.error_bound

    compiled = torch.compile(solve, fullgraph=True, backend=backend)
    for mine, theirs in zip(compiled(*tensors()), solve(*tensors())):
        assert mine.shape == theirs.shape
    args = tensors()
    for mine, theirs in zip(compiled(*args), solve(*args)):
        torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize("backend", BACKENDS)
def test_dropout_is_frozen_in_a_compiled_solve(backend):
    def solve(w, x0):
        masks = []

        def operator(x):
            mask = F.dropout(torch.ones_like(x), 0.5)
            masks.append(mask)
            return torch.tanh(x @ w) * mask + x0

        value = fixed_point(
            operator, x0, method=Picard(0.2), max_iter=4, rtol=0.0
        ).value
        return value, masks

    compiled = torch.compile(solve, fullgraph=True, backend=backend)
    w, x0 = tensors()
    value, masks = compiled(w, x0)
    assert len(masks) == 4
    assert all(torch.equal(m, masks[0]) for m in masks)
    assert set(masks[0].unique().tolist()) == {0.0, 2.0}
    x = x0
    for _ in range(4):
        x = torch.lerp(x, torch.tanh(x @ w) * masks[0] + x0, 0.8)
    torch.testing.assert_close(value, x)
    (g,) = torch.autograd.grad(value.sum(), w, retain_graph=True)
    (expected,) = torch.autograd.grad(x.sum(), w)
    torch.testing.assert_close(g, expected)
    assert not torch.equal(compiled(w, x0)[1][0], masks[0])


@pytest.mark.parametrize("gradient", [Phantom(2, 0.3), OneStep()], ids=repr)
def test_truncated_gradients_compile(gradient):
    def solve(w, x0):
        return fixed_point(
            lambda x: torch.tanh(x @ w) + x0,
            x0,
            max_iter=5,
            rtol=0.0,
            gradient=gradient,
        ).value

    (value, g), (value_c, g_c) = both(solve, "eager", *tensors())
    torch.testing.assert_close(value_c, value)
    torch.testing.assert_close(g_c, g)


def test_modules_compile():
    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = torch.nn.Linear(4, 4)

        def forward(self, x0):
            return fixed_point(
                lambda x: 0.5 * torch.tanh(self.linear(x)) + x0,
                x0,
                max_iter=6,
                rtol=0.0,
                gradient=Unrolled(),
            ).value

    model, x0 = Model(), torch.randn(5, 4)
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(x0), model(x0))


def test_a_learned_alpha_compiles():
    def solve(alpha, w, x0):
        return fixed_point(
            lambda x: torch.tanh(x @ w) + x0,
            x0,
            method=Picard(alpha),
            max_iter=5,
            rtol=0.0,
        ).value

    alpha = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    (value, g), (value_c, g_c) = both(solve, "eager", alpha, *tensors())
    torch.testing.assert_close(value_c, value)
    torch.testing.assert_close(g_c, g)
