import datetime
import multiprocessing
import traceback

import pytest
import torch
import torch.distributed as dist


def _child(rank, world, place, work, arguments, answers, seconds):
    torch.set_num_threads(1)
    try:
        dist.init_process_group(
            "gloo", init_method=f"file://{place}", rank=rank,
            world_size=world, timeout=datetime.timedelta(seconds=seconds),
        )  # fmt: skip
        answers.put((rank, work(rank, world, *arguments), None))
        dist.barrier()
    except BaseException:
        answers.put((rank, None, traceback.format_exc()))


@pytest.fixture
def processes(tmp_path):
    """run(world, work, ...): what work(rank, world, ...) returned in each of
    so many processes (numpy and plain Python), by rank; with
    ``answering``, the errors of so many of them."""
    count = iter(range(100))

    def run(world, work, *arguments, seconds=60, answering=None):
        context = multiprocessing.get_context("fork")
        answers = context.Queue()
        place = tmp_path / f"meeting_{next(count)}"
        children = [
            context.Process(
                target=_child,
                args=(r, world, place, work, arguments, answers, seconds),
                daemon=True,
            )
            for r in range(world)
        ]
        for child in children:
            child.start()
        found, errors = {}, {}
        try:
            for _ in range(world if answering is None else answering):
                rank, value, error = answers.get(timeout=seconds + 60)
                found[rank], errors[rank] = value, error
        finally:
            for child in children:
                child.kill()
        if answering is not None:
            return errors
        assert not any(errors.values()), next(filter(None, errors.values()))
        return [found[rank] for rank in range(world)]

    return run
