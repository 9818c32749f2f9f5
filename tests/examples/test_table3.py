"""Masked images: data, variants, tables."""

import sys
import zipfile

import pytest
import torch

TINY = {
    "image_size": 8, "channels": 1, "train": 60, "test": 20, "patch": 4,
    "dim": 8, "depth": 1, "decoder_depth": 1, "heads": 2, "batch": 4,
    "steps": 1, "lr": 1e-3,
}  # fmt: skip


@pytest.fixture
def script(monkeypatch, tmp_path):
    import table3_masked_images as table3

    monkeypatch.setitem(table3.SCALES["small"], "digits", TINY)
    monkeypatch.setattr(table3, "TESTED", [1, 2, 3])

    def run(*options):
        line = [
            "table3", "--seeds", 2, "--workers", 1, "--out", tmp_path, *options
        ]  # fmt: skip
        monkeypatch.setattr(sys, "argv", [str(part) for part in line])
        table3.main()

    return table3, run


@pytest.mark.slow
def test_tables_and_grid_and_a_second_run_trains_nothing(
    script, tmp_path, capsys, monkeypatch
):
    table3, run = script
    run("--write", tmp_path / "docs")
    out = capsys.readouterr().out
    for row in ["paper, CIFAR-10", "the paper's loop", "black", "mean image",
                "known pixels put back", "known pixels put back, N = 3",
                "mean of the known pixels", "mean of those nearby",
                ]:  # fmt: skip
        assert f"\n{row} " in out
    written = (tmp_path / "docs" / "table3.inc").read_text()
    assert written.count(".. list-table::") == 4
    assert (tmp_path / "docs" / "table3.png").stat().st_size > 1000

    monkeypatch.setattr(table3, "run", None)
    run()
    assert capsys.readouterr().out.startswith(out.partition("Picture")[0])
    with pytest.raises(SystemExit, match="choose another --out"):
        run("--mask", 2)


def test_what_can_be_had_for_nothing():
    import table3_masked_images as table3

    found = table3.Images("digits", TINY, 2, "cpu")
    assert len(found.train) == 60 and len(found.test) == 20
    assert found.train.min() == 0 and found.train.max() == 1
    assert (found.known.float().mean((1, 2, 3)) == 0.25).all()
    trivial = found.trivial()
    y, known = found.test, found.known
    black = torch.where(known, 0.0, y).square().mean()
    assert trivial["black"] == pytest.approx(float(black))
    total = 0.0
    for image, mask in zip(y, known):
        gap = image[mask].mean() - image[~mask]
        total += float(gap.square().sum()) / image.numel()
    assert trivial["mean of the known pixels"] == pytest.approx(
        total / len(y), rel=1e-4
    )
    assert trivial["mean image"] < trivial["black"]
    overlap = (found.train[:, None] == y[None]).all((2, 3, 4)).sum()
    assert overlap == 0


def test_the_mean_of_those_nearby():
    import table3_masked_images as table3

    y = torch.rand(2, 3, 9, 9)
    known = torch.zeros(2, 1, 9, 9, dtype=torch.bool)
    known[0, :, 4, 4] = known[0, :, 4, 6] = True
    far = torch.rand(2, 3, 1, 1)
    out = table3.nearby(y, known, far, 1.5)
    torch.testing.assert_close(out[1], far[1].expand(-1, 9, 9))
    out, y = out[0], y[0]
    # half way between the two
    torch.testing.assert_close(
        out[..., 4, 5], (y[..., 4, 4] + y[..., 4, 6]) / 2
    )
    # weights by distance: 1 + 1 and 1 + 9 squared pixels away
    near, far = torch.exp(-torch.tensor([2.0, 10.0]) / 2 / 1.5**2)
    mean = (near * y[..., 4, 4] + far * y[..., 4, 6]) / (near + far)
    torch.testing.assert_close(out[..., 3, 3], mean)


def test_variants():
    import table3_masked_images as table3
    from operator_runs import number_of

    literal = table3.build("literal", 2, TINY)
    untied = table3.build("untied", 2, TINY)
    x = torch.rand(3, 1, 8, 8)
    _, one = untied(x, return_solution=True)
    _, two = literal(x, return_solution=True)
    assert (one.evaluations, two.evaluations) == (1, 2)
    layers = [
        part for part in literal.parts.operator
        if isinstance(part, torch.nn.TransformerEncoderLayer)
    ]  # fmt: skip
    extra = sum(number_of(layer) for layer in layers)
    assert number_of(untied) == number_of(literal) + extra


def test_evaluation_by_hand():
    import table3_masked_images as table3

    torch.manual_seed(0)
    found = table3.Images("digits", TINY, 1, "cpu")
    net = table3.build("literal", 2, TINY).eval()

    def complete(y, known, **options):
        return net(y * known, **options)

    with torch.no_grad():
        result = table3.evaluate(net, complete, found, "literal")
        x = found.test * found.known
        for m in table3.TESTED:
            error = (net(x, max_iter=m) - found.test).square()
            assert result["test"][str(m)] == pytest.approx(
                float(error.mean()), rel=1e-5
            )
        hidden = (net(x) - found.test).square()[~found.known].mean()
        assert result["hidden"] == pytest.approx(float(hidden), rel=1e-5)
        # alpha = 1/2: a step is half the residual
        step = net(x, max_iter=3) - net(x)
        residual = 2 * step.flatten(1).norm(dim=1)
        residual = residual / net(x).flatten(1).norm(dim=1)
        low, high = residual.sort().values[9:11].tolist()
        assert result["residual"] == pytest.approx((low + high) / 2, rel=1e-4)


def test_cifar10_is_read_from_its_archives(tmp_path, monkeypatch):
    import table3_masked_images as table3
    from PIL import Image

    folder = tmp_path / "cifar10-jpg"
    folder.mkdir()
    for part, count in [("train_some", 3), ("test", 2)]:
        with zipfile.ZipFile(folder / f"{part}.zip", "w") as archive:
            for i in range(count):
                colour = (200, 20 * i, 0)
                with archive.open(f"{part}/cat/{i}.jpg", "w") as file:
                    Image.new("RGB", (32, 32), colour).save(file, "JPEG")
    monkeypatch.setenv("TORCH_PICARD_DATA", str(tmp_path))
    train, test = table3.cifar10()
    assert train.shape == (3, 3, 32, 32) and test.shape == (2, 3, 32, 32)
    assert abs(float(train[2, 1].mean()) - 40 / 255) < 0.02

    monkeypatch.setenv("TORCH_PICARD_DATA", str(folder))
    monkeypatch.setitem(sys.modules, "torchvision", None)
    with pytest.raises(SystemExit, match="set TORCH_PICARD_DATA"):
        table3.cifar10()
