"""The OGB script, on a small data set in OGB's format on disk."""

import gzip
import json
import sys

import numpy as np
import pytest
import torch
from torch_geometric.data import Data

from torch_picard import Unrolled

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
        losses = run["losses"]
        assert len(losses) == 80, name
        # the deep ones, too, whose gradients are implicit
        assert min(losses[-5:]) < 0.5 * losses[0], name
    assert (tmp_path / "docs/ogb_arxiv.png").stat().st_size > 5000
    monkeypatch.setattr(ogb_arxiv, "run", None)
    ogb_arxiv.main()
    assert "PIGN-SAGE" in capsys.readouterr().out


def held_for_backward(name, iterations, gradient=None):
    """Bytes that a training pass of so many iterations keeps."""
    import ogb_arxiv

    torch.manual_seed(0)
    edge_index = torch.randint(200, (2, 600))
    data = Data(x=torch.randn(200, 16), edge_index=edge_index)
    setting = {"hidden": 32, "iterations": iterations}
    model = ogb_arxiv.build(name, data, 5, setting)
    model.block.rtol = 0.0  # all of the iterations
    if gradient is not None:
        model.block.gradient = gradient
    kept = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        out, end = model(data.x, edge_index, return_solution=True)
    assert int(end.iterations) == iterations
    out.square().mean().backward()
    return sum(kept.values())


@pytest.mark.parametrize("name", ["pign-gcn", "pign-sage"])
def test_depth_costs_no_memory(name):
    shallow, deep = (held_for_backward(name, n) for n in (8, 32))
    assert deep == pytest.approx(shallow, rel=0.05)
    # which is owed to the implicit gradient
    long = [held_for_backward(name, n, Unrolled()) for n in (8, 32)]
    assert long[1] > 1.5 * long[0]


def test_without_ogb_it_names_the_extra(monkeypatch, tmp_path):
    import ogb_arxiv

    monkeypatch.setitem(sys.modules, "ogb.nodeproppred", None)
    monkeypatch.setattr(sys, "argv", ["ogb_arxiv.py", "--root", str(tmp_path)])
    with pytest.raises(SystemExit, match=r"torch-picard\[ogb\]"):
        ogb_arxiv.main()


def test_missing_data_are_named(monkeypatch, tmp_path):
    pytest.importorskip("ogb")
    import ogb_arxiv
    from ogb.nodeproppred import PygNodePropPredDataset

    def download(self):
        raise ConnectionError("no such host")

    monkeypatch.setattr(PygNodePropPredDataset, "download", download)
    with pytest.raises(SystemExit, match=r"ogbn-arxiv is not in .*no such"):
        ogb_arxiv.load(str(tmp_path))
