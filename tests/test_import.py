"""What ``import torch_picard`` brings along."""

import json
import subprocess
import sys

SCRIPT = """
import json, sys
import torch_geometric, numpy
before = set(sys.modules)
import torch_picard
new = {name.partition(".")[0] for name in set(sys.modules) - before}
print(json.dumps(sorted(new - sys.stdlib_module_names)))
"""


def test_an_import_brings_nothing_that_pyg_has_not_loaded():
    """It should cost next to nothing on top of torch_geometric's own
    (benchmarks/imports.py), and need no extra."""
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        capture_output=True,
        text=True,
        check=True,
    )
    new = set(json.loads(done.stdout))
    core = {"torch_picard", "torch", "torch_geometric", "numpy"}
    assert "torch_picard" in new and new <= core
