"""Figure 2 and the table of samplers, at a size that takes seconds."""

import sys

import pytest
import torch

TINY = {
    "steps": [20, 1000], "updates": 3, "batch": 8, "lr": 1e-3,
    "betas": [0.9, 0.999], "decay": 0.0, "warmup": 1, "samples": 12,
    "width": 8, "blocks": 1,
}  # fmt: skip


@pytest.fixture
def figure2(monkeypatch, tmp_path):
    import figure2_diffusion_steps as script

    monkeypatch.setitem(script.SCALES["small"], "digits", TINY)
    monkeypatch.setattr(script, "FEWER", [5, 10])

    def run(*options):
        line = [
            "figure2", "--seeds", 2, "--workers", 1, "--out", tmp_path,
            *options,
        ]  # fmt: skip
        monkeypatch.setattr(sys, "argv", [str(part) for part in line])
        script.main()

    return script, run


@pytest.mark.slow
def test_tables_and_pictures_and_a_second_run_trains_nothing(
    figure2, tmp_path, capsys, monkeypatch
):
    script, run = figure2
    run("--write", tmp_path / "docs")
    out = capsys.readouterr().out
    for row in ("fixed", "rescaled", "test images", "noise", "steps"):
        assert f"\n{row} " in out
    for name in ("figure2", "figure2_trained", "figure2_sampled"):
        path = tmp_path / "docs" / f"{name}.png"
        assert path.stat().st_size > 1000
    monkeypatch.setattr(script, "run", None)
    run()
    assert "6 runs" in capsys.readouterr().out


def test_the_distance_between_gaussians():
    from diffusion_models import frechet

    m, c = torch.zeros(3).double(), torch.eye(3).double()
    assert frechet(m, c, m, c) == pytest.approx(0.0, abs=1e-12)
    assert frechet(m, c, m + 2, c) == pytest.approx(12.0)
    assert frechet(m, c, m, 4 * c) == pytest.approx(3.0)


def test_noise_levels():
    from diffusion_models import noise_level

    long, short = noise_level(1000, False), noise_level(100, False)
    assert float(short[-1]) == pytest.approx(0.3636, abs=1e-3)
    assert torch.equal(long, noise_level(1000, True))
    assert float(noise_level(100, True)[-1]) < 1e-4


@pytest.mark.slow
def test_the_table_of_samplers(monkeypatch, tmp_path, capsys):
    import parallel_sampling as script

    tiny = {"width": 8, "blocks": 1, "updates": 2, "samples": 2}
    monkeypatch.setitem(script.SCALES, "small", tiny)
    cases = [
        script.Case("DDPM, T = 1000", 1000, 1.0, [100]),
        script.Case("DDIM, N = 20", 20, 0.0, [20]),
    ]
    monkeypatch.setattr(script, "CASES", cases)
    line = ["parallel", "--seeds", "1", "--out", str(tmp_path)]
    line += ["--write", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", line)
    script.main()
    found = (tmp_path / "parallel_sampling.inc").read_text()
    assert found.count("one after the other") == 2
    assert found.count("diffusers' parallel scheduler") == 2
    assert found.count("anderson") == found.count("picard") == 2
    out = capsys.readouterr().out
    assert "Trained for 2 updates" in out
    script.main()
    assert "Trained" not in capsys.readouterr().out


def test_a_unet_for_images_that_do_not_halve_five_times():
    pytest.importorskip("diffusers")
    import diffusion_models

    setting = {"widths": [8, 8, 8, 8, 8, 8], "attention": True}
    net = diffusion_models.build(setting, torch.Size((1, 28, 28)), 10).eval()
    with torch.no_grad():
        out = net(torch.randn(2, 1, 28, 28), torch.tensor([1, 9]))
    assert out.shape == (2, 1, 28, 28)
