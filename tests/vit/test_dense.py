"""Tokens to an image."""

import pytest
import torch
from hosts import DIM, SIZE, ViT, images
from torch import nn

from torch_picard.vit import DenseReadout, PicardViT, split


def identity(channels, patch, size):
    """A readout whose tokens are the pixels of their patches."""
    dim = channels * patch**2
    readout = DenseReadout(dim, patch, channels, size)
    nn.init.eye_(readout.linear.weight)
    nn.init.zeros_(readout.linear.bias)
    return readout


@pytest.mark.parametrize("patch", [1, 2, 4])
@pytest.mark.parametrize("size", [8, (4, 12)])
@pytest.mark.parametrize("prefix", [0, 1, 5])
def test_patches_go_back_to_where_they_came_from(patch, size, prefix):
    torch.manual_seed(0)
    height, width = size if isinstance(size, tuple) else (size, size)
    x = torch.randn(3, 2, height, width)
    # by hand, in the order of rows
    rows = x.unfold(2, patch, patch).unfold(3, patch, patch)
    tokens = rows.permute(0, 2, 3, 1, 4, 5).flatten(3).flatten(1, 2)
    front = torch.full((3, prefix, tokens.size(-1)), torch.nan)
    readout = identity(2, patch, size)
    out = readout(torch.cat([front, tokens], 1))
    torch.testing.assert_close(out, x)


def test_a_host_that_classifies_returns_images():
    torch.manual_seed(0)
    embed, operator, _ = split(ViT())
    readout = DenseReadout(DIM, 2, 1, SIZE)
    vit = PicardViT((embed, operator, readout), 2, rtol=0.0)
    out = vit(images())
    assert out.shape == (2, 1, SIZE, SIZE)
    out.square().sum().backward()
    assert readout.linear.weight.grad.any()
    assert all(
        p.grad is not None
        for name, p in embed.host.named_parameters()
        if "mlp_head" not in name
    )


@pytest.mark.parametrize(
    "build, error, name",
    [
        (lambda: DenseReadout(0, 2, 1, 8), ValueError, "dim"),
        (lambda: DenseReadout(4, 2.0, 1, 8), TypeError, "patch"),
        (lambda: DenseReadout(4, 2, 0, 8), ValueError, "channels"),
        (lambda: DenseReadout(4, 3, 1, 8), ValueError, "multiple of patch=3"),
        (lambda: DenseReadout(4, 2, 1, (8, 8, 8)), ValueError, "image_size"),
        (lambda: DenseReadout(4, 2, 1, 8)(torch.ones(2, 16, 5)), ValueError,
         r"\[B, n, 4\]"),
        (lambda: DenseReadout(4, 2, 1, 8)(torch.ones(2, 15, 4)), ValueError,
         "16 of the patches, got 15"),
    ],
)  # fmt: skip
def test_wrong_arguments(build, error, name):
    with pytest.raises(error, match=name):
        build()
