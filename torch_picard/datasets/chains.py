"""Chains: how far can information travel?"""

from collections.abc import Callable

import torch
from torch_geometric.data import Data, InMemoryDataset

from .options import (
    check_at_least,
    check_number,
    check_seed,
    check_transforms,
)


class ChainGraphs(InMemoryDataset):
    r"""Chains whose class is written in the features of their first node
    only, after `"Implicit Graph Neural Networks"
    <https://arxiv.org/abs/2009.06211>`_ (Gu et al., NeurIPS 2020). Every
    node is to be classified, so a model must carry information over
    :obj:`length` - 1 edges.

    The dataset is one graph: the disjoint union of :obj:`num_chains` chains
    of each class. Whole chains, not nodes, are split into training,
    validation and test.

    Args:
        length (int): Nodes of a chain, at least 1.
        num_chains (int, optional): Chains of each class, at least 3.
            (default: :obj:`20`)
        num_classes (int, optional): Classes, at least 2.
            (default: :obj:`2`)
        num_features (int, optional): Features, at least
            :obj:`num_classes`: the first hold the class (one-hot), the
            others are zero. :obj:`None` takes :obj:`num_classes`.
            (default: :obj:`None`)
        train_share, val_share (float, optional): Shares of the chains of
            each class; at least one chain goes to each part, and the test
            gets the others. (default: :obj:`0.2`, :obj:`0.2`)
        seed (int, optional): The seed of the split. (default: :obj:`0`)
        transform (callable, optional): Applied at each access.
        pre_transform (callable, optional): Applied once.

    Shapes:
        With :math:`N` = num_classes * num_chains * length:

        - **x:** :math:`(N, F)`, float32
        - **edge_index:** :math:`(2, 2 N (length - 1) / length)`, int64
        - **y, chain, position:** :math:`(N)`, int64: class, index of the
          chain (sorted, so it is a batch vector), place in the chain
        - **train_mask, val_mask, test_mask:** :math:`(N)`, bool, disjoint

    Raises:
        TypeError: If a number is not an int, a share not a number, or a
            transform not callable.
        ValueError: If an option is out of range.
    """

    def __init__(
        self,
        length: int,
        num_chains: int = 20,
        num_classes: int = 2,
        num_features: int | None = None,
        train_share: float = 0.2,
        val_share: float = 0.2,
        seed: int = 0,
        transform: Callable | None = None,
        pre_transform: Callable | None = None,
    ) -> None:
        check_transforms(transform=transform, pre_transform=pre_transform)
        super().__init__(None, transform, pre_transform)
        check_at_least("num_classes", num_classes, 2)
        if num_features is None:
            num_features = num_classes
        check_at_least("length", length, 1)
        check_at_least("num_chains", num_chains, 3)
        check_at_least("num_features", num_features, num_classes)
        check_number("train_share", train_share)
        check_number("val_share", val_share)
        check_seed(seed)
        if not (train_share > 0 < val_share and train_share + val_share < 1):
            raise ValueError(
                "train_share and val_share must be positive and below 1 in "
                f"total, got {train_share} and {val_share}"
            )

        total = num_classes * num_chains
        chain = torch.arange(total).repeat_interleave(length)
        position = torch.arange(length).repeat(total)
        y = chain // num_chains
        x = torch.zeros(total * length, num_features)
        first = torch.arange(total) * length
        x[first, y[first]] = 1.0

        left = torch.arange(total * length)[position < length - 1]
        edge_index = torch.stack(
            [torch.cat([left, left + 1]), torch.cat([left + 1, left])]
        )
        data = Data(
            x=x, edge_index=edge_index, y=y, chain=chain, position=position
        )
        data.edge_index = data.sort().edge_index

        # one chain at least for each part
        num_train = max(1, int(train_share * num_chains))
        num_train = min(num_train, num_chains - 2)
        num_val = max(1, int(val_share * num_chains))
        num_val = min(num_val, num_chains - num_train - 1)
        generator = torch.Generator().manual_seed(seed)
        part = torch.empty(total, dtype=torch.long)
        for c in range(num_classes):
            order = torch.randperm(num_chains, generator=generator)
            order = order + c * num_chains
            part[order] = 2
            part[order[:num_train]] = 0
            part[order[num_train : num_train + num_val]] = 1
        for index, name in enumerate(["train", "val", "test"]):
            data[f"{name}_mask"] = (part == index)[chain]
        if self.pre_transform is not None:
            data = self.pre_transform(data)
        self.data, self.slices = self.collate([data])
