"""One iteration count for all processes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist

from ..engine import loop


@contextmanager
def agreed_stopping(group: Any = None) -> Iterator[None]:
    """Solves within it end when those of all processes have.

    Where every process solves problems of its own, the numbers of
    evaluations differ. That is harmless under DDP, which communicates once
    in a backward pass. It is a deadlock where P itself communicates, as a
    module does whose parameters FSDP shards: then make the forward pass
    within this context.

    A solve that has ended goes on evaluating P until all have, and its value
    does not move; likewise the backward solve of an implicit gradient,
    wherever it is made. All processes must make the same solves in the same
    order.

    Args:
        group: of torch.distributed. (default: all processes)

    Raises:
        RuntimeError: torch.distributed has not been initialised.
    """
    if not dist.is_available() or not dist.is_initialized():
        raise RuntimeError(
            "agreed_stopping needs torch.distributed: call "
            "torch.distributed.init_process_group first"
        )

    def all_done(done: bool, device: torch.device) -> bool:
        going = torch.tensor(int(not done), device=device)
        dist.all_reduce(going, dist.ReduceOp.MAX, group=group)
        return not bool(going)

    with loop.ending_by(all_done):
        yield
