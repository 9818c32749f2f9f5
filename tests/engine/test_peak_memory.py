"""The peak memory of a training step, as benchmarks/memory.py measures it."""

import importlib
from pathlib import Path

import pytest


@pytest.fixture
def memory(monkeypatch):
    folder = Path(__file__).parents[2] / "benchmarks"
    monkeypatch.syspath_prepend(str(folder))
    module = importlib.import_module("memory")
    monkeypatch.setattr(module, "NODES", 100)
    monkeypatch.setattr(module, "EDGES", 1000)
    return module


def peaks(memory, mode, counts):
    found = []
    for count in counts:
        run = memory.step(mode, count)
        run()
        found.append(memory.peak(run))
    return found


@pytest.mark.parametrize("mode", ["Implicit", "Phantom(steps=5)", "OneStep"])
def test_it_is_flat_within_5_percent(memory, mode):
    found = peaks(memory, mode, [8, 32, 256])
    assert max(found) <= 1.05 * min(found)


@pytest.mark.parametrize("mode", ["Unrolled", "Unrolled(checkpoint=True)"])
def test_unrolled_it_grows_with_every_iteration(memory, mode):
    """By a state at least, the input of P."""
    few, many = peaks(memory, mode, [8, 32])
    state = 4 * memory.NODES * memory.WIDTH / 2**20
    assert many - few >= (32 - 8) * state
