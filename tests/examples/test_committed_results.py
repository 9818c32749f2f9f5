"""The tables of the page on graph studies are those of the runs that are
kept beside the benchmarks."""

import json
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def runs(name):
    path = ROOT / "benchmarks" / "results" / "graph_studies" / f"{name}.json"
    return json.loads(path.read_text())["results"]


def tables_of(name):
    """The rows that the script would write, by the file they are in."""
    from operator_runs import View

    if name == "table1":
        import table1 as script

        view = View(runs("table1_camvid_small"), 5)
        # the share of the most frequent class needs the images themselves
        return {"table1": [script.table(view, 0.0429), script.details(view)]}
    if name == "minesweeper":
        import minesweeper as script

        return {name: [script.table(View(runs("minesweeper_small"), 3))]}
    if name == "graphs":
        import graph_classification as script

        return {
            f"graphs_{data.lower()}": [
                script.table(View(runs(f"graphs_{data}_small"), 10))
            ]
            for data in ("MUTAG", "PROTEINS")
        }
    if name == "shortest_paths":
        import shortest_paths as script

        view, sizes = View(runs("shortest_paths_small"), 3), script.SIZES
        return {name: [script.table(view, sizes), script.counts(view, sizes)]}
    import chains as script

    view = View(runs("chains"), 3)
    return {name: [script.table(view, [10, 20, 50, 100, 200, 500])]}


@pytest.mark.parametrize(
    "name", ["table1", "minesweeper", "graphs", "shortest_paths", "chains"]
)
def test_the_page_has_the_tables_of_the_kept_runs(name):
    from operator_runs import rst

    for file, tables in tables_of(name).items():
        page = (ROOT / "docs" / "source" / f"{file}.inc").read_text()
        assert page.count(".. list-table::") == len(tables)
        for rows in tables:
            assert rst(rows) in page


def test_table1s_choices_are_those_of_its_search():
    import table1

    kept = runs("table1_camvid_small")
    for kind in table1.KINDS:
        for conv in table1.CONVS:
            best = table1.chosen(kept, kind, conv, table1.TRIALS)
            for seed in range(5):
                assert kept[f"{kind} {conv} seed {seed}"]["options"] == best
