"""The two scripts around node_classification.py, and that no script is
forgotten."""

import json
import re
from pathlib import Path

import pytest

from tests.examples.on_disk import planetoid

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


SETTING = {
    "lr": 0.02, "weight_decay": 0.0, "epochs": 4, "patience": 4,
    "hidden_channels": 4, "dropout": 0.0, "input_dropout": 0.0, "norm": None,
}  # fmt: skip


@pytest.fixture
def call(monkeypatch, capsys):
    def call(script, *options):
        line = [f"{script.__name__}.py", *map(str, options)]
        monkeypatch.setattr("sys.argv", line)
        script.main()
        return capsys.readouterr().out

    return call


@pytest.mark.slow
def test_a_search(call, monkeypatch, tmp_path):
    import search

    monkeypatch.setattr(search, "TRIALS", 2)
    settings, models = tmp_path / "settings.json", ["GCN", "PIGN-GCN"]
    common = ["--models", *models, "--settings", settings]
    found = call(search, "--dataset", "DigitsGraph", *common)
    assert found.count("DigitsGraph/0/raw") == 2
    chosen = json.loads(settings.read_text())["DigitsGraph/0/raw"]
    assert all(chosen[model]["val"] > 0.5 for model in models)
    # what is there is not searched again
    monkeypatch.setattr(search, "search", None)
    assert not call(search, "--dataset", "DigitsGraph", *common)


@pytest.fixture
def table5(call, data_folder, tmp_path):
    """Table 5's command, on a small graph that has Cora's name."""
    import table5 as script

    planetoid(data_folder)
    loop = SETTING | {"max_iter": 2}
    cell = {
        f"{kind}{conv}": loop if kind else SETTING
        for kind in ("", "IterGNN-", "PIGN-")
        for conv in ("GCN", "GAT")
    }
    cells = {f"Cora/{n}/{f}": cell for n in (0, 0.5) for f in script.FEATURES}
    settings = tmp_path / "settings.json"
    settings.write_text(json.dumps(cells))
    folders = ["--results", tmp_path / "results", "--out", tmp_path / "out"]

    def run(*options):
        return call(script, "--settings", settings, *folders, *options)

    return script, run


@pytest.mark.slow
def test_table5_goes_on_after_an_interrupt_and_runs_nothing_twice(
    table5, tmp_path, monkeypatch
):
    import node_classification

    script, run = table5
    real, made = node_classification.run_once, []

    def interrupted(model, *rest, **options):
        if len(made) == 11:
            raise KeyboardInterrupt
        made.append(model)
        return real(model, *rest, **options)

    only = ["--only", "Cora raw 0.5", "--runs", 2]
    monkeypatch.setattr(node_classification, "run_once", interrupted)
    with pytest.raises(SystemExit, match="the same command goes on"):
        run(*only)
    path = tmp_path / "results" / "Cora-raw-0.5.json"
    first = json.loads(path.read_text())["cells"]["0.5"]
    assert sum(len(entry["runs"]) for entry in first.values()) == 11

    monkeypatch.setattr(node_classification, "run_once", real)
    printed = run(*only, "--write", tmp_path / "docs")
    both = json.loads(path.read_text())["cells"]["0.5"]
    assert list(both) == script.MODELS
    for model, entry in both.items():
        assert [r["seed"] for r in entry["runs"]] == [0, 1]
        assert (
            entry["runs"][: len(first[model]["runs"])]
            == (first[model]["runs"])
        )
    # only what was selected was run; the paper's columns stand beside it
    assert [p.name for p in (tmp_path / "results").iterdir()] == [path.name]
    assert "Half of the zeros on:" in printed and "Clean:" not in printed
    head = next(x for x in printed.splitlines() if "Cora, paper" in x)
    assert "Cora, raw" in head and "Cora, centred" not in head
    written = (tmp_path / "docs" / "table5.inc").read_text()
    assert written.count(".. list-table::") == 2
    assert (tmp_path / "docs" / "table5.png").stat().st_size > 10_000

    # all is there: the same tables, and nothing is run or even loaded
    monkeypatch.setattr(node_classification, "run_once", None)
    monkeypatch.setattr(script, "load", None)
    for options in (only, ["--no-run"]):
        again = run(*options)
        assert again.split("Picture")[0] == printed.split("Picture")[0]
    assert (tmp_path / "out" / "table5.png").exists()


def results(script, folder, runs):
    """So many made-up runs of every model and cell, accuracy 0.1, 0.2, ..."""
    folder.mkdir()
    for dataset, features, noise in script.CELLS:
        models = {
            model: {
                "setting": {},
                "runs": [
                    {"seed": i, "test": (i + 1) / 10} for i in range(runs)
                ],
            }
            for model in script.MODELS
        }
        content = {"dataset": dataset, "features": features}
        path = folder / f"{dataset}-{features}-{noise}.json"
        path.write_text(json.dumps(content | {"cells": {noise: models}}))


def test_table5_says_the_mean_and_the_deviation(table5, tmp_path):
    script, _ = table5
    results(script, tmp_path / "results", 3)
    printed = script.report(script.read(tmp_path / "results"), script.text)
    # of 10, 20, 30
    assert printed.count("20.0 ± 10.0") == 8 * len(script.MODELS)
    assert printed.count("\nruns ") == 2
    for paper in ("33.2 ± 12.2", "34.3 ± 4.6"):
        assert printed.count(paper) == 1


def test_table5_selects_cells_by_words(table5):
    script, _ = table5
    cells = script.CELLS
    assert len(cells) == 8
    assert script.selected([""]) == cells
    assert script.selected(["0.5 raw Cora"]) == [("Cora", "raw", "0.5")]
    both = script.selected(["CiteSeer centred", "Cora raw 0", "Cora raw"])
    assert both == [
        ("Cora", "raw", "0"),
        ("Cora", "raw", "0.5"),
        ("CiteSeer", "centred", "0"),
        ("CiteSeer", "centred", "0.5"),
    ]
    for wrong in ("cora", "Cora,raw", "Cora CiteSeer", "0.3"):
        with pytest.raises(SystemExit, match=r"one each of 0, 0\.5, CiteSeer"):
            script.selected([wrong])


def test_table5_names_what_is_wrong(table5, tmp_path, capsys):
    script, run = table5
    with pytest.raises(SystemExit, match="no results in"):
        run("--no-run")
    with pytest.raises(SystemExit, match="neither planetoid/Cora nor"):
        run("--root", tmp_path / "none", "--only", "Cora raw 0")
    for options, said in (
        (["--runs", 1], "at least 2, got 1"),
        (["--write", "docs/table5.inc"], "must be a folder"),
        (["--threads", 0], "at least 1, got 0"),
    ):
        with pytest.raises(SystemExit):
            run(*options)
        assert said in capsys.readouterr().err
    results(script, tmp_path / "results", 2)
    path = tmp_path / "results" / "CiteSeer-raw-0.json"
    path.write_text(path.read_text()[:200])
    with pytest.raises(SystemExit, match=r"CiteSeer-raw-0\.json .*damaged"):
        run("--no-run")


def test_every_script_is_run_by_a_test():
    tests = "".join(p.read_text() for p in Path(__file__).parent.glob("*.py"))
    scripts = [
        path.stem
        for path in EXAMPLES.glob("*.py")
        if "__main__" in path.read_text()
    ]
    assert len(scripts) > 15
    forgotten = [
        name
        for name in scripts
        if not re.search(rf"(import |\"){name}\b", tests)
    ]
    assert not forgotten
