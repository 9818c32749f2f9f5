"""Every wrong argument is an error that names it, on every backend."""

import pytest
import torch

from tests.ops.cases import bits, random_case
from torch_picard.ops import smoothed_propagate, smoothed_update

OPS = torch.ops.torch_picard
NAN, INT32 = float("nan"), torch.int32


def good(**others):
    """rowptr [0, 1, 2, 4], col of 4 entries, h [3, 2], x [3, 2]"""
    case = random_case(3, 3, 4, 2, dtype=torch.float32)
    case["rowptr"] = torch.tensor([0, 1, 2, 4])
    return case | others


def edited(name, place, to):
    t = good()[name].clone()
    t[place] = to
    return {name: t}


def ones(*shape, dtype=torch.float32, device="cpu"):
    return torch.ones(shape, dtype=dtype, device=device)


def longs(*values):
    return torch.tensor(values, dtype=torch.int64)


#: what is wrong with the graph -> arguments, words of the message
GRAPHS = {
    "col too large": (edited("col", 2, 3), r"col must .*\[0, 3\)"),
    "col far too large": (edited("col", 2, 2**62), r"col must .*\[0, 3\)"),
    "col negative": (edited("col", 0, -1), r"col must .*\[0, 3\)"),
    "col most negative": (edited("col", 3, -(2**63)), "col must"),
    "col of no rows": ({"h": ones(0, 2)}, r"col must .*\[0, 0\)"),
    "rowptr from 1": (edited("rowptr", 0, 1), "rowptr must start at 0, got 1"),
    "rowptr from -1": (edited("rowptr", 0, -1), "rowptr must start at 0"),
    "rowptr too short": (
        edited("rowptr", 3, 3),
        r"rowptr must end at len\(col\) = 4, got 3",
    ),
    "rowptr too long": (edited("rowptr", 3, 5), "rowptr must end at"),
    "rowptr falls": (edited("rowptr", 1, 3), "rowptr must not decrease"),
    "rowptr beyond": (edited("rowptr", 2, 99), "rowptr must not decrease"),
    "rowptr negative": (edited("rowptr", 1, -9), "rowptr must not decrease"),
}

SHAPES = {
    "rowptr": [ones(3), ones(5), ones(0), ones(2, 2), ones()],
    "col": [ones(2, 2), ones()],
    "value": [ones(3), ones(4, 1), ones(1), ones()],
    "h": [ones(3), ones(3, 3), ones(3, 2, 1), ones(3, 1), ones()],
    "x": [ones(3), ones(3, 3), ones(4, 2), ones(3, 2, 1), ones()],
    "bias": [ones(3), ones(1), ones(1, 2), ones()],
    "inject": [ones(3), ones(2, 3), ones(1, 2), ones(3, 1), ones(6)],
    "alpha": [ones(2) / 4, ones(0)],
}
FLOATING = ["value", "h", "x", "bias", "inject"]


def wrong_arguments():
    """Name, arguments, exception, words of the message."""
    for what, (others, words) in GRAPHS.items():
        yield what, others, ValueError, words
        if "far" not in what and "most" not in what:
            narrow = {
                k: t.to(INT32) for k, t in good(**others).items()
                if k in ("rowptr", "col")
            }  # fmt: skip
            yield what + " int32", others | narrow, ValueError, words
    for name, shapes in SHAPES.items():
        for t in shapes:
            if name in ("rowptr", "col"):
                t = t.long()
            words = "rowptr must" if name == "col" and t.dim() == 1 else name
            words = "(h|x|rowptr) must" if name == "x" else f"{words} must"
            yield f"{name} {list(t.shape)}", {name: t}, ValueError, words
    for name in FLOATING:
        like = good()[name]
        for dtype in (torch.float64, torch.int64, torch.bool, torch.cfloat):
            words = "(x|h) must" if name == "x" else f"{name} must"
            yield f"{name} {dtype}", {name: like.to(dtype)}, ValueError, words
        words = "(x|h) must" if name == "x" else f"{name} must"
        elsewhere = {name: like.to("meta")}
        yield f"{name} elsewhere", elsewhere, ValueError, words
    for name in ("rowptr", "col"):
        like = good()[name]
        for dtype in (INT32, torch.int16, torch.float32, torch.bool):
            words = "(col|rowptr) must"
            yield f"{name} {dtype}", {name: like.to(dtype)}, ValueError, words
        elsewhere = {name: like.to("meta")}
        yield f"{name} elsewhere", elsewhere, ValueError, f"{name} must"
    for name in (*FLOATING, "rowptr", "col"):
        sparse = {name: good()[name].to_sparse()}
        yield f"{name} sparse", sparse, ValueError, f"{name} must be dense"
        for what in ([1.0, 2.0], 3, "x"):
            kind = type(what).__name__
            yield f"{name} {kind}", {name: what}, TypeError, f"{name} must be"
    for name in ("h", "x", "rowptr", "col"):
        yield f"no {name}", {name: None}, TypeError, f"{name} must be"
    yield from WRONG_OPTIONS


SEGMENTS = [
    ("ptr from 1", {"ptr": longs(1, 3)}, ValueError, "ptr must rise"),
    ("ptr too short", {"ptr": longs(0, 2)}, ValueError, "ptr must rise"),
    ("ptr too long", {"ptr": longs(0, 2, 4)}, ValueError, "ptr must rise"),
    ("ptr falls", {"ptr": longs(0, 2, 1, 3)}, ValueError, "ptr must rise"),
    ("ptr beyond", {"ptr": longs(0, 9, 3)}, ValueError, "ptr must rise"),
    ("ptr negative", {"ptr": longs(0, -1, 3)}, ValueError, "ptr must rise"),
    ("ptr empty", {"ptr": longs()}, ValueError, "ptr must be int64"),
    ("ptr square", {"ptr": longs(0, 3)[None]}, ValueError, "ptr must be"),
    ("ptr int32", {"ptr": longs(0, 3).int()}, ValueError, "ptr must be int64"),
    ("ptr floats", {"ptr": ones(2)}, ValueError, "ptr must be int64"),
    ("ptr list", {"ptr": [0, 3]}, TypeError, "ptr must be a Tensor"),
    ("ptr sparse", {"ptr": longs(0, 3).to_sparse()}, ValueError, "ptr must"),
    ("ptr away", {"ptr": longs(0, 3).to("meta")}, ValueError, "ptr must be"),
    *(
        (f"active {i}", {"ptr": longs(0, 1, 3), "active": t}, error, "active")
        for i, (t, error) in enumerate([
            (torch.tensor([True]), ValueError),
            (torch.tensor([True] * 3), ValueError),
            (torch.tensor([[True, False]]), ValueError),
            (torch.tensor([1, 0]), ValueError),
            (ones(2), ValueError),
            (torch.tensor([True, False]).to("meta"), ValueError),
            (torch.tensor([True, False]).to_sparse(), ValueError),
            ([True, False], TypeError),
            (True, TypeError),
        ])
    ),
    (
        "active of rows",
        {"active": torch.tensor([True] * 3)},
        ValueError,
        r"active must be bool of shape \[1\]",
    ),
]  # fmt: skip
ALPHAS = [
    *((f"alpha {a}", {"alpha": a}, ValueError, r"alpha .*\[0, 1\)") for a in (
        NAN, 1, 1.0, -0.1, -1, 2, float("inf"), -float("inf"),
        torch.tensor(NAN), torch.tensor(1.0), torch.tensor([-0.5]),
    )),
    *((f"alpha {a!r}", {"alpha": a}, ValueError, "alpha must be") for a in (
        torch.tensor(0), torch.tensor(True), torch.tensor(0.1 + 0j),
    )),
    *((f"alpha {a!r}", {"alpha": a}, TypeError, "alpha must be") for a in (
        "0.5", None, True, 0.5j, [0.5],
    )),
]  # fmt: skip
WRONG_OPTIONS = [
    *SEGMENTS,
    *ALPHAS,
    *(
        (f"{name} {given!r}", {name: given}, ValueError, f"{name} must be one")
        for name in ("activation", "reduce")
        for given in ("gelu", "", "SUM", None, 1, ["relu"])
    ),
]


def table(rows):
    return [
        pytest.param(others, error, words, id=name)
        for name, others, error, words in rows
    ]


@pytest.mark.parametrize("others, error, words", table(wrong_arguments()))
def test_propagate(backend, others, error, words):
    with pytest.raises(error, match=words):
        smoothed_propagate(**good(**others), backend=backend)


UPDATES = [
    ("z of other shape", {"z": ones(2, 3)}, ValueError, "z must have the sh"),
    ("z broadcast", {"z": ones(1, 2)}, ValueError, "z must have the shape"),
    ("z double", {"z": ones(3, 2).double()}, ValueError, "z must have the dt"),
    ("z elsewhere", {"z": ones(3, 2, device="meta")}, ValueError, "z must be"),
    ("z sparse", {"z": ones(3, 2).to_sparse()}, ValueError, "z must be dense"),
    ("z number", {"z": 1.0}, TypeError, "z must be a Tensor"),
    ("x list", {"x": [1.0]}, TypeError, "x must be a Tensor"),
    ("x none", {"x": None}, TypeError, "x must be a Tensor"),
    ("x sparse", {"x": ones(3, 2).to_sparse()}, ValueError, "x must be dense"),
    ("x long", {"x": longs(1), "z": longs(1)}, ValueError, "x must be one of"),
    (
        "x complex",
        {"x": ones(3, dtype=torch.cfloat), "z": ones(3, dtype=torch.cfloat)},
        ValueError,
        "x must be one of",
    ),
    (
        "ptr of a scalar",
        {"x": ones(), "z": ones(), "ptr": longs(0, 1)},
        ValueError,
        "ptr needs rows",
    ),
]


@pytest.mark.parametrize(
    "others, error, words", table([*UPDATES, *SEGMENTS, *ALPHAS])
)
def test_update(backend, others, error, words):
    arguments = {"x": ones(3, 2), "z": ones(3, 2), "alpha": 0.5} | others
    with pytest.raises(error, match=words):
        smoothed_update(**arguments, backend=backend)


# -- past the front door ------------------------------------------------------


def called_directly(op, case):
    case = case | {"alpha": torch.tensor(0.5)}
    if op == "smoothed_propagate":
        return OPS.smoothed_propagate(**case)
    case |= {"activation": 0, "reduce": 0}
    return OPS._smoothed_propagate(
        **case, check=True, keep_z=False, keep_arg=False
    )


DIRECT = ["smoothed_propagate", "_smoothed_propagate"]
BROKEN = [
    pytest.param({k: t.to(index) for k, t in graph.items()}, id=f"{what} {i}")
    for what, (others, _) in GRAPHS.items()
    for i, index in enumerate([torch.int64, INT32])
    if i == 0 or not ("far" in what or "most" in what)
    for graph in [{k: t for k, t in good(**others).items() if k in
                   ("rowptr", "col")} | others]
]  # fmt: skip


@pytest.mark.parametrize("op", DIRECT)
@pytest.mark.parametrize("others", BROKEN)
def test_a_direct_call_with_bad_indices(op, others):
    if "h" in others:
        others = others | {"h": ones(0, 2)}
    with pytest.raises((RuntimeError, ValueError, IndexError)):
        called_directly(op, good(**others))


@pytest.mark.parametrize("op", DIRECT)
@pytest.mark.parametrize(
    "others",
    [
        {"x": ones(2, 2)},
        {"h": ones(3, 5)},
        {"h": ones(3)},
        {"value": ones(3)},
        {"bias": ones(3)},
        {"inject": ones(2, 2)},
        {"rowptr": ones(4)},
        {"col": ones(4)},
        {"rowptr": longs()},
        {"ptr": longs(0, 9)},
        {"ptr": longs(0, 9, 3)},
        {"ptr": longs()},
        {"active": torch.tensor([True, False])},
        {"h": ones(3, 2).double()},
        {"x": ones(3, 2).double()},
    ],
)
def test_a_direct_call_with_bad_shapes(op, others, native):
    with pytest.raises((RuntimeError, ValueError, IndexError)):
        called_directly(op, good(**others))


def test_a_direct_call_of_update_with_bad_shapes(native):
    x, half = ones(3, 2), torch.tensor(0.5)
    flags = torch.tensor([True, False])
    for arguments in (
        (x, ones(2, 2), half, None, None),
        (x, x.double(), half, None, None),
        (x, x, half, longs(0, 4), None),
        (x, x, half, longs(0, 7, 3), None),
        (x, x, half, None, flags),
        (x.long(), x.long(), half, None, None),
    ):
        for op in (OPS.smoothed_update, OPS._smoothed_update):
            with pytest.raises((RuntimeError, ValueError)):
                op(*arguments)


# -- a check is remembered for tensors that stayed as they were ---------------


WRITES = {
    "item": lambda t: t.__setitem__(1, 10**6),
    "view": lambda t: t.view(-1)[:2].fill_(-5),
    "fill_": lambda t: t.fill_(10**6),
    "copy_": lambda t: t.copy_(t + 10**6),
    "resize_": lambda t: t.resize_(2),
    "set_": lambda t: t.set_(t + 10**6),
    "data": lambda t: setattr(t, "data", t + 10**6),
    "out": lambda t: torch.add(t, 10**6, out=t),
}


@pytest.mark.parametrize("name", ["rowptr", "col"])
@pytest.mark.parametrize("write", WRITES)
def test_writes_to_the_graph_are_noticed(backend, name, write):
    case = good(value=None)
    case[name] = case[name].clone()
    for _ in range(2):
        smoothed_propagate(**case, backend=backend)
    WRITES[write](case[name])
    with pytest.raises(ValueError, match=r"rowptr|col"):
        smoothed_propagate(**case, backend=backend)


def test_a_write_that_keeps_the_graph_sound_counts(backend):
    """Neither is the transposed graph that was found before taken again."""
    case = good()
    case["h"].requires_grad_()

    def gradient(case):
        y, _ = smoothed_propagate(**case, backend=backend)
        return torch.autograd.grad(y.sum(), case["h"])[0]

    gradient(case)
    case["col"].copy_((case["col"] + 1) % 3)
    fresh = case | {"col": case["col"].clone()}
    assert torch.equal(bits(gradient(case)), bits(gradient(fresh)))


def test_the_same_col_in_two_graphs(backend):
    case = good()
    other = case | {"rowptr": torch.tensor([0, 2, 2, 4])}
    broken = case | {"rowptr": torch.tensor([0, 2, 2, 5])}
    smaller = case | {"h": case["h"][:1]}
    for _ in range(2):
        smoothed_propagate(**case, backend=backend)
        smoothed_propagate(**other, backend=backend)
        for wrong in (broken, smaller):
            with pytest.raises(ValueError, match=r"rowptr|col"):
                smoothed_propagate(**wrong, backend=backend)
