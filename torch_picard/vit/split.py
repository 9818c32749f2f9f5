"""A vision transformer as embed, operator and readout.

Models are recognised by their attributes; no host library is imported.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, NamedTuple

from torch import Tensor, nn


class Split(NamedTuple):
    """``readout(operator(embed(x)))`` is the host's own output.

    Attributes:
        embed: the model's input -> tokens [B, n, d].
        operator: tokens -> tokens of the same shape.
        readout: tokens -> the model's output.
    """

    embed: Callable[[Any], Tensor]
    operator: Callable[[Tensor], Tensor]
    readout: Callable[[Tensor], Any]


def split(model: Any) -> Split:
    """Finds the part of a vision transformer that can be iterated.

    Known are the classes of vit-pytorch with ``to_patch_embedding`` and
    ``transformer`` (ViT, SimpleViT, those for small datasets, parallel, 3-D),
    timm's VisionTransformer (the blocks and the norm behind them), ViTModel
    and ViTForImageClassification of transformers (encoder and layernorm; a
    ViTModel reads out its last hidden state), and
    :class:`torch.nn.TransformerEncoder`.

    Args:
        model: the host, or a tuple (embed, operator, readout), which is
            returned as it is. Parts of a host know whose parameters they
            use, also in a tuple with parts of another kind.

    Raises:
        TypeError: the model is none of these.
        ValueError: the model is one that cannot be split, and why.
    """
    if isinstance(model, tuple):
        return _given(model)
    if not isinstance(model, nn.Module):
        raise TypeError(
            "model must be a Module or a tuple (embed, operator, readout), "
            f"got {type(model).__name__}"
        )
    for has, build in _FAMILIES:
        if all(hasattr(model, name) for name in has):
            return build(model)
    if isinstance(model, nn.TransformerEncoder):
        return Split(_same, model, _same)
    raise TypeError(
        f"model: {type(model).__name__} is no vision transformer that is "
        "known (vit-pytorch, timm, transformers, torch.nn.TransformerEncoder)"
        "; pass a tuple (embed, operator, readout) of callables"
    )


def _given(parts: tuple) -> Split:
    if len(parts) != 3 or not all(callable(part) for part in parts):
        raise TypeError(
            "model must be a Module or a tuple of three callables (embed, "
            f"operator, readout), got {parts!r}"
        )
    return Split(*parts)


def _same(x: Any) -> Any:
    return x


class _Part:
    """What a host does with ``x`` somewhere inside: a function of both, in a
    form that copies and pickles go along with.

    Attributes:
        host: the module whose parameters are used.
    """

    def __init__(self, host: nn.Module, function: Callable[[Any, Any], Any]):
        self.host, self.function = host, function

    def __call__(self, x: Any) -> Any:
        return self.function(self.host, x)


class _Embed:
    """What the host does before it calls its operator: its own forward, up
    to there. So position embeddings and extra tokens are the host's in every
    version of it."""

    def __init__(self, host: nn.Module, operator: nn.Module):
        self.host, self.operator = host, operator

    def __call__(self, x: Any) -> Tensor:
        here = threading.get_ident()

        def stop(module: nn.Module, args: tuple) -> None:
            if threading.get_ident() == here:
                raise _Reached(args[0])

        handle = self.operator.register_forward_pre_hook(stop)
        try:
            self.host(x)
        except _Reached as reached:
            return reached.tokens
        finally:
            handle.remove()
        raise ValueError(
            f"model: {type(self.host).__name__} did not call "
            f"{type(self.operator).__name__}, its transformer, as a module"
        )


def owner_of(part: Any) -> nn.Module | None:
    """The module whose parameters a part uses, as far as is known."""
    if isinstance(part, (_Part, _Embed)):
        return part.host
    return part if isinstance(part, nn.Module) else None


class _Reached(Exception):
    def __init__(self, tokens: Tensor):
        super().__init__()
        self.tokens = tokens


# -- vit-pytorch --------------------------------------------------------------


def _vit_pytorch(model: Any) -> Split:
    transformer = model.transformer
    readout = _Part(model, _vit_pytorch_readout)
    return Split(_Embed(model, transformer), transformer, readout)


def _vit_pytorch_readout(model: Any, x: Tensor) -> Any:
    head = getattr(model, "mlp_head", None)
    head = getattr(model, "linear_head", None) if head is None else head
    if head is None:
        return x
    mean = getattr(model, "pool", "mean") == "mean"
    x = x.mean(dim=1) if mean else x[:, 0]
    return head(getattr(model, "to_latent", _same)(x))


# -- timm ---------------------------------------------------------------------


def _timm(model: Any) -> Split:
    if getattr(model, "grad_checkpointing", False):
        raise ValueError(
            "model has grad_checkpointing set, which calls its blocks one by "
            "one; call set_grad_checkpointing(False), and use "
            "Unrolled(checkpoint=True) or Implicit() instead"
        )
    return Split(
        _Embed(model, model.blocks),
        _Part(model, _timm_operator),
        _Part(model, _timm_readout),
    )


def _timm_operator(model: Any, x: Tensor) -> Tensor:
    return model.norm(model.blocks(x))


def _timm_readout(model: Any, x: Tensor) -> Tensor:
    return model.forward_head(x)


# -- transformers -------------------------------------------------------------


def _transformers(model: Any) -> Split:
    if not hasattr(model, "encoder") and not hasattr(model, "layers"):
        raise TypeError(
            f"model: {type(model).__name__} has embeddings and a layernorm, "
            "but neither encoder nor layers"
        )
    operator = _Part(model, _transformers_operator)
    return Split(model.embeddings, operator, _same)


def _transformers_operator(model: Any, x: Tensor) -> Tensor:
    if hasattr(model, "encoder"):
        x = _tokens(model.encoder(x))
    else:  # later versions
        for layer in model.layers:
            x = _tokens(layer(x))
    return model.layernorm(x)


def _transformers_classifier(model: Any) -> Split:
    inner = _transformers(model.vit)
    readout = _Part(model, _transformers_readout)
    return Split(inner.embed, inner.operator, readout)


def _transformers_readout(model: Any, x: Tensor) -> Tensor:
    return model.classifier(x[:, 0])


def _tokens(output: Any) -> Tensor:
    """A tensor, a tuple or a ModelOutput, by version."""
    if isinstance(output, Tensor):
        return output
    hidden = getattr(output, "last_hidden_state", None)
    return output[0] if hidden is None else hidden


_FAMILIES: list[tuple[tuple[str, ...], Callable[[Any], Split]]] = [
    (("to_patch_embedding", "transformer"), _vit_pytorch),
    (("patch_embed", "blocks", "norm", "forward_head"), _timm),
    (("vit", "classifier"), _transformers_classifier),
    (("embeddings", "layernorm"), _transformers),
]
