"""The script on a small grid in the form of its file."""

import json
import sys

import pytest
import torch

from tests.examples.on_disk import minesweeper


def test_the_area_under_a_perfect_and_a_useless_score():
    from minesweeper import area
    from torch_geometric.data import Data

    data = Data(y=torch.tensor([0, 1, 0, 1, 1]))
    mask = torch.tensor([True, True, True, True, False])
    assert area(torch.tensor([0.1, 0.9, 0.2, 0.8, 0.0]), data, mask) == 100
    assert area(torch.zeros(5), data, mask) == 50


def test_all_models_have_the_same_budget():
    import minesweeper as script

    sizes = []
    for kind, conv, options in script.MODELS.values():

        def make(width, kind=kind, conv=conv, options=options):
            return script.build(kind, conv, (7, width, 2), options)

        width = script.width_for(20_000, make)
        sizes.append(script.number_of(make(width)))
    assert max(sizes) <= 20_000
    assert min(sizes) > 19_000


@pytest.mark.slow
def test_a_run(data_folder, monkeypatch, tmp_path, capsys):
    import minesweeper as script

    minesweeper(data_folder)
    line = ["minesweeper.py", "--epochs", "40", "--seeds", "2"]
    line += ["--workers", "1", "--out", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", line)
    script.main()
    printed = capsys.readouterr().out
    assert "mean ± sd of 2 splits" in printed
    kept = json.loads((tmp_path / "minesweeper_small.json").read_text())
    assert len(kept["results"]) == 2 * len(script.MODELS)
    for name in script.MODELS:
        assert name in printed
        assert kept["results"][f"{name} seed 0"]["val"] > 50, name
    # the splits differ
    one, other = (kept["results"][f"no graph seed {i}"] for i in (0, 1))
    assert one["test"] != other["test"]
    assert (tmp_path / "minesweeper.png").exists()
    # a second call has nothing to do
    monkeypatch.setattr(script, "run", None)
    script.main()
    again = capsys.readouterr().out
    assert again.split("ROC")[1] == printed.split("ROC")[1]


def test_missing_data_are_named(data_folder, monkeypatch, tmp_path):
    import minesweeper as script
    from torch_geometric.datasets import HeterophilousGraphDataset

    def download(self):
        raise ConnectionError("no such host")

    monkeypatch.setattr(HeterophilousGraphDataset, "download", download)
    monkeypatch.setattr(sys, "argv", ["minesweeper.py", "--out", "nowhere"])
    with pytest.raises(SystemExit, match="heterophilous/minesweeper"):
        script.main()
