"""Flows with known answers, laws of the equation, and files on disk."""

import math

import pytest
import torch

from torch_picard.datasets import (
    NavierStokes2D,
    gaussian_random_field,
    solve_navier_stokes,
)

TURN = 2 * math.pi


def grid(s, dtype=torch.float64):
    x = torch.arange(s, dtype=dtype) / s
    return x[:, None], x[None, :]


def fields(num, s=32, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return gaussian_random_field(num, s, generator=generator, dtype=dtype)


def energy(w):
    """1/2 mean |u|^2, by -Laplace psi = w."""
    s = w.size(-1)
    k = torch.fft.fftfreq(s, 1 / s, dtype=w.dtype)
    square = TURN**2 * (k[:, None] ** 2 + k[None, :] ** 2)
    what = torch.fft.fft2(w) / s**2
    density = what.abs() ** 2 / square.clamp_min(1.0)
    density[..., 0, 0] = 0.0
    return 0.5 * density.sum((-2, -1))


@pytest.mark.parametrize("speed", [0.1, 1.0])
@pytest.mark.parametrize("viscosity", [0.0, 1e-3, 1e-2])
def test_taylor_green_vortex_decays_exactly(speed, viscosity):
    x, y = grid(32)
    w0 = 2 * TURN * speed * (TURN * x).sin() * (TURN * y).sin()
    w = solve_navier_stokes(w0[None], viscosity, 2.0, frames=4)
    for k in range(4):
        t = 2.0 * (k + 1) / 4
        exact = w0 * math.exp(-2 * TURN**2 * viscosity * t)
        error = (w[0, k] - exact).abs().max() / w0.abs().max()
        assert error < 1e-10


def test_a_shear_flow_with_forcing_reaches_its_balance():
    """w = cos(2 pi y) has no nonlinear term: w' = -nu 4 pi^2 w + f."""
    _, y = grid(16)
    f = (TURN * y).cos().expand(16, 16)
    rate = 0.01 * TURN**2
    w = solve_navier_stokes(torch.zeros(1, 16, 16).double(), 0.01, 3.0,
                            forcing=f)  # fmt: skip
    exact = f * (1 - math.exp(-rate * 3.0)) / rate
    torch.testing.assert_close(w[0, 0], exact, rtol=1e-10, atol=1e-12)


def test_advection_by_a_uniform_vorticity_gradient_keeps_x_and_y_apart():
    """A single wave in x alone stays one; so does one in y."""
    x, y = grid(16)
    for wave in ((TURN * x).sin().expand(16, 16), (TURN * y).sin()
                 .expand(16, 16)):  # fmt: skip
        w = solve_navier_stokes(wave[None], 0.0, 1.0)
        torch.testing.assert_close(w[0, 0], wave, atol=1e-9, rtol=0)


def test_without_viscosity_energy_and_enstrophy_stay():
    w0 = fields(4)
    w = solve_navier_stokes(w0, 0.0, 1.0, dt=2e-3)
    torch.testing.assert_close(
        energy(w[:, 0]), energy(w0), rtol=1e-5, atol=0.0
    )


def test_viscosity_never_adds_energy():
    w0 = fields(4)
    w = solve_navier_stokes(w0, 1e-3, 2.0, frames=8)
    course = energy(torch.cat([w0[:, None], w], 1))
    assert (course.diff(dim=1) < 0).all()


def test_the_mean_vorticity_stays():
    w0 = fields(3) + 0.5
    w = solve_navier_stokes(w0, 1e-3, 1.0, forcing="fno")
    torch.testing.assert_close(
        w.mean((-2, -1)), w0.mean((-2, -1))[:, None], atol=1e-10, rtol=0
    )


def test_shorter_steps_agree_and_the_order_is_two():
    w0 = fields(2, 32)
    runs = [
        solve_navier_stokes(w0, 1e-3, 1.0, dt, "fno")
        for dt in (2e-2, 1e-2, 5e-3, 1e-3)
    ]
    errors = [float((r - runs[-1]).norm() / runs[-1].norm()) for r in runs]
    assert errors[1] < 4e-4
    assert errors[0] / errors[1] > 3.0
    assert errors[1] / errors[2] > 3.0


def test_axes_are_x_then_y():
    """u = (d psi/dy, -d psi/dx): swapping the axes turns the flow round."""
    w0 = fields(1, 16)
    forward = solve_navier_stokes(w0, 1e-3, 0.5)
    mirrored = solve_navier_stokes(-w0.mT, 1e-3, 0.5)
    torch.testing.assert_close(mirrored, -forward.mT)
    x, y = grid(32)
    # a strong jet along x moves a weak blob in the direction of x
    jet = 4 * TURN * (TURN * y).cos()
    blob = 0.01 * torch.exp(-200 * ((x - 0.3) ** 2 + (y - 0.25) ** 2))
    moved = solve_navier_stokes((jet + blob)[None], 0.0, 0.05)[0, 0] - jet
    # psi = w / (2 pi)^2 = (2/pi) cos(2 pi y), so u_x = -4 sin(2 pi y)
    place = int(moved[:, 8].argmax()) / 32
    assert place == pytest.approx(0.3 - 4 * 0.05, abs=0.04)


def test_each_flow_is_its_own():
    w0 = fields(3, 16)
    together = solve_navier_stokes(w0, 1e-3, 0.5)
    for i in range(3):
        alone = solve_navier_stokes(w0[i : i + 1], 1e-3, 0.5)
        torch.testing.assert_close(together[i : i + 1], alone)


def test_random_fields_have_the_covariance_they_name():
    alpha, tau, s = 2.5, 7.0, 16
    w = fields(4000, s, seed=1)
    k = torch.fft.fftfreq(s, 1 / s, dtype=torch.float64)
    square = TURN**2 * (k[:, None] ** 2 + k[None, :] ** 2)
    exact = tau ** (2 * (alpha - 1)) * (square + tau**2) ** (-alpha)
    exact[0, 0] = 0.0
    power = (torch.fft.fft2(w) / s**2).abs().square().mean(0)
    # 4000 draws: three standard errors are 5% (7% on the real modes)
    inner = exact > 0
    assert ((power - exact).abs()[inner] / exact[inner]).max() < 0.12
    assert power[0, 0] < 1e-20
    total = w.square().mean()
    assert float(total) == pytest.approx(float(exact.sum()), rel=0.02)


def test_fields_are_reproducible_and_of_the_dtype():
    assert torch.equal(fields(2, 8, seed=3), fields(2, 8, seed=3))
    assert not torch.equal(fields(2, 8, seed=3), fields(2, 8, seed=4))
    assert fields(2, 9, dtype=torch.float32).dtype == torch.float32


def test_samples_are_kept_resumed_and_independent_of_their_number(tmp_path):
    options = {
        "resolution": 8, "t_end": 0.2, "frames": 2, "progress": False,
    }  # fmt: skip
    ds = NavierStokes2D(tmp_path, 20, **options)
    assert len(ds) == 20
    w0, w = ds[17]
    assert w0.shape == (8, 8) and w.shape == (2, 8, 8)
    expected = solve_navier_stokes(
        w0[None], 1e-3, 0.2, forcing="fno", frames=2
    )
    torch.testing.assert_close(w[None], expected)
    files = sorted(ds.folder.glob("*.pt"))
    assert len(files) == 2
    files[1].unlink()
    before = files[0].stat().st_mtime_ns
    again = NavierStokes2D(tmp_path, 18, **options)
    assert torch.equal(again[17][1], w)
    assert files[0].stat().st_mtime_ns == before
    assert torch.equal(ds[-3][0], w0)
    with pytest.raises(IndexError, match="20"):
        ds[20]
    other = NavierStokes2D(tmp_path, 1, seed=1, **options)
    assert not torch.equal(other[0][0], ds[0][0])


def test_a_flow_that_cannot_be_followed_says_so():
    w0 = fields(1, 8)
    with pytest.raises(FloatingPointError, match="too fast"):
        solve_navier_stokes(1e200 * w0, 0.0, 1.0)
    with pytest.raises(FloatingPointError, match=r"too fast|infinite"):
        solve_navier_stokes(w0, 0.0, 1.0, forcing=1e300 * w0)


@pytest.mark.parametrize(
    "change, error, name",
    [
        ({"w0": None}, TypeError, "w0"),
        ({"w0": torch.zeros(8, 8)}, ValueError, "w0"),
        ({"w0": torch.zeros(1, 8, 9)}, ValueError, "w0"),
        ({"w0": torch.zeros(1, 8, 8).long()}, ValueError, "w0"),
        ({"w0": torch.full((1, 8, 8), math.nan)}, ValueError, "w0"),
        ({"viscosity": -1.0}, ValueError, "viscosity"),
        ({"viscosity": math.nan}, ValueError, "viscosity"),
        ({"t_end": 0.0}, ValueError, "t_end"),
        ({"t_end": math.inf}, ValueError, "t_end"),
        ({"dt": 0.0}, ValueError, "dt"),
        ({"dt": "1"}, TypeError, "dt"),
        ({"frames": 0}, ValueError, "frames"),
        ({"frames": 1.5}, TypeError, "frames"),
        ({"forcing": "wind"}, ValueError, "forcing"),
        ({"forcing": torch.zeros(3)}, ValueError, "forcing"),
        (
            {"forcing": torch.full((8, 8), math.nan)},
            ValueError,
            "forcing must be finite",
        ),
        ({"forcing": torch.ones(8, 8) * 1j}, TypeError, "forcing must be"),
        ({"dt": 1e-12}, ValueError, "dt must be at least"),
        ({"t_end": 1e15}, ValueError, "dt must be at least"),
    ],
)
def test_wrong_arguments(change, error, name):
    arguments = {"w0": torch.zeros(1, 8, 8), "viscosity": 1e-3, "t_end": 0.1}
    with pytest.raises(error, match=name):
        solve_navier_stokes(**(arguments | change))


@pytest.mark.parametrize(
    "change, name",
    [
        ({"num": 0}, "num"),
        ({"resolution": 0}, "resolution"),
        ({"alpha": 1.0}, "alpha"),
        ({"tau": 0.0}, "tau"),
        ({"dtype": torch.float16}, "dtype"),
    ],
)
def test_wrong_fields(change, name):
    with pytest.raises(ValueError, match=name):
        gaussian_random_field(**({"num": 1, "resolution": 8} | change))


SMALL = {"resolution": 8, "t_end": 0.1, "frames": 1, "progress": False}


def test_a_sample_may_be_written_to(tmp_path):
    ds = NavierStokes2D(tmp_path, 2, **SMALL)
    before = ds[0][1].clone()
    ds[0][1].mul_(0)
    assert torch.equal(ds[0][1], before)
    assert torch.equal(ds[torch.tensor(0)][1], before)
    with pytest.raises(TypeError, match="index must be"):
        ds[0:2]
    with pytest.raises(IndexError, match="2"):
        ds[2]


def test_half_a_file_is_made_again(tmp_path):
    before = NavierStokes2D(tmp_path, 1, **SMALL)[0][1]
    (file,) = tmp_path.glob("*/*.pt")
    file.write_bytes(file.read_bytes()[:100])
    assert torch.equal(NavierStokes2D(tmp_path, 1, **SMALL)[0][1], before)


def test_folders_are_by_value_and_not_left_behind(tmp_path):
    for changes, error in (
        ({"t_end": -1.0}, ValueError),
        ({"seed": 1.5}, TypeError),
        ({"dt": "a"}, TypeError),
    ):
        with pytest.raises(error):
            NavierStokes2D(tmp_path, 1, **(SMALL | changes))
    assert not list(tmp_path.iterdir())
    options = SMALL | {"dt": 0.1}
    for t_end in (1, 1.0):
        NavierStokes2D(tmp_path, 1, **(options | {"t_end": t_end}))
    assert len(list(tmp_path.iterdir())) == 1
