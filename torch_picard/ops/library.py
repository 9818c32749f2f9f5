"""Declares ``torch.ops.torch_picard`` and loads the compiled libraries.

The operators whose names begin with an underscore and that write into their
arguments are the compiled ones (torch_picard/csrc). Those that return new
tensors stand above them: they have fake kernels and gradients and fall back
to the formulas of reference.py where nothing compiled is present.
"""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

import torch

LIBRARY = torch.library.Library("torch_picard", "FRAGMENT")

_GRAPH = "Tensor rowptr, Tensor col, Tensor? value"
_SEGMENTS = "Tensor? ptr, Tensor? active"
_TERMS = "Tensor? bias, Tensor? inject, int activation, int reduce"

COMPILED = {
    "_propagate": f"({_GRAPH}, Tensor h, Tensor? x, float alpha, {_TERMS}, "
    f"{_SEGMENTS}, bool check, Tensor(a!) y, Tensor(b!)? stats, "
    "Tensor(c!)? z, Tensor(d!)? arg) -> ()",
    "_product": "(Tensor x, Tensor weight, Tensor(a!) h) -> ()",
    "_steps": f"({_GRAPH}, Tensor? weight, Tensor x, float alpha, {_TERMS}, "
    "Tensor? ptr, int count, Tensor(a!) y, Tensor(b!)? other, "
    "Tensor(c!)? h, Tensor(d!)? stats) -> ()",
    "_update": f"(Tensor x, Tensor z, float alpha, {_SEGMENTS}, "
    "Tensor(a!) y, Tensor(b!) stats) -> ()",
    "_update_backward": "(Tensor gy, Tensor? z, Tensor? x, float alpha, "
    f"int activation, {_SEGMENTS}, Tensor(a!)? gx, Tensor(b!) gz, "
    "Tensor(c!)? galpha) -> ()",
    "_sampled": "(Tensor rowptr, Tensor col, Tensor g, Tensor h, "
    "Tensor? arg, int reduce, Tensor(a!) out) -> ()",
    "_max_backward": "(Tensor colptr, Tensor row, Tensor perm, "
    "Tensor? value, Tensor g, Tensor arg, Tensor(a!) out) -> ()",
    "_csr_defect": "(Tensor rowptr, Tensor col, int sources) -> int",
    "_prefer_huge_pages": "(Tensor(a!) fresh) -> ()",
    "_compress": "(Tensor index, int size, Tensor(a!) ptr, "
    "Tensor(b!) perm) -> ()",
}

for _name, _schema in COMPILED.items():
    LIBRARY.define(_name + _schema)

#: device type -> None where its library is loaded, else the reason
MISSING: dict[str, str | None] = {}


#: where the compiled libraries are, such as those of tests/sanitize.sh
FOLDER = Path(
    os.environ.get("TORCH_PICARD_LIBRARY") or Path(__file__).parents[1]
)


def _load(device: str, file: str) -> str | None:
    path = FOLDER / file
    if not path.exists():
        return (
            f"{FOLDER.name}/{file} was not built; reinstall with a "
            "compiler: pip install --no-build-isolation torch-picard"
        )
    if device == "cuda" and torch.version.cuda is None:
        return "this torch was built without CUDA"
    try:
        if device == "cuda":  # its symbols must be visible to the library
            lib = Path(torch.__file__).parent / "lib" / "libtorch_cuda.so"
            ctypes.CDLL(str(lib), mode=ctypes.RTLD_GLOBAL)
        torch.ops.load_library(str(path))
    except OSError as error:
        return f"{FOLDER.name}/{file} does not load: {error}"
    return None


for _device, _file in (("cpu", "_cpu.so"), ("cuda", "_cuda.so")):
    MISSING[_device] = _load(_device, _file)


def is_compiled(device: torch.device) -> bool:
    return MISSING.get(device.type, "no such library") is None


def instruction_set() -> str | None:
    """What the CPU library chose: baseline, avx2 or avx512."""
    if MISSING["cpu"] is not None:
        return None
    function = ctypes.CDLL(str(FOLDER / "_cpu.so")).torch_picard_isa
    function.restype = ctypes.c_char_p
    return function().decode()
