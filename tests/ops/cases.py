"""Arguments of the operators, what they must give, and how closely.

The expected values are taken row by row in float64. The bounds follow the
roundings (Higham, Accuracy and Stability, ch. 3): a sum of L terms errs by at
most L*eps times the sum of their absolute values, storing a number by eps
times its absolute value.
"""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

import torch
from hypothesis import strategies as st
from torch import Tensor

from torch_picard.ops import smoothed_propagate, smoothed_update

FLOATS = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
ACTIVATIONS = ["none", "relu", "tanh"]
REDUCTIONS = ["sum", "mean", "max"]
#: the arguments of smoothed_propagate that have a gradient
DIFFERENTIABLE = ["value", "h", "x", "alpha", "bias", "inject"]


# -- expected values ----------------------------------------------------------


class Expected(NamedTuple):
    """In float64. ``bound`` holds what y and residual may err by."""

    y: Tensor
    residual: Tensor
    bound: tuple[Tensor, Tensor]
    #: by row and column: z before the activation, z, what the former errs by
    before: Tensor
    z: Tensor
    error: Tensor


def aggregate(rowptr, col, value, h, reduce, rows=None):
    """Row by row, in the dtype of h; 0 for the rows that are left out."""
    out = []
    for i, (begin, end) in enumerate(pairwise(rowptr.tolist())):
        message = h[col[begin:end].long()]
        if value is not None:
            message = message * value[begin:end, None]
        if begin == end or (rows is not None and not rows[i]):
            out.append(h.new_zeros(h.size(1)))
        elif reduce == "max":  # torch.max picks the first, NaN before all
            out.append(message.max(dim=0).values)
        else:
            total = message.sum(dim=0)
            out.append(total / (end - begin) if reduce == "mean" else total)
    return torch.stack(out) if out else h.new_zeros(0, h.size(1))


def activate(t, activation):
    return {"none": lambda a: a, "relu": torch.relu, "tanh": torch.tanh}[
        activation
    ](t)


def segments(rows, ptr, active):
    """Triples of begin, end and whether active."""
    offsets = [0, rows] if ptr is None else ptr.tolist()
    flags = [True] * len(offsets) if active is None else active.tolist()
    return [(a, b, flag) for (a, b), flag in zip(pairwise(offsets), flags)]


def rows_on(rows, ptr, active):
    on = torch.zeros(rows, dtype=torch.bool)
    for begin, end, flag in segments(rows, ptr, active):
        on[begin:end] = flag
    return on


def smooth(x, z, alpha, on):
    alpha = alpha.reshape(()) if isinstance(alpha, Tensor) else alpha
    out = [
        alpha * old + (1 - alpha) * new if flag else old
        for old, new, flag in zip(x, z, on)
    ]
    return torch.stack(out) if out else x.clone()


def exact(case):
    """y in float64, with the gradients of the formula."""
    c = in_float64(case)
    on = rows_on(c["x"].size(0), c["ptr"], c["active"])
    before = before_activation(c, on)
    return smooth(c["x"], activate(before, c["activation"]), c["alpha"], on)


def before_activation(c, on):
    z = aggregate(c["rowptr"], c["col"], c["value"], c["h"], c["reduce"], on)
    for name in ("bias", "inject"):
        if c[name] is not None:
            z = z + torch.where(on[:, None], c[name], 0)
    return z


def in_float64(case):
    return {
        name: a.to(torch.float64)
        if isinstance(a, Tensor) and a.is_floating_point()
        else a
        for name, a in case.items()
    }


def eps_of_sums(dtype):
    return torch.finfo(
        torch.float64 if dtype == torch.float64 else torch.float32
    ).eps


def stored(t, dtype):
    """What t errs by once it is stored."""
    info = torch.finfo(dtype)
    return info.eps * (t.abs() + info.smallest_normal)


def lengths(rowptr):
    return rowptr.diff().double()[:, None]


def expected(case):
    dtype = case["x"].dtype
    c = {
        k: a.detach() if isinstance(a, Tensor) else a
        for k, a in in_float64(case).items()
    }
    x, alpha = c["x"], float(c["alpha"])
    on = rows_on(x.size(0), c["ptr"], c["active"])
    before = before_activation(c, on)
    z = activate(before, c["activation"])
    y = smooth(x, z, alpha, on)
    positive = c | {
        k: c[k].abs() for k in DIFFERENTIABLE if isinstance(c[k], Tensor)
    }
    magnitude = before_activation(positive, on)
    # products, sums, division, bias, inject, tanh (4 units), smoothing; twice
    # because in float64 the expected value errs as well
    steps = 2 * (lengths(c["rowptr"]) + 16) * eps_of_sums(dtype)
    error = steps * magnitude
    y_bound = steps * (alpha * x.abs() + (1 - alpha) * magnitude)
    y_bound = torch.where(on[:, None], y_bound + stored(y, dtype), 0)
    off = steps * (magnitude + x.abs())
    residual, bound = [], []
    for begin, end, flag in segments(x.size(0), c["ptr"], c["active"]):
        d, e = (z - x)[begin:end], off[begin:end]
        r = d.square().sum() if flag else x.new_zeros(())
        slack = (2 * d.abs() * e + e.square()).sum()
        slack = slack + 2 * (x.size(1) + 8) * eps_of_sums(dtype) * r
        residual.append(r)
        bound.append(slack if flag else x.new_zeros(()))
    bounds = y_bound, torch.stack(bound) if bound else x.new_zeros(0)
    residual = torch.stack(residual) if residual else x.new_zeros(0)
    return Expected(y, residual, bounds, before, z, error)


def gradient_bounds(case, gy, grads):
    """What the gradients of y may err by; ``grads`` are the exact ones."""
    dtype = case["x"].dtype
    eps = eps_of_sums(dtype)
    want = expected(case)
    c = in_float64(case)
    alpha = float(c["alpha"])
    on = rows_on(c["x"].size(0), c["ptr"], c["active"])
    gy = gy.double().abs()
    size = torch.where(on[:, None], (1 - alpha) * gy, 0)
    z, before = want.z, want.before
    z_error = want.error + stored(z, dtype)
    if c["activation"] == "tanh":  # |tanh''| < 1; 1 - z^2 from the stored z
        g, g_error = size * (1 - z.square()), size * (2 * z_error + 8 * eps)
    elif c["activation"] == "relu":  # which side of 0 may be unknown
        unknown = before.abs() <= z_error
        g = size * ((before > 0) | unknown)
        g_error = torch.where(unknown, size, 8 * eps * size)
    else:
        g, g_error = size, 8 * eps * size
    g_error = 2 * g_error + stored(g, dtype)
    entries, rows = c["col"].numel(), z.size(0)
    bounds = {
        "x": 8 * eps * gy,
        "inject": g_error,
        "bias": g_error.sum(0) + 2 * rows * eps * g.sum(0),
    }
    kind = "sum" if c["reduce"] == "max" else c["reduce"]
    with torch.enable_grad():
        h = c["h"].detach().abs().requires_grad_()
        value = c["value"]
        value = torch.ones(entries) if value is None else value.detach().abs()
        value = value.double().requires_grad_()
        out = aggregate(c["rowptr"], c["col"], value, h, kind, on)
        out = out + 0 * h.sum()  # there may be no entry
        for weight, steps in ((g_error, 1), (g, None)):
            found = torch.autograd.grad(
                out, (value, h), weight, retain_graph=True, allow_unused=True,
                materialize_grads=True,
            )  # fmt: skip
            for name, t, terms in zip(
                ("value", "h"), found, (h.size(1), entries)
            ):
                step = 2 * (terms + 4) * eps if steps is None else steps
                bounds[name] = bounds.get(name, 0) + step * t
    on = on[:, None]
    x = torch.where(on, c["x"].detach().abs(), 0)
    gy = torch.where(on, gy, 0)
    terms = gy * (x + z.abs())
    bounds["alpha"] = (gy * z_error).sum() + 2 * terms.numel() * eps * (
        terms.sum()
    )
    for name, g in grads.items():
        of = case[name].dtype
        bounds[name] = bounds[name].reshape(g.shape) + stored(g, of)
    return bounds


# -- comparison ---------------------------------------------------------------


def assert_within(got, want, bound, what):
    got = got.detach().double()
    assert got.shape == want.shape, what
    over = (got - want).abs() > bound
    over |= got.isnan() != want.isnan()
    if over.any():
        at = tuple(over.nonzero()[0].tolist())
        raise AssertionError(
            f"{what}{list(at)} is {got[at]:.10g}, must be {want[at]:.10g} "
            f"within {bound[at] if bound.dim() else bound:.2g}; "
            f"{int(over.sum())} of {over.numel()} are off"
        )


def bits(t):
    flat = torch.empty(t.numel(), dtype=t.dtype)
    return flat.copy_(t.detach().flatten()).view(torch.uint8)


def check_values(case, backend):
    """Law: a backend gives the formula, to the rounding."""
    y, residual = smoothed_propagate(**case, backend=backend)
    want = expected(case)
    x = case["x"]
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    assert (y.dtype, residual.dtype) == (x.dtype, wide)
    assert_within(y, want.y, want.bound[0], "y")
    assert_within(residual, want.residual, want.bound[1], "residual_sq")
    off = ~rows_on(x.size(0), case["ptr"], case["active"])
    assert torch.equal(bits(y[off]), bits(x[off]))
    if case["active"] is not None:
        assert (residual[~case["active"]] == 0).all()


def check_gradients(case, gy, backend):
    """Law: so are its gradients, for all arguments at a time."""
    names = [k for k in DIFFERENTIABLE if isinstance(case[k], Tensor)]
    leaves = {k: case[k].detach().requires_grad_() for k in names}
    y, _ = smoothed_propagate(**case | leaves, backend=backend)
    got = torch.autograd.grad(
        y, list(leaves.values()), gy, allow_unused=True, materialize_grads=True
    )
    exactly = {k: case[k].detach().double().requires_grad_() for k in names}
    y = exact(case | exactly)
    want = torch.autograd.grad(
        y, list(exactly.values()), gy.double(), allow_unused=True,
        materialize_grads=True,
    )  # fmt: skip
    bounds = gradient_bounds(case, gy, dict(zip(names, want)))
    for name, a, b in zip(names, got, want):
        assert (a.dtype, a.shape) == (case[name].dtype, case[name].shape)
        assert_within(a, b, bounds[name], f"gradient of {name}")


def check_update(x, z, alpha, ptr, active, backend):
    """smoothed_update as smoothed_propagate of the identity has it."""
    y, residual = smoothed_update(x, z, alpha, ptr, active, backend=backend)
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    assert (y.dtype, residual.dtype) == (x.dtype, wide)
    assert y.shape == x.shape
    rows = x.size(0) if x.dim() else 1
    a, b = (in_rows(t.double(), rows) for t in (x, z))
    on = rows_on(rows, ptr, active)
    want = smooth(a, b, float(alpha), on).reshape(x.shape)
    eps = eps_of_sums(x.dtype)
    size = float(alpha) * a.abs() + (1 - float(alpha)) * b.abs()
    bound = torch.where(on[:, None], 8 * eps * size, 0).reshape(x.shape)
    assert_within(y, want, bound + stored(want, x.dtype), "y")
    for s, (begin, end, flag) in enumerate(segments(rows, ptr, active)):
        d = (b - a)[begin:end] if flag else b.new_zeros(0)
        r = d.square().sum()
        terms = max(a.size(1), min(a.numel(), 4096))  # summed at a time
        assert_within(residual[s], r, 2 * (terms + 8) * eps * r, "residual_sq")
    y, x = in_rows(y, rows), in_rows(x, rows)
    assert torch.equal(bits(y[~on]), bits(x[~on]))


def in_rows(t, rows):
    return t.reshape(rows, t.numel() // max(rows, 1))


# -- arguments ----------------------------------------------------------------


def generator(seed):
    return torch.Generator().manual_seed(seed)


def random_case(
    rows=5, sources=4, entries=9, width=3, *, dtype=torch.float64,
    index=torch.int64, seed=0, **others,
):  # fmt: skip
    """All arguments there, random; ``others`` replaces some of them."""
    g = generator(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=g, dtype=torch.float64).to(dtype)

    cuts = torch.randint(0, entries + 1, (rows - 1,), generator=g)
    cuts = cuts.sort().values.tolist()
    case = {
        "rowptr": torch.tensor([0, *cuts, entries], dtype=index),
        "col": torch.randint(0, sources, (entries,), generator=g).to(index),
        "value": normal(entries),
        "h": normal(sources, width),
        "x": normal(rows, width),
        "alpha": 0.3,
        "bias": normal(width),
        "inject": normal(rows, width),
        "activation": "none",
        "reduce": "sum",
        "ptr": None,
        "active": None,
    }
    return case | others


def strided(t, axis=-1):
    """The same in every second place of memory that is NaN, or -1, else."""
    if t.dim() == 0:
        return t
    hole = torch.nan if t.is_floating_point() else -1
    wide = torch.stack([t, torch.full_like(t, hole)], dim=-1)
    if axis == 0 and t.dim() > 1:
        wide = wide.movedim(-1, 1).flatten(0, 1).contiguous()
        return wide[::2]
    return wide[..., 0]


LAYOUTS = {
    "contiguous": lambda t: t,
    "transposed": lambda t: t.t().contiguous().t() if t.dim() == 2 else t,
    "columns": strided,
    "rows": lambda t: strided(t, 0),
    "expanded": lambda t: t[:1].expand_as(t) if t.numel() else t,
}
WIDTHS = [1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64, 65, 96]
WIDTHS += [127, 128, 129, 200, 255, 256, 257, 299, 300]
ALPHAS = [
    0,
    0.0,
    0.3,
    0.5,
    0.999,
    torch.tensor(0.25),
    torch.tensor([0.6], dtype=torch.float64),
    torch.tensor([[0.0]]),
]


@st.composite
def offsets(draw, rows):
    """ptr with empty segments, and flags."""
    inner = draw(st.lists(st.integers(0, rows), max_size=4))
    ptr = torch.tensor([0, *sorted(inner), rows])
    flags = st.booleans()
    active = draw(
        st.none()
        | st.lists(flags, min_size=len(ptr) - 1, max_size=len(ptr) - 1)
    )
    how = draw(st.sampled_from(["contiguous", "columns"]))
    active = None if active is None else LAYOUTS[how](torch.tensor(active))
    return LAYOUTS[how](ptr), active


@st.composite
def cases(draw, poisoned=True):
    """Any call of smoothed_propagate."""
    length = st.integers(0, 4) | st.sampled_from([0, 20, 50])
    row_lengths = draw(st.lists(length, min_size=1, max_size=10))
    rows, entries = len(row_lengths), sum(row_lengths)
    sources = draw(st.integers(1, 10))
    width = draw(st.sampled_from(WIDTHS) | st.integers(1, 300))
    dtype = draw(st.sampled_from(FLOATS))
    index = draw(st.sampled_from([torch.int32, torch.int64]))
    case = random_case(
        1, sources, entries, width, dtype=dtype, index=index,
        seed=draw(st.integers(0, 2**16)),
        activation=draw(st.sampled_from(ACTIVATIONS)),
        reduce=draw(st.sampled_from(REDUCTIONS)),
        alpha=draw(st.sampled_from(ALPHAS)),
    )  # fmt: skip
    g = generator(rows)
    for name in ("x", "inject"):
        t = torch.randn(rows, width, generator=g, dtype=torch.float64)
        case[name] = t.to(dtype)
    ends = torch.tensor([0, *row_lengths]).cumsum(0)
    case["rowptr"] = ends.to(index)
    if case["reduce"] == "max":  # ties; and products that are exact
        for name in ("value", "h"):
            t = torch.randint(-8, 9, case[name].shape, generator=g) / 4
            case[name] = t.to(dtype)
    for name in ("value", "bias", "inject"):
        if draw(st.booleans()):
            case[name] = None
    for name in ("value", "h", "x", "bias", "inject"):
        if case[name] is not None:
            how = draw(st.sampled_from(list(LAYOUTS)))
            case[name] = LAYOUTS[how](case[name])
    for name in ("rowptr", "col"):
        if draw(st.booleans()):
            case[name] = strided(case[name])
    if draw(st.booleans()):
        case["ptr"], case["active"] = draw(offsets(rows))
    elif draw(st.booleans()):
        case["active"] = torch.tensor([draw(st.booleans())])
    if draw(st.booleans()):
        poison(case, poisoned)
    return case


def poison(case, entries=True):
    """NaN where nothing may be looked at: rows that are not active."""
    on = rows_on(case["x"].size(0), case["ptr"], case["active"])
    for name in ("x", "inject"):
        if case[name] is not None:
            case[name] = torch.where(on[:, None], case[name], torch.nan)
    if entries and case["value"] is not None:
        length = case["rowptr"].diff().long()
        entry_on = on.repeat_interleave(length)
        case["value"] = torch.where(entry_on, case["value"], torch.nan)


def sweep(backend):
    """Every width, dtype, index type, reduction and activation once or more:
    for libraries that a process of its own has loaded."""
    count = 0
    for dtype in FLOATS:
        for n, width in enumerate(WIDTHS[::3]):
            for reduce in REDUCTIONS:
                case = random_case(
                    6, 5, 20, width, dtype=dtype, seed=n, reduce=reduce,
                    index=[torch.int32, torch.int64][n % 2],
                    activation=ACTIVATIONS[n % 3],
                    ptr=torch.tensor([0, 2, 2, 6]),
                    active=torch.tensor([True, n % 4 > 0, n % 4 < 3]),
                )  # fmt: skip
                check_values(case, backend)
                gy = torch.randn(6, width, generator=generator(n)).to(dtype)
                check_gradients(case, gy, backend)
                x, z = case["x"], case["inject"]
                check_update(x, z, 0.3, case["ptr"], case["active"], backend)
                count += 1
    return count
