"""The script on Minesweeper's grid, where it is at hand."""

import os
import sys
from pathlib import Path

import pytest
import torch


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
def test_a_run(monkeypatch, tmp_path, capsys):
    import minesweeper as script

    root = os.environ.get("TORCH_PICARD_DATA")
    if root is None or not Path(root, "heterophilous").is_dir():
        pytest.skip("needs TORCH_PICARD_DATA with heterophilous/minesweeper")
    line = ["minesweeper.py", "--epochs", "2", "--seeds", "1"]
    line += ["--workers", "1", "--out", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", line)
    script.main()
    printed = capsys.readouterr().out
    for name in script.MODELS:
        assert name in printed
    assert (tmp_path / "minesweeper.png").exists()
