"""Known solutions, orders of convergence, files on disk and files given."""

import math
import os
from itertools import pairwise
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from torch_picard.datasets import Darcy, darcy_coefficients, solve_darcy

PI = math.pi


def centres(s):
    x = (torch.arange(s, dtype=torch.float64) + 0.5) / s
    return torch.meshgrid(x, x, indexing="ij")


def coefficients(num, s, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return darcy_coefficients(num, s, generator=generator, dtype=torch.float64)


def orders(errors):
    return [math.log2(a / b) for a, b in pairwise(errors)]


def test_a_smooth_coefficient_second_order():
    """a = 1 + x y / 2 + sin(2 pi x) / 4, u = sin(pi x) sin(2 pi y)."""
    errors = []
    for s in (16, 32, 64):
        x, y = centres(s)
        a = 1 + x * y / 2 + (2 * PI * x).sin() / 4
        ax, ay = y / 2 + PI / 2 * (2 * PI * x).cos(), x / 2
        u = (PI * x).sin() * (2 * PI * y).sin()
        ux = PI * (PI * x).cos() * (2 * PI * y).sin()
        uy = 2 * PI * (PI * x).sin() * (2 * PI * y).cos()
        f = 5 * PI**2 * a * u - ax * ux - ay * uy
        found = solve_darcy(a[None], f)[0]
        errors.append(float((found - u).abs().max()))
    assert all(order > 1.9 for order in orders(errors))
    assert errors[-1] < 2e-3


def test_a_jump_between_cells_stays_second_order():
    """u = sin(2 pi x) sin(pi y) / a, a = 3 or 12 left and right of 1/2: u
    and the flux a u_x are continuous, u_x is not."""
    errors = []
    for s in (16, 32, 64):
        x, y = centres(s)
        a = torch.where(x < 0.5, 3.0, 12.0).double()
        u = (2 * PI * x).sin() * (PI * y).sin() / a
        f = 5 * PI**2 * a * u
        found = solve_darcy(a[None], f[None])[0]
        errors.append(float((found - u).abs().max()))
    assert all(order > 1.9 for order in orders(errors))


def test_a_constant_coefficient_gives_the_series():
    s = 64
    x, _ = centres(s)
    k = torch.arange(1, 400, 2, dtype=torch.float64)
    weight = 16 / (PI**4 * k[:, None] * k * (k[:, None] ** 2 + k**2))
    sx = (PI * k[:, None] * x[:, 0]).sin()
    series = torch.einsum("kl,kx,ly->xy", weight, sx, sx)
    found = solve_darcy(torch.full((1, s, s), 2.5).double(), 5.0)[0]
    assert (found - 2 * series).abs().max() < 1e-4
    odd = solve_darcy(torch.ones(1, 65, 65).double())[0]
    assert float(odd.max()) == odd[32, 32]
    assert float(odd.max()) == pytest.approx(0.0736713, abs=2e-5)


def test_symmetries_scaling_and_sign():
    a = coefficients(2, 24)
    u = solve_darcy(a)
    assert (u > 0).all()
    torch.testing.assert_close(solve_darcy(a.mT.contiguous()), u.mT)
    torch.testing.assert_close(solve_darcy(a.flip(1)), u.flip(1))
    torch.testing.assert_close(solve_darcy(4 * a, 8.0), 2 * u)
    forcing = torch.randn(2, 24, 24, dtype=torch.float64)
    torch.testing.assert_close(
        solve_darcy(a, forcing + 1), solve_darcy(a, forcing) + u
    )
    torch.testing.assert_close(solve_darcy(a[1:]), u[1:])
    assert solve_darcy(a.float()).dtype == torch.float32


def test_what_flows_in_flows_out():
    """The flux through the boundary is the integral of f."""
    s = 20
    a = coefficients(1, s)[0]
    u = solve_darcy(a[None], 3.0)[0]
    flux = sum(
        (2 * a * u).select(axis, end).sum()
        for axis in (0, 1)
        for end in (0, -1)
    )
    assert float(flux) == pytest.approx(3.0, rel=1e-10)


def test_coefficients_are_two_values_half_of_the_area_each():
    a = coefficients(400, 16)
    assert sorted(a.unique().tolist()) == [3.0, 12.0]
    # the sign of the field is symmetric; the sd of a mean is .01
    assert float((a == 12).double().mean()) == pytest.approx(0.5, abs=0.04)
    # neighbours agree more often than points far apart do
    near = (a[:, 1:] == a[:, :-1]).double().mean()
    far = (a[:, 8:] == a[:, :-8]).double().mean()
    assert near > 0.85 > 0.7 > far
    assert torch.equal(coefficients(2, 8, 3), coefficients(2, 8, 3))
    assert not torch.equal(coefficients(2, 8, 3), coefficients(2, 8, 4))
    other = darcy_coefficients(3, 8, values=(0.5, 2))
    assert other.dtype == torch.float32
    assert sorted(other.unique().tolist()) == [0.5, 2.0]


def test_samples_are_kept_resumed_and_the_same_at_each_resolution(tmp_path):
    options = {"source": "generated", "fine": 16, "progress": False}
    ds = Darcy(tmp_path, resolution=8, num_samples=20, **options)
    assert len(ds) == 20
    assert ds.source == "generated"
    a, u = ds[17]
    assert a.shape == u.shape == (8, 8)
    assert a.dtype == u.dtype == torch.float32
    full = Darcy(tmp_path, resolution=16, num_samples=18, **options)
    whole, solved = full[17]
    assert torch.equal(whole[::2, ::2], a)
    assert torch.equal(solved[::2, ::2], u)
    torch.testing.assert_close(solve_darcy(whole[None])[0], solved)
    files = sorted(ds.folder.glob("*.pt"))
    assert len(files) == 2
    files[1].unlink()
    before = files[0].stat().st_mtime_ns
    again = Darcy(tmp_path, resolution=8, num_samples=17, **options)
    assert torch.equal(again[16][1], ds[16][1])
    assert files[0].stat().st_mtime_ns == before
    assert torch.equal(ds[-3][0], a)
    with pytest.raises(IndexError, match="20"):
        ds[20]
    for change in ({"seed": 1}, {"split": "test"}, {"values": (1.0, 2.0)}):
        other = Darcy(tmp_path, resolution=8, num_samples=1,
                      **(options | change))  # fmt: skip
        assert not torch.equal(other[0][1], ds[0][1])
    with pytest.raises(ValueError, match="fine"):
        Darcy(tmp_path, resolution=5, **options)


def test_given_files_are_found_and_never_replaced_silently(
    tmp_path, monkeypatch
):
    folder = tmp_path / "darcy"
    folder.mkdir()
    x = torch.rand(3, 4, 4) > 0.5
    y = torch.rand(3, 4, 4)
    torch.save({"x": x, "y": y}, folder / "darcy_test_4.pt")
    monkeypatch.setenv("TORCH_PICARD_DATA", str(tmp_path))
    ds = Darcy(tmp_path / "own", resolution=4, split="test")
    assert ds.source == "files"
    assert len(ds) == 3
    a, u = ds[-1]
    assert torch.equal(a == a.max(), x[2])
    assert torch.equal(u, y[2])
    assert not (tmp_path / "own").exists()
    assert len(Darcy(tmp_path, resolution=4, split="test", num_samples=2)) == 2
    with pytest.raises(ValueError, match="num_samples"):
        Darcy(tmp_path, resolution=4, split="test", num_samples=4)
    with pytest.raises(FileNotFoundError, match="darcy_train_4"):
        Darcy(tmp_path, resolution=4)
    monkeypatch.delenv("TORCH_PICARD_DATA")
    with pytest.raises(FileNotFoundError, match="TORCH_PICARD_DATA"):
        Darcy(tmp_path, resolution=4, split="test", source="files")


given = pytest.mark.skipif(
    not Path(os.environ.get("TORCH_PICARD_DATA", "/none"), "darcy").is_dir(),
    reason="TORCH_PICARD_DATA has no darcy",
)


@given
def test_the_files_solve_the_equation_where_the_coefficient_is_constant(
    tmp_path,
):
    """Away from jumps -Laplace u = 1/a: by central differences of fourth
    order over 5 x 5 points of one coefficient."""
    a, u = map(torch.stack, zip(*Darcy(tmp_path, resolution=32, split="test")))
    u = u.double()
    weights = torch.tensor([1.0, -16.0, 30.0, -16.0, 1.0]).double() / 12
    cross = torch.zeros(5, 5).double()
    cross[2] += weights
    cross[:, 2] += weights
    left = 32**2 * F.conv2d(u[:, None], cross[None, None])[:, 0]
    low = -F.max_pool2d(-a[:, None], 5, 1)[:, 0]
    same = low == F.max_pool2d(a[:, None], 5, 1)[:, 0]
    for value in a.unique().tolist():
        there = left[same & (low == value)]
        assert len(there) > 5000
        assert float(there.median()) == pytest.approx(1 / value, rel=1e-4)


@given
def test_the_files_are_near_finite_volumes_on_their_pixels(tmp_path):
    """Which cannot know where between two points a jump is: the error
    halves as the pixels do."""
    errors = []
    for s in (16, 32):
        a, u = map(
            torch.stack,
            zip(*Darcy(tmp_path, resolution=s, split="test", num_samples=10)),
        )
        # point i/s is the middle of a square of 4 x 4 cells
        nearest = ((torch.arange(4 * s) + 2) // 4).clamp(max=s - 1)
        found = solve_darcy(a[:, nearest][:, :, nearest])
        corner = F.avg_pool2d(F.pad(found, (1, 0, 1, 0)), 2, stride=1)
        away = slice(1, None)  # the first points are on the boundary
        gap = (corner[:, ::4, ::4] - u)[:, away, away].flatten(1)
        size = u[:, away, away].flatten(1).norm(dim=1)
        errors.append(float((gap.norm(dim=1) / size).mean()))
    assert errors[0] < 0.07
    assert errors[1] < 0.03


@pytest.mark.parametrize(
    "change, error, name",
    [
        ({"a": None}, TypeError, "a must"),
        ({"a": torch.ones(8, 8)}, ValueError, "a must"),
        ({"a": torch.ones(1, 8, 9)}, ValueError, "a must"),
        ({"a": torch.ones(1, 8, 8).long()}, ValueError, "a must"),
        ({"a": torch.zeros(1, 8, 8)}, ValueError, "positive"),
        ({"a": torch.full((1, 8, 8), math.nan)}, ValueError, "positive"),
        ({"forcing": "wind"}, TypeError, "forcing"),
        ({"forcing": torch.ones(3)}, ValueError, "forcing"),
        ({"forcing": math.inf}, ValueError, "forcing"),
    ],
)
def test_wrong_equations(change, error, name):
    with pytest.raises(error, match=name):
        solve_darcy(**({"a": torch.ones(1, 8, 8)} | change))


@pytest.mark.parametrize(
    "change, error, name",
    [
        ({"num": 0}, ValueError, "num"),
        ({"resolution": 1.5}, TypeError, "resolution"),
        ({"values": (1.0, 0.0)}, ValueError, "values"),
        ({"values": 3.0}, ValueError, "values"),
        ({"dtype": torch.float16}, ValueError, "dtype"),
    ],
)
def test_wrong_coefficients(change, error, name):
    with pytest.raises(error, match=name):
        darcy_coefficients(**({"num": 1, "resolution": 8} | change))


@pytest.mark.parametrize(
    "change, error, name",
    [
        ({"resolution": 0}, ValueError, "resolution"),
        ({"split": "val"}, ValueError, "split"),
        ({"num_samples": 0}, ValueError, "num_samples"),
        ({"source": "web"}, ValueError, "source"),
        ({"source": "generated", "values": (1,)}, ValueError, "values"),
    ],
)
def test_wrong_datasets(change, error, name, tmp_path):
    with pytest.raises(error, match=name):
        Darcy(tmp_path, **change)
    assert not list(tmp_path.iterdir())


def test_without_scipy_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "scipy", None)
    with pytest.raises(ImportError, match=r"torch-picard\[datasets\]"):
        solve_darcy(torch.ones(1, 4, 4))


def test_a_sample_may_be_written_to(tmp_path):
    ds = Darcy(
        tmp_path, resolution=8, fine=8, num_samples=1, source="generated",
        progress=False,
    )  # fmt: skip
    before = ds[0][1].clone()
    ds[0][1].mul_(0)
    assert torch.equal(ds[0][1], before)
    with pytest.raises(TypeError, match="index must be"):
        ds[0:2]
    (file,) = tmp_path.glob("*/*.pt")
    file.write_bytes(b"")
    ds._chunk = (-1, None)
    assert torch.equal(ds[0][1], before)
