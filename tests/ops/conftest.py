"""The backends that are installed here."""

import shutil

import pytest
import torch

from torch_picard.ops.backends import BACKENDS, missing

COMPILER = (
    shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")
)


@pytest.fixture(params=BACKENDS)
def backend(request):
    reason = missing(request.param, torch.device("cpu"))
    if reason is None:
        return request.param
    if request.param == "native" and COMPILER:
        pytest.fail(f"there is {COMPILER}, and yet {reason}")
    pytest.skip(reason)
    return None


@pytest.fixture
def native():
    """For what only the compiled kernels do."""
    reason = missing("native", torch.device("cpu"))
    if reason is not None:
        (pytest.fail if COMPILER else pytest.skip)(reason)
    return "native"
