"""Which token a position takes, given its logits and the text before it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

# Of transformers: those whose result does not depend on the text before.
_POINTWISE = {
    "EpsilonLogitsWarper",
    "EtaLogitsWarper",
    "InfNanRemoveLogitsProcessor",
    "LogitNormalization",
    "MinPLogitsWarper",
    "SuppressTokensLogitsProcessor",
    "TemperatureLogitsWarper",
    "TopKLogitsWarper",
    "TopPLogitsWarper",
    "TypicalLogitsWarper",
}

# Those that count calls, or have a model with a cache of their own.
_STATEFUL = {
    "SynthIDTextWatermarkLogitsProcessor",
    "UnbatchedClassifierFreeGuidanceLogitsProcessor",
}


class Choice:
    """The largest score; for sampling, of the scores plus Gumbel noise, which
    is a draw from their softmax (Gumbel 1954; Maddison et al. 2014,
    arXiv:1411.0030). The noise belongs to row, position and token, so that
    the choice is a function of the text before it, and one that changes
    seldom when the logits change little.

    Args:
        processors: callables (ids [B, n], scores [B, V]) -> scores.
        rows: B.
        prompt: P, length of the text before the first token.
        do_sample: whether to sample.
        generator: of the noise. (default: torch's own)
    """

    def __init__(
        self,
        processors: Sequence[Callable[[Tensor, Tensor], Tensor]],
        rows: int,
        prompt: int,
        do_sample: bool,
        generator: torch.Generator | None,
    ):
        self._processors, self._rows = list(processors), rows
        self._prompt = prompt
        names = {type(p).__name__ for p in processors}
        if found := names & _STATEFUL:
            raise ValueError(
                "logits_processor must be functions of the text and the "
                f"scores alone, which {', '.join(sorted(found))} is not"
            )
        self._pointwise = names <= _POINTWISE
        self._keys: Tensor | None = None
        if do_sample:
            device = "cpu" if generator is None else generator.device
            self._keys = torch.randint(
                2**62, (rows,), generator=generator, device=device
            ).cpu()

    def __call__(
        self, logits: Tensor, text: Tensor, rows: Tensor, place: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Tokens [R, W] and whether their scores are finite, on the CPU.

        Args:
            logits: [R, W, V].
            text: [B, n], of all rows.
            rows: [R], which of them go on.
            place: [R, W], the length of the text before each position.
        """
        scores = logits.float()
        finite = ~(scores.isnan().any(-1) | scores.amax(-1).isinf())
        if self._processors:
            scores = self._process(scores, text, rows, place)
            finite &= scores.amax(-1).isfinite()
        if self._keys is not None:
            new = place - self._prompt
            key = mix(self._keys[rows][:, None] + _ODD * new)
            scores = scores + gumbel(key.to(scores.device), scores.size(-1))
        tokens = scores.argmax(-1)
        both = torch.stack([tokens, finite.long()]).cpu()
        return both[0], both[1].bool()

    def _process(
        self, scores: Tensor, text: Tensor, rows: Tensor, place: Tensor
    ) -> Tensor:
        """A processor is called as sequential decoding would call it: with
        texts of one length, and with all rows, which it may count."""
        if self._pointwise:
            flat = scores.flatten(0, 1)
            ids = text.new_zeros(len(flat), 1).to(scores.device)
            return self._all(ids, flat).view_as(scores)
        text, out = text.to(scores.device), scores.clone()
        for length in place[place < text.size(1)].unique().tolist():
            row, column = (place == length).nonzero(as_tuple=True)
            here = scores.new_zeros(self._rows, scores.size(-1))
            here[rows[row]] = scores[row, column]
            done = self._all(text[:, :length], here)
            out[row, column] = done[rows[row]]
        return out

    def _all(self, ids: Tensor, scores: Tensor) -> Tensor:
        shape = scores.shape
        for processor in self._processors:
            scores = processor(ids, scores)
            if getattr(scores, "shape", None) != shape:
                raise ValueError(
                    "logits_processor must return scores of the shape "
                    f"{list(shape)} that it is given, but "
                    f"{type(processor).__name__} has returned "
                    f"{getattr(scores, 'shape', type(scores).__name__)}"
                )
        return scores


_ODD = 0x9E3779B97F4A7C15 - 2**64


def mix(x: Tensor) -> Tensor:
    """splitmix64: neighbouring integers become unrelated ones (Steele, Lea
    and Flood 2014). Long, any shape; overflow wraps."""
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        x = (x ^ _right(x, shift)) * (factor - 2**64)
    return x ^ _right(x, 31)


def _right(x: Tensor, bits: int) -> Tensor:
    """As if x were unsigned."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def gumbel(key: Tensor, count: int) -> Tensor:
    """Gumbel noise [..., count] that belongs to the keys, long [...]."""
    token = torch.arange(1, count + 1, device=key.device)
    bits = _right(mix(key[..., None] + _ODD * token), 11)
    uniform = (bits.double() + 0.5) * 2.0**-53
    return -(-uniform.log()).log().float()


def warpers(config: Any) -> list[Any]:
    """Of a generation_config, for a callable: temperature, top_k, top_p."""
    wanted = [
        name
        for name, plain in (("temperature", 1.0), ("top_k", 0), ("top_p", 1.0))
        if getattr(config, name, None) not in (None, plain)
    ]
    if not wanted:
        return []
    try:
        from transformers.generation import logits_process as made
    except ImportError:
        raise ImportError(
            f"{' and '.join(wanted)} of generation_config are transformers' "
            "own: pip install torch-picard[transformers], or pass a "
            "logits_processor"
        ) from None

    found: list[Any] = []
    if getattr(config, "temperature", None) not in (None, 1.0):
        found.append(made.TemperatureLogitsWarper(config.temperature))
    if getattr(config, "top_k", None):
        found.append(made.TopKLogitsWarper(config.top_k))
    if getattr(config, "top_p", None) not in (None, 1.0):
        found.append(made.TopPLogitsWarper(config.top_p))
    return found
