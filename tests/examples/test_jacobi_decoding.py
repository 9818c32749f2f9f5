"""Decoding by characters: data, counts, tables."""

import sys

import pytest
import torch

pytest.importorskip("transformers")

TINY = {
    "dim": 8, "layers": 1, "heads": 2, "context": 40, "batch": 2, "steps": 1,
    "lr": 1e-3, "prompts": 2, "prompt": 24, "new": 6,
}  # fmt: skip


@pytest.fixture
def script(monkeypatch, tmp_path):
    import jacobi_decoding as jacobi

    monkeypatch.setitem(jacobi.SCALES, "small", TINY)
    monkeypatch.setattr(jacobi, "BLOCKS", [4, 16])
    monkeypatch.setattr(jacobi, "manual", lambda: 100 * "How do you do? ")

    def run(*options):
        line = ["jacobi", "--out", tmp_path, *options]
        monkeypatch.setattr(sys, "argv", [str(part) for part in line])
        jacobi.main()

    return jacobi, run


@pytest.mark.slow
def test_tables_and_picture_and_a_second_run_decodes_nothing(
    script, tmp_path, capsys, monkeypatch
):
    jacobi, run = script
    run("--write", tmp_path / "docs")
    out = capsys.readouterr().out
    for name in jacobi.METHODS.values():
        assert out.count(f"\n{name} ") == 3
    written = (tmp_path / "docs" / "jacobi_python.inc").read_text()
    assert written.count(".. list-table::") == 3
    assert (tmp_path / "docs" / "jacobi_python.png").stat().st_size > 1000

    monkeypatch.setattr(jacobi, "run", None)
    run()
    again = capsys.readouterr().out
    assert again.startswith(out.partition("Picture")[0])


def test_counts(script, tmp_path):
    jacobi, _ = script
    shared = ("python", TINY, "cpu", tmp_path / "model.pt")
    for kind in jacobi.KINDS:
        base = jacobi.run(kind, "sequential", 4, *shared)
        assert base["calls"] == base["most"] == 1
        found = jacobi.run(kind, "lookahead", 4, *shared)
        assert found["differ"] == 0
        assert 0 < found["calls"] <= found["most"] <= 1


def test_the_texts(script):
    jacobi, _ = script
    text = jacobi.Text("python")
    rows = text.prompts("repetitive", 3, 60)
    assert torch.equal(rows[:, :24], rows[:, 24:48])
    part = text.batch(8, 100)
    assert part.shape == (8, 100)
    assert all(
        any(torch.equal(row[p:], row[:-p]) for p in range(8, 49))
        for row in part[::4]
    )


def test_without_the_data_it_says_where_they_belong(script, monkeypatch):
    jacobi, _ = script
    monkeypatch.setenv("TORCH_PICARD_DATA", "/nowhere")
    with pytest.raises(SystemExit, match=r"tinyshakespeare/input\.txt"):
        jacobi.shakespeare()
