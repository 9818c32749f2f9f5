"""The CUDA library compiles where there is no GPU, and asks of torch nothing
but its stable interface."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NVCC = shutil.which("nvcc") or shutil.which("nvcc", path="/usr/local/cuda/bin")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1800),  # beside other work on few cores
    pytest.mark.skipif(NVCC is None, reason="nvcc is not installed"),
]


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cuda")
    command = [sys.executable, "setup.py", "build_ext"]
    command += ["--build-lib", str(folder), "--build-temp", str(folder)]
    switches = {"FORCE_CUDA": "1", "TORCH_CUDA_ARCH_LIST": "9.0"}
    environment = {k: v for k, v in os.environ.items() if k[:5] != "FORCE"}
    done = subprocess.run(
        command,
        cwd=ROOT,
        env=environment | switches,
        capture_output=True,
        text=True,
    )
    said = done.stdout + done.stderr
    assert done.returncode == 0, said
    assert "warning" not in said, said
    return folder / "torch_picard" / "_cuda.so"


def symbols(path, which):
    out = subprocess.run(
        ["nm", "-D", which, str(path)],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    return [line.split()[-1] for line in out.splitlines()]


def test_it_needs_the_stable_interface_only(library):
    assert library.exists()
    shims = re.compile("(aoti_)?torch_[a-z0-9_]+")
    versioned = re.compile(r"[\w.]+@(GLIBC|GLIBCXX|CXXABI|GCC)_[\w.]+")
    weak = ("__gmon_start__", "_ITM_", "__cxa_")  # of the compiler's start
    wanted = symbols(library, "--undefined-only")
    assert any(shims.fullmatch(s) for s in wanted)
    strange = [
        s
        for s in wanted
        if not shims.fullmatch(s)
        and not versioned.fullmatch(s)
        and not s.startswith(weak)
    ]
    assert strange == []
