"""Every code block that the documentation shows is executed."""

import ast
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SOURCE = ROOT / "docs" / "source"
PAGES = sorted(p for p in SOURCE.rglob("*.rst") if "generated" not in p.parts)
MODULES = sorted((ROOT / "torch_picard").rglob("*.py"))

# Blocks in these languages are shown without being run.
SHOWN_ONLY = {"bash", "console", "text", "toml"}
# The one condition on which a block may be left out: `make test-compiled` has
# torch-sparse, and runs it.
IF_SPARSE = 'not __import__("torch_geometric").typing.WITH_TORCH_SPARSE'

CODE_DIRECTIVE = re.compile(
    r"^ *\.\. (?:code|code-block|sourcecode)::[ \t]*(\S*)", re.MULTILINE
)
# A paragraph that ends in "::", but is no directive, opens a literal block.
LITERAL_BLOCK = re.compile(r"^ *(?!\.\. )\S.*::$|^ *::$", re.MULTILINE)


def unexecuted_blocks(text: str) -> list[str]:
    """The openings of code blocks in reST `text` that nothing runs."""
    code = [
        match[0].strip()
        for match in CODE_DIRECTIVE.finditer(text)
        if match[1].lower() not in SHOWN_ONLY
    ]
    literal = [match[0].strip() for match in LITERAL_BLOCK.finditer(text)]
    allowed = re.escape(f" {IF_SPARSE}\n")
    skipped = re.findall(rf"doctest: \+SKIP|:skipif:(?!{allowed})", text)
    return code + literal + skipped


def docstrings(path: Path) -> str:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    documented = ast.Module | ast.ClassDef | ast.FunctionDef
    return "\n".join(
        ast.get_docstring(node) or ""
        for node in ast.walk(tree)
        if isinstance(node, documented)
    )


def test_every_block_of_the_docs_passes(tmp_path):
    # A copy, because autosummary writes its pages beside the others.
    source, out = tmp_path / "source", tmp_path / "out"
    ignore = shutil.ignore_patterns("generated")
    shutil.copytree(SOURCE, source, ignore=ignore)

    # -W: a name of the API pages that does not exist is only a warning.
    sphinx = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q"]
    run = subprocess.run(
        [*sphinx, "-b", "doctest", source, out],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    report = out / "output.txt"
    results = report.read_text(encoding="utf-8") if report.exists() else ""

    assert run.returncode == 0, f"{run.stderr}\n{results}"
    summary = results.rpartition("Doctest summary")[2]
    assert int(re.search(r"(\d+) tests?\b", summary)[1]) > 0, results
    assert set(re.findall(r"(\d+) failures? in", summary)) == {"0"}, results


@pytest.mark.parametrize("path", PAGES, ids=lambda p: p.name)
def test_a_page_shows_no_code_that_is_not_run(path):
    assert not unexecuted_blocks(path.read_text(encoding="utf-8"))


def test_docstrings_show_no_code_that_is_not_run():
    found = {str(p): unexecuted_blocks(docstrings(p)) for p in MODULES}
    assert not {path: blocks for path, blocks in found.items() if blocks}


@pytest.mark.parametrize(
    ("text", "count"),
    [
        (".. testcode::\n\n    x = 1\n", 0),
        (".. code-block:: console\n\n    make demo\n", 0),
        (".. code-block:: python\n\n    x = 1\n", 1),
        (".. code::\n\n    x = 1\n", 1),
        ("For example::\n\n    x = 1\n", 1),
        ("    >>> f(x)  # doctest: +SKIP\n", 1),
        (".. testcode::\n    :skipif: True\n\n    x = 1\n", 1),
        (f".. testcode::\n    :skipif: {IF_SPARSE} or True\n\n    x = 1\n", 1),
        (f".. testcode::\n    :skipif: {IF_SPARSE}\n\n    x = 1\n", 0),
    ],
)
def test_what_counts_as_not_run(text, count):
    assert len(unexecuted_blocks(text)) == count


def test_the_blocks_of_the_readme_run():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.S)
    assert blocks
    for block in blocks:
        # Each block stands alone, as a reader would paste it.
        exec(compile(block, "README.md", "exec"), {})
