import json
import re

import pytest
import torch
from torch_geometric.nn import GCNConv

SETTING = {
    "val": 0.9,
    "lr": 0.02,
    "weight_decay": 0.0,
    "epochs": 4,
    "patience": 4,
    "hidden_channels": 8,
    "dropout": 0.5,
    "input_dropout": 0.0,
    "norm": None,
}
LOOP = SETTING | {"max_iter": 3}


@pytest.fixture
def arguments(tmp_path, monkeypatch):
    """Sets the command line; all files go to tmp_path."""
    cell = dict.fromkeys(("GCN", "GAT"), SETTING)
    cell |= {f"IterGNN-{conv}": LOOP for conv in ("GCN", "GAT")}
    cell |= {f"PIGN-{conv}": LOOP for conv in ("GCN", "GAT")}
    cells = {f"DigitsGraph/{noise}/raw": cell for noise in ("0", "0.8")}
    settings = tmp_path / "settings.json"
    settings.write_text(json.dumps(cells))

    def set_arguments(*options):
        common = ["--settings", settings, "--picture", tmp_path / "p.png"]
        line = ["node_classification.py", *common, *options]
        monkeypatch.setattr("sys.argv", [str(part) for part in line])

    return set_arguments


def test_every_model_runs_and_is_reported(arguments, tmp_path, capsys):
    import node_classification
    from node_models import MODELS

    arguments("--runs", 1)
    node_classification.main()
    out = capsys.readouterr().out
    for model in MODELS:
        for noise in ("0  ", "0.8"):
            assert out.count(f"\n{noise}    {model} ") == 1
    assert out.count("test accuracy") == 1  # one table
    notes = [line for line in out.splitlines() if line.startswith("Notice")]
    assert len(notes) == 1
    assert "noise 0 PIGN" in notes[0]
    assert "noise 0.8 PIGN" in notes[0]
    assert (tmp_path / "p.png").stat().st_size > 0


def test_results_are_continued_and_other_settings_refused(arguments, tmp_path):
    import node_classification

    out = tmp_path / "results.json"
    common = ["--models", "GCN", "PIGN-GCN", "--noise", 0, "--out", out]
    arguments(*common, "--runs", 1)
    node_classification.main()
    first = json.loads(out.read_text())["cells"]["0"]

    arguments(*common, "--runs", 2)
    node_classification.main()
    both = json.loads(out.read_text())["cells"]["0"]
    for model, entry in first.items():
        assert len(entry["runs"]) == 1
        assert len(both[model]["runs"]) == 2
        assert both[model]["runs"][0] == entry["runs"][0]
    assert [path.name for path in tmp_path.glob("*.tmp")] == []

    arguments(*common, "--features", "centred")
    with pytest.raises(SystemExit, match="features = raw"):
        node_classification.main()
    settings = tmp_path / "settings.json"
    settings.write_text(settings.read_text().replace("0.02", "0.03"))
    arguments(*common)
    with pytest.raises(SystemExit, match="the setting of GCN"):
        node_classification.main()


DAMAGED = {
    "half a file": '{"dataset": "DigitsGraph", "cells": {"0": {"GC',
    "no JSON": "\x89PNG",
    "a list": "[1, 2]",
    "other results": '{"settings": {}, "results": {}}',
    "cells of another kind": json.dumps(
        {"dataset": "DigitsGraph", "features": "raw", "cells": {"0": [1]}}
    ),
    "runs of another kind": json.dumps(
        {
            "dataset": "DigitsGraph",
            "features": "raw",
            "cells": {"0": {"GCN": {"setting": {}, "runs": [0.5]}}},
        }
    ),
}


@pytest.mark.parametrize("content", DAMAGED.values(), ids=DAMAGED)
def test_a_damaged_or_foreign_out_is_named_and_kept(
    arguments, tmp_path, content
):
    import node_classification

    out = tmp_path / "results.json"
    out.write_text(content)
    arguments("--out", out)
    with pytest.raises(SystemExit, match=r"results\.json .*(results|remove)"):
        node_classification.main()
    assert out.read_text() == content


def test_settings_that_cannot_be_read_are_named(arguments, tmp_path):
    import node_classification

    for settings, why in (("none.json", "No such file"), (".", "directory")):
        arguments("--settings", tmp_path / settings)
        with pytest.raises(SystemExit, match=why):
            node_classification.main()


@pytest.mark.parametrize(
    "option, value, said",
    [
        ("--threads", "0", "--threads: must be an integer of at least 1"),
        ("--threads", "two", "got two"),
        ("--runs", "0", "--runs: must be an integer of at least 1, got 0"),
        ("--runs", "1.5", "got 1.5"),
        ("--noise", "1.5", r"--noise: must be a number in \[0, 1\], got 1.5"),
        ("--noise", "nan", "got nan"),
        ("--noise", "much", "got much"),
        ("--dataset", "cora", "choose from"),
        ("--features", "scaled", "choose from"),
        ("--models", "MLP", "choose from"),
        ("--out", ".", "--out must be a file"),
    ],
)
def test_bad_options_are_named(arguments, capsys, option, value, said):
    import node_classification

    arguments(option, value)
    with pytest.raises(SystemExit) as ended:
        node_classification.main()
    assert ended.value.code == 2
    assert re.search(said, capsys.readouterr().err)


def test_a_run_depends_on_its_seed_only():
    from node_classification import run_once
    from node_training import load, prepare

    data = prepare(load("DigitsGraph"), 0.5, "raw", seed=3)
    setting = {key: value for key, value in LOOP.items() if key != "val"}
    first, again = (
        run_once("PIGN-GCN", setting, data, seed=3) for _ in range(2)
    )
    for run in (first, again):
        run.pop("seconds")
    assert first == again


def test_matched_models_have_as_many_parameters():
    from node_models import build, num_parameters

    match = {"hidden_channels": 24}
    target = num_parameters(build("PIGN-GCN", match, 50, 7))
    matched = build("GCN-matched", {"match": match}, 50, 7)
    # One unit of width is worth 50 + 7 + 1 parameters here.
    assert abs(num_parameters(matched) - target) <= 29


def test_search_is_reproducible_and_inside_its_ranges(monkeypatch):
    import search

    monkeypatch.setattr(search, "validate", lambda *args: args[1]["lr"])
    first = search.search("PIGN-GCN", "Cora", None, 0.5, "raw")
    assert first == search.search("PIGN-GCN", "Cora", None, 0.5, "raw")
    options = search.ranges("PIGN-GCN", "Cora")
    assert all(first[0][name] in options[name] for name in options)


def test_itergnn_stops_and_averages_states():
    from itergnn import IterGNN

    class Same(torch.nn.Module):
        def forward(self, x, edge_index):
            return x

    torch.manual_seed(0)
    model = IterGNN(3, 8, 2, lambda _: Same(), max_iter=50).eval()
    x = torch.randn(5, 3)
    out, stop = model(x, None, return_solution=True)
    # Probabilities sum to one: the mean of equal states is that state.
    assert torch.allclose(out, model.decoder(model.encoder(x).relu()))
    assert bool(stop.stopped.all())

    # A confidence c leaves (1 - c)^k after k steps.
    with torch.no_grad():
        model.confidence.weight.zero_()
        model.confidence.bias.zero_()
    _, stop = model(x, None, return_solution=True)
    assert stop.iterations == 7  # 2^-7 is the first below 0.01
    assert torch.allclose(stop.remaining, torch.tensor([0.5**7]))


def test_itergnn_keeps_graphs_of_a_batch_apart():
    from itergnn import IterGNN

    torch.manual_seed(0)
    conv = lambda width: GCNConv(width, width)  # noqa: E731
    model = IterGNN(3, 8, 2, conv, threshold=0.0, max_iter=4).eval()
    edge_index = torch.tensor([[0, 1, 1, 2], [1, 0, 2, 1]])
    x = torch.randn(6, 3)
    both = torch.cat([edge_index, edge_index + 3], dim=1)
    out = model(x, both, batch=torch.tensor([0, 0, 0, 1, 1, 1]))
    assert torch.allclose(out[:3], model(x[:3], edge_index), atol=1e-6)


def test_chains_run(monkeypatch, tmp_path, capsys):
    import chains

    line = ["chains.py", "--lengths", "4", "--seeds", "1", "--epochs", "4"]
    line += ["--workers", "1", "--out"]
    picture = tmp_path / "chains.png"
    monkeypatch.setattr("sys.argv", [*line, str(tmp_path)])
    chains.main()
    assert "PicardConv" in capsys.readouterr().out
    assert picture.exists()


def test_direction_of_tiny_and_absent_signals():
    from chains import direction

    x = torch.tensor([[3e-25, 4e-25], [0.0, 0.0]], requires_grad=True)
    out = direction(x)
    assert torch.allclose(out, torch.tensor([[0.6, 0.8], [0.0, 0.0]]))
    out.sum().backward()
    assert bool(torch.isfinite(x.grad).all())


def test_a_cell_without_a_search_borrows_and_says_so(capsys):
    import node_classification as script

    chosen = {"Cora/0.5/raw": {"GCN": {}}}
    assert script.borrowed(chosen, "Cora/0.5/raw") is chosen["Cora/0.5/raw"]
    assert not capsys.readouterr().out
    for features in ("raw", "centred"):
        found = script.borrowed(chosen, f"Photo/0.3/{features}")
        assert found is chosen["Cora/0.5/raw"]
        assert "Cora/0.5/raw" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="run search"):
        script.borrowed(chosen, "Photo/0/raw")
