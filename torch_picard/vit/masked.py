"""Masked images, completed by iteration: the model of Table 3."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ..engine.gradients import Gradient
from ..engine.methods import Method
from ..engine.methods.base import check_count
from .dense import DenseReadout, check_image
from .picard_vit import PicardViT


class MaskedPicardViT(PicardViT):
    r"""The encoder-decoder that the paper iterates on masked images:

    .. math::

       x_{k+1} = \alpha x_k + (1-\alpha)\, T(x_k)

    x_0 is the masked image, T the whole transformer, and the loss is on the
    last iterate. There is no mask token: a hidden pixel is a black one. The
    defaults are the paper's sizes.

    Args:
        image_size: pixels along the side of the image, or (H, W).
        channels: C of the image.
        patch: pixels along the side of a patch.
        dim: features a token.
        depth: layers of the encoder.
        decoder_depth: layers of the decoder.
        heads: of each attention, dividing ``dim``.
        dropout: in every layer.
        max_iter: evaluations of T allowed.
        alpha: weight of the *old* state, in [0, 1), or a Tensor; the paper's
            lambda. Belongs to ``method=None``. (default: 0.5)
        rtol, atol: tolerances; both 0: exactly ``max_iter`` iterations.
        gradient: how to differentiate. (default: :class:`Unrolled`)
        on_failure: ``"warn"``, ``"raise"`` or ``"ignore"``.
        method: another method of :func:`fixed_point`.

    Raises:
        ValueError: an option is out of range, or an image of another size.
        TypeError: an option is of the wrong type.

    Source: Zappala et al. 2023, Table 3.
    """

    def __init__(
        self,
        image_size: int | tuple[int, int] = 32,
        channels: int = 3,
        patch: int = 2,
        dim: int = 192,
        depth: int = 12,
        decoder_depth: int = 4,
        heads: int = 3,
        *,
        dropout: float = 0.0,
        max_iter: int = 3,
        alpha: float | Tensor | None = None,
        rtol: float = 0.0,
        atol: float = 0.0,
        gradient: Gradient | None = None,
        on_failure: str = "warn",
        method: Method | None = None,
    ):
        height, width = check_image(image_size, patch)
        for name, value in (
            ("channels", channels),
            ("dim", dim),
            ("depth", depth),
            ("decoder_depth", decoder_depth),
            ("heads", heads),
        ):
            check_count(name, value)
        if dim % heads:
            raise ValueError(
                f"dim must be a multiple of heads={heads}, got {dim}"
            )
        number = isinstance(dropout, (int, float))
        if not number or isinstance(dropout, bool):
            raise TypeError(f"dropout must be a number, got {dropout!r}")
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout must be in [0, 1), got {dropout}")

        def layers(count: int) -> list[nn.Module]:
            return [
                nn.TransformerEncoderLayer(
                    dim, heads, 4 * dim, dropout, "gelu",
                    batch_first=True, norm_first=True,
                )
                for _ in range(count)
            ] + [nn.LayerNorm(dim)]  # fmt: skip

        count = (height // patch) * (width // patch)
        embed = nn.Sequential(
            _Patches((channels, height, width), patch, dim),
            _Positions(count, dim),
        )
        operator = nn.Sequential(
            *layers(depth),
            nn.Linear(dim, dim),
            _Positions(count, dim),
            *layers(decoder_depth),
        )
        readout = DenseReadout(dim, patch, channels, (height, width))
        super().__init__(
            (embed, operator, readout),
            max_iter,
            alpha,
            inject=False,
            state="image",
            rtol=rtol,
            atol=atol,
            gradient=gradient,
            on_failure=on_failure,
            method=method,
        )

    def forward(
        self,
        x: Tensor,
        *,
        known: Tensor | None = None,
        max_iter: int | None = None,
        return_solution: bool = False,
    ) -> Any:
        """The last iterate; with ``return_solution`` also the
        :class:`Solution`.

        Args:
            x: masked images [B, C, H, W].
            known: bool, of a shape that goes with x, as :func:`patch_mask`
                gives it: T takes these pixels from x, in every iteration.
                (default: :obj:`None`, the paper's loop, which sees them at
                the start only)
            max_iter: instead of the one of the module.

        Raises:
            TypeError: known is not bool.
            ValueError: a shape does not fit.
        """
        _, operator, readout = self._begin(x)
        operator = _kept(operator, x, known)
        return self._run(operator, x, readout, max_iter, return_solution)

    def states(
        self,
        x: Tensor,
        *,
        known: Tensor | None = None,
        max_iter: int | None = None,
    ) -> list[Tensor]:
        """All iterates x_1, x_2, ..., for a loss on each of them, by plain
        smoothed iteration.

        Raises:
            ValueError: the module has another method than Picard, or a
                shape does not fit.
        """
        _, operator, readout = self._begin(x)
        operator = _kept(operator, x, known)
        return self._run_states(operator, x, readout, max_iter)


def _kept(
    operator: Callable[[Tensor], Tensor], x: Tensor, known: Tensor | None
) -> Callable[[Tensor], Tensor]:
    """With the known pixels from x."""
    if known is None:
        return operator
    if not isinstance(known, Tensor) or known.dtype != torch.bool:
        what = getattr(known, "dtype", type(known).__name__)
        raise TypeError(f"known must be a bool Tensor, got {what}")
    try:
        known = known.expand_as(x)
    except RuntimeError:
        raise ValueError(
            f"known must go with images {list(x.shape)}, got "
            f"{list(known.shape)}"
        ) from None
    return lambda y: torch.where(known, x, operator(y))


def patch_mask(
    num: int,
    image_size: int | tuple[int, int],
    patch: int = 1,
    ratio: float = 0.75,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Which pixels of masked images are known: of every image, ``ratio`` of
    its patches (rounded) are hidden, drawn at random.

    Args:
        num: B, how many.
        image_size: pixels along the side of the image, or (H, W).
        patch: pixels along the side of a patch; 1 hides single pixels.
        ratio: of the patches that are hidden, in [0, 1].
        generator: on the CPU; where the random numbers come from.

    Returns:
        [B, 1, H, W] bool, True where a pixel is known: ``image * mask`` is
        the masked image.

    Raises:
        ValueError: an argument is out of range.
    """
    check_count("num", num)
    height, width = check_image(image_size, patch)
    if not 0 <= ratio <= 1:
        raise ValueError(f"ratio must be in [0, 1], got {ratio}")
    rows, columns = height // patch, width // patch
    hidden = round(ratio * rows * columns)
    order = torch.rand(num, rows * columns, generator=generator).argsort(1)
    mask = (order.argsort(1) >= hidden).view(num, 1, rows, columns)
    return mask.repeat_interleave(patch, 2).repeat_interleave(patch, 3)


class _Patches(nn.Module):
    """Images [B, C, H, W] to tokens [B, n, dim]."""

    def __init__(self, shape: tuple[int, int, int], patch: int, dim: int):
        super().__init__()
        self.shape = shape
        self.project = nn.Conv2d(shape[0], dim, patch, patch)

    def forward(self, x: Tensor) -> Tensor:
        if x.dim() != 4 or tuple(x.shape[1:]) != self.shape:
            raise ValueError(
                f"x must be of shape [B, {', '.join(map(str, self.shape))}], "
                f"got {list(x.shape)}"
            )
        return self.project(x).flatten(2).mT


class _Positions(nn.Module):
    """Adds a learned vector to each token, at first about as large as the
    tokens: a small one takes long to be heard."""

    def __init__(self, count: int, dim: int):
        super().__init__()
        self.vectors = nn.Parameter(0.3 * torch.randn(count, dim))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.vectors
