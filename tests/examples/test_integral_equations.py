"""The bank, solved by the example."""

import sys

import pytest
import torch


@pytest.fixture(autouse=True)
def _dtype():
    before = torch.get_default_dtype()
    yield
    torch.set_default_dtype(before)


def test_every_equation_is_solved_and_keeps_its_bound(
    monkeypatch, tmp_path, capsys
):
    import integral_equations

    picture = tmp_path / "errors.png"
    monkeypatch.setattr(integral_equations, "COUNTS", (4, 8))
    monkeypatch.setattr(
        sys, "argv", ["integral_equations.py", "--picture", str(picture)]
    )
    integral_equations.main()
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    rows = {cells[0]: cells for cells in lines if len(cells) == 9}
    assert len(rows) >= 10
    for name, cells in rows.items():
        if name == "nodes":
            continue
        _, _, error, bound, taken, allowed, _, kind, converged = cells
        assert converged == "yes"
        assert float(error) < (1e-3 if name == "F3" else 1e-10)
        if bound != "-":
            assert kind in ("certified", "local")
            assert int(taken) <= int(allowed)
    assert picture.stat().st_size > 1000
