"""Which backend computes, and what is said when one is not there."""

import os
import subprocess
import sys
import warnings
from functools import partial
from pathlib import Path

import pytest
import torch

from tests.ops.cases import random_case
from torch_picard import __main__ as report
from torch_picard.ops import (
    backends,
    library,
    reference,
    smoothed_propagate,
    updating,
)
from torch_picard.ops import smoothed_update as update
from torch_picard.ops.backends import BACKENDS, choose, missing

ROOT = Path(__file__).parents[2]
CPU = torch.device("cpu")
X, Z = torch.tensor([1.0, 2.0]), torch.tensor([3.0, 5.0])


def python(*arguments, **environment):
    """What another process prints."""
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        env=os.environ | environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(autouse=True)
def undecided(monkeypatch):
    """No choice in the environment, no warning given yet."""
    monkeypatch.delenv("TORCH_PICARD_BACKEND", raising=False)
    monkeypatch.setattr(backends, "_told", False)


@pytest.fixture
def only_torch(monkeypatch):
    """As if nothing had been compiled and torch-scatter were not there."""
    monkeypatch.setitem(library.MISSING, "cpu", "_cpu.so was not built")
    monkeypatch.setattr(backends, "_has_scatter", lambda: False)


# -- the choice ---------------------------------------------------------------


def test_native_is_the_fastest(native):
    for name in (None, "auto"):
        assert choose(name, CPU) == native


def test_each_can_be_asked_for(backend, monkeypatch):
    assert choose(backend, CPU) == backend
    monkeypatch.setenv("TORCH_PICARD_BACKEND", backend)
    assert choose(None, CPU) == choose("auto", CPU) == backend
    assert choose("torch", CPU) == "torch"


def test_the_variable_decides_what_computes(native, monkeypatch):
    taken = []

    def note(module, function, name):
        original = getattr(module, function)

        def noted(*args):
            taken.append(name)
            return original(*args)

        monkeypatch.setattr(module, function, noted)

    note(updating, "update", "native")
    note(reference, "smoothed_update", "torch")
    update(X, Z, 0.5)
    monkeypatch.setenv("TORCH_PICARD_BACKEND", "torch")
    update(X, Z, 0.5)
    update(X, Z, 0.5, backend=native)
    assert taken == ["native", "torch", "native"]


@pytest.mark.parametrize("name", ["cuda", "Native", "", 3])
def test_an_unknown_name(name):
    with pytest.raises(ValueError, match="backend must be one of auto, nat"):
        update(X, Z, 0.5, backend=name)
    case = random_case()
    with pytest.raises(ValueError, match="backend must be one of auto, nat"):
        smoothed_propagate(**case, backend=name)


def test_an_unknown_name_in_the_environment(monkeypatch):
    monkeypatch.setenv("TORCH_PICARD_BACKEND", "fast")
    words = "TORCH_PICARD_BACKEND must be one of auto, .*, got 'fast'"
    with pytest.raises(ValueError, match=words):
        update(X, Z, 0.5)
    update(X, Z, 0.5, backend="torch")


# -- what is not there --------------------------------------------------------


@pytest.mark.parametrize("how", ["argument", "environment"])
@pytest.mark.parametrize("name", ["native", "scatter"])
def test_asked_for_but_missing(only_torch, monkeypatch, name, how):
    """The error says how to get it."""
    asked = {"backend": name}
    source = "backend"
    if how == "environment":
        monkeypatch.setenv("TORCH_PICARD_BACKEND", name)
        asked, source = {}, "TORCH_PICARD_BACKEND"
    words = {"native": "not built", "scatter": "pip install"}[name]
    with pytest.raises(RuntimeError, match=f"{source}='{name}'.*{words}"):
        update(X, Z, 0.5, **asked)
    with pytest.raises(RuntimeError, match=f"{source}='{name}'.*{words}"):
        smoothed_propagate(**random_case(), **asked)


def test_a_missing_library_says_how_to_build_it(tmp_path, monkeypatch):
    monkeypatch.setattr(library, "FOLDER", tmp_path)
    reason = library._load("cpu", "_cpu.so")
    assert "pip install --no-build-isolation" in reason
    (tmp_path / "_cpu.so").write_bytes(b"not a library")
    assert "_cpu.so does not load" in library._load("cpu", "_cpu.so")


def test_without_kernels_it_says_so_once(only_torch):
    with pytest.warns(UserWarning, match="without its compiled kernels"):
        y, _ = update(X, Z, 0.5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        smoothed_propagate(**random_case())
    assert y.tolist() == [2.0, 3.5]


def test_without_kernels_the_operators_compute(only_torch):
    """torch.ops.torch_picard falls back to the formulas, gradients too."""
    ops = torch.ops.torch_picard
    x, z = X.clone().requires_grad_(), Z.clone().requires_grad_()
    alpha = torch.tensor(0.25, requires_grad=True)
    y, residual = ops.smoothed_update(x, z, alpha)
    assert y.tolist() == [2.5, 4.25]
    assert residual.tolist() == [13]
    gx, gz, ga = torch.autograd.grad(y.sum(), (x, z, alpha))
    assert (gx.tolist(), gz.tolist(), ga.item()) == (
        [0.25] * 2,
        [0.75] * 2,
        -5,
    )
    case = random_case(activation="tanh", reduce="mean")
    case["alpha"] = torch.tensor(0.25)
    leaves = [case[k].requires_grad_() for k in ("value", "h", "x", "bias")]
    found = []
    formula = partial(smoothed_propagate, backend="torch")
    for fn in (ops.smoothed_propagate, formula):
        y, _ = fn(**case)
        found.append((y, *torch.autograd.grad(y.sum(), leaves)))
    torch.testing.assert_close(*found)


# -- instruction sets ---------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("isa", ["baseline", "avx2", "avx512"])
def test_instruction_sets(native, isa):
    """Each gives the formulas, in a process that has no other."""
    code = (
        "from torch_picard.ops.library import instruction_set\n"
        "from tests.ops.cases import sweep\n"
        "print(instruction_set(), sweep('native'))"
    )
    if isa != "baseline" and not supports(isa):
        pytest.skip(f"this processor has no {isa}")
    used, count = python("-c", code, TORCH_PICARD_ISA=isa).split()
    assert used == isa
    assert int(count) > 100


def supports(isa):
    capability = torch.backends.cpu.get_cpu_capability().lower()
    return isa == capability or (isa, capability) == ("avx2", "avx512")


# -- python -m torch_picard ---------------------------------------------------


def test_report():
    """Versions, every backend, and what is used."""
    lines = dict(
        line.split("  ", 1)
        for line in python("-m", "torch_picard").splitlines()
    )
    said = {name.strip(): what.strip() for name, what in lines.items()}
    assert said["torch"] == torch.__version__
    assert said["torch_picard"] and said["torch_geometric"]
    assert said["Python"].startswith(sys.version.split()[0])
    for name, device in (("native", "cpu"), ("native", "cuda")):
        reason = missing(name, torch.device(device))
        what = said[f"backend {name} on {device}"]
        assert what == f"not there: {reason}" if reason else ".so" in what
    for name in BACKENDS:
        assert any(line.startswith(f"backend {name}") for line in said)
    assert said["used"].startswith(choose(None, CPU, quiet=True))


def test_report_names_the_instruction_set(native, capsys):
    report.main()
    said = capsys.readouterr().out
    assert f"instruction set {library.instruction_set()}" in said


def test_report_says_why_not(only_torch, capsys, monkeypatch):
    report.main()
    said = capsys.readouterr().out
    assert "not there: _cpu.so was not built" in said
    assert "not there: torch-scatter is not installed" in said
    assert "torch on cpu" in said
    monkeypatch.setenv("TORCH_PICARD_BACKEND", "scatter")
    report.main()
    said = capsys.readouterr().out
    assert "none: TORCH_PICARD_BACKEND='scatter' cannot be used" in said
