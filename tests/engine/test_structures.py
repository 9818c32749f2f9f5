"""States that are not one Tensor, or not one of plain memory."""

from collections import OrderedDict, namedtuple

import pytest
import torch

from torch_picard import Implicit, Unrolled, fixed_point

OPTIONS = {"max_iter": 200, "rtol": 1e-10}
Pair = namedtuple("Pair", "left right")


def pieces():
    rng = torch.Generator().manual_seed(0)
    a = torch.randn(4, 3, generator=rng, dtype=torch.float64)
    b = torch.randn(2, 5, generator=rng, dtype=torch.float64)
    return a, b


def coupled(a, b):
    """Two leaves of different shapes, each depending on the other."""
    return (
        torch.tanh(0.6 * a + 0.1 * b.mean()) + 0.3,
        torch.tanh(0.5 * b - 0.2 * a.sum(1).mean()) - 0.1,
    )


WRAPPERS = {
    "tuple": (lambda a, b: (a, b), lambda x: x),
    "list": (lambda a, b: [a, b], lambda x: tuple(x)),
    "dict": (
        lambda a, b: {"a": a, "b": b},
        lambda x: (x["a"], x["b"]),
    ),
    "ordered": (
        lambda a, b: OrderedDict(b=b, a=a),
        lambda x: (x["a"], x["b"]),
    ),
    "namedtuple": (Pair, lambda x: (x.left, x.right)),
    "nested": (
        lambda a, b: {"u": [a, {"v": (b,)}]},
        lambda x: (x["u"][0], x["u"][1]["v"][0]),
    ),
}


@pytest.mark.parametrize("name", WRAPPERS)
def test_the_structure_comes_back(method, name):
    wrap, unwrap = WRAPPERS[name]
    s = fixed_point(
        lambda x: wrap(*coupled(*unwrap(x))),
        wrap(*pieces()),
        method=method,
        **OPTIONS,
    )
    assert type(s.value) is type(wrap(*pieces()))
    flat = fixed_point(
        lambda v: torch.cat(
            [
                t.reshape(-1)
                for t in coupled(v[:12].view(4, 3), v[12:].view(2, 5))
            ]
        ),
        torch.cat([t.reshape(-1) for t in pieces()]),
        method=method,
        **OPTIONS,
    )
    mine = torch.cat([t.reshape(-1) for t in unwrap(s.value)])
    torch.testing.assert_close(mine, flat.value)
    assert s.iterations.item() == flat.iterations.item()


def test_the_order_of_a_dict_does_not_matter():
    a, b = pieces()

    def operator(x):
        image = coupled(x["a"], x["b"])
        return {"b": image[1], "a": image[0]}

    s = fixed_point(operator, {"a": a, "b": b}, **OPTIONS)
    assert list(s.value) == ["a", "b"]
    assert s.converged.all()


def test_leading_couples_the_leaves_row_by_row(method):
    rates = torch.tensor([0.1, 0.9], dtype=torch.float64)[:, None]

    def operator(x):
        return {
            "u": rates * torch.sin(x["v"]) + 1,
            "v": rates * torch.cos(x["u"].mean(1, keepdim=True)).expand(2, 3),
        }

    x0 = {
        "u": torch.zeros(2, 3, dtype=torch.float64),
        "v": torch.zeros(2, 3, dtype=torch.float64),
    }
    s = fixed_point(operator, x0, segments="leading", method=method, **OPTIONS)
    assert s.status.shape == (2,) and s.converged.all()
    assert s.iterations[0] <= s.iterations[1]
    for i in range(2):
        rate = rates[i : i + 1]

        def alone(x, rate=rate):
            mean = x["u"].mean(1, keepdim=True)
            return {
                "u": rate * torch.sin(x["v"]) + 1,
                "v": rate * torch.cos(mean).expand(1, 3),
            }

        t = fixed_point(
            alone,
            {k: v[i : i + 1] for k, v in x0.items()},
            method=method,
            **OPTIONS,
        )
        torch.testing.assert_close(s.value["u"][i], t.value["u"][0])


def test_leaves_of_different_dim_0_take_a_batch_vector_each(method):
    """Nodes and edges of two graphs: a segment is both."""
    batch = {
        "node": torch.tensor([0, 0, 0, 1, 1]),
        "edge": torch.tensor([0, 1, 1, 1]),
    }
    node = torch.tensor([0.9, 0.2], dtype=torch.float64)[batch["node"]]
    edge = torch.tensor([0.8, 0.1], dtype=torch.float64)[batch["edge"]]
    x0 = {
        "node": torch.zeros(5, 2, dtype=torch.float64),
        "edge": torch.zeros(4, dtype=torch.float64),
    }
    s = fixed_point(
        lambda x: {
            "node": node[:, None] * torch.sin(x["node"]) + 1,
            "edge": edge * torch.cos(x["edge"]) + 1,
        },
        x0,
        segments=batch,
        method=method,
        **OPTIONS,
    )
    assert s.status.shape == (2,) and s.converged.all()
    # r is the norm over both leaves
    image = node[:, None] * torch.sin(s.value["node"]) + 1 - s.value["node"]
    other = edge * torch.cos(s.value["edge"]) + 1 - s.value["edge"]
    r = (
        image[batch["node"] == 0].square().sum()
        + other[batch["edge"] == 0].square().sum()
    ).sqrt()
    torch.testing.assert_close(s.residual[0], r, rtol=1e-6, atol=1e-16)


def test_one_batch_vector_serves_leaves_of_equal_dim_0():
    batch = torch.tensor([0, 0, 1])
    s = fixed_point(
        lambda x: tuple(0.5 * t + 1 for t in x),
        (torch.zeros(3, 2), torch.zeros(3)),
        segments=batch,
    )
    assert s.converged.shape == (2,) and s.converged.all()


def test_a_number_is_a_state(method):
    x0 = torch.tensor(0.0, dtype=torch.float64)
    s = fixed_point(torch.cos, x0, method=method, **OPTIONS)
    assert s.value.shape == () and s.converged.all()
    assert s.value.item() == pytest.approx(0.7390851332151607, abs=1e-9)


def test_gradients_of_a_structure(method):
    a, b = (t.requires_grad_() for t in pieces())

    def solve(a, b):
        return fixed_point(
            lambda x: {
                "a": torch.tanh(0.4 * x["a"]) + a,
                "b": torch.tanh(0.3 * x["b"] + 0.05 * x["a"].sum()) + b,
            },
            {"a": a, "b": b},
            method=method,
            gradient=Implicit(rtol=1e-12),
            max_iter=200,
            rtol=1e-13,
        ).value

    def loss(a, b):
        value = solve(a, b)
        return value["a"].sum(), value["b"].square()

    assert torch.autograd.gradcheck(loss, (a, b))


def test_a_leaf_without_gradient_does_not_matter():
    a = torch.ones(3, dtype=torch.float64, requires_grad=True)
    s = fixed_point(
        lambda x: (0.5 * x[0] + a, torch.ones(2, dtype=torch.float64)),
        (a, torch.zeros(2, dtype=torch.float64)),
        gradient=Implicit(),
        rtol=1e-12,
        max_iter=100,
    )
    s.value[0].sum().backward()
    torch.testing.assert_close(a.grad, torch.full_like(a, 2.0))


@pytest.mark.parametrize("gradient", [Unrolled(), Implicit()], ids=repr)
@pytest.mark.parametrize(
    "x0",
    [
        torch.zeros(1, 3).expand(4, 3),
        torch.arange(6.0).as_strided((4, 3), (1, 1)),
        torch.zeros(3, 4).t(),
    ],
    ids=["expanded", "overlapping", "transposed"],
)
def test_entries_of_x0_may_share_memory(method, gradient, x0):
    def solve(x0):
        w = torch.tensor(0.5, requires_grad=True)
        b = torch.arange(12.0).view(4, 3)
        x = fixed_point(
            lambda x: w * torch.sin(x) + b, x0, method=method,
            segments="leading", gradient=gradient,
        ).value  # fmt: skip
        return x, torch.autograd.grad(x.sum(), w)[0]

    for mine, theirs in zip(solve(x0), solve(x0.clone())):
        torch.testing.assert_close(mine, theirs)
