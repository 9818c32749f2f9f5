"""The peak of what the tensors of a computation hold."""

from collections.abc import Callable

from torch_picard.nn import peak as _peak


def peak(run: Callable[[], object]) -> float:
    """MiB of all storages alive at once that ``run`` made, without what an
    operation allocates and frees inside itself."""
    return _peak.peak(run) / 2**20
