"""A vision transformer as embed, operator and readout.

Models are recognised by their attributes; no host library is imported.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from torch import Tensor, nn

from .hosts import Call, Host, Part


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
    ``transformer`` (ViT, SimpleViT, those for small datasets, parallel, 3-D,
    and more), timm's VisionTransformer (the blocks and the norm behind them),
    ViTModel and ViTForImageClassification of transformers (encoder and
    layernorm; a ViTModel reads out its last hidden state), and
    :class:`torch.nn.TransformerEncoder`; one with ``batch_first=False`` sees
    [n, B, d], while the tokens of its parts are [B, n, d].

    On its first input :class:`PicardViT` compares the parts together with
    the host, and refuses one that they do not make up.

    Args:
        model: the host, or a tuple (embed, operator, readout), which is
            returned as it is. Parts of a host know whose parameters they
            use, also in a tuple with parts of another kind. The readout of
            a host is its own forward behind the transformer, on an input of
            the shape that embed saw last.

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
            return _parts_of(build(model))
    if isinstance(model, nn.TransformerEncoder):
        return _parts_of(_Encoder(model, model))
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


def _parts_of(host: Host) -> Split:
    roles = ("embed", "operator", "readout")
    return Split(*(Part(host, role) for role in roles))


def owner_of(part: Any) -> nn.Module | None:
    """The module whose parameters a part uses, as far as is known."""
    if isinstance(part, Part):
        return part.host
    part = getattr(part, "__self__", part)  # of a bound method
    return part if isinstance(part, nn.Module) else None


class _Timm(Host):
    """The norm behind the blocks is iterated, too; forward_head reads out."""

    def stack(self) -> tuple[nn.Module, ...]:
        model: Any = self.model
        return (model.blocks, model.norm)

    def apply(self, y: Tensor, call: Call) -> Any:
        model: Any = self.model
        return model.norm(super().apply(y, call))

    def read(self, y: Tensor, x: Any) -> Any:
        model: Any = self.model
        return model.forward_head(y)

    def readout(self, y: Tensor) -> Any:
        return self.read(y, None)


def _timm(model: Any) -> Host:
    if getattr(model, "grad_checkpointing", False):
        raise ValueError(
            "model has grad_checkpointing set, which calls its blocks one by "
            "one; call set_grad_checkpointing(False), and use "
            "Unrolled(checkpoint=True) or Implicit() instead"
        )
    return _Timm(model, model.blocks)


class _Transformers(Host):
    """ViTModel: embeddings, then encoder (in later versions: layers) and
    layernorm. The classifier has one inside."""

    def __init__(self, model: nn.Module, owner: nn.Module):
        super().__init__(model, owner, owner)
        self.swapped = False

    def stack(self) -> tuple[nn.Module, ...]:
        inner: Any = self.owner
        return (
            getattr(inner, "encoder", None) or inner.layers,
            inner.layernorm,
        )

    def reach(self, x: Any) -> Call:
        inner: Any = self.owner
        return Call(inner.embeddings(x))

    def apply(self, y: Tensor, call: Call) -> Any:
        inner: Any = self.owner
        if hasattr(inner, "encoder"):
            y = _tokens(inner.encoder(y))
        else:
            for layer in inner.layers:
                y = _tokens(layer(y))
        return inner.layernorm(y)

    def read(self, y: Tensor, x: Any) -> Any:
        model: Any = self.model
        return y if model is self.owner else model.classifier(y[:, 0])

    def readout(self, y: Tensor) -> Any:
        return self.read(y, None)

    def output(self, x: Any) -> Any:
        found = self.model(x)
        logits = getattr(found, "logits", None)
        return _tokens(found) if logits is None else logits


def _transformers(model: Any) -> Host:
    if not hasattr(model, "encoder") and not hasattr(model, "layers"):
        raise TypeError(
            f"model: {type(model).__name__} has embeddings and a layernorm, "
            "but neither encoder nor layers"
        )
    return _Transformers(model, model)


def _classifier(model: Any) -> Host:
    return _Transformers(model, _transformers(model.vit).owner)


def _tokens(output: Any) -> Tensor:
    """A tensor, a tuple or a ModelOutput, by version."""
    if isinstance(output, Tensor):
        return output
    hidden = getattr(output, "last_hidden_state", None)
    return output[0] if hidden is None else hidden


class _Encoder(Host):
    """torch.nn.TransformerEncoder, itself the transformer."""

    def reach(self, x: Any) -> Call:
        return Call(self._turned(x))

    def read(self, y: Tensor, x: Any) -> Any:
        return self._turned(y)

    def readout(self, y: Tensor) -> Any:
        return self._turned(y)


_FAMILIES: list[tuple[tuple[str, ...], Callable[[Any], Host]]] = [
    (
        ("to_patch_embedding", "transformer"),
        lambda model: Host(model, model.transformer),
    ),
    (("patch_embed", "blocks", "norm", "forward_head"), _timm),
    (("vit", "classifier"), _classifier),
    (("embeddings", "layernorm"), _transformers),
]
