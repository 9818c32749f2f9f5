import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


@pytest.fixture(autouse=True)
def _import_examples(monkeypatch):
    """Examples import each other as scripts do: from their own folder."""
    monkeypatch.syspath_prepend(str(EXAMPLES))
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        path = getattr(sys.modules[name], "__file__", None) or ""
        if path.startswith(str(EXAMPLES)):
            del sys.modules[name]


@pytest.fixture
def data_folder(_import_examples, monkeypatch, tmp_path):
    """TORCH_PICARD_DATA, empty; working copies go to tmp_path, too."""
    import working_copy

    monkeypatch.setattr(working_copy, "CACHE", tmp_path / "copies")
    folder = tmp_path / "data"
    folder.mkdir()
    monkeypatch.setenv("TORCH_PICARD_DATA", str(folder))
    return folder
