"""The seconds that ``import torch_picard`` takes after torch_geometric.

Each of 15 new processes imports torch_geometric and then torch_picard; the
median and the range of the latter are printed.
"""

from __future__ import annotations

import statistics
import subprocess
import sys

SCRIPT = """
import time
import torch_geometric
start = time.perf_counter()
import torch_picard
print(time.perf_counter() - start)
"""


def main() -> None:
    """Print one line."""
    seconds = []
    for _ in range(15):
        done = subprocess.run(
            [sys.executable, "-c", SCRIPT],
            capture_output=True,
            text=True,
            check=True,
        )
        seconds.append(float(done.stdout))
    print(
        f"import torch_picard: {statistics.median(seconds):.2f} s "
        f"({min(seconds):.2f} to {max(seconds):.2f}) after torch_geometric"
    )


if __name__ == "__main__":
    main()
