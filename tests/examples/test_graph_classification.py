"""The script on whole graphs, with data where it is at hand."""

import os
import sys
from pathlib import Path

import pytest
import torch


def test_the_folds_are_a_partition_with_equal_shares():
    import graph_classification as script

    labels = torch.tensor([0] * 60 + [1] * 40)
    parts = script.folds(labels)
    assert sorted(torch.cat(parts).tolist()) == list(range(100))
    assert all(labels[part].float().mean() == 0.4 for part in parts)


@pytest.mark.slow
def test_a_run(monkeypatch, tmp_path, capsys):
    import graph_classification as script

    root = os.environ.get("TORCH_PICARD_DATA")
    if root is None or not Path(root, "tu", "MUTAG").is_dir():
        pytest.skip("needs TORCH_PICARD_DATA with tu/MUTAG")
    monkeypatch.setattr(
        sys, "argv",
        ["graph_classification.py", "--workers", "1", "--epochs", "3",
         "--out", str(tmp_path)],
    )  # fmt: skip
    script.main()
    printed = capsys.readouterr().out
    assert "MUTAG, 188 graphs, 10 folds" in printed
    assert "PicardConv(GCNConv)" in printed
    assert (tmp_path / "graphs_mutag.png").stat().st_size > 5000
