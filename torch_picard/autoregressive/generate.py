"""Decoding by Jacobi's iteration."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ..engine.methods.base import check_count
from ..engine.solution import Solution
from .checks import (
    check_options,
    check_text,
    optional_count,
    several,
    tokens,
)
from .choice import Choice
from .decode import Decoder
from .guesses import Guesses
from .request import Request, plain, prepared
from .stopping import Stop


@torch.no_grad()
def jacobi_generate(
    model: Any,
    input_ids: Tensor,
    max_new_tokens: int | None = None,
    *,
    block_size: int = 16,
    eos_token_id: int | list[int] | Tensor | None = None,
    pad_token_id: int | None = None,
    return_solution: bool = False,
    logits_processor: Any = None,
    stopping_criteria: Any = None,
    generation_config: Any = None,
    synced_gpus: bool = False,
    streamer: Any = None,
    init: str = "lookahead",
    generator: torch.Generator | None = None,
    on_failure: str = "warn",
    **model_kwargs: Any,
) -> Any:
    r"""Decode several tokens in a call of the model, with the same text.

    .. math::

       x_i = c_i(f(x_{<i})), \qquad i = 1, \dots, N

    The text is the fixed point of all these equations at once: f gives the
    logits and c_i chooses, greedily or with random numbers that are fixed
    beforehand. A round evaluates ``block_size`` positions behind the settled
    text, on guesses. The first of them is right, since what is before it is;
    so is each one whose predecessors were guessed right. So N rounds are
    enough, and fewer where guesses are right.

    Args:
        model: a language model of transformers, decoder only; or a callable
            that maps tokens, long [B, n], to logits [B, n, V], those at i
            being for token i+1 and depending on tokens up to i only.
        input_ids: the prompts, long [B, P], P >= 1, padded on the left.
        max_new_tokens: N; wins over ``generation_config``.
        block_size: positions of a round; 1 is sequential decoding.
        eos_token_id: ends a text.
        pad_token_id: fills a text that ended before others. (default: the
            first of ``eos_token_id``)
        return_solution: also return the :class:`Solution`.
        logits_processor: (ids [B, n], scores [B, V]) -> scores, or a list of
            such, as in transformers: functions of these two alone.
        stopping_criteria: (ids [B, n], scores) -> bool [B], or a list of
            such, asked after every settled token, with ``None`` for the
            scores.
        generation_config: of transformers. For a callable, the fields
            do_sample, temperature, top_k, top_p, max_new_tokens, eos_token_id
            and pad_token_id count.
        synced_gpus: must be False: processes need different numbers of calls.
        streamer: is given every token when it is settled.
        init: what positions that enter the window are guessed to be:
            ``"repeat"`` the token before; ``"prompt_lookup"`` what followed
            the last tokens earlier in the text; ``"lookahead"`` that, or what
            followed them in former rounds. The text is the same.
        generator: of the numbers for sampling. (default: torch's own)
        on_failure: ``"warn"``, ``"raise"`` or ``"ignore"``, where a text
            meets logits that are not finite.
        model_kwargs: ``attention_mask`` [B, P], ``position_ids``,
            ``past_key_values`` and ``use_cache``, as in transformers; a cache
            that is passed can be continued after texts of one row.

    Returns:
        ids, long [B, P+n], n <= N, as ``generate`` returns them; with
        ``return_solution`` (ids, :class:`Solution`). There ``rounds`` is the
        number of calls of the model, ``iterations`` [B] that of each text,
        ``evaluations`` the number of positions evaluated (each text's in
        ``info``, as are its ``"positions"``, tokens settled). Distances are
        Kullback-Leibler divergences of a position's distribution from that of
        the round before (before its first: from the uniform one), in nats:
        ``residual_history`` [K, B] the largest in a round's window,
        ``info["residual_per_position"]`` [B, N] when a token was settled.
        ``residual`` is that of the returned text: 0 where it is settled. A
        text is CONVERGED when it is settled to its end, NONFINITE where it
        ran into logits that are not finite (padded from there), STOPPED when
        the time was up.

    Raises:
        ValueError: an argument is out of range, or the cache cannot be
            cropped.
        TypeError: an argument has the wrong type, or is one that this
            function does not know.

    As ``model.generate(..., custom_generate=jacobi_generate)`` it gives the
    text of ``generate``, in float32 at least: other sizes of a matrix product
    round differently, which in half precision can turn an argmax.

    Source: Song et al. 2021, arXiv:2002.03629; Santilli et al. 2023,
    arXiv:2305.10427; Zappala et al. 2023 for the divergence.
    """
    check_text(input_ids, model_kwargs.get("attention_mask"))
    check_options(
        synced_gpus, init, generator, streamer, generation_config, on_failure
    )
    block_size = check_count("block_size", block_size)
    given = (
        optional_count("max_new_tokens", max_new_tokens, 1),
        tokens("eos_token_id", eos_token_id),
        optional_count("pad_token_id", pad_token_id, 0),
    )
    rules = (
        several("logits_processor", logits_processor),
        several("stopping_criteria", stopping_criteria),
        generation_config,
    )

    def decode(request: Request) -> tuple[Tensor, Solution]:
        return _decode(
            request, block_size, init, generator, return_solution, streamer
        )

    if hasattr(generation_config, "_pad_token_tensor"):
        # generate has called, and has prepared everything
        request = prepared(model, input_ids, *given, *rules, model_kwargs)
        ids, solution = decode(request)
    elif isinstance(model, nn.Module) and hasattr(
        model, "prepare_inputs_for_generation"
    ):
        ids, solution = _through_generate(
            model, input_ids, *given, *rules, model_kwargs, decode, streamer
        )
    else:
        request = plain(model, input_ids, *given, *rules, model_kwargs)
        if streamer is not None:
            streamer.put(input_ids.cpu())
        ids, solution = decode(request)
    solution.value = ids = ids.to(input_ids.device)
    solution.report(on_failure, stacklevel=3)
    return (ids, solution) if return_solution else ids


def _decode(
    request: Request,
    block_size: int,
    init: str,
    generator: torch.Generator | None,
    measure: bool,
    streamer: Any,
) -> tuple[Tensor, Solution]:
    prompt, rows = request.prompt, len(request.prompt)
    decoder = Decoder(
        request.model,
        Choice(
            request.processors,
            rows,
            prompt.size(1),
            request.do_sample,
            generator,
        ),
        Stop(request.eos, request.criteria, request.clocks, rows),
        Guesses(init, prompt, request.mask),
        prompt,
        request.new,
        block_size,
        request.filler,
        measure,
        streamer,
        request.device,
    )
    return decoder.run()


def _through_generate(
    model: Any,
    input_ids: Tensor,
    max_new_tokens: int | None,
    eos_token_id: list[int] | None,
    pad_token_id: int | None,
    logits_processor: list[Callable],
    stopping_criteria: list[Callable],
    generation_config: Any,
    model_kwargs: dict[str, Any],
    decode: Callable[[Request], tuple[Tensor, Solution]],
    streamer: Any,
) -> tuple[Tensor, Solution]:
    """transformers' own preparation: processors, criteria, cache, mask."""
    try:
        from transformers import Cache, GenerationConfig
    except ImportError:
        raise ImportError(
            "a model with prepare_inputs_for_generation needs transformers: "
            "pip install torch-picard[transformers]"
        ) from None

    cache = model_kwargs.get("past_key_values")
    for name, value, kind in (
        ("generation_config", generation_config, GenerationConfig),
        ("past_key_values", cache, Cache),
    ):
        if value is not None and not isinstance(value, kind):
            raise TypeError(
                f"{name} must be a {kind.__name__} of transformers, got "
                f"{type(value).__name__}"
            )
    found = []

    def custom(
        model: Any,
        input_ids: Tensor,
        logits_processor: Any,
        stopping_criteria: Any,
        generation_config: Any,
        **rest: Any,
    ) -> Tensor:
        # generate would hand no streamer on to here
        if streamer is not None:
            streamer.put(input_ids.cpu())
        rules = (logits_processor, stopping_criteria, generation_config)
        request = prepared(model, input_ids, None, None, None, *rules, rest)
        found.append(decode(request))
        return found[0][0]

    named = {
        "max_new_tokens": max_new_tokens,
        "eos_token_id": eos_token_id,
        "pad_token_id": pad_token_id,
        "logits_processor": logits_processor,
        "stopping_criteria": stopping_criteria,
    }
    model.generate(
        input_ids,
        generation_config=generation_config,
        custom_generate=custom,
        **{k: v for k, v in named.items() if v not in (None, [])},
        **model_kwargs,
    )
    return found[0]
