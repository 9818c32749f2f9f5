"""``python -m torch_picard``: what is installed, and what computes."""

from __future__ import annotations

import importlib.metadata
import os
import platform

import torch

from . import __version__
from .ops.backends import BACKENDS, VARIABLE, choose, missing
from .ops.library import FOLDER, instruction_set


def version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def backend_lines(name: str) -> list[tuple[str, str]]:
    """What it is called and what is to be said of it."""
    if name != "native":
        reason = missing(name, torch.device("cpu"))
        about = {
            "scatter": f"torch-scatter {version('torch_scatter')}",
            "torch": "plain torch operations",
        }
        line = f"not there: {reason}" if reason else about[name]
        return [(f"backend {name}", line)]
    found = []
    for device, file in (("cpu", "_cpu.so"), ("cuda", "_cuda.so")):
        reason = missing(name, torch.device(device))
        line = f"not there: {reason}" if reason else str(FOLDER / file)
        if device == "cpu" and not reason:
            line += f", instruction set {instruction_set()}"
        found.append((f"backend {name} on {device}", line))
    return found


def choice() -> str:
    """What a call that names no backend takes."""
    asked = os.environ.get(VARIABLE)
    because = f" ({VARIABLE}={asked})" if asked else ""
    found = []
    for device in ("cpu", "cuda")[: 1 + torch.cuda.is_available()]:
        try:
            name = choose(None, torch.device(device), quiet=True)
        except (RuntimeError, ValueError) as error:
            return f"none: {error}"
        found.append(f"{name} on {device}")
    return ", ".join(found) + because


def main() -> None:
    rows = [
        ("torch_picard", __version__),
        ("torch", torch.__version__),
        ("torch_geometric", version("torch_geometric")),
        ("Python", f"{platform.python_version()}, {platform.platform()}"),
        *(line for name in BACKENDS for line in backend_lines(name)),
        ("used", choice()),
    ]
    width = max(len(name) for name, _ in rows)
    for name, what in rows:
        print(f"{name:<{width}}  {what}")


if __name__ == "__main__":
    main()
