"""Without a compiler the package installs and works on plain torch."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPT = """
import warnings

import torch

import torch_picard
from torch_picard.nn import PicardConv
from torch_picard.ops import smoothed_propagate, smoothed_update
from torch_geometric.nn import GCNConv

print(torch_picard.__file__)
x, z = torch.tensor([1.0, 2.0]), torch.tensor([3.0, 5.0])
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    y, residual = smoothed_update(x, z, 0.5)
    index = torch.arange(3)
    for _ in range(2):
        smoothed_propagate(index, index[:2], None, x[:, None], z[:, None], 0.5)
assert y.tolist() == [2.0, 3.5] and residual.tolist() == [13.0]
told = [str(w.message) for w in caught if "kernels" in str(w.message)]
assert len(told) == 1, told
print(told[0])
edges = torch.tensor([[0, 1, 2], [1, 2, 0]])
conv = PicardConv(GCNConv(4, 4))
conv(torch.randn(3, 4), edges).sum().backward()
try:
    smoothed_update(x, z, 0.5, backend="native")
except RuntimeError as error:
    print(error)
else:
    raise AssertionError("native without its library")
"""


@pytest.mark.slow
def test_installed_without_a_compiler(tmp_path):
    source, target = tmp_path / "source", tmp_path / "target"
    libraries = shutil.ignore_patterns("*.so", "__pycache__")
    shutil.copytree(
        ROOT / "torch_picard", source / "torch_picard", ignore=libraries
    )
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    shutil.copy(ROOT / "MANIFEST.in", source)
    environment = os.environ | {"CXX": "/bin/false", "FORCE_ONLY_CPU": "1"}
    for name in ("TORCH_PICARD_BACKEND", "TORCH_PICARD_LIBRARY"):
        environment.pop(name, None)
    install = "install --no-build-isolation --no-deps --quiet --target"
    subprocess.run(
        [sys.executable, "-m", "pip", *install.split(), target, "."],
        cwd=source,
        env=environment,
        check=True,
    )
    assert not list(target.rglob("_*.so"))
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        cwd=tmp_path,
        env=environment | {"PYTHONPATH": str(target)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    where, told, error = done.stdout.splitlines()
    assert Path(where).is_relative_to(target)
    assert "was not built; reinstall with a compiler" in told
    assert "pip install --no-build-isolation" in error
