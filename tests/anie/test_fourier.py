"""The spectral convolution by its definition, transfer between grids, and
the solves of FNODEQ."""

import copy
import math
from itertools import product

import pytest
import torch

from torch_picard import Anderson, Implicit, Phantom, Picard, Unrolled
from torch_picard.anie import FNO, FNODEQ
from torch_picard.anie.fourier import FourierLayer, SpectralConv
from torch_picard.contraction import estimate_lipschitz

TURN = 2 * math.pi


def direct(conv, z):
    """sum_k R_k z^_k exp(2 pi i k x) with both sums written out."""
    n1, n2 = z.shape[-2:]
    m = conv.modes
    weight = torch.view_as_complex(conv.weight)
    out = torch.zeros(z.size(0), weight.size(-1), n1, n2).to(z)
    x = torch.arange(n1, dtype=torch.float64)[:, None] / n1
    y = torch.arange(n2, dtype=torch.float64)[None, :] / n2
    for k1, k2 in product(range(1 - m, m), range(m)):
        if 2 * abs(k1) >= n1 or 2 * k2 >= n2:
            continue
        wave = torch.exp(TURN * 1j * (k1 * x + k2 * y))
        hat = (z * wave.conj()).mean((-2, -1))  # [B, C]
        term = (hat @ weight[k1, k2])[..., None, None] * wave
        # of a wave and its conjugate only one is stored, but at k2 = 0
        out = out + (1 if k2 == 0 else 2) * term.real
    return out


def band_limited(s, channels=3, top=4):
    """The same sum of waves below ``top``, at i/s."""
    generator = torch.Generator().manual_seed(0)
    x = torch.arange(s, dtype=torch.float64) / s
    out = torch.zeros(2, channels, s, s, dtype=torch.float64)
    for k1, k2 in product(range(1 - top, top), range(top)):
        a, b = torch.randn(
            2, 2, channels, 1, 1, generator=generator, dtype=torch.float64
        )
        angle = TURN * (k1 * x[:, None] + k2 * x[None, :])
        out += a * angle.cos() + b * angle.sin()
    return out


@pytest.mark.parametrize("size", [(8, 8), (7, 7), (9, 6), (4, 5), (3, 3)])
def test_a_spectral_convolution_is_its_definition(seed, size):
    conv = SpectralConv(3, 2, 4).double()
    z = torch.randn(2, 3, *size, dtype=torch.float64)
    torch.testing.assert_close(conv(z), direct(conv, z))


def test_it_is_a_convolution(seed):
    """Shifting the input shifts the output."""
    conv = SpectralConv(2, 2, 3).double()
    z = torch.randn(1, 2, 8, 10, dtype=torch.float64)
    shifted = conv(z.roll((3, -2), (-2, -1)))
    torch.testing.assert_close(shifted, conv(z).roll((3, -2), (-2, -1)))


@pytest.mark.parametrize("modes", [3, 6, 8])
def test_a_layer_gives_the_same_values_on_a_finer_grid(seed, modes):
    layer = FourierLayer(3, modes).double()
    coarse, fine = (layer(band_limited(s)) for s in (16, 32))
    torch.testing.assert_close(fine[..., ::2, ::2], coarse)


def test_an_fno_transfers_up_to_what_its_activation_adds(seed):
    """GELU makes waves of any length: what a grid cannot hold shrinks."""
    net = FNO(3, 2, width=6, modes=4, layers=3).double()
    x = [0.02 * band_limited(s, top=2) for s in (8, 16, 32)]
    # coordinates jump at the end of the grid: leave them out
    with torch.no_grad():
        net.lift.map.weight[:, 3:] = 0.0
    a, b, c = (net(z) for z in x)
    first = (b[..., ::2, ::2] - a).abs().max()
    second = (c[..., ::2, ::2] - b).abs().max()
    assert second < 0.1 * first < 0.01 * c.abs().max()


@pytest.mark.parametrize("size", [(16, 16), (5, 9), (1, 1)])
def test_models_work_at_any_resolution(seed, size):
    x = torch.randn(2, 3, *size)
    for net in (
        FNO(3, 4, width=6, modes=4, layers=2),
        FNODEQ(3, 4, width=6, modes=4, max_iter=100),
    ):
        out = net(x)
        assert out.shape == (2, 4, *size)
        out.sum().backward()
        assert all(p.grad is not None for p in net.parameters())


def make(**options):
    torch.manual_seed(0)
    options = {"width": 6, "modes": 3, "max_iter": 200} | options
    return FNODEQ(1, 1, **options).double()


def fields(s=8, num=3):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(num, 1, s, s, generator=generator).double()


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("method", [None, Anderson()])
def test_the_solution_is_a_fixed_point_with_f_in_it(layers, method):
    net, x = make(layers=layers, method=method, rtol=1e-10), fields()
    out, solution = net(x, return_solution=True)
    assert solution.converged.all()
    z, f = solution.value, net.lift(x)
    by_hand = z
    for layer in net.layers:
        by_hand = torch.nn.functional.gelu(
            layer.local(by_hand) + direct(layer.spectral, by_hand) + f
        )
    torch.testing.assert_close(by_hand, z, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(out, net.project(z))


@pytest.mark.parametrize("width", [8, 24, 48])
@pytest.mark.parametrize("layers", [1, 2])
def test_a_new_model_converges(width, layers):
    for seed in range(3):
        torch.manual_seed(seed)
        net = FNODEQ(
            1, 1, width=width, modes=6, layers=layers, max_iter=60,
            on_failure="raise",
        )  # fmt: skip
        net(torch.randn(4, 1, 16, 16))


def test_samples_stop_on_their_own():
    net, x = make(rtol=1e-8), fields()
    x = x * torch.tensor([0.01, 1.0, 30.0]).view(3, 1, 1, 1).double()
    out, solution = net(x, return_solution=True)
    assert len(set(solution.iterations.tolist())) > 1
    for i in range(3):
        alone, one = net(x[i : i + 1], return_solution=True)
        assert one.iterations[0] == solution.iterations[i]
        torch.testing.assert_close(alone[0], out[i])


def test_gradients_agree():
    x = fields()
    grads = []
    for gradient in (Unrolled(), Implicit(rtol=1e-12), Phantom(steps=80)):
        net = make(gradient=gradient, rtol=1e-13, alpha=0.0)
        net(x).square().sum().backward()
        grads.append([p.grad for p in net.parameters()])
    for other in grads[1:]:
        for a, b in zip(grads[0], other):
            torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("bound", [None, 0.5])
def test_gradcheck(bound):
    torch.manual_seed(0)
    net = FNODEQ(
        1, 1, width=2, modes=2, bound=bound, alpha=0.0, max_iter=100,
        rtol=1e-12, on_failure="raise", gradient=Implicit(rtol=1e-10),
    ).double()  # fmt: skip
    names = [name for name, _ in net.named_parameters()]

    def solve(x, *values):
        given = dict(zip(names, values))
        return torch.func.functional_call(net, given, (x,))

    x = fields(4, 1).requires_grad_()
    assert torch.autograd.gradcheck(
        solve, (x, *net.parameters()), fast_mode=True
    )


def test_max_iter_at_call_time():
    net, x = make(rtol=0.0, max_iter=2, alpha=0.3), fields()
    z = f = net.lift(x)
    operator = net.operator(f)
    for _ in range(5):
        z = 0.3 * z + 0.7 * operator(z)
    torch.testing.assert_close(net(x, max_iter=5), net.project(z))
    _, solution = net(x, return_solution=True)
    assert solution.evaluations == 2
    with pytest.raises(ValueError, match="max_iter"):
        net(x, max_iter=0)


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("size", [4, 9])
def test_a_bound_holds_on_any_grid_however_large_the_weights(layers, size):
    net = make(bound=0.9, layers=layers)
    with torch.no_grad():
        for p in net.layers.parameters():
            p.mul_(20.0)
    x = fields(size)
    f = net.lift(x)
    operator = net.operator(f)
    # from any two points, and to first order: where GELU is steepest, too
    for scale in (0.1, 1.0, 10.0):
        a, b = scale * torch.randn(2, *f.shape, dtype=torch.float64)
        apart = (operator(a) - operator(b)).flatten(1).norm(dim=1)
        assert (apart <= 0.9 * (a - b).flatten(1).norm(dim=1)).all()
        assert estimate_lipschitz(operator, a, 10).constant <= 0.9
    _, solution = net(x, return_solution=True)
    assert solution.converged.all()


def test_the_bound_of_the_linear_part_is_close(seed):
    layer, s = FourierLayer(4, 3).double().requires_grad_(False), 8

    def exact():
        def linear(z):
            return layer(z) - layer.local.bias[:, None, None]

        zero = torch.zeros(1, 4, s, s, dtype=torch.float64)
        jacobian = torch.func.jacrev(linear)(zero).reshape(4 * s * s, -1)
        return float(torch.linalg.matrix_norm(jacobian, 2))

    assert 1.0 <= float(layer.norm()) / exact() < 1.3
    # at k2 = 0 only a part of R counts; without it the bound is tight
    layer.spectral.weight[:, 0] = 0.0
    assert 1.0 <= float(layer.norm()) / exact() < 1.06


def test_a_loose_bound_changes_nothing():
    net, x = make(bound=1e3), fields()
    free = make()
    torch.testing.assert_close(net(x), free(x))


def test_reset_parameters_copies_and_repr():
    net = make(alpha=0.25)
    before = copy.deepcopy(net.state_dict())
    torch.manual_seed(0)
    net.reset_parameters()
    after = net.state_dict()
    changed = [n for n in before if not torch.equal(before[n], after[n])]
    assert len(changed) == len(list(net.parameters()))
    assert "alpha=0.25" in repr(net)
    assert "modes=3" in repr(net)
    torch.testing.assert_close(copy.deepcopy(net)(fields()), net(fields()))


@pytest.mark.parametrize("model", [FNO, FNODEQ])
@pytest.mark.parametrize(
    "change, error, name",
    [
        ({"in_channels": 0}, ValueError, "in_channels"),
        ({"out_channels": 1.5}, TypeError, "out_channels"),
        ({"width": 0}, ValueError, "width"),
        ({"modes": 0}, ValueError, "modes"),
        ({"layers": 0}, ValueError, "layers"),
    ],
)
def test_wrong_options(model, change, error, name):
    with pytest.raises(error, match=name):
        model(**({"in_channels": 1, "out_channels": 1} | change))


@pytest.mark.parametrize("bound", [0.0, -1.0, math.inf])
def test_wrong_bounds(bound):
    with pytest.raises(ValueError, match="bound"):
        FNODEQ(1, 1, bound=bound)


def test_wrong_options_of_the_solve():
    with pytest.raises(ValueError, match="alpha"):
        FNODEQ(1, 1, alpha=0.5, method=Picard(alpha=0.5))
    with pytest.raises(ValueError, match="rtol"):
        FNODEQ(1, 1, rtol=-1.0)


@pytest.mark.parametrize(
    "x, error",
    [
        (None, TypeError),
        (torch.zeros(1, 1, 4, 4).long(), TypeError),
        (torch.zeros(1, 4, 4), ValueError),
        (torch.zeros(1, 2, 4, 4), ValueError),
        (torch.zeros(0, 1, 4, 4), ValueError),
    ],
)
def test_wrong_fields(x, error):
    for net in (FNO(1, 1, width=2, modes=2), FNODEQ(1, 1, width=2, modes=2)):
        with pytest.raises(error, match="x must"):
            net(x)
