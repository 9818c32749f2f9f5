"""States in files, and how far a computation on them has come."""

from __future__ import annotations

import hashlib
import json
import math
import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor


class Stored:
    """A folder with tensors and a record, which survive a kill.

    Args:
        folder: made if it is not there.
        identity: what the tensors depend on; JSON.

    Attributes:
        record: JSON, as it was written last.

    Raises:
        ValueError: the folder holds something of another identity, or
            lacks a file.
    """

    def __init__(self, folder: Path, identity: dict[str, Any]):
        self.folder = folder
        self.identity = json.loads(json.dumps(identity))
        self.record: dict[str, Any] = {}
        self._files: list[Path] = []
        folder.mkdir(parents=True, exist_ok=True)
        if self._path.exists():
            kept = self._kept()
            differ = [
                name
                for name, value in self.identity.items()
                if kept["identity"].get(name) != value
            ]
            if differ:
                raise ValueError(
                    f"folder {folder} holds a run that differs in "
                    f"{', '.join(differ)}: choose another, or remove it"
                )
            self.record = kept["record"]

    def _kept(self) -> dict[str, Any]:
        try:
            kept = json.loads(self._path.read_text())
            return {name: dict(kept[name]) for name in ("identity", "record")}
        except (ValueError, TypeError, LookupError):
            raise ValueError(
                f"folder {self.folder} holds a {self._path.name} that is not "
                "of a run: choose another, or remove it"
            ) from None

    @property
    def _path(self) -> Path:
        return self.folder / "progress.json"

    def tensor(
        self, name: str, shape: tuple[int, ...], dtype: torch.dtype
    ) -> Tensor:
        """In a file; zeros at first."""
        path = self.folder / f"{name}.bin"
        size = math.prod(shape)
        there = path.stat().st_size if path.exists() else 0
        if self.record and there != size * dtype.itemsize:
            raise ValueError(
                f"folder {self.folder} holds a run, but {path.name} of it is "
                f"missing or has {there} bytes of {size * dtype.itemsize}: "
                "remove the folder"
            )
        self._files.append(path)
        flat = torch.from_file(str(path), shared=True, size=size, dtype=dtype)
        return flat.reshape(shape)

    def save(self, record: dict[str, Any]) -> None:
        """All or nothing."""
        self.record = record
        content = {"identity": self.identity, "record": record}
        fresh = self._path.with_suffix(".new")
        fresh.write_text(json.dumps(content))
        os.replace(fresh, self._path)

    def clear(self) -> None:
        """Removes what this run wrote."""
        for path in (*self._files, self._path):
            path.unlink(missing_ok=True)


def digest(*tensors: Tensor) -> str:
    """Of all values."""
    found = hashlib.sha256()
    for t in tensors:
        found.update(f"{tuple(t.shape)} {t.dtype}".encode())
        for part in t.detach().reshape(-1).split(2**20):  # may be in a file
            part = part.cpu().contiguous()
            found.update(part.view(torch.uint8).numpy().data)
    return found.hexdigest()
