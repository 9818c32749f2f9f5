"""Lightning: the script, and that its logs say what the solves did."""

import csv
import sys

import pytest


@pytest.fixture
def call(monkeypatch, tmp_path):
    """Runs the script; what the test found, and the rows of its log."""

    def run(*options):
        pytest.importorskip("pytorch_lightning")
        import lightning_training as script

        line = ["lightning_training.py", "--out", str(tmp_path), *options]
        monkeypatch.setattr(sys, "argv", line)
        found = script.main()
        paths = tmp_path.glob("*/version_0/metrics.csv")
        with next(paths).open() as file:
            rows = list(csv.DictReader(file))
        trained = [r for r in rows if r["train_loss"]]
        return found, trained

    return run


@pytest.mark.slow
@pytest.mark.parametrize("task, epochs", [("nodes", 12), ("graphs", 6)])
def test_it_learns_and_logs_iterations_and_residuals(
    call, tmp_path, task, epochs
):
    found, trained = call("--task", task, "--epochs", str(epochs))
    assert len(trained) == epochs
    assert found["test_accuracy"] > {"nodes": 0.5, "graphs": 0.8}[task]
    for row in trained:
        assert 1 < float(row["train_iterations"]) < 100
        assert 0 < float(row["train_residual"])
    assert float(trained[-1]["train_loss"]) < float(trained[0]["train_loss"])
    assert found["test_converged"] == 1
    drawn = tmp_path / task / "version_0" / "metrics.png"
    assert drawn.stat().st_size > 1000


def test_chains_are_divided_whole():
    pytest.importorskip("pytorch_lightning")
    import lightning_training as script

    parts = script.chains(range(2, 4))
    assert [len(graphs) for graphs in parts.values()] == [48, 16, 16]
    for part, graphs in parts.items():
        assert {data.num_nodes for data in graphs} == {2, 3}
        for data in graphs:
            assert data.num_edges == 2 * (data.num_nodes - 1)
            assert data.edge_index.max() == data.num_nodes - 1
            assert data[f"{part}_mask"].tolist() == (
                [False] * (data.num_nodes - 1) + [True]
            )
            assert data.x[0].argmax() == data.y[-1]


def test_without_lightning_it_names_the_extra(monkeypatch):
    for name in ("lightning.pytorch", "pytorch_lightning"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(SystemExit, match=r"torch-picard\[lightning\]"):
        import lightning_training  # noqa: F401
