"""The CUDA kernels against the formulas in float64 on the CPU."""

import copy
import itertools

import pytest
import torch
from torch_geometric.nn import GCNConv

from torch_picard import PicardConv
from torch_picard.ops import capture, propagation, reference, updating
from torch_picard.ops.library import MISSING
from torch_picard.ops.smoothed import smoothed_propagate, smoothed_update

DEVICE = "cuda"
if not torch.cuda.is_available():
    REASON = "there is no CUDA device"
else:
    REASON = MISSING["cuda"]
pytestmark = pytest.mark.skipif(REASON is not None, reason=str(REASON))

TOLERANCE = {
    torch.float64: 1e-11,
    torch.float32: 2e-5,
    torch.bfloat16: 3e-2,
    torch.float16: 4e-3,
}
DTYPES = list(TOLERANCE)
WIDTHS = (1, 3, 7, 8, 32, 64, 100, 128, 300)
REDUCTIONS = ("sum", "mean", "max")
ROWS, SOURCES, HUB = 83, 61, 17
NAMES = ("value", "h", "x", "alpha", "bias", "inject")


def problem(width, dtype, index=torch.int64, rows=ROWS, hub=5000, seed=0):
    """Arguments on the CPU: every fifth row is empty, one is a hub."""
    g = torch.Generator().manual_seed(seed)
    length = torch.randint(1, 13, (rows,), generator=g)
    length[::5] = 0
    length[HUB] = hub
    rowptr = torch.zeros(rows + 1, dtype=index)
    rowptr[1:] = length.cumsum(0)
    entries = int(rowptr[-1])
    col = torch.randint(0, SOURCES, (entries,), generator=g).to(index)
    # Products with these are exact, so that maxima are the same everywhere.
    value = torch.tensor([0.5, 1.0, -1.0, 2.0], dtype=dtype)
    value = value[torch.randint(0, 4, (entries,), generator=g)]

    def normal(*shape):
        return torch.randn(*shape, generator=g).to(dtype)

    return {
        "rowptr": rowptr,
        "col": col,
        "value": value,
        "h": normal(SOURCES, width),
        "x": normal(rows, width),
        "alpha": torch.tensor(0.375, dtype=torch.float64),
        "bias": normal(width),
        "inject": normal(rows, width),
    }


def moved(arguments, device=DEVICE):
    return {
        k: v.to(device) if isinstance(v, torch.Tensor) else v
        for k, v in arguments.items()
    }


def exact(arguments):
    return {
        k: v.double() if isinstance(v, torch.Tensor) and v.is_floating_point()
        else v
        for k, v in arguments.items()
    }  # fmt: skip


def assert_near(got, wanted, dtype, what=""):
    got, wanted = got.detach().cpu().double(), wanted.detach().double()
    assert got.shape == wanted.shape, what
    scale = 1 + (wanted.abs().max().item() if wanted.numel() else 0)
    torch.testing.assert_close(
        got,
        wanted,
        rtol=0,
        atol=TOLERANCE[dtype] * scale,
        equal_nan=True,
        msg=lambda m: f"{what}: {m}",
    )


def with_gradients(function, arguments, weight):
    """y, residual_sq and the gradients of <weight, y>."""
    leaves = [k for k in NAMES if arguments.get(k) is not None]
    arguments = dict(arguments)
    for k in leaves:
        arguments[k] = arguments[k].detach().clone().requires_grad_()
    y, residual = function(**arguments)
    inputs = [arguments[k] for k in leaves]
    grads = torch.autograd.grad(y, inputs, weight.to(y), allow_unused=True)
    return y, residual, dict(zip(leaves, grads))


def compare(arguments, dtype, function=smoothed_propagate):
    oracle = getattr(reference, function.__name__)
    weight = torch.randn(
        arguments["x"].shape, generator=torch.Generator().manual_seed(9)
    ).to(dtype)
    y, residual, grads = with_gradients(oracle, exact(arguments), weight)
    found = with_gradients(function, moved(arguments), weight.to(DEVICE))
    assert found[0].dtype == dtype
    assert_near(found[0], y, dtype, "y")
    assert_near(found[1], residual, dtype, "residual_sq")
    for name, grad in grads.items():
        assert_near(found[2][name], grad, dtype, f"gradient of {name}")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("reduce", REDUCTIONS)
def test_propagate_follows_the_formula(reduce, width, dtype):
    kinds = itertools.cycle((torch.int32, torch.int64))
    for activation, index in zip(("none", "relu", "tanh"), kinds):
        arguments = problem(width, dtype, index)
        arguments |= {"activation": activation, "reduce": reduce}
        compare(arguments, dtype)


@pytest.mark.parametrize("width", [1, 64])
@pytest.mark.parametrize("reduce", REDUCTIONS)
def test_many_rows_and_many_hubs(reduce, width):
    """Every block that looks for long rows finds some, and more than once."""
    g = torch.Generator().manual_seed(4)
    rows = 3000
    length = torch.randint(0, 4, (rows,), generator=g)
    length[::37] = 129
    length[1000:1004] = 400
    arguments = problem(width, torch.float64, rows=rows, hub=0)
    col = torch.randint(0, SOURCES, (int(length.sum()),), generator=g)
    rowptr = torch.zeros(rows + 1, dtype=torch.long)
    rowptr[1:] = length.cumsum(0)
    arguments |= {"rowptr": rowptr, "col": col, "value": None}
    arguments |= {"reduce": reduce, "inject": None}
    compare(arguments, torch.float64)
    arguments["ptr"] = torch.tensor([0, 1002, rows])
    compare(arguments, torch.float64)


@pytest.mark.parametrize("width", [3, 64])
@pytest.mark.parametrize("reduce", REDUCTIONS)
def test_what_is_optional_may_be_left_out(reduce, width):
    arguments = problem(width, torch.float32, torch.int32)
    arguments |= {"value": None, "bias": None, "inject": None}
    for alpha in (0.0, 0.5):
        arguments["alpha"] = torch.tensor(alpha, dtype=torch.float64)
        compare({**arguments, "reduce": reduce}, torch.float32)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("width", [1, 7, 64, 300])
@pytest.mark.parametrize("reduce", REDUCTIONS)
def test_segments_are_apart_and_may_rest(reduce, width, dtype):
    ptr = torch.tensor([0, 5, 5, 40, ROWS])
    for flags in ([1, 0, 1, 0], [1, 1, 0, 1], [0, 0, 0, 0]):
        active = torch.tensor(flags).bool()
        arguments = problem(width, dtype)
        arguments |= {"reduce": reduce, "activation": "tanh"}
        arguments |= {"ptr": ptr, "active": active}
        compare(arguments, dtype)
        y, residual = smoothed_propagate(**moved(arguments))
        rest = ~active.repeat_interleave(ptr.diff())
        assert torch.equal(y.cpu()[rest], arguments["x"][rest])
        assert (residual.cpu()[~active] == 0).all()


@pytest.mark.parametrize("flag", [True, False])
def test_one_segment_may_rest(flag):
    arguments = problem(32, torch.float32)
    compare({**arguments, "active": torch.tensor([flag])}, torch.float32)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(1,), (5,), (3, 7), (70, 64), (2, 1029)])
def test_update_follows_the_formula(shape, dtype):
    g = torch.Generator().manual_seed(1)
    arguments = {
        "x": torch.randn(shape, generator=g).to(dtype),
        "z": torch.randn(shape, generator=g).to(dtype),
        "alpha": torch.tensor(0.25, dtype=torch.float64),
    }
    ptr = torch.tensor([0, 0, shape[0] // 2, shape[0]])
    for more in (
        {},
        {"active": torch.tensor([False])},
        {"ptr": ptr},
        {"ptr": ptr, "active": torch.tensor([True, False, True])},
    ):
        given = {**arguments, **more}
        with_z = {**given, "z": given["z"].clone()}
        weight = torch.randn(shape, generator=g).to(dtype)
        names = ("x", "z", "alpha")
        results = []
        for function, values in (
            (reference.smoothed_update, exact(with_z)),
            (smoothed_update, moved(with_z)),
        ):
            for k in names:
                values[k] = values[k].detach().clone().requires_grad_()
            y, residual = function(**values)
            grads = torch.autograd.grad(
                y, [values[k] for k in names], weight.to(y)
            )
            results.append((y, residual, *grads))
        for wanted, got in zip(*results):
            assert_near(got, wanted, dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_large_tensor_is_summed_in_parts(dtype):
    g = torch.Generator().manual_seed(2)
    x, z = (torch.randn(1_200_003, generator=g).to(dtype) for _ in "xz")
    y, residual = smoothed_update(x.to(DEVICE), z.to(DEVICE), 0.5)
    wanted, total = reference.smoothed_update(x.double(), z.double(), 0.5)
    assert_near(y, wanted, dtype)
    torch.testing.assert_close(
        residual.cpu().double(), total, rtol=1e-5, atol=0
    )


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_tensors_may_start_anywhere(dtype):
    """Contiguous, but not at a multiple of 16 bytes."""

    def shifted(t):
        room = torch.empty(t.numel() + 1, dtype=t.dtype, device=t.device)
        out = room[1:].view(t.shape)
        return out.copy_(t)

    arguments = moved(problem(64, dtype))
    wanted, total = smoothed_propagate(**arguments)
    for k in ("h", "x", "bias", "inject", "value"):
        arguments[k] = shifted(arguments[k])
    y, residual = smoothed_propagate(**arguments)
    assert_near(y, wanted.cpu(), dtype)
    assert_near(residual, total.cpu(), torch.bfloat16)
    x, z = shifted(y), shifted(wanted)
    got, _ = smoothed_update(x, z, 0.5)
    wanted, _ = smoothed_update(x.clone(), z.clone(), 0.5)
    assert_near(got, wanted.cpu(), dtype)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("width", [3, 64])
@pytest.mark.parametrize("reduce", [0, 1, 2])
def test_half_precision_is_gathered_into_a_float_state(reduce, width, dtype):
    arguments = problem(width, dtype)
    state = {k: arguments[k].float() for k in ("value", "x", "bias", "inject")}
    plain = exact({**arguments, **state})
    name = REDUCTIONS[reduce]
    y, residual, grads = with_gradients(
        reference.smoothed_propagate,
        {**plain, "reduce": name, "activation": "tanh"},
        torch.ones_like(plain["x"]),
    )
    found = with_gradients(
        lambda **a: propagation.propagate(*a.values(), 2, reduce, None, None),
        moved({**arguments, **state}),
        torch.ones_like(plain["x"], device=DEVICE),
    )
    assert found[0].dtype == torch.float32
    assert_near(found[0], y, torch.float32)
    assert_near(found[1][:, 0], residual, torch.float32)
    for k, grad in grads.items():
        assert_near(found[2][k], grad, dtype, k)


def test_a_first_nan_is_the_maximum():
    rowptr = torch.tensor([0, 3, 3, 5, 905], device=DEVICE)
    col = torch.zeros(905, dtype=torch.long, device=DEVICE)
    col[:5] = torch.tensor([0, 1, 2, 3, 3])
    col[700:702] = 1
    h = torch.tensor([[1.0], [float("nan")], [5.0], [2.0]], device=DEVICE)
    h.requires_grad_()
    x = torch.zeros(4, 1, device=DEVICE)
    y, _ = smoothed_propagate(
        rowptr, col, None, h, x, 0.0, reduce="max", activation="relu"
    )
    assert torch.isnan(y[[0, 3]]).all()
    assert y[1] == 0 and y[2] == 2
    y.sum().backward()
    assert h.grad.flatten().tolist() == [0, 2, 0, 1]


def test_alpha_zero_forgets_the_state():
    arguments = moved(problem(8, torch.float32))
    wanted, _ = smoothed_propagate(**arguments | {"alpha": 0.0})
    arguments["x"] = arguments["x"].fill_(float("nan"))
    y, _ = smoothed_propagate(**arguments | {"alpha": 0.0})
    assert torch.equal(y, wanted)
    assert not y.isnan().any()


@pytest.mark.parametrize("rows", [0, 4])
@pytest.mark.parametrize("width", [0, 5])
def test_nothing_may_be_there(rows, width):
    x = torch.ones(rows, width, device=DEVICE)
    rowptr = torch.zeros(rows + 1, dtype=torch.long, device=DEVICE)
    col = rowptr[:0]
    y, residual = smoothed_propagate(rowptr, col, None, x, x, 0.5)
    assert torch.equal(y, x / 2)
    assert residual.tolist() == [rows * width]
    y, residual = smoothed_update(x, 0 * x, 0.5)
    assert residual.tolist() == [rows * width]
    ptr = torch.tensor([0, 0, rows], device=DEVICE)
    _, residual = smoothed_update(x, 0 * x, 0.5, ptr)
    assert residual.tolist() == [0, rows * width]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("reduce", REDUCTIONS)
def test_runs_are_equal_bit_by_bit(reduce, dtype):
    arguments = moved(problem(100, dtype) | {"reduce": reduce})
    weight = torch.randn_like(arguments["x"])

    def once():
        y, residual, grads = with_gradients(
            smoothed_propagate, {**arguments, "activation": "tanh"}, weight
        )
        return y, residual, *grads.values()

    first = once()
    for _ in range(20):
        for a, b in zip(first, once()):
            assert torch.equal(a, b)


@pytest.mark.parametrize("reduce", range(3))
def test_a_cuda_graph_replays(reduce):
    arguments = moved(problem(64, torch.float32, torch.int32))
    arguments["alpha"] = 0.5
    x = arguments["x"]
    ptr = torch.tensor([0, 30, ROWS], device=DEVICE)
    active = torch.tensor([True, True], device=DEVICE)

    def iterate():
        y = x
        for _ in range(3):
            y, stats = propagation.propagate(
                *(arguments | {"x": y}).values(), 2, reduce, ptr, active
            )
        for _ in range(2):
            z, whole = updating.update(x, y, 0.5, None, None)
        return y, stats, z, whole

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        iterate()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = iterate()
    for flags in ([True, True], [False, True]):
        x.normal_()
        active.copy_(torch.tensor(flags))
        graph.replay()
        torch.cuda.synchronize()
        for got, wanted in zip(captured, iterate()):
            assert torch.equal(got, wanted)


WRONG = {
    "rowptr must start at 0": ("rowptr", 0, 1),
    "rowptr must end at": ("rowptr", -1, 7),
    "rowptr must not decrease": ("rowptr", 3, 10_000),
    r"col must (hold indices|be) in \[0, ": ("col", 5, SOURCES),
}


@pytest.mark.parametrize("index", [torch.int32, torch.int64], ids=str)
@pytest.mark.parametrize("message", WRONG)
def test_wrong_indices_are_found(message, index):
    arguments = problem(8, torch.float32, index)
    name, place, number = WRONG[message]
    for bad in (number, -1) if name == "col" else (number,):
        arguments[name][place] = bad
        given = moved(arguments)
        with pytest.raises(ValueError, match=message):
            smoothed_propagate(**given)
        # The operator underneath looks for itself, where it is asked to.
        with pytest.raises(RuntimeError, match=message):
            raw(given, check=True)
        # And reads nothing from outside, where it is not.
        raw(given, check=False)
    assert torch.zeros(1, device=DEVICE).item() == 0


def raw(given, check):
    out = torch.empty_like(given["x"])
    torch.ops.torch_picard._propagate(
        given["rowptr"], given["col"], given["value"], given["h"],
        given["x"], 0.5, given["bias"], given["inject"], 0, 0, None, None,
        check, out, None, None, None,
    )  # fmt: skip
    return out


def test_a_wrong_ptr_is_found():
    given = moved(problem(8, torch.float32))
    ptr = torch.tensor([0, 7, 3, ROWS], device=DEVICE)
    with pytest.raises(ValueError, match="ptr must rise"):
        smoothed_propagate(**given, ptr=ptr)
    with pytest.raises(ValueError, match="ptr must rise"):
        smoothed_update(given["x"], given["x"], 0.5, ptr)
    beyond = torch.tensor([-(10**9), 7, 10**9], device=DEVICE)
    updating.update(given["x"], given["x"], 0.5, beyond, None)
    assert torch.zeros(1, device=DEVICE).item() == 0


@pytest.mark.parametrize("inject", [False, True])
def test_the_recorded_loop_equals_the_one_on_the_cpu(inject):
    """Calls: as it is, recorded, replayed with other features and weights."""
    torch.manual_seed(0)
    edges = torch.randint(0, 50, (2, 200))
    block = PicardConv(
        GCNConv(16, 16), max_iter=6, rtol=0.0, atol=0.0, inject=inject,
        activation="tanh",
    )  # fmt: skip
    device = copy.deepcopy(block).to(DEVICE)
    there = edges.to(DEVICE)
    with torch.no_grad():
        for _ in range(4):
            x = torch.randn(50, 16)
            found, end = device(x.to(DEVICE), there, return_solution=True)
            wanted, own = block(x, edges, return_solution=True)
            torch.testing.assert_close(found.cpu(), wanted)
            torch.testing.assert_close(
                end.residual_history.cpu(), own.residual_history
            )
            for conv in (block.conv, device.conv):
                conv.bias += 0.1
    assert any(len(loops) for loops in capture._LOOPS.values())
