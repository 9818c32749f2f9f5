"""The models of Table 4, its tables, and that a second run trains nothing."""

import sys

import pytest
import torch

TINY = {
    "resolution": 8, "stride": 2, "train": 6, "test": 3, "embed_dim": 8,
    "steps": 2, "batch": 2, "t_end": 0.1,
}  # fmt: skip


@pytest.fixture
def script(monkeypatch, tmp_path):
    import table4_anie as table4

    monkeypatch.setitem(table4.SCALES, "small", TINY)

    def run(*options):
        line = [
            "table4", "--seeds", 2, "--workers", 1, "--out", tmp_path,
            *options,
        ]  # fmt: skip
        monkeypatch.setattr(sys, "argv", [str(part) for part in line])
        table4.main()

    return table4, run


@pytest.mark.slow
def test_tables_and_picture_and_a_second_run_trains_nothing(
    script, tmp_path, capsys, monkeypatch
):
    table4, run = script
    monkeypatch.setattr(table4, "SIZES", {"1H1B": (1, 1), "2H2B": (2, 2)})
    for name in ("ITERATIONS", "CONTROLLED", "TESTED"):
        monkeypatch.setattr(table4, name, (1, 4))
    run("--write", tmp_path / "docs")
    out = capsys.readouterr().out
    for row in (
        "1H1B", "2H2B", "1H1B, paper", "literal, f only to start",
        "certified (L2 attention)", "mean field", "persistence",
    ):  # fmt: skip
        assert f"\n{row} " in out
    written = (tmp_path / "docs" / "table4.inc").read_text()
    assert written.count(".. list-table::") == 4
    assert (tmp_path / "docs" / "table4.png").stat().st_size > 1000
    monkeypatch.setattr(table4, "run", None)
    run()
    again = capsys.readouterr().out
    assert again.partition("Trained")[0] == out.partition("Trained")[0]


def test_the_mean_field_scores_one(script, tmp_path):
    """On the flows it is the mean of; the points are those of the grid."""
    table4, _ = script
    f, y, _, _, points = table4.flows(TINY, tmp_path, "cpu")
    assert float(y.square().mean()) == pytest.approx(1.0, rel=0.1)
    assert y.mean(0).abs().max() < 1e-5
    torch.testing.assert_close(f[..., 0], f[..., -1])
    assert points.shape == (16, 2)
    assert points[1].tolist() == [0.0, 0.25]


def test_the_controls_are_what_they_are_called(script):
    table4, _ = script
    torch.manual_seed(0)
    f, coords = torch.randn(2, 9, table4.FRAMES), torch.rand(9, 2)

    def build(variant, depth=3):
        return table4.build("1H1B", variant, depth, TINY, 9)

    literal = build("literal")
    y = f
    for _ in range(3):
        y = 0.5 * y + 0.5 * (y + literal.anie.integral(y, coords))
    torch.testing.assert_close(literal(f, coords, 3), y)

    injected = build("injected")
    untied = build("untied")
    assert table4.number_of(untied) == 3 * table4.number_of(injected)
    for step in untied.steps:
        step.load_state_dict(injected.anie.state_dict())
    torch.testing.assert_close(
        untied(f, coords, 3), injected(f, coords, 3), rtol=1e-4, atol=1e-5
    )
    assert build("certified").anie.certificate(9).contracts
    upstream = build("upstream").anie
    _, solution = upstream(f, coords, max_iter=3, return_solution=True)
    assert solution.evaluations == 4
