"""The example that counts: certificates, solves, iterations."""

import sys

import pytest


@pytest.mark.slow
def test_every_step_is_certified_and_every_solve_in_time(
    monkeypatch, tmp_path, capsys
):
    import contraction

    picture = tmp_path / "curves.png"
    monkeypatch.setattr(
        sys, "argv",
        ["contraction.py", "--runs", "1", "--epochs", "5",
         "--picture", str(picture)],
    )  # fmt: skip
    contraction.main()
    table = capsys.readouterr().out.splitlines()
    row = next(line for line in table if line.startswith("contractive"))
    assert "5 of 5" in row and "10 of 10" in row
    assert row.split()[-1] == "0"
    free = next(line for line in table if line.startswith("free"))
    assert "0 of 5" in free
    assert picture.stat().st_size > 1000


def test_a_missing_dataset_is_named(monkeypatch, tmp_path):
    import contraction

    monkeypatch.setattr(
        sys, "argv",
        ["contraction.py", "--dataset", "Cora", "--root", str(tmp_path),
         "--cache", str(tmp_path / "cache")],
    )  # fmt: skip
    with pytest.raises(SystemExit, match="Cora"):
        contraction.main()
