"""How a round asks its model: with a cache, or with whole texts.

Both have texts ``text`` [R, P+N] (the prompt, what is settled, guesses), the
number ``at`` [R] of settled tokens behind the prompt, and give the logits of
the next ``width`` positions, [R, width, V]. R rows are still going on.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


class Whole:
    """Without a cache: every round goes through the texts from their start.

    Args:
        forward: tokens [R, n], their mask and positions [R, n] -> logits.
        mask: [B, P] bool, the prompts' tokens that are none of the padding.
    """

    def __init__(
        self,
        forward: Callable[[Tensor, Tensor, Tensor], Tensor],
        mask: Tensor,
        positions: Tensor,
    ):
        self._forward = forward
        self._mask, self._positions = mask, positions

    def logits(self, text: Tensor, at: Tensor, width: int) -> Tensor:
        prompt = self._mask.size(1)
        # the last token is evaluated, but nothing follows from it
        end = min(prompt + int(at.max()) + width - 1, text.size(1) - 1)
        new = end - prompt
        mask = append(self._mask, self._mask.new_ones(len(text), new))
        step = torch.arange(1, new + 1, device=mask.device)
        positions = append(self._positions, self._positions[:, -1:] + step)
        logits = self._forward(text[:, :end], mask, positions)
        index = at[:, None] + torch.arange(prompt - 1, prompt - 1 + width)
        index = index.clamp(max=end - 1).to(logits.device)
        row = torch.arange(len(text), device=logits.device)[:, None]
        return logits[row, index]

    def settle(self, moved: Tensor) -> None:
        pass

    def keep(self, index: Tensor) -> None:
        """Only these rows go on."""
        index = index.to(self._mask.device)
        self._mask, self._positions = self._mask[index], self._positions[index]


class Cached:
    """With the cache of transformers. A round feeds the last settled token
    and the guesses behind it; the entries of wrong guesses are cropped.

    Rows settle different numbers of tokens. Those that settled fewer are
    moved to the right, over their wrong guesses, so that all end together
    and what opens on the left is padding. Thus a row's entries stay next to
    each other, which sliding windows rely on.
    """

    def __init__(
        self, model: Any, cache: Any, mask: Tensor, positions: Tensor
    ):
        self._forward, self.cache = Forward(model), cache
        self._mask = mask
        self._prefill: Tensor | None = positions
        self._next = positions[:, -1:]  # of the last settled token
        self._last: Tensor | None = None
        self._width = 0
        if hasattr(cache, "activate_past_recording"):
            cache.activate_past_recording()

    def logits(self, text: Tensor, at: Tensor, width: int) -> Tensor:
        device = self._mask.device
        step = torch.arange(width, device=device)
        positions = self._next + step
        if self._last is None:
            new = text.size(1) - self._mask.size(1)
            self._last = self._next + max(new - 1, 0)
        # what is fed behind a row's last token, for another row's sake
        positions = torch.minimum(positions, self._last)
        if self._prefill is not None:
            prompt, past = self._mask.size(1), self.cache.get_seq_length()
            tokens = text[:, past : prompt + width - 1]
            positions = append(self._prefill[:, past:-1], positions)
            new = width - 1
            self._prefill, self._prompt = None, prompt
        else:
            index = at[:, None] + torch.arange(width) + self._prompt - 1
            tokens = text.gather(1, index.clamp(max=text.size(1) - 1))
            new = width
        self._mask = append(self._mask, self._mask.new_ones(len(text), new))
        self._width = width
        tokens = tokens.to(device)
        return self._forward(tokens, self._mask, positions, width, self.cache)

    def settle(self, moved: Tensor) -> None:
        """So many [R] of the tokens that were fed are right."""
        most = int(moved.max())
        shift = (most - moved).to(self._mask.device)
        if bool(shift.any()):
            _shift(self.cache, shift)
            self._mask = _moved(self._mask, shift, 1)
            column = torch.arange(self._mask.size(1), device=shift.device)
            self._mask &= column >= shift[:, None]
        crop(self.cache, self._width - most)
        self._mask = self._mask[:, : self._mask.size(1) - self._width + most]
        self._next = self._next + moved.to(self._next)[:, None]

    def keep(self, index: Tensor) -> None:
        """Only these rows go on."""
        index = index.to(self._mask.device)
        self.cache.batch_select_indices(index)
        self._mask, self._next = self._mask[index], self._next[index]
        if self._last is not None:
            self._last = self._last[index]


def append(a: Tensor, b: Tensor) -> Tensor:
    return torch.cat([a, b], 1)


class Forward:
    """A transformers model, as a function to the logits of the last ``keep``
    of its tokens."""

    def __init__(self, model: Any):
        self._model = model
        self._known = frozenset(inspect.signature(model.forward).parameters)

    def __call__(
        self,
        tokens: Tensor,
        mask: Tensor,
        positions: Tensor,
        keep: int,
        cache: Any = None,
    ) -> Tensor:
        options: dict[str, Any] = {"use_cache": cache is not None}
        if cache is not None:
            options["past_key_values"] = cache
        if "position_ids" in self._known:
            options["position_ids"] = positions
        if "logits_to_keep" in self._known:
            options["logits_to_keep"] = keep
        # no mask is faster than one that says nothing
        given = None if bool(mask.all()) else mask.long()
        out = self._model(input_ids=tokens, attention_mask=given, **options)
        return out.logits[:, -keep:]


def crop(cache: Any, count: int) -> None:
    """Remove the last ``count`` entries. A negative argument has always meant
    this. None to remove: since 5.23 that tells the layers that forget to do
    so; before, 0 was the length to keep."""
    known = inspect.signature(cache.crop).parameters
    if not count and "tokens_to_remove" not in known:
        return
    try:
        if getattr(cache, "is_croppable", True):
            cache.crop(-count)
            return
    except ValueError as found:  # windows that slide, before 5.23
        raise not_croppable(cache) from found
    raise not_croppable(cache)


def not_croppable(cache: Any) -> ValueError:
    return ValueError(
        f"past_key_values: a {type(cache).__name__} of this model cannot be "
        "cropped; call with use_cache=False"
    )


_SHIFTED = ("DynamicLayer", "DynamicSlidingWindowLayer")


def _shift(cache: Any, shift: Tensor) -> None:
    """Move the rows' entries by ``shift`` [R] to the right."""
    if not hasattr(cache, "layers"):  # transformers before 4.54
        for kept in (cache.key_cache, cache.value_cache):
            kept[:] = [_moved(states, shift, 2) for states in kept]
        return
    for layer in cache.layers:
        if type(layer).__name__ not in _SHIFTED:
            raise ValueError(
                "past_key_values: with more than one row, its layers must be "
                f"{' or '.join(_SHIFTED)}, got {type(layer).__name__}; call "
                "row by row, or with use_cache=False"
            )
        if getattr(layer, "is_initialized", True):
            layer.keys = _moved(layer.keys, shift, 2)
            layer.values = _moved(layer.values, shift, 2)


def _moved(states: Tensor, shift: Tensor, dim: int) -> Tensor:
    """[R, ...], each row moved along ``dim``; the first entry fills."""
    length = torch.arange(states.size(dim), device=states.device)
    index = (length - shift.to(states.device)[:, None]).clamp(min=0)
    shape = [1] * states.dim()
    shape[0], shape[dim] = index.shape
    return states.gather(dim, index.view(shape).expand_as(states))
