"""Data sets are opened from copies: whole ones, of what was asked for."""

import os
import shutil

import pytest
import torch

from tests.examples.on_disk import planetoid


@pytest.fixture
def load(data_folder, tmp_path):
    from node_training import load

    return lambda root=None: load("Cora", root, tmp_path / "copies")


def listing(folder):
    return sorted((p, p.stat().st_mtime_ns) for p in folder.rglob("*"))


def test_every_root_has_a_copy_of_its_own(load, data_folder, tmp_path):
    one, other = (planetoid(tmp_path / f"r{i}", seed=i) for i in range(2))
    planetoid(data_folder, seed=2)
    before = listing(one)
    found = [load(one), load(other), load(), load(one)]
    assert torch.equal(found[0].x, found[3].x)
    for i, j in ((0, 1), (0, 2), (1, 2)):
        assert not torch.equal(found[i].x, found[j].x)
    assert listing(one) == before  # never written to


def test_files_that_were_replaced_are_copied_again(load, tmp_path):
    root = planetoid(tmp_path / "root")
    old = load(root).x
    shutil.rmtree(root)
    planetoid(root, seed=1)
    assert not torch.equal(load(root).x, old)


@pytest.mark.parametrize("when", ["copying", "processing"])
def test_an_interrupt_leaves_no_half_copy(load, tmp_path, monkeypatch, when):
    from torch_geometric.datasets import Planetoid

    root = planetoid(tmp_path / "root")
    real, seen = shutil.copyfile, []

    def copyfile(source, target):
        if len(seen) == 3:
            raise KeyboardInterrupt
        seen.append(source)
        real(source, target)

    def process(self):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        if when == "copying":
            patch.setattr(shutil, "copyfile", copyfile)
        else:
            patch.setattr(Planetoid, "process", process)
        with pytest.raises(KeyboardInterrupt):
            load(root)
    assert not list((tmp_path / "copies").glob("*/*"))
    assert load(root).num_nodes == 600


def test_a_copy_that_was_killed_is_not_used(load, tmp_path, monkeypatch):
    root = planetoid(tmp_path / "root")
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", lambda *_, **__: None)
        patch.setattr(shutil, "copyfile", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            load(root)
    assert list((tmp_path / "copies").glob("*/partial-*"))
    assert load(root).num_nodes == 600


def test_processes_that_start_together(data_folder, tmp_path):
    """The second finds the copy of the first where it would put its own."""
    from working_copy import opened

    planetoid(data_folder)
    made = []

    def make(base):
        made.append(base)
        if len(made) == 1:  # the other one, meanwhile
            opened("planetoid", "Cora", make, cache=tmp_path / "copies")
        return base

    base = opened("planetoid", "Cora", make, cache=tmp_path / "copies")
    assert os.listdir(base) == ["Cora"]
    assert not list((tmp_path / "copies").glob("*/partial-*"))


def test_folders_that_are_read_only(load, tmp_path):
    root = planetoid(tmp_path / "root")
    folders = [path for path in root.rglob("*") if path.is_dir()]
    for path in folders:
        path.chmod(0o555)
    load(root)
    copies = [p for p in (tmp_path / "copies").rglob("*") if p.is_dir()]
    assert len(copies) > 3
    assert all(path.stat().st_mode & 0o200 for path in copies)
    for path in folders:
        path.chmod(0o755)


def test_data_that_are_missing_are_named(load, data_folder, monkeypatch):
    from torch_geometric.datasets import Planetoid

    with pytest.raises(SystemExit, match="neither planetoid/Cora nor Cora in"):
        load(data_folder)

    def download(self):
        raise ConnectionError("no such host")

    # TORCH_PICARD_DATA may hold other data only: then the class downloads
    monkeypatch.setattr(Planetoid, "download", download)
    with pytest.raises(SystemExit, match=r"no such host.*--root or TORCH_PIC"):
        load()


def test_a_damaged_file_leaves_no_copy(load, tmp_path):
    root = planetoid(tmp_path / "root")
    (root / "planetoid/Cora/raw/ind.cora.x").write_text("no such archive")
    with pytest.raises(Exception, match=r"pickle|could not find|invalid"):
        load(root)
    assert not list((tmp_path / "copies").glob("*/*"))
