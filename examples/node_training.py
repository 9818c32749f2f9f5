"""Data, training and evaluation shared by the node classification scripts."""

import argparse
import copy
import json
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch_geometric.data import Data
from torch_geometric.datasets import (
    Amazon,
    HeterophilousGraphDataset,
    Planetoid,
)
from working_copy import opened

from torch_picard.datasets import Centre, DigitsGraph, DropInNoise

DATASETS = ["DigitsGraph", "Cora", "CiteSeer", "Photo", "minesweeper"]
SOURCES: dict[str, tuple[str, str, Callable[[str], Any]]] = {
    "Cora": ("planetoid", "Cora", partial(Planetoid, name="Cora")),
    "CiteSeer": ("planetoid", "CiteSeer", partial(Planetoid, name="CiteSeer")),
    "Photo": ("amazon", "Photo", partial(Amazon, name="photo")),
    "minesweeper": (
        "heterophilous",
        "minesweeper",
        partial(HeterophilousGraphDataset, name="minesweeper"),
    ),
}


def load(
    name: str,
    root: str | None = None,
    cache: str | None = None,
    split: int = 0,
) -> Data:
    """The graph `name` with boolean masks of shape [N]; of one that comes
    with ten splits, the one asked for.

    `root` (else TORCH_PICARD_DATA) is a folder with raw files, which is never
    written to: a copy is kept in `cache`. Without a root the dataset class
    downloads.
    """
    if name == "DigitsGraph":
        return DigitsGraph(k=3)[0]  # few neighbours: one hop is not enough
    family, folder, make = SOURCES[name]
    data = opened(family, folder, make, root, cache)[0]
    if family == "amazon":
        return public_style_split(data)
    if data.train_mask.dim() == 2:
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


def read_json(path: Path, what: str) -> Any:
    """What the file holds; `what` says in an error what it should be."""
    try:
        return json.loads(Path(path).read_text())
    except OSError as error:
        raise SystemExit(
            f"{path} should be {what} and cannot be read: {error.strerror}"
        ) from None
    except ValueError as error:  # no JSON, or no text at all
        raise SystemExit(
            f"{path} should be {what} and is damaged or something else "
            f"({error}): remove it, or name another file"
        ) from None


def at_least(least: int) -> Callable[[str], int]:
    """A type for argparse."""

    def number(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = least - 1
        if value < least:
            raise argparse.ArgumentTypeError(
                f"must be an integer of at least {least}, got {text}"
            )
        return value

    return number


def probability(text: str) -> float:
    """A type for argparse."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0.0 <= value <= 1.0:
        raise argparse.ArgumentTypeError(
            f"must be a number in [0, 1], got {text}"
        )
    return value
