"""Checks of what datasets and transforms are given."""

from __future__ import annotations

from typing import Any

SEEDS = (-(2**63), 2**64 - 1)  # what torch.Generator takes


def check_integer(name: str, value: Any, least: int, most: int) -> None:
    """
    Raises:
        TypeError: value is not an int.
        ValueError: it is not in [least, most].
    """
    _check_int(name, value)
    if not least <= value <= most:
        raise ValueError(f"{name} must be in [{least}, {most}], got {value}")


def check_at_least(name: str, value: Any, least: int) -> None:
    """
    Raises:
        TypeError: value is not an int.
        ValueError: it is below least.
    """
    _check_int(name, value)
    if value < least:
        raise ValueError(f"{name} must be at least {least}, got {value}")


def _check_int(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(
            f"{name} must be an int, got {type(value).__name__} {value!r}"
        )


def check_seed(seed: Any) -> None:
    check_integer("seed", seed, *SEEDS)


def check_number(name: str, value: Any) -> None:
    """
    Raises:
        TypeError: value is neither an int nor a float.
    """
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(
            f"{name} must be a number, got {type(value).__name__} {value!r}"
        )


def check_transforms(**transforms: Any) -> None:
    """
    Raises:
        TypeError: one is neither None nor callable.
    """
    for name, transform in transforms.items():
        if transform is not None and not callable(transform):
            raise TypeError(
                f"{name} must be callable or None, got "
                f"{type(transform).__name__} {transform!r}"
            )
