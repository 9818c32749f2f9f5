"""Data, training and evaluation shared by the node classification scripts."""

import copy
import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch_geometric.data import Data

from torch_picard.datasets import Centre, DigitsGraph, DropInNoise

DATASETS = ["DigitsGraph", "Cora", "CiteSeer", "Photo", "minesweeper"]
FOLDERS = {
    "Cora": ("planetoid", "Cora"),
    "CiteSeer": ("planetoid", "CiteSeer"),
    "Photo": ("amazon", "Photo"),
    "minesweeper": ("heterophilous", "minesweeper"),
}


def load(
    name: str,
    root: str | None = None,
    cache: str | None = None,
    split: int = 0,
) -> Data:
    """The graph `name` with boolean masks of shape [N]; of one that comes
    with ten splits, the one asked for.

    `root` (else TORCH_PICARD_DATA) is a folder with raw files; it is copied
    to `cache` (else a folder of the system's temporary directory) and never
    written to. Without a root the dataset class downloads.
    """
    if name == "DigitsGraph":
        return DigitsGraph(k=3)[0]  # few neighbours: one hop is not enough
    root = root or os.environ.get("TORCH_PICARD_DATA")
    cache = Path(cache or Path(tempfile.gettempdir(), "torch_picard_data"))
    family, folder = FOLDERS[name]
    target = cache / family / folder
    if root is not None and not target.exists():
        source = Path(root) / family / folder
        if not source.is_dir():
            source = Path(root) / folder
        if not source.is_dir():
            raise FileNotFoundError(
                f"neither {family}/{folder} nor {folder} in {root}"
            )
        shutil.copytree(source, target, copy_function=shutil.copyfile)
    base = str(target.parent)
    if family == "planetoid":
        from torch_geometric.datasets import Planetoid

        return Planetoid(base, name)[0]
    if family == "amazon":
        from torch_geometric.datasets import Amazon

        return public_style_split(Amazon(base, "photo")[0])
    from torch_geometric.datasets import HeterophilousGraphDataset

    data = HeterophilousGraphDataset(base, name)[0]
    for part in ("train_mask", "val_mask", "test_mask"):
        data[part] = data[part][:, split]
    return data


def public_style_split(data: Data, seed: int = 0) -> Data:
    """20 labels a class, 500 nodes for validation, the rest for the test."""
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(data.num_nodes, generator=generator)
    train = torch.cat(
        [order[data.y[order] == c][:20] for c in data.y.unique()]
    )
    data.train_mask = torch.zeros(data.num_nodes, dtype=torch.bool)
    data.train_mask[train] = True
    rest = order[~data.train_mask[order]]
    data.val_mask = torch.zeros_like(data.train_mask)
    data.val_mask[rest[:500]] = True
    data.test_mask = ~(data.train_mask | data.val_mask)
    return data


def prepare(data: Data, noise: float, features: str, seed: int) -> Data:
    """Adds noise (a draw of its own for every `seed`), then preprocesses."""
    if noise > 0.0:
        data = DropInNoise(noise, seed=seed)(data)
    if features == "centred":
        data = Centre()(data)
    data = copy.copy(data)
    if data.x.layout == torch.strided and (data.x != 0).float().mean() < 0.2:
        data.x = data.x.to_sparse_csr()
    return data


def train(
    model: torch.nn.Module,
    data: Data,
    *,
    lr: float,
    weight_decay: float,
    epochs: int,
    patience: int,
    eval_every: int = 2,
) -> dict[str, Any]:
    """Trains on the training nodes, keeps the best state by validation.

    Better means: a higher validation accuracy, or the same with a lower
    validation loss. weight_decay acts on the first linear map, the only one
    whose size grows with the number of features. The test nodes are looked
    at once, at the end.
    """
    first = max(model.parameters(), key=torch.Tensor.numel)
    others = [p for p in model.parameters() if p is not first]
    optimizer = torch.optim.Adam(
        [
            {"params": [first], "weight_decay": weight_decay},
            {"params": others, "weight_decay": 0.0},
        ],
        lr=lr,
    )
    x, edge_index, y = data.x, data.edge_index, data.y
    best, best_epoch, state = (-1.0, 0.0), 0, None
    for epoch in range(1, epochs + 1):
        model.train()
        optimizer.zero_grad()
        out = model(x, edge_index)
        loss = F.cross_entropy(out[data.train_mask], y[data.train_mask])
        loss.backward()
        optimizer.step()
        if epoch % eval_every:
            continue
        model.eval()
        with torch.no_grad():
            out = model(x, edge_index)[data.val_mask]
        target = y[data.val_mask]
        accuracy = float((out.argmax(-1) == target).float().mean())
        score = (accuracy, -float(F.cross_entropy(out, target)))
        if score > best:
            best, best_epoch = score, epoch
            state = copy.deepcopy(model.state_dict())
        elif epoch - best_epoch >= patience:
            break

    if state is None:
        raise RuntimeError("no epoch gave a finite validation loss")
    model.load_state_dict(state)
    return {"val": best[0], "epoch": best_epoch, "epochs": epoch}


@torch.no_grad()
def evaluate(model: torch.nn.Module, data: Data) -> dict[str, Any]:
    """Test accuracy and, for a model that iterates, how its loop ended."""
    model.eval()
    options = {}
    if hasattr(model, "block") or hasattr(model, "confidence"):
        options["return_solution"] = True
    out = model(data.x, data.edge_index, **options)
    out, end = out if options else (out, None)
    hit = out.argmax(-1) == data.y
    result = {"test": float(hit[data.test_mask].float().mean())}
    if hasattr(model, "block"):
        size = solution_size(end.value)
        history = end.residual_history.max(dim=1).values
        history = history[torch.isfinite(history)]
        result |= {
            "iterations": int(end.iterations.max()),
            "converged": bool(end.converged.all()),
            "residual": _significant(float(end.residual.max()) / size),
            "curve": [_significant(float(r) / size) for r in history],
        }
    elif end is not None:
        result |= {
            "iterations": end.iterations,
            "residual": _significant(float(end.residual[-1])),
            "curve": [_significant(float(r)) for r in end.residual],
        }
    return result


def solution_size(value: torch.Tensor) -> float:
    return max(float(value.norm()), 1e-30)


def _significant(value: float) -> float:
    return float(f"{value:.3g}")


def write_json(path: Path, value: Any) -> None:
    """Replaces the file in one step, so an interrupt leaves it whole."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.tmp")
    temporary.write_text(json.dumps(value, indent=1) + "\n")
    temporary.replace(path)
