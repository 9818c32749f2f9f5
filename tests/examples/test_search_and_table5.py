"""The two scripts around node_classification.py, and that no script is
forgotten."""

import json
import re
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


@pytest.mark.slow
def test_a_search_a_run_and_the_table(monkeypatch, tmp_path, capsys):
    import node_classification
    import search
    import table5

    def call(script, *options):
        line = [f"{script.__name__}.py", *map(str, options)]
        monkeypatch.setattr("sys.argv", line)
        script.main()
        return capsys.readouterr().out

    monkeypatch.setattr(search, "TRIALS", 2)
    monkeypatch.setattr(search, "FINALISTS", 1)
    settings, models = tmp_path / "settings.json", ["GCN", "PIGN-GCN"]
    common = ["--models", *models, "--settings", settings]
    found = call(search, "--dataset", "DigitsGraph", *common)
    assert found.count("DigitsGraph/0/raw") == 2
    chosen = json.loads(settings.read_text())["DigitsGraph/0/raw"]
    assert all(chosen[model]["val"] > 0.5 for model in models)
    # what is there is not searched again
    monkeypatch.setattr(search, "search", None)
    assert not call(search, "--dataset", "DigitsGraph", *common)

    results = tmp_path / "results"
    results.mkdir()
    call(
        node_classification, *common, "--runs", 2, "--noise", 0,
        "--picture", tmp_path / "p.png", "--out", results / "digits.json",
    )  # fmt: skip
    monkeypatch.setattr(table5, "COLUMNS", [("DigitsGraph", "0")])
    page = tmp_path / "table5.inc"
    printed = call(table5, "--results", results, "--write", page)
    assert "PIGN-GCN" in printed and "Clean:" in printed
    assert ".. list-table::" in page.read_text()
    with pytest.raises(SystemExit, match="no results in"):
        call(table5, "--results", tmp_path / "none")


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
