"""Training under PyTorch Lightning, with PyG's data modules.

    python examples/lightning_training.py
    python examples/lightning_training.py --task graphs --out FOLDER

``nodes``: scikit-learn's digits, one graph, by LightningNodeData. ``graphs``:
chains of different lengths, whose class stands at the first node and is asked
for at the last, by LightningDataset; every chain of a batch is solved until
it has converged, and no longer. Logged beside loss and accuracy, epoch by
epoch: the mean number of iterations of a solve, its largest residual, and the
share of solves that converged. FOLDER gets metrics.csv, a picture of it and
the best weights.
"""

import argparse
import csv
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from torch_geometric.data import Data
from torch_geometric.data.lightning import LightningDataset, LightningNodeData

from torch_picard import PIGN, Implicit
from torch_picard.datasets import ChainGraphs, DigitsGraph

try:  # in the order of PyG, whose data modules must be of the same package
    import lightning.pytorch as pl
    from lightning.pytorch.callbacks import ModelCheckpoint
    from lightning.pytorch.loggers import CSVLogger
except ImportError:
    try:
        import pytorch_lightning as pl
        from pytorch_lightning.callbacks import ModelCheckpoint
        from pytorch_lightning.loggers import CSVLogger
    except ImportError:
        raise SystemExit(
            "this example needs Lightning: pip install torch-picard[lightning]"
        ) from None

LENGTHS = range(2, 9)


class Classifier(pl.LightningModule):
    """Classifies the nodes that ``batch.train_mask`` etc. name."""

    def __init__(self, model: PIGN, rate: float = 0.01):
        super().__init__()
        self.model, self.rate = model, rate

    def step(self, batch: Data, part: str) -> Tensor:
        out, solution = self.model(
            batch.x,
            batch.edge_index,
            batch=getattr(batch, "batch", None),
            return_solution=True,
        )
        asked = batch[f"{part}_mask"]
        out, y = out[asked], batch.y[asked]
        loss = F.cross_entropy(out, y)
        means = {
            "loss": loss,
            "accuracy": (out.argmax(1) == y).float().mean(),
            "iterations": solution.iterations.float().mean(),
            "converged": solution.converged.float().mean(),
        }
        for name, value in means.items():
            self.note(part, name, value, len(y))
        residual = solution.residual.max()
        self.note(part, "residual", residual, len(y), reduce_fx="max")
        return loss

    def note(self, part, name, value, size, **how) -> None:
        self.log(
            f"{part}_{name}", value, on_step=False, on_epoch=True,
            batch_size=size, **how,
        )  # fmt: skip

    def training_step(self, batch: Data, index: int) -> Tensor:
        return self.step(batch, "train")

    def validation_step(self, batch: Data, index: int) -> None:
        self.step(batch, "val")

    def test_step(self, batch: Data, index: int) -> None:
        self.step(batch, "test")

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), self.rate)


def chains(lengths: range) -> dict[str, list[Data]]:
    """Graphs of each part."""
    parts: dict[str, list[Data]] = {"train": [], "val": [], "test": []}
    for length in lengths:
        whole = ChainGraphs(length, train_share=0.6)[0]
        path = whole.edge_index[:, : 2 * (length - 1)]  # of the first chain
        last = torch.arange(length) == length - 1
        for rows in torch.arange(whole.num_nodes).split(length):
            for part, graphs in parts.items():
                if whole[f"{part}_mask"][rows[0]]:
                    data = Data(x=whole.x[rows], edge_index=path)
                    data.y, data[f"{part}_mask"] = whole.y[rows], last
                    graphs.append(data)
    return parts


def loaded(task: str) -> tuple[pl.LightningDataModule, PIGN]:
    """The data, and a model for them."""
    if task == "nodes":
        data = DigitsGraph()[0]
        return (
            LightningNodeData(data, data.train_mask, loader="full"),
            PIGN(64, 32, 10, gradient=Implicit(), max_iter=50),
        )
    parts = chains(LENGTHS)
    return (
        LightningDataset(
            parts["train"], parts["val"], parts["test"], batch_size=32,
            pin_memory=False,
        ),
        PIGN(2, 16, 2, dropout=0.0, rtol=1e-5, max_iter=100),
    )  # fmt: skip


def picture(metrics: Path, path: Path) -> None:
    """What was logged, epoch by epoch."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    with metrics.open() as file:
        rows = list(csv.DictReader(file))
    names = "loss", "accuracy", "iterations", "residual"
    figure, axes = plt.subplots(1, len(names), figsize=(16, 3.5))
    for axis, name in zip(axes, names):
        for part in "train", "val":
            logged = [r for r in rows if r[f"{part}_{name}"]]
            epochs = [int(r["epoch"]) for r in logged]
            axis.plot(
                epochs,
                [float(r[f"{part}_{name}"]) for r in logged],
                label=part,
            )
        axis.set_title(name)
        axis.set_xlabel("epoch")
    axes[-1].set_yscale("log")
    axes[0].legend()
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    plt.close(figure)


def main() -> dict[str, float]:
    options = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    options.add_argument(
        "--task", choices=["nodes", "graphs"], default="nodes"
    )
    options.add_argument("--epochs", type=int, default=50)
    options.add_argument("--out", type=Path, default=Path("outputs/lightning"))
    args = options.parse_args()
    pl.seed_everything(0)
    data, model = loaded(args.task)
    logger = CSVLogger(args.out, name=args.task, version=0)
    best = ModelCheckpoint(monitor="val_accuracy", mode="max")
    trainer = pl.Trainer(
        max_epochs=args.epochs, accelerator="auto", devices=1, logger=logger,
        callbacks=[best], log_every_n_steps=1, enable_model_summary=False,
    )  # fmt: skip
    classifier = Classifier(model)
    trainer.fit(classifier, datamodule=data)
    found = trainer.test(classifier, datamodule=data, ckpt_path="best")
    folder = Path(logger.log_dir)
    picture(folder / "metrics.csv", folder / "metrics.png")
    print(f"metrics, picture and weights: {folder}")
    return found[0]


if __name__ == "__main__":
    main()
