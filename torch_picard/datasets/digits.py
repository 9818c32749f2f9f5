"""A real graph that needs no download: scikit-learn's digits."""

from collections.abc import Callable

import numpy as np
import torch
from torch_geometric.data import Data, InMemoryDataset
from torch_geometric.utils import to_undirected

from .options import check_integer, check_seed, check_transforms

NUM_DIGITS = 1797


class DigitsGraph(InMemoryDataset):
    r"""The 1,797 handwritten digits (8 x 8 grey values) that come with
    scikit-learn, as the nodes of one graph; each is joined to its :obj:`k`
    nearest neighbours in Euclidean distance, and the graph is made
    undirected. The task is to classify the nodes from few labels, with
    masks in the style of Planetoid's public split.

    Nothing is downloaded or written: scikit-learn holds the images. They
    are the test set of `"Optical Recognition of Handwritten Digits"
    <https://doi.org/10.24432/C50P49>`_ (Alpaydin and Kaynak, UCI, 1998).
    The result depends on the arguments only.

    Args:
        k (int, optional): Neighbours of each node, in [1, 1796].
            (default: :obj:`10`)
        num_per_class (int, optional): Training labels a class, in [1, 100].
            (default: :obj:`20`)
        num_val (int, optional): Validation nodes, at least 1 and leaving
            some for the test. (default: :obj:`500`)
        num_test (int, optional): Test nodes, at least 1; :obj:`None` takes
            all that are left. (default: :obj:`1000`)
        seed (int, optional): The seed of the split. (default: :obj:`0`)
        transform (callable, optional): Applied at each access.
        pre_transform (callable, optional): Applied once.

    Shapes:
        - **x:** :math:`(1797, 64)`, float32 in [0, 1]
        - **edge_index:** :math:`(2, E)`, int64, sorted, both directions,
          without self-loops
        - **y:** :math:`(1797)`, int64 in 0..9
        - **train_mask, val_mask, test_mask:** :math:`(1797)`, bool, disjoint

    Raises:
        ImportError: If scikit-learn is missing.
        TypeError: If a number is not an int, or a transform not callable.
        ValueError: If an option is out of range.
    """

    def __init__(
        self,
        k: int = 10,
        num_per_class: int = 20,
        num_val: int = 500,
        num_test: int | None = 1000,
        seed: int = 0,
        transform: Callable | None = None,
        pre_transform: Callable | None = None,
    ) -> None:
        check_transforms(transform=transform, pre_transform=pre_transform)
        super().__init__(None, transform, pre_transform)
        check_integer("k", k, 1, NUM_DIGITS - 1)
        check_integer("num_per_class", num_per_class, 1, 100)
        left = NUM_DIGITS - 10 * num_per_class  # at least 797
        check_integer("num_val", num_val, 1, left - 1)
        if num_test is not None:
            check_integer("num_test", num_test, 1, left - num_val)
        check_seed(seed)
        images, labels = _load_digits()

        y = torch.from_numpy(labels).long()
        data = Data(
            x=torch.from_numpy(images / 16.0).float(),
            edge_index=_nearest_neighbours(images, k),
            y=y,
        )
        masks = _split(y, num_per_class, num_val, num_test, seed)
        data.train_mask, data.val_mask, data.test_mask = masks
        if self.pre_transform is not None:
            data = self.pre_transform(data)
        self.data, self.slices = self.collate([data])


def _load_digits() -> tuple[np.ndarray, np.ndarray]:
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ImportError(
            "DigitsGraph needs scikit-learn: "
            "pip install 'torch-picard[datasets]'"
        ) from error
    return load_digits(return_X_y=True)


def _nearest_neighbours(images: np.ndarray, k: int) -> torch.Tensor:
    # Grey values are integers: distances are exact, and a stable sort
    # breaks ties by index, so the graph is the same on every machine.
    grey = images.astype(np.int64)
    norm = (grey * grey).sum(axis=1)
    distance = norm[:, None] + norm[None, :] - 2 * grey @ grey.T
    np.fill_diagonal(distance, np.iinfo(np.int64).max)
    nearest = np.argsort(distance, axis=1, kind="stable")[:, :k]
    source = torch.from_numpy(nearest.reshape(-1))
    target = torch.arange(len(grey)).repeat_interleave(k)
    return to_undirected(torch.stack([source, target]), num_nodes=len(grey))


def _split(
    y: torch.Tensor,
    num_per_class: int,
    num_val: int,
    num_test: int | None,
    seed: int,
) -> list[torch.Tensor]:
    order = torch.randperm(
        len(y), generator=torch.Generator().manual_seed(seed)
    )
    train = torch.cat(
        [order[y[order] == c][:num_per_class] for c in range(int(y.max()) + 1)]
    )
    rest = order[~torch.isin(order, train)]
    stop = None if num_test is None else num_val + num_test
    masks = []
    for index in (train, rest[:num_val], rest[num_val:stop]):
        mask = torch.zeros(len(y), dtype=torch.bool)
        mask[index] = True
        masks.append(mask)
    return masks
