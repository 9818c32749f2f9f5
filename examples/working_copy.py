"""Data sets of PyG, opened from a copy: their classes write beside the raw
files, and the folder that holds those is not theirs."""

import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

CACHE = Path(tempfile.gettempdir(), "torch_picard_data")


def opened(
    family: str,
    folder: str,
    make: Callable[[str], Any],
    root: str | Path | None = None,
    cache: str | Path | None = None,
) -> Any:
    """``make(base)``, the data set whose files are in ``base/folder``.

    Its raw files are looked for in ``family/folder`` and ``folder`` of
    ``root``, else of TORCH_PICARD_DATA; without either the class downloads.
    The copy is kept in ``cache`` (else the system's temporary folder), one
    for every source, and for every state of its files. It is made under
    another name and renamed when the data set could be opened, so an
    interrupt leaves none, and processes that start together do not disturb
    each other.
    """
    source = _source(family, folder, root)
    base = Path(cache or CACHE, family, f"{folder}-{_name(source)}")
    if base.is_dir():
        return make(str(base))
    base.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix="partial-", dir=base.parent))
    try:
        if source is not None:
            _copy(source, partial / folder)
        try:
            make(str(partial))
        except OSError as error:
            where = source or "its download"
            raise SystemExit(
                f"{folder} could not be had from {where} ({error}): --root or "
                f"TORCH_PICARD_DATA may name a folder with {family}/{folder}"
            ) from error
        try:
            partial.rename(base)
        except OSError:
            if not base.is_dir():  # else another process was first
                raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return make(str(base))


def _copy(source: Path, target: Path) -> None:
    """Without the modes: folders that are read only could not be used."""
    for path in _files(source):
        copy = target / path.relative_to(source)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, copy)


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _source(family: str, folder: str, root: str | Path | None) -> Path | None:
    asked = root is not None
    root = root if asked else os.environ.get("TORCH_PICARD_DATA")
    if root is None:
        return None
    for found in (Path(root, family, folder), Path(root, folder)):
        if found.is_dir():
            return found.resolve()
    if asked:
        raise SystemExit(f"neither {family}/{folder} nor {folder} in {root}")
    return None  # the folder of all data need not hold this one


def _name(source: Path | None) -> str:
    """Says where a copy is from, and when its files were written."""
    if source is None:
        return "downloaded"
    state: list = [str(source)]
    for path in _files(source):
        of = path.stat()
        state += [str(path.relative_to(source)), of.st_size, of.st_mtime_ns]
    return hashlib.sha256(repr(state).encode()).hexdigest()[:16]
