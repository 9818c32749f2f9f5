"""What all processes must have in common, compared by one number each.

A difference between processes is no error to any of them: the solve would
run, and its parts would belong to different equations, or would wait for each
other.
"""

from __future__ import annotations

import hashlib
import re
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import Module
from torch.nn.parameter import is_lazy

from ..engine.shared import naming_ranks

#: of a module that solves
_OPTIONS = (
    "alpha", "max_iter", "rtol", "atol", "method", "gradient", "on_failure",
    "inject", "activation",
)  # fmt: skip
#: odd, so that a product in 64 bits loses nothing
_FACTOR = 0x2545F4914F6CDD1D
_LAZY = "not initialised"
_REMEDY = (
    "must be the same in every process. Weights: make the module with the "
    "same seed, sum the gradients before every step, or send them from one "
    "process by torch.distributed.broadcast; edge_weight and edge_attr: of "
    "all edges"
)


class Facts:
    """Names, and what is known under them; tensors are compared by their
    bits."""

    def __init__(self) -> None:
        self.said: dict[str, str] = {}
        self.tensors: dict[str, Tensor] = {}

    def say(self, name: str, value: Any) -> None:
        self.said[name] = _plain(value)

    def tensor(self, name: str, t: Any) -> None:
        """A Tensor with all its numbers, or anything else."""
        self.say(name, _described(t))
        if isinstance(t, Tensor) and _has_numbers(t):
            self.tensors[name] = t

    def rows(self, name: str, t: Any, count: int) -> None:
        """A Tensor with rows of this process, ``count`` of them."""
        if not isinstance(t, Tensor):
            return self.say(name, _described(t))
        kind = f"{t.dtype} [{', '.join(['n', *map(str, t.shape[1:])])}]"
        if not t.dim() or t.size(0) != count:
            kind = f"{t.dtype}, not one row a node there"
        self.say(name, kind + _wanted(t))

    def modes(self, device: torch.device) -> None:
        """What is set around a call."""
        self.say("torch.is_grad_enabled()", torch.is_grad_enabled())
        cast = torch.is_autocast_enabled(device.type)
        self.say("torch.autocast", cast)

    def module(self, module: Module) -> None:
        """Its structure, mode, options, parameters and buffers."""
        kinds = []
        for name, part in module.named_modules():
            mode = "training" if part.training else "evaluating"
            kinds.append((name, type(part).__qualname__, mode))
            if getattr(part, "solves_fixed_point", False):
                for option in _OPTIONS:
                    value = getattr(part, option, None)
                    if not isinstance(value, (Tensor, Module)):
                        self.say(f"{name}.{option}".lstrip("."), value)
        self.say("the modules", kinds)
        named = [*module.named_parameters(), *module.named_buffers()]
        # where some are yet to be made, others may be so without a sign
        made = not any(is_lazy(t) for _, t in named)
        for name, t in named:
            if made:
                self.tensor(name, t)
            else:
                self.say(name, _described(t))


def agree(facts: Facts, group: Any, device: torch.device) -> None:
    """One reduction of two numbers.

    Raises:
        ValueError: in every process, where one has other facts, or weights
            that each would draw by itself have yet to be made.
    """
    number = _digest(facts, device)
    both = torch.stack([number, -number])
    with naming_ranks("comparing what is given", group):
        dist.all_reduce(both, dist.ReduceOp.MAX, group=group)
    most, least = both.tolist()
    if most != -least:
        raise ValueError(_differences(facts, group))
    for name, said in facts.said.items():
        if said == _LAZY:
            raise ValueError(
                f"{name} is not initialised: call the module on a plain graph "
                "first, with the same seed in every process"
            )


def _digest(facts: Facts, device: torch.device) -> Tensor:
    """In 0..2^61-2, on the device of the group."""
    said = hashlib.blake2b(repr(facts.said).encode(), digest_size=7).digest()
    out = torch.tensor(int.from_bytes(said, "big"), device=device)
    for t in facts.tensors.values():
        out = out * _FACTOR + bits(t).to(device)
    return out % (2**61 - 1)


@torch.no_grad()
def bits(t: Tensor, chunk: int = 2**16) -> Tensor:
    """A number that other numbers, or another order of them, would change;
    exact, so that no two machines round it differently."""
    flat = t.detach().contiguous().reshape(-1).view(torch.uint8)
    if flat.numel() % 4 == 0 and flat.storage_offset() % 4 == 0:
        flat = flat.view(torch.int32)
    if t.is_cuda:
        chunk *= 64  # there calls are dear, and a cache does not matter
    place = torch.arange(1, min(chunk, flat.numel()) + 1, device=t.device)
    place *= _FACTOR
    out = torch.zeros((), dtype=torch.long, device=t.device)
    for part in flat.split(chunk):
        mixed = (place[: part.numel()] + part).mul_(_FACTOR)
        mixed ^= mixed >> 32  # sums alone agree too often, as of a shift
        out = out * _FACTOR + mixed.mul_(_FACTOR).sum()
    return out


def _differences(facts: Facts, group: Any) -> str:
    """Collective. Says what differs, and where."""
    mine = dict(facts.said)
    for name, t in facts.tensors.items():
        mine[name] += f" #{int(bits(t)):x}"
    every: list[Any] = [None] * dist.get_world_size(group)
    dist.all_gather_object(every, mine, group=group)
    names = list(dict.fromkeys(name for one in every for name in one))
    lines = []
    for name in names:
        values = [one.get(name, "nothing") for one in every]
        other = next((i for i, v in enumerate(values) if v != values[0]), None)
        if other is not None:
            lines.append(f"{name} ({_apart(values[0], values[other], other)})")
    more = f" and {len(lines) - 3} more" if len(lines) > 3 else ""
    return f"{', '.join(lines[:3])}{more} {_REMEDY}"


def _apart(first: str, second: str, other: int) -> str:
    first, second = (text.partition(" #")[0] for text in (first, second))
    if first == second:
        return f"{first}, other numbers in process {other} than in 0"
    return f"{first} in process 0, {second} in {other}"


def _described(value: Any) -> str:
    if not isinstance(value, Tensor):
        plain = value is None or isinstance(value, (bool, int, float, str))
        return _plain(value) if plain else type(value).__name__
    if is_lazy(value):
        return _LAZY
    return f"{value.dtype} {list(value.shape)}{_wanted(value)}"


def _wanted(t: Tensor) -> str:
    """Exchanges go backward where a gradient is asked for, in all or none."""
    return " with a gradient" if t.requires_grad else ""


def _has_numbers(t: Tensor) -> bool:
    """All of them, here; of a DTensor there are some."""
    dense = t.layout == torch.strided and not t.is_meta
    return dense and not is_lazy(t) and not hasattr(t, "full_tensor")


def _plain(value: Any) -> str:
    """Without addresses, which are nobody else's."""
    return re.sub(r" at 0x[0-9a-f]+", "", str(value))
