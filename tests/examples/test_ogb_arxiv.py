"""The OGB script, on a small data set in OGB's format on disk."""

import gzip
import json
import sys

import numpy as np
import pytest

NODES, CLASSES = 60, 40


def written(root):
    """As ogbn-arxiv lies on disk: 128 features, classes 0 to 39, a split by
    time."""
    draw = np.random.default_rng(0)
    label = draw.integers(0, 4, NODES)
    feature = draw.normal(size=(NODES, 128)) + 2 * label[:, None]
    near = np.array(
        [draw.choice(np.flatnonzero(label == label[i])) for i in range(NODES)]
    )
    edge = np.stack([np.arange(NODES), near], 1)
    folder = root / "ogbn_arxiv"
    files = {
        "raw/edge": edge,
        "raw/node-feat": feature,
        "raw/node-label": label[:, None],
        "raw/node_year": 2010 + np.arange(NODES)[:, None] // 20,
        "raw/num-node-list": [[NODES]],
        "raw/num-edge-list": [[len(edge)]],
        "split/time/train": np.arange(0, 30)[:, None],
        "split/time/valid": np.arange(30, 45)[:, None],
        "split/time/test": np.arange(45, NODES)[:, None],
    }
    for name, rows in files.items():
        path = folder / f"{name}.csv.gz"
        path.parent.mkdir(parents=True, exist_ok=True)
        with gzip.open(path, "wt") as file:
            for row in rows:
                file.write(",".join(map(str, row)) + "\n")
    (folder / "RELEASE_v1.txt").write_text("")
    return root


@pytest.mark.slow
def test_all_models_learn_and_a_second_call_has_nothing_to_do(
    monkeypatch, tmp_path, capsys
):
    pytest.importorskip("ogb")
    import ogb_arxiv

    root = written(tmp_path / "data")
    monkeypatch.setattr(
        sys, "argv",
        ["ogb_arxiv.py", "--root", str(root), "--seeds", "1", "--workers",
         "1", "--epochs", "80", "--out", str(tmp_path / "out"), "--write",
         str(tmp_path / "docs")],
    )  # fmt: skip
    ogb_arxiv.main()
    printed = capsys.readouterr().out
    for title in ogb_arxiv.MODELS.values():
        assert title in printed
    kept = json.loads((tmp_path / "out/ogb_arxiv_small.json").read_text())
    for name, run in kept["results"].items():
        assert run["test"]["0"] > 0.7, name  # one of four by chance
    monkeypatch.setattr(ogb_arxiv, "run", None)
    ogb_arxiv.main()
    assert "PIGN-SAGE" in capsys.readouterr().out


def test_without_ogb_it_names_the_extra(monkeypatch, tmp_path):
    import ogb_arxiv

    monkeypatch.setitem(sys.modules, "ogb.nodeproppred", None)
    monkeypatch.setattr(sys, "argv", ["ogb_arxiv.py", "--root", str(tmp_path)])
    with pytest.raises(SystemExit, match=r"torch-picard\[ogb\]"):
        ogb_arxiv.main()
