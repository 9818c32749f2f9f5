"""Settings that all tests share."""

import os
import warnings

import pytest
import torch
from hypothesis import HealthCheck, settings

# The same examples everywhere, so that a run can be repeated; "explore"
# looks further: HYPOTHESIS_PROFILE=explore pytest.
settings.register_profile(
    "ci",
    deadline=None,
    derandomize=True,
    max_examples=20,
    print_blob=True,
    # Fixtures are methods and other constants, and need no renewal.
    suppress_health_check=[
        HealthCheck.function_scoped_fixture,
        HealthCheck.too_slow,
    ],
)
settings.register_profile(
    "explore",
    parent=settings.get_profile("ci"),
    derandomize=False,
    max_examples=500,
)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))


def pytest_configure(config):
    if "PYTEST_XDIST_WORKER" in os.environ:
        torch.set_num_threads(1)  # the workers share the cores


#: A worker that got one of these last would keep the others waiting.
LONGEST = "every_block_of_the_docs", "100_000_nodes", "cuda_build"


def pytest_collection_modifyitems(items):
    items.sort(key=lambda i: not any(name in i.nodeid for name in LONGEST))


@pytest.fixture
def no_warnings():
    """Any warning is an error."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        # of torch's own, when forward mode is first used in a process
        warnings.filterwarnings("ignore", "`torch.jit", DeprecationWarning)
        yield


@pytest.fixture
def seed():
    """torch's global generator in a known state."""
    torch.manual_seed(0)
