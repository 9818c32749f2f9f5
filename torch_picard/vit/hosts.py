"""Hosts, taken over by their own forward.

What a host does before and behind its transformer is the host's: its forward
is run, and the transformer's call goes elsewhere. So class tokens, registers,
positions and poolings are right in every version of it.
"""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn


class Call(NamedTuple):
    """A host's call of its transformer: tokens [B, n, d], and what else it
    gave."""

    tokens: Tensor
    args: tuple = ()
    kwargs: dict = {}  # noqa: RUF012


class Host:
    """A model with a transformer inside.

    Args:
        model: the whole.
        transformer: what is iterated.
        owner: the module whose parameters embed and operator use.
            (default: model)
    """

    def __init__(
        self,
        model: nn.Module,
        transformer: nn.Module,
        owner: nn.Module | None = None,
    ):
        self.model, self.transformer = model, transformer
        self.owner = model if owner is None else owner
        # torch.nn's encoders take [n, B, d] unless told otherwise
        self.swapped = _sequence_first(transformer)
        self.checked = False
        #: of the last input: shape without the batch, dtype, device
        self._like: tuple | None = None

    def stack(self) -> tuple[nn.Module, ...]:
        """What is iterated, module after module."""
        return (self.transformer,)

    # -- with an input ----------------------------------------------------

    def reach(self, x: Any) -> Call:
        """The call of the transformer for an input."""
        given = None
        with _instead(self.transformer, _stop):
            try:
                self.model(x)
            except _Reached as reached:
                given = reached.args
        if given is None:
            raise ValueError(
                f"model: {_name(self.model)} did not call "
                f"{_name(self.transformer)}, its transformer, as a module"
            )
        call = self._named(*given)
        if isinstance(x, Tensor):
            self._like = (x.shape[1:], x.dtype, x.device)
        return call

    def apply(self, y: Tensor, call: Call) -> Any:
        """The transformer, called as the host did."""
        z = self.transformer(self._turned(y), *call.args, **call.kwargs)
        return self._turned(z)

    def read(self, y: Tensor, x: Any) -> Any:
        """What the host makes of y, put in place of its transformer's
        output."""
        y = self._turned(y)
        with _instead(self.transformer, lambda *args, **kwargs: y):
            return self.model(x)

    def output(self, x: Any) -> Any:
        """What :meth:`read` gives after one application."""
        return self.model(x)

    # -- the parts by themselves ------------------------------------------

    def embed(self, x: Any) -> Tensor:
        call = self.reach(x)
        self.only_tokens(call)
        return call.tokens

    def only_tokens(self, call: Call) -> None:
        """
        Raises:
            ValueError: the host gives its transformer more than tokens.
        """
        if all(v is None for v in (*call.args, *call.kwargs.values())):
            return
        names = ", ".join(call.kwargs) or f"{len(call.args)} unnamed"
        raise ValueError(
            f"model: {_name(self.model)} gives its transformer more than "
            f"the tokens ({names}), which its parts by themselves do not "
            "have; use PicardViT(model)"
        )

    def operator(self, y: Tensor) -> Any:
        return self.apply(y, Call(y))

    def readout(self, y: Tensor) -> Any:
        if self._like is None:
            raise ValueError(
                f"model: {_name(self.model)} has not embedded an input yet, "
                "whose shape its readout may need: call embed first"
            )
        shape, dtype, device = self._like
        blank = torch.zeros(len(y), *shape, dtype=dtype, device=device)
        return self.read(y, blank)

    # -- is it what it looks like? ----------------------------------------

    @torch.compiler.disable(
        reason="a model is checked on its first input: call the module once "
        "before it is compiled as one graph"
    )
    def check(self, x: Any) -> None:
        """Once, on the first input: the parts together are the host. Not
        every model with these attributes is put together as they suggest.

        Raises:
            ValueError: they are not; names the class and the difference.
        """
        with _quiet(self.model):
            wanted = self.output(x)
        try:
            with _quiet(self.model):
                call = self.reach(x)
                found = self.read(self.apply(call.tokens, call), x)
        except Exception as error:
            raise ValueError(
                f"model: {_name(self.model)} cannot be split, for its parts "
                f"do not run one by one: {error}; pass a tuple (embed, "
                "operator, readout) of callables"
            ) from error
        off = _difference(found, wanted)
        if off:
            raise ValueError(
                f"model: {_name(self.model)} cannot be split: its parts "
                f"together give another output than itself ({off}), so "
                "something happens between them; pass a tuple (embed, "
                "operator, readout) of callables"
            )
        self.checked = True

    # -- helpers ----------------------------------------------------------

    def _turned(self, y: Any) -> Any:
        if not self.swapped or not isinstance(y, Tensor):
            return y
        return y.transpose(0, 1)

    def _named(self, args: tuple, kwargs: dict) -> Call:
        """The first argument is the tokens, by whichever way it came."""
        if args:
            return Call(self._turned(args[0]), args[1:], kwargs)
        first = next(
            iter(inspect.signature(self.transformer.forward).parameters)
        )
        if first not in kwargs:
            raise ValueError(
                f"model: {_name(self.model)} does not give its transformer "
                f"{first!r}, its first argument"
            )
        kwargs = dict(kwargs)
        return Call(self._turned(kwargs.pop(first)), (), kwargs)


class Part:
    """One of the three parts of a host, in a form that copies and pickles go
    along with.

    Attributes:
        host: the module whose parameters are used.
    """

    def __init__(self, source: Host, role: str):
        self.source, self.role = source, role

    @property
    def host(self) -> nn.Module:
        whole = self.role == "readout"
        return self.source.model if whole else self.source.owner

    def __call__(self, x: Any) -> Any:
        return getattr(self.source, self.role)(x)

    def __repr__(self) -> str:
        return f"{self.role} of {_name(self.source.model)}"


def begin(
    parts: tuple, x: Any
) -> tuple[Any, Callable[[Tensor], Any], Callable[[Tensor], Any]]:
    """Tokens, operator and readout for one input: what a host gives its
    transformer besides the tokens is bound to them."""
    embed, operator, readout = parts
    if not isinstance(embed, Part):
        return embed(x), operator, readout
    host = embed.source
    call = host.reach(x)
    _check_batch(host, call.tokens, x)
    if not host.checked:
        host.check(x)
    if isinstance(operator, Part) and operator.source is host:
        operator = partial(host.apply, call=call)
    else:
        host.only_tokens(call)
    if isinstance(readout, Part) and readout.source is host:
        readout = partial(host.read, x=x)
    return call.tokens, operator, readout


def _check_batch(host: Host, tokens: Any, x: Any) -> None:
    if not isinstance(tokens, Tensor) or tokens.dim() != 3:
        shape = list(tokens.shape) if isinstance(tokens, Tensor) else None
        raise TypeError(
            "embed must return tokens [B, n, d], got "
            f"{shape or type(tokens).__name__}: such a model (hierarchical, "
            "masked) or input (without a batch) cannot be iterated as it is"
        )
    if not isinstance(x, Tensor) or host.model is host.transformer:
        return
    if len(tokens) != len(x) == tokens.size(1):
        raise ValueError(
            f"model: {_name(host.model)} has tokens {list(tokens.shape)} for "
            f"a batch of {len(x)}: the samples must come first"
        )


# -- the swap -----------------------------------------------------------------

#: One thread at a time; others that call the module get the module.
_TURN = threading.RLock()


@contextmanager
def _instead(module: nn.Module, function: Callable) -> Iterator[None]:
    """Calls of the module, by this thread, go to ``function``."""
    if torch.compiler.is_compiling():
        # traced once, and locks cannot be
        forward = module.forward
        module.forward = function
        try:
            yield
        finally:
            module.forward = forward
        return
    with _TURN:
        here = threading.get_ident()
        own = module.__dict__.get("forward")
        forward = module.forward

        def switch(*args: Any, **kwargs: Any) -> Any:
            mine = threading.get_ident() == here
            return (function if mine else forward)(*args, **kwargs)

        module.__dict__["forward"] = switch
        try:
            yield
        finally:
            if own is None:
                del module.__dict__["forward"]
            else:
                module.__dict__["forward"] = own


class _Reached(Exception):
    pass


def _stop(*args: Any, **kwargs: Any) -> None:
    raise _Reached(args, kwargs)


def _sequence_first(transformer: nn.Module) -> bool:
    if not isinstance(transformer, nn.TransformerEncoder):
        return False
    attention = getattr(transformer.layers[0], "self_attn", None)
    return not getattr(attention, "batch_first", True)


# -- the check ----------------------------------------------------------------


@contextmanager
def _quiet(model: nn.Module) -> Iterator[None]:
    """No dropout, no gradients, and the random numbers are put back."""
    modes = [(m, m.training) for m in model.modules()]
    cuda = sorted({p.device.index for p in model.parameters() if p.is_cuda})
    model.eval()
    try:
        with torch.no_grad(), torch.random.fork_rng(cuda):
            torch.manual_seed(0)
            yield
    finally:
        for module, training in modes:
            module.training = training


def _difference(found: Any, wanted: Any) -> str:
    """What differs, or nothing."""
    if isinstance(wanted, Tensor) and isinstance(found, Tensor):
        if found.shape != wanted.shape:
            return f"of shape {list(found.shape)}, not {list(wanted.shape)}"
        if not wanted.is_floating_point():
            return "" if torch.equal(found, wanted) else "other values"
        eps = torch.finfo(wanted.dtype).eps
        size = (
            wanted.abs().nan_to_num(0.0, 0.0, 0.0).max() if len(wanted) else 0
        )
        near = torch.isclose(
            found, wanted, rtol=0.0, atol=100 * eps * float(size),
            equal_nan=True,
        )  # fmt: skip
        if bool(near.all()):
            return ""
        worst = (found - wanted).abs().nan_to_num(0.0).max()
        return f"by up to {float(worst):.2g}"
    if type(found) is not type(wanted):
        return f"{type(found).__name__}, not {type(wanted).__name__}"
    if isinstance(wanted, dict):
        found, wanted = list(found.values()), list(wanted.values())
    if isinstance(wanted, (list, tuple)):
        if len(found) != len(wanted):
            return f"{len(found)} values, not {len(wanted)}"
        each = (_difference(a, b) for a, b in zip(found, wanted))
        return next((text for text in each if text), "")
    return ""


def _name(module: nn.Module) -> str:
    return type(module).__name__
