"""What a part sees is what the part before it gives: sizes, widths, reaches
and precisions, along a stack."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils import parametrize, prune
from torch_geometric.nn import SAGEConv

from torch_picard import fixed_point
from torch_picard.anie import ANIE
from torch_picard.contraction import (
    Ball,
    L2TransformerLayer,
    Residual,
    a_posteriori_bound,
    a_priori_bound,
    contractive,
    lipschitz_bound,
    remove_contractive,
    residual_bound,
)

FLOAT = torch.float64


def jacobian_norm(module, shape):
    """Of a linear module, by its matrix."""
    x = torch.zeros(1, *shape, dtype=FLOAT)
    matrix = torch.autograd.functional.jacobian(module, x)
    return float(torch.linalg.matrix_norm(matrix.reshape(-1, x.numel()), 2))


@st.composite
def convolutions(draw, dims, channels):
    """Of which the image may be larger or smaller than the input."""
    kind = nn.Conv1d if dims == 1 else nn.Conv2d
    mode = draw(st.sampled_from(["zeros", "circular", "reflect"]))
    taps = draw(st.integers(1, 3))
    conv = kind(
        channels, channels, taps,
        stride=draw(st.integers(1, 2)),
        padding=draw(st.integers(0, min(2, taps))),
        padding_mode=mode, bias=False,
    ).double()  # fmt: skip
    return conv


@settings(max_examples=60)
@given(
    data=st.data(),
    dims=st.integers(1, 2),
    size=st.integers(4, 6),
    count=st.integers(2, 3),
    seed=st.integers(0, 1000),
    norm=st.sampled_from(["l2", "l1", "linf"]),
)
def test_convolutions_one_behind_the_other(
    data, dims, size, count, seed, norm
):
    """Their own sizes: 'circular' is exact on the size that it sees."""
    torch.manual_seed(seed)
    parts = [data.draw(convolutions(dims, 2)) for _ in range(count)]
    for part in parts:
        nn.init.normal_(part.weight)
    module = nn.Sequential(*parts)
    shape = (2, *([size] * dims))
    x = torch.zeros(1, *shape, dtype=FLOAT)
    try:
        matrix = torch.autograd.functional.jacobian(module, x)
    except RuntimeError:  # too small for what is left of it
        return
    matrix = matrix.reshape(-1, x.numel())
    found = lipschitz_bound(module, norm=norm, input_size=(size,) * dims)
    true = {
        "l2": torch.linalg.matrix_norm(matrix, 2),
        "l1": matrix.abs().sum(0).max(),
        "linf": matrix.abs().sum(1).max(),
    }[norm]
    assert float(true) <= found.constant * (1 + 1e-9)


def test_a_circular_convolution_on_the_size_it_sees():
    first = nn.Conv1d(1, 1, 2, bias=False).double()  # 5 to 4
    second = nn.Conv1d(
        1, 1, 3, padding=1, padding_mode="circular", bias=False
    ).double()
    first.weight.data[:] = torch.tensor([[[0.0, 1.0]]])
    second.weight.data[:] = torch.tensor([[[1.0, -1.0, 0.0]]])
    module = nn.Sequential(first, second)
    found = lipschitz_bound(module, input_size=(5,)).constant
    assert 2.0 <= found <= 2.02
    assert jacobian_norm(module, (1, 5)) == pytest.approx(2.0)
    contractive(module, 0.97, input_size=(5,))
    first.parametrizations.weight.original.data.mul_(9)
    second.parametrizations.weight.original.data.mul_(9)
    assert jacobian_norm(module, (1, 5)) <= 0.97
    inside = nn.Sequential(first, Residual(nn.Identity(), 0.5), second)
    assert lipschitz_bound(inside, input_size=(5,)).contracts


def attention(length):
    """One that is steep where rows are long."""
    layer = nn.TransformerEncoderLayer(
        length, 1, 4, 0.0, batch_first=True, layer_norm_eps=1e6
    )
    layer = layer.double().eval()
    u = torch.ones(length, dtype=FLOAT) / length**0.5
    v = torch.zeros(length, dtype=FLOAT)
    v[0], v[1] = 0.5**0.5, -(0.5**0.5)
    with torch.no_grad():
        for p in layer.parameters():
            p.zero_()
        mean = torch.outer(u, u)
        layer.self_attn.in_proj_weight.copy_(
            torch.cat([8 * mean, mean, torch.outer(v, u)])
        )
        layer.self_attn.out_proj.weight.copy_(torch.eye(length))
        layer.norm1.weight.fill_(1e3)
        layer.norm2.weight.fill_(1e3)
    return layer, u


@pytest.mark.parametrize("kind", ["tanh", "norm"])
def test_rows_of_a_convolution_are_as_long_as_its_image(kind):
    """[N, C, L]: what attention calls a row has L entries, not C."""
    layer, u = attention(64)
    x = torch.zeros(1, 3, 64, dtype=FLOAT)
    if kind == "tanh":
        first = nn.Conv1d(3, 3, 1, bias=False).double()
        first.weight.data[:] = torch.eye(3)[..., None]
        module = nn.Sequential(first, nn.Tanh(), layer)
        x[0, 1], x[0, 2] = 9.0, -9.0
        region = None
    else:
        norm = nn.BatchNorm1d(3).double().eval()
        norm.bias.data[:] = torch.tensor([0.0, 8.0, -8.0])
        module, region = nn.Sequential(norm, layer), Ball(1.0)
    y = x.clone()
    y[0, 0] += 1e-4 * u
    with torch.no_grad():
        ratio = float((module(x) - module(y)).norm() / (x - y).norm())
    assert ratio > 5
    for size in (None, (64,)):
        found = lipschitz_bound(
            module, num_nodes=3, region=region, input_size=size
        )
        assert found.constant >= ratio


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_norm_without_eps_in_short_floats(dtype):
    """torch works on them in float32, and takes its eps."""
    norm = nn.RMSNorm(4).to(dtype)
    x = torch.zeros(1, 4, dtype=dtype)
    y = x.clone()
    y[0, 0] = 2e-5
    with torch.no_grad():
        ratio = (norm(y) - norm(x)).double().norm() / y.double().norm()
    assert lipschitz_bound(norm).constant >= float(ratio) > 1000


@pytest.mark.parametrize(
    "dtype", [torch.float16, torch.bfloat16, torch.float32]
)
def test_constants_are_of_the_numbers_that_are_stored(dtype):
    """Not of rounded products of them."""
    for seed in range(30):
        torch.manual_seed(seed)
        norm = nn.BatchNorm1d(3).eval()
        norm.running_var.copy_(torch.rand(3) + 0.1)
        nn.init.normal_(norm.weight)
        norm = norm.to(dtype)
        exact = copy.deepcopy(norm).double()
        true = lipschitz_bound(exact).constant
        assert lipschitz_bound(norm).constant >= true * (1 - 1e-12)
        mix = nn.MultiheadAttention(8, 2).eval()
        nn.init.normal_(mix.in_proj_bias)
        mix = mix.to(dtype)
        options = {"num_nodes": 4, "region": Ball(10.0)}
        true = lipschitz_bound(copy.deepcopy(mix).double(), **options)
        found = lipschitz_bound(mix, **options)
        assert found.constant >= true.constant * (1 - 1e-12)


def test_scores_that_cancel_keep_the_bound():
    mix = nn.MultiheadAttention(2, 1, bias=False).eval()
    with torch.no_grad():
        q, k = 100 * torch.rand(2, 1, 2)
        value = torch.eye(2)
        mix.in_proj_weight.copy_(
            torch.cat([torch.cat([q, q]), torch.cat([k, -k]), value])
        )
    options = {"num_nodes": 3, "region": Ball(10.0)}
    contractive(mix, 0.9, **options)
    assert lipschitz_bound(mix, **options).constant <= 0.9


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("make", ["weight_norm", "spectral_norm", "prune"])
def test_a_weight_that_a_hook_writes_is_refused(make):
    """It is stale until the next call."""
    linear = nn.Linear(4, 4)
    if make == "prune":
        prune.random_unstructured(linear, "weight", amount=0.5)
    else:
        getattr(nn.utils, make)(linear)
    with pytest.raises(ValueError, match=r"hook.*parametrizations"):
        lipschitz_bound(linear)
    with pytest.raises(ValueError, match=r"hook.*parametrizations"):
        contractive(nn.Sequential(linear))


# -- the bounds bound ---------------------------------------------------------


def contracting(kind):
    """A module with a certificate, its input, and how it is called."""
    x = torch.randn(6, 4, dtype=FLOAT)
    if kind == "graph":
        i = torch.arange(6)
        edges = torch.stack([torch.cat([i, i * 0]), torch.cat([i * 0, i])])
        conv = SAGEConv(4, 4, aggr="max").double()
        contractive(conv, 0.9, edges, 6)
        found = lipschitz_bound(conv, edges, 6)
        return lambda v: conv(v, edges).tanh(), x, found
    if kind == "attention":
        module = L2TransformerLayer(4, 2).double()
    else:
        module = nn.Sequential(
            nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 4), nn.ReLU()
        ).double()
    contractive(module, 0.9, num_nodes=6)
    return module, x, lipschitz_bound(module, num_nodes=6)


@pytest.mark.parametrize(
    "kind",
    ["graph", pytest.param("attention", marks=pytest.mark.slow), "dense"],
)
@given(seed=st.integers(0, 1000), alpha=st.sampled_from([0.0, 0.4]))
@settings(max_examples=5)
def test_a_certified_error_is_never_exceeded(kind, seed, alpha):
    """By the constant of lipschitz_bound, on every iterate."""
    torch.manual_seed(seed)
    operator, f, found = contracting(kind)
    assert found.contracts
    q = alpha + (1 - alpha) * found.constant
    with torch.no_grad(), parametrize.cached():
        exact = f
        for _ in range(600):
            exact = operator(exact) + f
        x, first, last = f, None, None
        for k in range(60):
            residual = operator(x) + f - x
            size = float(residual.norm())
            error = float((x - exact).norm())
            assert error <= residual_bound(found.constant, size) + 1e-9
            assert error <= found.error_bound(size) + 1e-9
            if last is not None:
                assert error <= a_posteriori_bound(q, last) + 1e-9
                assert error <= a_priori_bound(q, first, k) + 1e-9
            step = (1 - alpha) * residual
            last = float(step.norm())
            first = last if first is None else first
            x = x + step


# -- what may happen to a constrained module ----------------------------------


def test_short_floats_hold_no_small_scale():
    for seed in range(6):
        torch.manual_seed(seed)
        linear = contractive(nn.Linear(64, 64).half(), 0.95)
        weight = linear.parametrizations.weight.original
        noise = 0.9 + 0.2 * torch.rand(64, 64)
        weight.data[:] = 1e4 * noise * (0.5 + torch.rand(()))
        found = lipschitz_bound(linear)
        assert found.contracts and found.constant > 0.9


@pytest.mark.parametrize("shape", [(8, 9), (9, 8), (8, 8)])
@pytest.mark.parametrize("size", [1.0, 1e4, 1e6, 1e8])
def test_orthogonal_weights_of_any_size(shape, size):
    torch.manual_seed(0)
    linear = nn.Linear(*shape).double()
    contractive(linear, 0.95, method="orthogonal")
    weight = linear.parametrizations.weight.original
    weight.data[:] = size * torch.randn_like(weight)
    found = lipschitz_bound(linear).constant
    assert found <= 0.95
    if size == 1:
        assert found > 0.9499


def test_a_copy_may_be_freed_of_its_constraint():
    torch.manual_seed(0)
    module = contractive(nn.Sequential(nn.Linear(4, 4)))
    with torch.no_grad():
        module[0].parametrizations.weight.original.mul_(9)
    x = torch.randn(3, 4)
    expected = module(x)
    best = remove_contractive(copy.deepcopy(module))
    torch.testing.assert_close(best(x), expected)
    torch.testing.assert_close(module(x), expected)
    assert type(best[0]) is nn.Linear
    assert parametrize.is_parametrized(module[0], "weight")


@pytest.mark.parametrize("change", ["replace", "append", "free", "again"])
def test_a_changed_module_is_not_said_to_contract(change):
    module = contractive(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)), 0.9)
    steep = nn.Linear(4, 4)
    nn.init.constant_(steep.weight, 5.0)
    if change == "replace":
        module[1] = steep
    elif change == "append":
        module.append(steep)
    elif change == "free":
        remove_contractive(module[1])
    else:
        parametrize.register_parametrization(
            module[1], "weight", nn.Softplus()
        )
    with pytest.raises(RuntimeError, match=r"contractive.*weight of Linear"):
        module(torch.ones(1, 4))


def test_attention_is_reset_by_its_own_method():
    torch.manual_seed(0)
    mix = nn.MultiheadAttention(4, 2)
    contractive(mix, 0.9, num_nodes=3, region=Ball(1.0))
    before = mix.in_proj_weight.detach().clone()
    mix._reset_parameters()
    assert not torch.equal(mix.in_proj_weight, before)
    found = lipschitz_bound(mix, num_nodes=3, region=Ball(1.0))
    assert found.constant <= 0.9


def test_what_cannot_be_looked_up_is_said_to_have_no_rule():
    class Unhashable:
        __hash__ = None

        def __call__(self, x):
            return x

    with pytest.raises(ValueError, match="register"):
        lipschitz_bound((nn.Linear(2, 2), Unhashable()))


def test_a_solver_within_a_module_is_not_its_operator():
    solver = contractive(
        ANIE(2, 1, embed_dim=4, heads=1, attention="l2"), 0.9, num_nodes=5
    )
    assert solver.certificate(5).contracts
    with pytest.raises(ValueError, match="ANIE"):
        lipschitz_bound(Residual(solver, 0.9), num_nodes=5)


# -- what it costs ------------------------------------------------------------


@pytest.fixture
def solved(monkeypatch):
    """How often a budget is worked out."""
    from torch_picard.contraction.contractive import Budget

    count = [0]
    solve = Budget._solve

    def counted(self):
        count[0] += 1
        return solve(self)

    monkeypatch.setattr(Budget, "_solve", counted)
    return count


@pytest.mark.parametrize("make", ["stack", "transformer"])
def test_the_budget_is_worked_out_once_a_call(make, solved):
    torch.manual_seed(0)
    if make == "stack":
        module = nn.Sequential(*(nn.Linear(4, 4) for _ in range(4)))
    else:
        module = L2TransformerLayer(4, 2)
    contractive(module, 0.9, num_nodes=3)
    x = torch.randn(2, 3, 4, requires_grad=True)
    solved[0] = 0
    module(x).square().sum().backward()
    assert solved[0] == 1
    assert all(p.grad is not None for p in module.parameters())
    module(x).square().sum().backward()  # a graph of its own
    assert solved[0] == 2
    assert not parametrize._cache_enabled
    with pytest.raises((RuntimeError, ValueError)):
        module(torch.ones(2, 3, 7))
    assert not parametrize._cache_enabled and not parametrize._cache
    solved[0] = 0
    out = copy.deepcopy(module)(x)
    assert solved[0] == 1
    torch.testing.assert_close(out, module(x))


def test_the_budget_is_worked_out_once_a_solve(solved):
    torch.manual_seed(0)
    module = contractive(
        nn.Sequential(*(nn.Linear(4, 4) for _ in range(3))), 0.9
    )
    solved[0] = 0
    solution = fixed_point(module, torch.randn(5, 4), rtol=1e-6, max_iter=200)
    assert bool(solution.converged)
    assert solved[0] == 1
    solution.value.sum().backward()
    assert solved[0] == 1
