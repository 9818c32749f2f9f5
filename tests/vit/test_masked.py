"""The model of Table 3, and its masks."""

import pytest
import torch

from torch_picard import Anderson, Implicit, Status
from torch_picard.vit import MaskedPicardViT, PicardViT, patch_mask

SMALL = {
    "image_size": 8, "channels": 1, "dim": 12, "depth": 2,
    "decoder_depth": 1, "heads": 3,
}  # fmt: skip


def small(**options):
    torch.manual_seed(0)
    return MaskedPicardViT(**SMALL, **options)


def masked(num=2):
    rng = torch.Generator().manual_seed(1)
    known = patch_mask(num, 8, 2, generator=rng)
    return torch.rand(num, 1, 8, 8, generator=rng) * known, known


def test_the_loop_of_the_paper():
    model = small().eval()
    x, _ = masked()
    embed, operator, readout = model.parts
    with torch.no_grad():
        y = x
        for n in (1, 2, 3):
            y = 0.5 * readout(operator(embed(y))) + 0.5 * y
            torch.testing.assert_close(model(x, max_iter=n), y)
            torch.testing.assert_close(model.states(x)[n - 1], y)
    _, solution = model(x, return_solution=True)
    assert solution.evaluations == 3
    assert (solution.status == Status.MAX_ITER).all()


def test_the_paper_s_sizes_are_the_defaults():
    with torch.device("meta"):
        model = MaskedPicardViT()
    _, operator, _ = model.parts
    layers = [
        part for part in operator
        if isinstance(part, torch.nn.TransformerEncoderLayer)
    ]  # fmt: skip
    assert len(layers) == 12 + 4
    assert {layer.self_attn.num_heads for layer in layers} == {3}
    assert {layer.self_attn.embed_dim for layer in layers} == {192}
    x = torch.empty(1, 3, 32, 32, device="meta")
    assert model.parts.embed(x).shape == (1, 16 * 16, 192)
    assert isinstance(model, PicardViT) and model.state == "image"


def test_known_pixels_are_put_back():
    """P(y) = x where x is known: so is every iterate, whose other pixels
    are those of a loop by hand."""
    model = small().eval()
    x, known = masked()
    plain = model(x)
    assert not torch.allclose(plain[known], x[known])
    y = x
    for state in model.states(x, known=known):
        y = 0.5 * y + 0.5 * model(y, max_iter=1).mul(2).sub(y)
        y = torch.where(known, x, y)
        torch.testing.assert_close(state, y)
        assert torch.equal(state[known], x[known])
    torch.testing.assert_close(model(x, known=known), y)
    everything = torch.ones_like(known)
    torch.testing.assert_close(model(x, known=everything), x)


def test_training_learns_to_fill_in():
    """Images that are constant: the mean of the known pixels."""
    torch.manual_seed(0)
    model = small(max_iter=1)
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    losses = []
    for _ in range(30):
        y = torch.rand(16, 1, 1, 1).expand(-1, 1, 8, 8)
        loss = (model(y * patch_mask(16, 8)) - y).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert sum(losses[-5:]) / 5 < 0.25 * losses[0]
    assert all(p.grad is not None for p in model.parameters())


def test_solved_to_the_end_with_implicit_gradients():
    model = small(
        max_iter=200, rtol=1e-10, alpha=0.0, gradient=Implicit(rtol=1e-10)
    ).double()
    with torch.no_grad():  # so that T contracts
        model.parts.readout.linear.weight.mul_(0.05)
    x, known = masked()
    x = x.double()
    out, solution = model(x, known=known, return_solution=True)
    assert solution.converged.all() and solution.iterations.max() > 2
    (found,) = torch.autograd.grad(
        out.square().sum(), model.parts.readout.linear.bias
    )
    model.gradient = None
    (wanted,) = torch.autograd.grad(
        model(x, known=known).square().sum(), model.parts.readout.linear.bias
    )
    torch.testing.assert_close(found, wanted, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("patch", [1, 2, 4])
@pytest.mark.parametrize("ratio", [0.0, 0.25, 0.75, 1.0])
def test_masks_hide_their_share_in_whole_patches(patch, ratio):
    def rng():
        return torch.Generator().manual_seed(3)

    mask = patch_mask(50, (8, 16), patch, ratio, generator=rng())
    assert mask.shape == (50, 1, 8, 16) and mask.dtype == torch.bool
    share = mask.float().mean((1, 2, 3))
    assert (share == 1 - ratio).all()
    cells = mask.unfold(2, patch, patch).unfold(3, patch, patch).flatten(4)
    assert (cells.all(-1) == cells.any(-1)).all()
    again = patch_mask(50, (8, 16), patch, ratio, generator=rng())
    assert torch.equal(mask, again)
    if 0 < ratio < 1:
        assert len(mask.flatten(1).unique(dim=0)) > 20  # of at least 28


def test_every_patch_is_as_likely():
    rng = torch.Generator().manual_seed(0)
    hits = patch_mask(4000, 4, generator=rng).float().mean(0)
    # standard deviation .0068
    assert (hits - 0.25).abs().max() < 0.03


@pytest.mark.parametrize(
    "build, error, name",
    [
        (lambda: MaskedPicardViT(9), ValueError, "multiple of patch=2"),
        (lambda: MaskedPicardViT(heads=5), ValueError, "heads=5"),
        (lambda: MaskedPicardViT(depth=0), ValueError, "depth"),
        (lambda: MaskedPicardViT(dropout=1.0), ValueError, "dropout"),
        (lambda: small(alpha=1.0), ValueError, "alpha"),
        (lambda: small(alpha=0.5, method=Anderson()), ValueError, "alpha"),
        (lambda: small()(torch.ones(2, 1, 8, 4)), ValueError, "1, 8, 8"),
        (lambda: small()(masked()[0], known=masked()[0]), TypeError,
         "known must be a bool Tensor, got torch.float32"),
        (lambda: small()(masked()[0], known=torch.ones(3, 1, 8, 8) > 0),
         ValueError, "known must go with"),
        (lambda: small(method=Anderson()).states(masked()[0]), ValueError,
         "method"),
        (lambda: patch_mask(0, 8), ValueError, "num"),
        (lambda: patch_mask(2, 8, 3), ValueError, "image_size"),
        (lambda: patch_mask(2, 8, ratio=1.5), ValueError, "ratio"),
    ],
)  # fmt: skip
def test_wrong_arguments(build, error, name):
    with pytest.raises(error, match=name):
        build()
