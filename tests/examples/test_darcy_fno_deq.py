"""The Darcy script: a table of all models, kept runs, a search."""

import json
import sys

import pytest
import torch


@pytest.fixture
def call(monkeypatch, tmp_path, capsys):
    """Runs the script on a few small generated samples."""
    import darcy_fno_deq

    def few(root, **options):
        return Darcy(
            root, source="generated", fine=32, progress=False,
            **(options | {"num_samples": options.get("num_samples") or 5}),
        )  # fmt: skip

    Darcy = darcy_fno_deq.Darcy
    monkeypatch.setattr(darcy_fno_deq, "Darcy", few)
    monkeypatch.setattr(darcy_fno_deq, "VALIDATION", 10)
    monkeypatch.setattr(darcy_fno_deq, "LATER", [1, 8])
    monkeypatch.setattr(darcy_fno_deq, "SEARCHED", (1e-3, 1e-2))

    def run(*arguments):
        monkeypatch.setattr(
            sys, "argv",
            ["darcy_fno_deq.py", "--scale", "tiny", "--samples", "40",
             "--workers", "1", "--out", str(tmp_path / "out"), *arguments],
        )  # fmt: skip
        darcy_fno_deq.main()
        return capsys.readouterr().out

    return run


@pytest.mark.slow
def test_a_table_a_picture_and_runs_that_are_kept(call, tmp_path):
    first = call("--seeds", "1", "--write", str(tmp_path / "docs"))
    for name in ("FNO-DEQ", "equal parameters", "untied", "single pass",
                 "zero", "mean field", "finite volumes"):  # fmt: skip
        assert name in first
    assert "converged" in first
    kept = tmp_path / "out" / "darcy-tiny.json"
    runs = json.loads(kept.read_text())["results"]
    assert len(runs) == 5
    zero = next(x for x in first.splitlines() if x.startswith("zero"))
    assert zero.split().count("1.0000") == 2
    assert (tmp_path / "docs" / "darcy.png").stat().st_size > 1000
    inc = (tmp_path / "docs" / "darcy.inc").read_text()
    assert ".. list-table::" in inc and "FNO-DEQ" in inc
    # a run that is lost is made again, and is the same
    lost = runs.pop("FNO-DEQ seed 0")
    content = json.loads(kept.read_text())
    content["results"] = runs
    kept.write_text(json.dumps(content))
    stamp = runs["FNO seed 0"]
    call("--seeds", "1")
    again = json.loads(kept.read_text())["results"]
    assert again["FNO seed 0"] == stamp
    assert again["FNO-DEQ seed 0"]["errors"] == lost["errors"]
    with pytest.raises(SystemExit, match="choose another"):
        call("--samples", "20")


def test_the_search_sees_no_test_data(call, tmp_path, monkeypatch):
    import darcy_fno_deq

    seen = []
    evaluate = darcy_fno_deq.evaluate

    def watched(net, fields):
        seen.append({s: len(a) for s, (a, _) in fields.test.items()})
        return evaluate(net, fields)

    monkeypatch.setattr(darcy_fno_deq, "evaluate", watched)
    out = call("--search")
    assert len(seen) == 8 == out.count("single") * 4
    assert all(sizes == {16: 10} for sizes in seen)


def test_finite_volumes_on_pixels():
    import darcy_fno_deq

    found = darcy_fno_deq.on_pixels(torch.ones(1, 32, 32))
    assert found.shape == (1, 32, 32)
    # the last square reaches up to 1, so the middle is where it should be
    assert float(found.max()) == pytest.approx(0.0736713, rel=2e-3)
    assert (found[0, 0] == 0).all()
    torch.testing.assert_close(found, found.mT)


def test_equal_parameters_are_equal():
    import darcy_fno_deq

    for name in ("small", "full"):
        scale = darcy_fno_deq.SCALES[name]
        ours, other = (
            sum(p.numel() for p in darcy_fno_deq.build(m, scale).parameters())
            for m in ("FNO-DEQ", "FNO")
        )
        assert ours / other == pytest.approx(1.0, abs=0.05)
