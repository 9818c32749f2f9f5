"""Arguments of jacobi_generate: errors that name them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..engine.methods.base import as_int, check_count
from ..engine.solve import check_on_failure
from .guesses import INITS

# of a generation_config, for a callable
FIELDS = (
    "do_sample",
    "temperature",
    "top_k",
    "top_p",
    "max_new_tokens",
    "eos_token_id",
    "pad_token_id",
)


def check_text(input_ids: Any, attention_mask: Any) -> None:
    if not isinstance(input_ids, Tensor):
        raise TypeError(
            "input_ids must be a long tensor [B, P], got "
            f"{type(input_ids).__name__}"
        )
    if input_ids.dim() != 2 or input_ids.dtype not in (torch.long, torch.int):
        raise ValueError(
            "input_ids must be a long tensor [B, P], got "
            f"{input_ids.dtype} {list(input_ids.shape)}"
        )
    if not input_ids.numel():
        raise ValueError(
            "input_ids must hold a text and a token, for what is first cannot "
            f"follow from anything; got {list(input_ids.shape)}"
        )
    if attention_mask is None:
        return
    if not isinstance(attention_mask, Tensor):
        raise TypeError(
            "attention_mask must be a Tensor [B, P], got "
            f"{type(attention_mask).__name__}"
        )
    if attention_mask.dim() != 2 or len(attention_mask) != len(input_ids):
        raise ValueError(
            f"attention_mask must be {list(input_ids.shape)} like input_ids, "
            f"got {list(attention_mask.shape)}"
        )


def check_options(
    synced_gpus: Any,
    init: Any,
    generator: Any,
    streamer: Any,
    generation_config: Any,
    on_failure: Any,
) -> None:
    if synced_gpus:
        raise ValueError(
            "synced_gpus must be False: the number of calls depends on the "
            "text, so processes that share a model would wait for each other"
        )
    if init not in INITS:
        raise ValueError(f"init must be one of {INITS}, got {init!r}")
    if not isinstance(generator, torch.Generator | None):
        raise TypeError(
            f"generator must be a torch.Generator, got {generator!r}"
        )
    for method in ("put", "end"):
        if streamer is not None and not callable(
            getattr(streamer, method, None)
        ):
            raise TypeError(
                "streamer must have the methods put and end, as those of "
                f"transformers, got {streamer!r}"
            )
    if generation_config is not None and not any(
        hasattr(generation_config, name) for name in FIELDS
    ):
        raise TypeError(
            "generation_config must have fields such as "
            f"{', '.join(FIELDS)}, got {generation_config!r}"
        )
    check_on_failure(on_failure)


def optional_count(name: str, value: Any, least: int) -> int | None:
    return None if value is None else check_count(name, value, least)


def tokens(name: str, value: Any) -> list[int] | None:
    """Of an int, or several in a list, tuple, Tensor or array."""
    if value is None:
        return None
    given = value.tolist() if hasattr(value, "tolist") else value
    given = given if isinstance(given, list | tuple) else [given]
    try:
        found = [as_int(name, one) for one in given]
    except TypeError:
        found = []
    if not found:
        raise TypeError(
            f"{name} must be an int or a list of them, got {value!r}"
        )
    if min(found) < 0:
        raise ValueError(f"{name} must be at least 0, got {value!r}")
    return found


def several(name: str, value: Any) -> list:
    """None, one callable, or several."""
    if value is None:
        return []
    given = value if isinstance(value, list | tuple) else [value]
    for one in given:
        if not callable(one):
            raise TypeError(
                f"{name} must be a callable or a list of them, got {one!r}"
            )
    return list(given)
