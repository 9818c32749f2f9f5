"""Graphs that are spread over the processes of torch.distributed."""

from .agreement import agreed_stopping
from .graph import PartitionedGraph
from .partition import partition

__all__ = ["PartitionedGraph", "agreed_stopping", "partition"]
