"""Samples that are kept on disk."""

from __future__ import annotations

import operator
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch


def row_of(i: Any, count: int) -> int:
    """The index from the front.

    Raises:
        TypeError: i is no integer.
        IndexError: there is no such sample.
    """
    try:
        i = operator.index(i)
    except TypeError:
        raise TypeError(
            f"index must be an integer, got {i!r}; torch.utils.data.Subset "
            "takes several"
        ) from None
    if not -count <= i < count:
        raise IndexError(f"index must be below {count}, got {i}")
    return i % count


def load_or_make(path: Path, make: Callable[[], None]) -> Any:
    """What the file holds; one that cannot be read is made again."""
    try:
        return torch.load(path, weights_only=True)
    except FileNotFoundError:
        pass
    except Exception:  # whatever half a file leads to
        path.unlink()
    make()
    return torch.load(path, weights_only=True)
