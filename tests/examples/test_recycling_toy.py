"""The folding script: data, equivariance, and a run in small."""

import sys

import pytest
import torch


def test_chains_are_chains():
    import recycling_toy as toy

    rng = torch.Generator().manual_seed(0)
    x = toy.chains(20, 16, rng)
    steps = x.diff(dim=1).norm(dim=-1)
    torch.testing.assert_close(steps, torch.full_like(steps, toy.BOND))
    seen, known = toy.measure(x, rng)
    assert torch.equal(known, known.mT) and torch.equal(seen, seen.mT)
    share = known.float().mean() * 16 / 15  # none on the diagonal
    assert abs(share - 0.3) < 0.03
    error = (seen - toy.distances(x))[known]
    assert abs(error.std() - 1) < 0.05 and abs(error.mean()) < 0.1


def test_quality_does_not_see_placement():
    import recycling_toy as toy

    rng = torch.Generator().manual_seed(0)
    x = toy.chains(3, 16, rng).double()
    turn, _ = torch.linalg.qr(torch.randn(3, 3, dtype=torch.float64))
    y = x @ turn + 5
    torch.testing.assert_close(toy.lddt(y, x), torch.full((3,), 100.0))
    assert toy.rmsd(y, x).max() < 1e-6
    z = x + torch.randn(x.shape, generator=rng)
    torch.testing.assert_close(toy.rmsd(z @ turn, x), toy.rmsd(z, x))
    assert (toy.rmsd(z, x) <= (z - x).square().sum(-1).mean(1).sqrt()).all()
    assert (toy.lddt(z, x) < 100).all()


@pytest.mark.slow
def test_a_run(monkeypatch, tmp_path, capsys):
    import recycling_toy as toy

    small = {
        "length": 6, "long": 8, "single": 8, "pair": 4, "blocks": 1,
        "batch": 3, "steps": 4, "lr": 1e-3, "test": 3,
    }  # fmt: skip
    monkeypatch.setattr(toy, "SCALES", {"small": small})
    monkeypatch.setattr(
        sys, "argv",
        ["recycling_toy.py", "--seeds", "1", "--workers", "1", "--out",
         str(tmp_path), "--write", str(tmp_path / "docs")],
    )  # fmt: skip
    toy.main()
    printed = capsys.readouterr().out
    assert "lDDT, 6 residues (of the training)" in printed
    assert "Outcomes at 0.5 Angstrom, 8 residues (longer)" in printed
    assert (tmp_path / "docs" / "recycling.inc").stat().st_size > 500
    assert (tmp_path / "docs" / "recycling.png").stat().st_size > 1000
    toy.main()  # all of it is there
    assert capsys.readouterr().out.count("lDDT, 6 residues") == 1
