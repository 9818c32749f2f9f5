"""From tokens back to an image."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from ..engine.methods.base import check_count


class DenseReadout(nn.Module):
    r"""Patch tokens to an image: a linear map of each token to the pixels of
    its patch. The third part of a tuple (embed, operator, readout) for a
    model that is to return images.

    Tokens in front of those of the patches (class token, registers) are
    dropped. Patches are in the order of rows, as all vision transformers
    have them.

    Args:
        dim: d, features a token.
        patch: P, pixels along the side of a patch.
        channels: C of the image.
        image_size: pixels along its side, or (H, W); multiples of P.

    Shapes:
        - **input:** ``[B, n, d]``, n at least :math:`HW/P^2`
        - **output:** ``[B, C, H, W]``

    Raises:
        ValueError: a size is out of range or does not fit.
        TypeError: a size is no integer.
    """

    def __init__(
        self,
        dim: int,
        patch: int,
        channels: int,
        image_size: int | tuple[int, int],
    ):
        super().__init__()
        self.size = check_image(image_size, patch)
        check_count("dim", dim)
        check_count("channels", channels)
        self.patch = patch
        self.num_patches = (self.size[0] // patch) * (self.size[1] // patch)
        self.linear = nn.Linear(dim, channels * patch**2)

    def forward(self, tokens: Tensor) -> Tensor:
        dim, least = self.linear.in_features, self.num_patches
        if tokens.dim() != 3 or tokens.size(-1) != dim:
            raise ValueError(
                f"tokens must be of shape [B, n, {dim}], got "
                f"{list(tokens.shape)}"
            )
        if tokens.size(1) < least:
            raise ValueError(
                f"tokens must be at least the {least} of the patches, got "
                f"{tokens.size(1)}"
            )
        patches = self.linear(tokens[:, tokens.size(1) - least :])
        return F.fold(patches.mT, self.size, self.patch, stride=self.patch)

    def extra_repr(self) -> str:
        return f"patch={self.patch}, image_size={self.size}"


def check_image(
    image_size: int | tuple[int, int], patch: int
) -> tuple[int, int]:
    """(H, W), which patches divide."""
    check_count("patch", patch)
    size = image_size
    if not isinstance(size, tuple):
        size = (size, size)
    if len(size) != 2:
        raise ValueError(
            f"image_size must be an integer or (H, W), got {image_size}"
        )
    for side in size:
        check_count("image_size", side)
        if side % patch:
            raise ValueError(
                f"image_size must be a multiple of patch={patch}, got "
                f"{image_size}"
            )
    return size
