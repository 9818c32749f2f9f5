"""The bank, solved by the example."""

import sys

import pytest
import torch


@pytest.fixture(autouse=True)
def _dtype():
    before = torch.get_default_dtype()
    yield
    torch.set_default_dtype(before)


@pytest.mark.slow
def test_every_equation_is_solved_and_keeps_its_bound(
    monkeypatch, tmp_path, capsys
):
    import integral_equations

    tiny = {"counts": (4, 8), "draws": 2}
    monkeypatch.setattr(integral_equations, "SCALES", {"small": tiny})
    arguments = ["--workers", "1", "--out", str(tmp_path / "out"), "--write"]
    monkeypatch.setattr(
        sys, "argv", ["integral_equations.py", *arguments, str(tmp_path)]
    )
    integral_equations.main()
    lines = capsys.readouterr().out.splitlines()
    rows = {}
    for cells in map(str.split, lines):
        if len(cells) == 10 and cells[-1] in ("yes", "no"):
            rows[cells[0]] = cells
    assert set(rows) == set(integral_equations.PROBLEMS)
    for name, cells in rows.items():
        _, _, error, distance, bound, taken, allowed, _, kind, end = cells
        assert end == "yes"
        assert float(error) < (1e-3 if name == "F3" else 1e-10)
        if bound != "-":
            assert kind in ("certified", "local")
            assert float(distance) <= float(bound) + 1e-14
            assert int(taken) <= int(allowed)
    assert sum(cells[4] != "-" for cells in rows.values()) == 7
    assert (tmp_path / "bank.png").stat().st_size > 1000
    assert "V4" in (tmp_path / "bank.inc").read_text()
    # what is there is not done again
    for name in ("solved", "integrated", "curve"):
        monkeypatch.delattr(integral_equations, name)
        monkeypatch.setattr(integral_equations, name, None, raising=False)
    integral_equations.main()
    assert "V4" in capsys.readouterr().out
