"""The example that counts: certificates, solves, iterations."""

import sys

import pytest


@pytest.fixture
def call(monkeypatch, tmp_path):
    """Runs the script with the given options."""
    import contraction

    def run(*options):
        line = ["contraction.py", "--out", str(tmp_path), *options]
        monkeypatch.setattr(sys, "argv", line)
        contraction.main()

    return run


@pytest.mark.slow
def test_every_step_is_certified_and_every_solve_in_time(
    call, tmp_path, capsys
):
    call("--runs", "1", "--epochs", "5")
    table = capsys.readouterr().out.splitlines()
    row = next(line for line in table if line.startswith("contractive"))
    assert "5 of 5" in row and "10 of 10" in row
    assert row.split()[-1] == "0"
    free = next(line for line in table if line.startswith("free"))
    assert "0 of 5" in free
    assert (tmp_path / "contraction.png").stat().st_size > 1000


def test_a_missing_dataset_is_named(call, tmp_path):
    root = ["--root", str(tmp_path), "--cache", str(tmp_path / "cache")]
    with pytest.raises(SystemExit, match="Cora"):
        call("--dataset", "Cora", *root)


def test_an_interrupted_study_goes_on_where_it_was(call, monkeypatch, capsys):
    import contraction

    train, seen = contraction.train, []

    def interrupted(*given):
        seen.append(given)
        if len(seen) == 2:
            raise KeyboardInterrupt
        return train(*given)

    monkeypatch.setattr(contraction, "train", interrupted)
    options = "--runs", "1", "--epochs", "1"
    with pytest.raises(KeyboardInterrupt):
        call(*options)
    call(*options)
    assert len(seen) == 3  # the first of the two runs was not done again
    assert "free" in capsys.readouterr().out
    with pytest.raises(SystemExit, match=r"contraction\.json was made"):
        call("--runs", "1", "--epochs", "2")
