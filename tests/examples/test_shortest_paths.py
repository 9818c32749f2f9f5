"""The script on distances: its graphs, its layer, and a short run."""

import sys

import numpy as np
import pytest
import torch


def distances(data):
    """Bellman and Ford's, by hand."""
    far = torch.full((data.num_nodes,), torch.inf, dtype=torch.float64)
    far[data.x[:, 0] > 0] = 0.0
    source, target = data.edge_index
    for _ in range(data.num_nodes):
        through = far[source] + data.edge_attr[:, 0].double()
        far = far.scatter_reduce(0, target, through, "amin")
    return far.float()


@pytest.mark.parametrize("nodes", [10, 47])
def test_labels_are_distances(nodes):
    from shortest_paths import strip

    data = strip(nodes, np.random.default_rng(nodes))
    torch.testing.assert_close(data.y, distances(data), rtol=0, atol=1e-4)
    assert int((data.x > 0).sum()) == 1
    assert float(data.y.max()) < float(data.x.max())
    back = data.edge_index.flip(0)
    pairs = set(map(tuple, data.edge_index.T.tolist()))
    assert all(tuple(pair) in pairs for pair in back.T.tolist())


def test_the_layer_can_be_bellman_and_ford():
    """With all rows of A alike and a cost of 1 the fixed point is exact, and
    is reached in so many iterations as the longest path has edges."""
    from shortest_paths import Step, strip

    from torch_picard import PicardConv

    data = strip(60, np.random.default_rng(1))
    step = Step(1)
    with torch.no_grad():
        step.cost.fill_(float(np.log(np.e - 1)))  # softplus gives 1
    x0 = data.x
    solve = PicardConv(step, alpha=0.0, max_iter=100, rtol=1e-7)
    h, solution = solve(
        x0, data.edge_index, data.edge_attr, x0, return_solution=True
    )
    found = data.x.max() - h[:, 0]
    torch.testing.assert_close(found, data.y, rtol=0, atol=1e-4)
    assert data.hops <= int(solution.iterations) <= data.hops + 1


def test_changes_are_not_enlarged():
    from shortest_paths import Step, strip

    data = strip(40, np.random.default_rng(2))
    torch.manual_seed(0)
    step = Step(8)
    x0, h, other = torch.rand(3, 40, 8) * 4
    graph = data.edge_index, data.edge_attr, x0
    change = (step(h, *graph) - step(other, *graph)).abs().max()
    assert float(change) <= float((h - other).abs().max()) * (1 + 1e-6)


@pytest.mark.slow
def test_a_short_run(monkeypatch, tmp_path, capsys):
    import shortest_paths as script

    line = ["shortest_paths.py", "--updates", "30", "--seeds", "1"]
    line += ["--sizes", "20", "40", "--workers", "1", "--out", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", line)
    script.main()
    printed = capsys.readouterr().out
    for name in script.MODELS:
        assert name in printed
    assert (tmp_path / "shortest_paths.png").exists()
