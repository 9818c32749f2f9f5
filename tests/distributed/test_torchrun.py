"""As a user starts it."""

import os
import re
import subprocess
import sys
import time
from pathlib import Path
from textwrap import dedent

import pytest

PAGE = Path(__file__).parents[2] / "docs/source/several_machines.rst"


def blocks():
    """The code of the page."""
    found = re.findall(
        r"^\.\. testcode::\n\n((?:    .*\n|\n)+)", PAGE.read_text(), re.M
    )
    return [dedent(block) for block in found]


def torchrun(folder, script, processes=2):
    path = folder / "script.py"
    path.write_text(script)
    return subprocess.run(
        [
            sys.executable, "-m", "torch.distributed.run", "--standalone",
            "--nproc-per-node", str(processes), str(path),
        ],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=400,
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_the_page(tmp_path, processes):
    first, second = blocks()
    assert "init_process_group" in first and "agreed_stopping" in second
    ended = torchrun(tmp_path, first + second, processes)
    assert ended.returncode == 0, ended.stderr
    said = ended.stdout.splitlines()
    assert said == ["torch.Size([1000, 16]) [True]"] * processes


#: to be put before the solve of the page
LOST = """
calls = {start}
def lost(module, inputs):
    global calls
    calls += 1
    if torch.distributed.get_rank() == 1 and calls == 5:
        import os, pathlib, signal, time
        pathlib.Path("when").write_text(str(time.time()))
        {way}
conv.activation.register_forward_pre_hook(lost)
"""
KILLED = "os.kill(os.getpid(), signal.SIGKILL)"
RAISED = "raise OSError('no such disk')"


@pytest.mark.slow
@pytest.mark.parametrize(
    "way, backward", [(KILLED, False), (RAISED, False), (KILLED, True)]
)
def test_a_process_that_is_lost_ends_the_job(tmp_path, way, backward):
    script, _ = blocks()
    for before, after in {
        '("gloo")': '("gloo", timeout=datetime.timedelta(seconds=60))',
        'activation="tanh"': "activation=torch.nn.Tanh()",
        # P is what is called in the backward pass, too
        "Implicit()": "Unrolled(checkpoint=True)",
        "import Implicit": "import Unrolled",
        "out, solution": LOST.format(
            start=-10_000 * backward, way=way
        ) + "out, solution",
        "loss.backward()": ("calls = 0\n" if backward else "")
        + "loss.backward()",
    }.items():  # fmt: skip
        assert script.count(before) == 1
        script = script.replace(before, after)
    ended = torchrun(tmp_path, "import datetime\n" + script)
    took = time.time() - float((tmp_path / "when").read_text())
    assert ended.returncode != 0 and ended.stdout == ""
    assert re.search(r"Root Cause.*rank +: 1 ", ended.stderr, re.S)
    reason = "Signal 9 (SIGKILL)" if way == KILLED else "OSError: no such disk"
    assert reason in ended.stderr
    assert took < 60
