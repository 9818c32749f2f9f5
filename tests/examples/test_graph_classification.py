"""The script on whole graphs, small ones in the form of its files."""

import json
import sys

import pytest
import torch

from tests.examples.on_disk import tu


def test_the_folds_are_a_partition_with_equal_shares():
    import graph_classification as script

    labels = torch.tensor([0] * 60 + [1] * 40)
    parts = script.folds(labels)
    assert sorted(torch.cat(parts).tolist()) == list(range(100))
    assert all(labels[part].float().mean() == 0.4 for part in parts)


@pytest.mark.slow
def test_a_run(data_folder, monkeypatch, tmp_path, capsys):
    import graph_classification as script

    tu(data_folder)
    monkeypatch.setattr(
        sys, "argv",
        ["graph_classification.py", "--workers", "1", "--epochs", "15",
         "--out", str(tmp_path)],
    )  # fmt: skip
    script.main()
    printed = capsys.readouterr().out
    assert "MUTAG, 40 graphs, 10 folds" in printed
    assert "PicardConv(GCNConv)" in printed
    kept = json.loads((tmp_path / "graphs_MUTAG_small.json").read_text())
    runs = kept["results"]
    assert len(runs) == 10 * len(script.MODELS)
    # every graph is in one test fold, and stops by itself
    counts = [runs[f"picard seed {i}"]["iterations"] for i in range(10)]
    assert sum(map(len, counts)) == 40
    assert len({k for found in counts for k in found}) > 1
    for kind in script.MODELS:
        hits = [runs[f"{kind} seed {i}"]["test"]["0"] for i in range(10)]
        assert sum(hits) / 10 > 80, kind  # half by chance
    assert (tmp_path / "graphs_mutag.png").stat().st_size > 5000
    # a second call has nothing to do
    monkeypatch.setattr(script, "run", None)
    script.main()
    again = capsys.readouterr().out
    assert again.split("10 folds")[1] == printed.split("10 folds")[1]


def test_missing_data_are_named(data_folder, monkeypatch):
    import graph_classification as script

    def download(self):
        raise ConnectionError("no such host")

    monkeypatch.setattr(script.TUDataset, "download", download)
    with pytest.raises(SystemExit, match="tu/PROTEINS"):
        script.load("PROTEINS")
