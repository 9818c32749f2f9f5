"""Runs that are kept, and the models and data of Table 2."""

import json
import sys

import pytest
import torch
from torch import nn

TINY = {
    "resolution": 8, "patch": 4, "given": [1, 2, 3, 4], "asked": 5,
    "train": 12, "test": 4, "dim": 8, "heads": 2, "batch": 4, "steps": 1,
    "lr": 1e-3, "alpha": 0.0, "viscosity": 1e-3,
}  # fmt: skip


@pytest.fixture
def script(monkeypatch, tmp_path):
    """The example at a size of nothing; all files go to tmp_path."""
    import table2_navier_stokes_vit as table2

    monkeypatch.setitem(table2.SCALES, "small", TINY)
    monkeypatch.setattr(table2, "MODELS", ["ViT", "ViT3D"])
    monkeypatch.setattr(table2, "TESTED", [1, 2, 3])

    def run(*options):
        line = [
            "table2", "--seeds", 2, "--workers", 1, "--out", tmp_path,
            "--data", tmp_path / "data", *options,
        ]  # fmt: skip
        monkeypatch.setattr(sys, "argv", [str(part) for part in line])
        table2.main()

    return table2, run


@pytest.mark.slow
def test_tables_and_picture_and_a_second_run_trains_nothing(
    script, tmp_path, capsys, monkeypatch
):
    table2, run = script
    run("--write", tmp_path / "docs")
    out = capsys.readouterr().out
    for row in [*table2.MODELS, "mean field", "persistence", "zero"]:
        assert f"\n{row} " in out
    for row in ["N blocks with weights of their own", "literal, N = 3",
                "ViT, contractive"]:  # fmt: skip
        assert f"\n{row} " in out
    assert "± 0.0000" not in out  # two seeds are two runs
    written = (tmp_path / "docs" / "table2.inc").read_text()
    assert written.count(".. list-table::") == 4
    assert (tmp_path / "docs" / "table2.png").stat().st_size > 1000

    monkeypatch.setattr(table2, "run", None)
    run()
    assert capsys.readouterr().out.startswith(out.partition("Picture")[0])
    monkeypatch.setitem(table2.SCALES, "small", TINY | {"steps": 2})
    with pytest.raises(SystemExit, match="choose another --out"):
        run()


def test_an_interrupted_run_keeps_what_it_has(tmp_path):
    from operator_runs import Runs

    path = tmp_path / "runs.json"

    def work(number):
        if number == 2:
            raise KeyboardInterrupt
        return {"value": number}

    cells = {str(number): (number,) for number in range(4)}
    with pytest.raises(KeyboardInterrupt):
        Runs(path, {"a": 1}).complete(cells, work)
    kept = json.loads(path.read_text())["results"]
    assert {n: r["value"] for n, r in kept.items()} == {"0": 0, "1": 1}
    again = Runs(path, {"a": 1})
    seen = []

    def rest(number):
        seen.append(number)
        return {"value": number}

    again.complete(cells, rest)
    assert seen == [2, 3] and len(again.results) == 4


def twice(number):
    return {"value": 2 * number, "threads": torch.get_num_threads()}


@pytest.mark.slow
def test_processes_give_the_same(tmp_path):
    from operator_runs import Runs

    runs = Runs(tmp_path / "runs.json", {})
    runs.complete({str(n): (n,) for n in range(5)}, twice, workers=2)
    found = {n: (r["value"], r["threads"]) for n, r in runs.results.items()}
    assert found == {str(n): (2 * n, 1) for n in range(5)}


def test_fit_goes_down_and_ends_where_the_rate_is_nothing():
    from operator_runs import fit

    torch.manual_seed(0)
    net = nn.Linear(3, 1)
    x = torch.randn(64, 3)
    y = x.sum(1, keepdim=True)

    def loss():
        return (net(x) - y).square().mean()

    before = float(loss().detach())
    assert fit(net, loss, 200, 0.1) < 1e-3 * before
    assert not net.training


def test_targets_are_the_frame_that_is_asked_for(tmp_path):
    import table2_navier_stokes_vit as table2

    from torch_picard.datasets import NavierStokes2D

    data = table2.Flows(TINY, tmp_path, "cpu")
    flows = NavierStokes2D(
        tmp_path, 16, resolution=8, t_end=5.0, frames=5, progress=False
    )
    for i in (0, 11):
        assert torch.equal(data.x[i], flows[i][1][:4])
        assert torch.equal(data.y[i, 0], flows[i][1][4])
    assert torch.equal(data.y_test[-1, 0], flows[15][1][4])
    trivial = data.trivial()
    error = (data.y_test - data.y.mean(0)).square().mean()
    assert trivial["mean field"] == pytest.approx(float(error))
    flat = nn.Module()
    flat.forward = lambda x: torch.zeros(len(x), 1, 8, 8)
    out = data.predict(flat, data.x_test)
    assert torch.equal(out, data.mean.expand_as(out))


@pytest.mark.parametrize("model", ["ViT", "ViTsmall", "ViTparallel", "ViT3D"])
def test_models_and_their_variants(model):
    import table2_navier_stokes_vit as table2
    from operator_runs import number_of

    x = torch.randn(2, 4, 8, 8)

    def make(variant, n):
        torch.manual_seed(0)
        return table2.build(model, variant, n, TINY).eval()

    injected, literal = make("injected", 3), make("literal", 3)
    assert injected(x).shape == (2, 1, 8, 8)
    embed, operator, readout = literal.parts
    y = embed(x)
    torch.testing.assert_close(literal(x, max_iter=1), readout(operator(y)))
    thrice = operator(operator(operator(y)))
    torch.testing.assert_close(literal(x), readout(thrice))
    torch.testing.assert_close(
        injected(x, max_iter=2), readout(operator(operator(y) + y) + y)
    )
    # as many evaluations, with weights of their own
    untied = make("untied", 3)
    _, solution = untied(x, return_solution=True)
    assert solution.evaluations == 1
    block = number_of(operator[0])
    assert number_of(untied) == number_of(literal) + 2 * block
    # frames matter, and where they are
    assert not torch.allclose(literal(x), literal(x.flip(1)))
    assert not torch.allclose(literal(x), literal(x.transpose(2, 3)))


def test_the_contractive_variant_is_certified_in_training():
    import table2_navier_stokes_vit as table2
    from operator_runs import fit

    from torch_picard.contraction import lipschitz_bound

    torch.manual_seed(0)
    net = table2.build("ViT", "contractive", 2, TINY)
    x, y = torch.randn(8, 4, 8, 8), torch.randn(8, 1, 8, 8)
    fit(net, lambda: (net(x) - y).square().mean(), 5, 0.1)
    certificate = lipschitz_bound(net.parts.operator, num_nodes=4)
    assert certificate.contracts
    assert certificate.constant <= 0.9 * (1 + 1e-6)


def test_shifted_patches_see_their_neighbours():
    import table2_navier_stokes_vit as table2

    torch.manual_seed(0)
    embed = table2.Patches(TINY, shifted=True)
    plain = table2.Patches(TINY)
    x = torch.zeros(1, 4, 8, 8)
    other = x.clone()
    other[0, 0, 4, 4] = 1.0  # the first pixel of the last patch
    moved = (embed(other) - embed(x)).abs().amax(-1)[0] > 1e-6
    assert moved.tolist() == [True, True, True, True]
    moved = (plain(other) - plain(x)).abs().amax(-1)[0] > 1e-6
    assert moved.tolist() == [False, False, False, True]
