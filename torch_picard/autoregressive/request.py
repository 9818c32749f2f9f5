"""What is asked for, in one form."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from .choice import warpers
from .models import Cached, Forward, Whole, not_croppable


@dataclass
class Request:
    """B prompts of P tokens, on the CPU, and what to make of them."""

    model: Whole | Cached
    prompt: Tensor  # [B, P]
    mask: Tensor  # [B, P] bool
    new: int
    device: torch.device
    eos: Tensor | None = None
    pad: int | None = None
    do_sample: bool = False
    processors: list[Callable] = field(default_factory=list)
    criteria: list[Callable] = field(default_factory=list)
    clocks: list[Callable] = field(default_factory=list)

    @property
    def filler(self) -> int:
        if self.pad is not None:
            return self.pad
        return 0 if self.eos is None else int(self.eos[0])


def plain(
    model: Any,
    input_ids: Tensor,
    new: int | None,
    eos: Any,
    pad: int | None,
    processors: list[Callable],
    criteria: list[Callable],
    config: Any,
    model_kwargs: dict[str, Any],
) -> Request:
    """For a callable, which knows no padding."""
    if not callable(model):
        raise TypeError(
            "model must be a language model of transformers (pip install "
            "torch-picard[transformers]) or a callable from tokens to logits, "
            f"got {type(model).__name__}"
        )
    mask = model_kwargs.pop("attention_mask", None)
    if mask is not None:
        _check_length(mask.size(1), input_ids)
        if not bool((mask != 0).all()):
            raise ValueError(
                "attention_mask must be all ones for a callable, which does "
                "not see it: decode texts of different length one by one"
            )
    _refuse(model_kwargs, "attention_mask")
    new = _first(new, getattr(config, "max_new_tokens", None))
    if new is None:
        raise ValueError(
            "max_new_tokens must be given for a callable, got None"
        )
    eos = _first(eos, getattr(config, "eos_token_id", None))
    pad = _first(pad, getattr(config, "pad_token_id", None))
    for name, off in _OF_MODELS.items():
        if getattr(config, name, None) not in (None, off):
            raise ValueError(
                f"generation_config.{name} is for models of transformers; "
                "give a callable a logits_processor or stopping_criteria"
            )
    sample = bool(getattr(config, "do_sample", False))
    used = torch.ones_like(input_ids, dtype=torch.bool)

    def forward(tokens: Tensor, mask: Tensor, positions: Tensor) -> Tensor:
        return _checked(model(tokens.to(input_ids.device)), tokens)

    found = Request(
        Whole(forward, used, used.long().cumsum(1) - 1),
        input_ids.long().cpu(),
        used.cpu(),
        new,
        input_ids.device,
        _ids(eos),
        pad,
        sample,
        [*processors, *(warpers(config) if sample else [])],
    )
    _add_criteria(found, criteria, own_eos=eos is not None)
    return found


def prepared(
    model: Any,
    input_ids: Tensor,
    new: int | None,
    eos: Any,
    pad: int | None,
    processors: list[Callable],
    criteria: list[Callable],
    config: Any,
    model_kwargs: dict[str, Any],
) -> Request:
    """For a model of transformers: what its ``generate`` hands on. Of the
    arguments that are given to this function as well, generate knows nothing.
    """
    if model.config.is_encoder_decoder:
        raise ValueError(
            f"model must be decoder only, got {type(model).__name__}"
        )
    for name, why in _REFUSED.items():
        if (value := getattr(config, name, None)) not in (None, False, 0):
            if not (name == "num_beams" and value == 1):
                raise ValueError(f"{name}={value!r} is not for this: {why}")
    device = model.device
    ids = input_ids.long().to(device)
    mask = model_kwargs.pop("attention_mask", None)
    positions = model_kwargs.pop("position_ids", None)
    cache = model_kwargs.pop("past_key_values", None)
    use_cache = model_kwargs.pop("use_cache", True)
    _refuse(
        model_kwargs,
        "attention_mask, position_ids, past_key_values, use_cache",
    )
    known = getattr(config, "_mask_length", ids.size(1))
    _check_length(known if mask is None else mask.size(-1), ids)
    if positions is not None:
        _check_positions(positions, ids)
    if mask is None or bool((mask == 1).all()):
        mask, own = torch.ones_like(ids), _ids(eos)
        padding = ids == (-1 if pad is None else pad)
        # as generate would have found it, had it seen pad_token_id
        if bool(padding.any()) and (own is None or pad not in own):
            mask, positions = ~padding, None
    pad = _first(pad, config.pad_token_id)
    mask = mask.to(device) != 0
    if positions is None:
        positions = (mask.long().cumsum(1) - 1).clamp(min=0)
    scorer: Whole | Cached
    if use_cache:
        if cache is None:
            from transformers import DynamicCache

            cache = DynamicCache(config=model.config)
        parts = [cache, *getattr(cache, "layers", [])]
        if not all(hasattr(part, "crop") for part in parts):
            raise not_croppable(cache)
        _check_rows(cache, ids.size(0))
        scorer = Cached(model, cache, mask, positions.expand_as(ids))
    else:
        whole = Forward(model)

        def forward(tokens: Tensor, mask: Tensor, positions: Tensor) -> Tensor:
            return whole(tokens.to(device), mask, positions, tokens.size(1))

        scorer = Whole(forward, mask, positions.expand_as(ids))
    found = Request(
        scorer, ids.cpu(), mask.cpu(), 0, device, _ids(eos), pad,
        bool(config.do_sample), processors,
    )  # fmt: skip
    longest = _add_criteria(found, criteria, own_eos=eos is not None)
    found.new = _first(new, longest - ids.size(1))
    if new is not None or eos is not None:
        _adapt(found, config, eos)
    return found


_REFUSED = {
    "num_beams": "one text a row is decoded",
    "prompt_lookup_num_tokens": "say init='prompt_lookup'",
    "prefill_chunk_size": "the prompt is evaluated at once",
    "return_dict_in_generate": "return_solution=True returns what is known",
    "output_scores": "return_solution=True returns what is known",
    "output_logits": "return_solution=True returns what is known",
    "output_attentions": "return_solution=True returns what is known",
    "output_hidden_states": "return_solution=True returns what is known",
}

# what would change the text, and is not applied to that of a callable
_OF_MODELS = {
    "repetition_penalty": 1.0,
    "no_repeat_ngram_size": 0,
    "min_new_tokens": 0,
    "min_length": 0,
    "min_p": 0,
    "typical_p": 1.0,
    "bad_words_ids": None,
    "suppress_tokens": None,
    "begin_suppress_tokens": None,
    "forced_bos_token_id": None,
    "forced_eos_token_id": None,
    "stop_strings": None,
    "max_time": None,
}

# generate adds them by itself; they say nothing here
_OF_GENERATE = ("logits_to_keep", "num_logits_to_keep", "cache_position")


def _refuse(model_kwargs: dict[str, Any], known: str) -> None:
    for name, value in model_kwargs.items():
        if value is not None and name not in _OF_GENERATE:
            raise TypeError(
                f"jacobi_generate got an argument {name!r}; of those for the "
                f"model it knows {known}"
            )


def _check_length(length: int, ids: Tensor) -> None:
    if length != ids.size(1):
        raise ValueError(
            f"attention_mask must be {list(ids.shape)} like input_ids, which "
            "hold the whole text, what past_key_values know included; its "
            f"length is {length}"
        )


def _check_positions(positions: Any, ids: Tensor) -> None:
    rows, length = ids.shape
    found = getattr(positions, "shape", type(positions).__name__)
    if found not in ((rows, length), (1, length)):
        raise ValueError(
            f"position_ids must be {list(ids.shape)} like input_ids, got "
            f"{found}"
        )


def _check_rows(cache: Any, rows: int) -> None:
    for layer in getattr(cache, "layers", []):
        keys = getattr(layer, "keys", None)
        if isinstance(keys, Tensor) and keys.dim() > 1 and keys.size(0):
            if keys.size(0) != rows:
                raise ValueError(
                    f"past_key_values hold {keys.size(0)} rows, input_ids "
                    f"{rows}: a cache is left with the texts that ended "
                    "last, so that of several rows cannot be continued"
                )


def _add_criteria(found: Request, criteria: list[Any], own_eos: bool) -> int:
    """Sort them; returns the greatest length that they allow. An EOS that
    was given replaces theirs."""
    longest = 2**62
    for criterion in criteria:
        name = type(criterion).__name__
        if name == "MaxLengthCriteria":
            longest = min(longest, criterion.max_length)
        elif name == "MaxTimeCriteria":
            found.clocks.append(criterion)
        elif hasattr(criterion, "eos_token_id"):
            if not own_eos:
                more = _ids(criterion.eos_token_id)
                both = [e for e in (found.eos, more) if e is not None]
                found.eos = torch.cat(both)
        else:
            found.criteria.append(criterion)
    found.new = min(found.new, longest - found.prompt.size(1))
    return longest


def _adapt(found: Request, config: Any, eos: Any) -> None:
    """Make the processors that were made without the arguments that generate
    did not see: they keep an EOS away at first, or put one at the end."""
    from transformers.generation import logits_process as made

    prompt, device = found.prompt.size(1), str(found.device)
    about: list[type] = [made.ForcedEOSTokenLogitsProcessor]
    if eos is not None:
        about.append(made.MinLengthLogitsProcessor)
        about.append(made.MinNewTokensLengthLogitsProcessor)
    found.processors = [
        p for p in found.processors if not isinstance(p, tuple(about))
    ]
    least = config.min_length or 0
    if config.min_new_tokens:
        least = prompt + config.min_new_tokens
    if least and eos is not None:
        ids = torch.as_tensor(eos).flatten().tolist()
        first = made.MinLengthLogitsProcessor(least, ids, device)
        found.processors.insert(0, first)
    if (last := config.forced_eos_token_id) is not None:
        found.processors.append(
            made.ForcedEOSTokenLogitsProcessor(
                prompt + found.new, last, device
            )
        )


def _first(*given: Any) -> Any:
    return next((v for v in given if v is not None), None)


def _ids(eos: Any) -> Tensor | None:
    if eos is None:
        return None
    return torch.as_tensor(eos, dtype=torch.long).cpu().flatten()


def _checked(out: Any, tokens: Tensor) -> Tensor:
    logits = getattr(out, "logits", out)
    if not isinstance(logits, Tensor):
        raise TypeError(
            f"model must return logits [B, n, V], got {type(out).__name__}"
        )
    if logits.dim() != 3 or logits.shape[:2] != tokens.shape:
        raise ValueError(
            f"model must return logits [B, n, V] for tokens [B, n] = "
            f"{list(tokens.shape)}, got {list(logits.shape)}"
        )
    return logits
