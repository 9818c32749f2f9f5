"""The operators hold what torch.library and torch.compile ask of them."""

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

from tests.ops.cases import (
    ACTIVATIONS,
    DIFFERENTIABLE,
    REDUCTIONS,
    generator,
    random_case,
)
from torch_picard.ops import smoothed_propagate, smoothed_update

OPS = torch.ops.torch_picard
SEGMENTED = {
    "ptr": torch.tensor([0, 2, 2, 5]),
    "active": torch.tensor([False, True, True]),
}
KINDS = [
    {},
    {"reduce": "mean", "activation": "tanh"},
    {"reduce": "max", "activation": "relu", **SEGMENTED},
    {"value": None, "bias": None, "inject": None, "activation": "tanh"},
]


@pytest.fixture(autouse=True)
def fresh():
    torch._dynamo.reset()


def learnable(case):
    case["alpha"] = torch.tensor(0.3, dtype=torch.float64)
    for name in DIFFERENTIABLE:
        if case[name] is not None:
            case[name].requires_grad_()
    return case


# -- torch.library.opcheck ----------------------------------------------------


@pytest.mark.parametrize("segments", [{}, SEGMENTED], ids=["one", "three"])
def test_opcheck_update(segments):
    g = generator(0)
    x, z = (torch.randn(5, 3, generator=g) for _ in range(2))
    alpha = torch.tensor(0.3)
    for learned in ([], [x, z, alpha]):
        for t in learned:
            t.requires_grad_()
        torch.library.opcheck(
            OPS.smoothed_update.default, (x, z, alpha), segments
        )
        torch.library.opcheck(
            OPS._smoothed_update.default,
            (x, z, alpha, segments.get("ptr"), segments.get("active")),
        )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("learned", [False, True])
def test_opcheck_propagate(kind, learned):
    case = random_case(**kind)
    case["alpha"] = torch.tensor(0.3)
    if learned:
        learnable(case)
    named = ["activation", "reduce", "ptr", "active"]
    positional = [case[k] for k in case if k not in named]
    torch.library.opcheck(
        OPS.smoothed_propagate.default,
        tuple(positional),
        {k: case[k] for k in named},
    )
    numbers = (
        ACTIVATIONS.index(case["activation"]),
        REDUCTIONS.index(case["reduce"]),
    )
    keep = case["activation"] != "none" or learned, case["reduce"] == "max"
    torch.library.opcheck(
        OPS._smoothed_propagate.default,
        (*positional, *numbers, case["ptr"], case["active"], True, *keep),
    )


# -- torch.compile ------------------------------------------------------------

SIZES = [(5, 9), (13, 2), (40, 300)]


def slow(parameter):
    return pytest.param(parameter, marks=pytest.mark.slow)


ENGINES = ["aot_eager", slow("inductor")]


def graphs(**kind):
    for seed, (rows, entries) in enumerate(SIZES):
        case = random_case(rows, rows, entries, 3, seed=seed, **kind)
        learnable(case)
        if kind.get("ptr") is not None:
            case["ptr"] = torch.tensor([0, rows // 2, rows // 2, rows])
        yield case


def close(a, b):
    torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("kind", [KINDS[2], *map(slow, KINDS[:2] + KINDS[3:])])
def test_propagate_compiles_once_for_all_sizes(backend, kind, engine):
    """Without a break in the graph, forward and backward."""
    counter = CompileCounterWithBackend(engine)

    def fn(case):
        y, residual = smoothed_propagate(**case, backend=backend)
        return y, residual.sum()

    compiled = torch.compile(fn, fullgraph=True, dynamic=True, backend=counter)
    compilations = []
    for case in graphs(**kind):
        leaves = [case[k] for k in DIFFERENTIABLE if case[k] is not None]
        found = []
        for f in (fn, compiled):
            y, residual = f(case)
            grads = torch.autograd.grad(y.square().sum(), leaves)
            found.append((y.detach(), residual, *grads))
        close(*found)
        compilations.append(counter.frame_count)
    assert len(set(compilations)) == 1


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("segmented", [False, True])
def test_update_compiles_once_for_all_sizes(backend, segmented, engine):
    counter = CompileCounterWithBackend(engine)

    def fn(x, z, alpha, ptr, active):
        y, residual = smoothed_update(
            2 * x, z, alpha, ptr, active, backend=backend
        )
        return y.sin(), residual.sum()

    compiled = torch.compile(fn, fullgraph=True, dynamic=True, backend=counter)
    alpha, compilations = torch.tensor(0.3, requires_grad=True), []
    for rows in (5, 8, 40):
        g = generator(rows)
        x, z = (
            torch.randn(rows, 3, generator=g).double().requires_grad_()
            for _ in range(2)
        )
        ptr = active = None
        if segmented:
            ptr = torch.tensor([0, rows // 2, rows // 2, rows])
            active = SEGMENTED["active"]
        found = []
        for f in (fn, compiled):
            y, residual = f(x, z, alpha, ptr, active)
            grads = torch.autograd.grad(y.sum(), (x, z, alpha))
            found.append((y.detach(), residual, *grads))
        close(*found)
        compilations.append(counter.frame_count)
    assert len(set(compilations)) == 1


def test_compiled_without_gradients(backend):
    def fn(case):
        return smoothed_propagate(**case, backend=backend)

    compiled = torch.compile(fn, fullgraph=True, backend="aot_eager")
    case = random_case(reduce="mean", activation="relu", **SEGMENTED)
    with torch.no_grad():
        close(compiled(case), fn(case))


def test_compiled_calls_check_their_indices(native):
    """When they run: it is too early while they are traced."""
    case = random_case()
    fn = torch.compile(
        lambda case: smoothed_propagate(**case, backend=native),
        fullgraph=True,
        backend="aot_eager",
    )
    fn(case)
    case["col"] = case["col"].clone()
    case["col"][3] = 10**6
    with pytest.raises(RuntimeError, match="col must be in"):
        fn(case)
