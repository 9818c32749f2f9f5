"""Table 1's script, on a few graphs in the form of its files."""

import json
import sys

import numpy as np
import pytest
import torch
from torch_geometric.data import Data

from tests.examples.on_disk import pascal


def write(folder, graphs, seed):
    """Three splits; nodes of class 11 are void."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True)
    for split in ("train", "val", "test"):
        nodes = rng.integers(5, 9, graphs)
        y = rng.integers(0, 3, nodes.sum())
        y[0] = 11
        edges = [
            np.stack([np.r_[: n - 1, 1:n], np.r_[1:n, : n - 1]]) for n in nodes
        ]
        np.savez(
            folder / f"{split}.npz",
            x=np.eye(14, dtype=np.float32)[y]
            + rng.normal(0, 0.1, (len(y), 14)).astype(np.float32),
            y=y.astype(np.uint8),
            edge_index=np.concatenate(edges, 1).astype(np.int16),
            num_nodes=nodes.astype(np.int32),
            num_edges=(2 * (nodes - 1)).astype(np.int32),
        )


def test_widths_meet_the_budget():
    import table1

    for kind, options in (
        ("without", {"depth": 4}),
        ("IterGNN", {}),
        ("PIGN", {}),
    ):
        for conv in table1.CONVS:

            def make(width, kind=kind, conv=conv, options=options):
                return table1.build(kind, conv, (14, width, 11), options)

            width = table1.width_for(5000, make)
            assert table1.number_of(make(width)) <= 5000
            assert table1.number_of(make(width + 1)) > 5000


def test_void_nodes_do_not_count():
    import table1

    labels = torch.tensor([0, 0, 1, 1, -100])
    assert table1.macro_f1(torch.tensor([0, 0, 1, 1, 0]), labels) == 1.0
    # F1 of 2/3 and of 4/5
    found = table1.macro_f1(torch.tensor([0, 1, 1, 1, 0]), labels)
    assert found == pytest.approx((2 / 3 + 4 / 5) / 2)


def test_a_search_draws_no_setting_twice():
    import table1

    for kind in table1.KINDS:
        found = table1.drawn(kind, "GCN", 100)
        assert found == table1.drawn(kind, "GCN", 100)
        assert len({tuple(one.items()) for one in found}) == len(found)


def test_a_graphs_answer_has_no_batch_mates():
    import table1

    torch.manual_seed(0)
    one, other = (
        Data(x=torch.randn(n, 14), edge_index=torch.randint(n, (2, 3 * n)))
        for n in (6, 9)
    )
    for kind in table1.KINDS:
        model = table1.build(
            kind,
            "SAGE",
            (14, 8, 11),
            {"depth": 2} if kind == "without" else {},
        ).eval()
        alone = table1.whole([one])
        both = table1.whole([one, other])
        want = model(alone.x, alone.edge_index, batch=alone.batch)
        found = model(both.x, both.edge_index, batch=both.batch)[:6]
        torch.testing.assert_close(found, want, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_a_run_that_goes_on(monkeypatch, tmp_path, capsys):
    import table1

    write(tmp_path / "camvid-sp", 12, 0)
    monkeypatch.setenv("TORCH_PICARD_DATA", str(tmp_path))
    line = ["table1.py", "--epochs", "2", "--trials", "2", "--seeds", "2"]
    line += ["--workers", "1", "--out", str(tmp_path)]
    line += ["--write", str(tmp_path / "docs")]
    monkeypatch.setattr(sys, "argv", line)
    table1.main()
    printed = capsys.readouterr().out
    for kind in table1.KINDS:
        assert kind in printed
    assert (tmp_path / "docs" / "table1.inc").exists()
    assert (tmp_path / "docs" / "table1.png").exists()
    # everything is there: nothing is trained again
    monkeypatch.setattr(table1, "train", None)
    table1.main()
    again = capsys.readouterr().out
    assert again.split("Test macro-F1")[1] == printed.split("Test macro-F1")[1]


def test_missing_files_are_named(monkeypatch, tmp_path):
    import table1

    monkeypatch.setenv("TORCH_PICARD_DATA", str(tmp_path))
    with pytest.raises(SystemExit, match="camvid-sp"):
        table1.graphs("camvid")


def test_pascal_is_read_as_pyg_stores_it(data_folder):
    import table1

    pascal(data_folder)
    before = sorted(data_folder.rglob("*"))
    found = table1.graphs("pascal")
    assert sorted(data_folder.rglob("*")) == before  # nothing is written there
    assert [len(found[part]) for part in ("train", "val", "test")] == [12] * 3
    x = torch.cat([data.x for data in found["train"]])
    torch.testing.assert_close(x.mean(0), torch.zeros(14), rtol=0, atol=1e-5)
    torch.testing.assert_close(x.std(0), torch.ones(14), rtol=0, atol=1e-4)
    # all 21 classes count: 11 is void in the other data set only
    data = found["test"][0]
    assert data.y.tolist() == [[0, 7, 20][i % 3] for i in range(len(data.y))]


@pytest.mark.slow
def test_a_run_on_pascal(data_folder, monkeypatch, tmp_path, capsys):
    import table1

    pascal(data_folder)
    line = ["table1.py", "--data", "pascal", "--epochs", "15", "--trials", "1"]
    line += ["--seeds", "1", "--workers", "1", "--out", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", line)
    table1.main()
    printed = capsys.readouterr().out
    for kind in table1.KINDS:
        assert kind in printed
    kept = json.loads((tmp_path / "table1_pascal_small.json").read_text())
    for model in ("without GCN", "PIGN SAGE"):
        found = kept["results"][f"{model} seed 0"]
        assert 19_000 < found["parameters"] <= 20_000
        assert found["test"]["0"] > 0.6  # a third by chance
    assert (tmp_path / "table1.png").exists()


def test_missing_pascal_is_named(data_folder, monkeypatch):
    import table1

    def download(self):
        raise ConnectionError("no such host")

    monkeypatch.setattr(table1.LRGBDataset, "download", download)
    with pytest.raises(SystemExit, match="lrgb/pascalvoc-sp"):
        table1.graphs("pascal")
