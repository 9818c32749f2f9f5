"""Recycler against the loop that runs all recycles, in one run.

    python benchmarks/recycling.py [--threads 1] [--write DIR]

A small ESMFold of transformers with random weights (which contract, so the
structure soon stops changing): the model's own fixed number of recycles, the
same by recycle_esmfold without a tolerance, and with the tolerance of .5
Angstrom. Passes, milliseconds (medians of several, interleaved) and the peak
of the memory that torch allocates above what was there before. Then what a
Recycler costs beside a bare loop, for a step that costs nothing. --write puts
the tables into DIR.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from _memory import peak
from _table import rst, show

from torch_picard.recycling import Recycler, recycle_esmfold

RECYCLES = 20


def esmfold() -> torch.nn.Module:
    from transformers import EsmConfig, EsmForProteinFolding
    from transformers.models.esm.openfold_utils import residue_constants

    words = ["<cls>", "<pad>", "<eos>", "<unk>"]
    words += [*residue_constants.restypes_with_x, "<mask>"]
    torch.manual_seed(0)
    config = EsmConfig(
        vocab_size=len(words), vocab_list=tuple(words), pad_token_id=1,
        mask_token_id=len(words) - 1, hidden_size=32, num_hidden_layers=2,
        num_attention_heads=4, intermediate_size=64,
        max_position_embeddings=256, position_embedding_type="rotary",
        is_folding_model=True,
        esmfold_config={
            "trunk": {
                "num_blocks": 2, "sequence_state_dim": 64,
                "pairwise_state_dim": 32, "sequence_head_width": 16,
                "pairwise_head_width": 16,
                "structure_module": {
                    "sequence_dim": 64, "pairwise_dim": 32, "num_blocks": 4,
                },
            },
        },
    )  # fmt: skip
    return EsmForProteinFolding(config).eval()


def medians(runs: dict[str, Callable[[], object]], repeats: int) -> dict:
    """Milliseconds; interleaved, so that a slow moment hits all alike."""
    spent: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(repeats):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            spent[name].append(1000 * (time.perf_counter() - start))
    return {name: statistics.median(times) for name, times in spent.items()}


def folding(length: int, repeats: int) -> list[list[str]]:
    model = esmfold()
    ids = torch.randint(0, 20, (1, length))
    solutions = {}

    def recycled(tol: float) -> None:
        _, solutions[tol] = recycle_esmfold(
            model, ids, tol=tol, max_recycles=RECYCLES, on_failure="ignore"
        )

    runs = {
        f"num_recycles={RECYCLES}": lambda: model(ids, num_recycles=RECYCLES),
        "recycle_esmfold, tol 0": lambda: recycled(0.0),
        "recycle_esmfold, tol 0.5": lambda: recycled(0.5),
    }
    with torch.no_grad():
        for run in runs.values():
            run()
        spent = medians(runs, repeats)
        memory = {name: peak(run) for name, run in runs.items()}
    first, free, early = runs
    passes = {first: RECYCLES + 1}
    passes |= {free: solutions[0.0].evaluations}
    passes |= {early: solutions[0.5].evaluations}
    rows = [["", "passes", "ms", "of the first", "peak MiB"]]
    for name in runs:
        rows.append(
            [name, str(passes[name]), f"{spent[name]:.0f}",
             f"{spent[name] / spent[first]:.2f}", f"{memory[name]:.1f}"]
        )  # fmt: skip
    return rows


def overhead(length: int, repeats: int) -> list[list[str]]:
    target = 10 * torch.randn(length, 3)

    def step(x: torch.Tensor) -> torch.Tensor:
        return torch.lerp(target, x, 0.999)

    def bare() -> torch.Tensor:
        x = torch.zeros(length, 3)
        for _ in range(RECYCLES + 1):
            x = step(x)
        return x

    recycler = Recycler(
        step, tol=0.0, max_recycles=RECYCLES, on_failure="ignore"
    )
    runs = {"bare": bare, "ours": lambda: recycler(torch.zeros(length, 3))}
    for run in runs.values():
        run()
    spent = medians(runs, repeats)
    each = (spent["ours"] - spent["bare"]) / (RECYCLES + 1)
    return [
        ["residues", "bare loop, ms", "Recycler, ms", "more a pass, ms"],
        [str(length), f"{spent['bare']:.2f}", f"{spent['ours']:.2f}",
         f"{each:.2f}"],
    ]  # fmt: skip


def main() -> None:
    options = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    options.add_argument("--threads", type=int, default=1)
    options.add_argument("--length", type=int, default=64)
    options.add_argument("--repeats", type=int, default=5)
    options.add_argument("--write", type=Path)
    args = options.parse_args()
    torch.set_num_threads(args.threads)
    where = f"torch {torch.__version__}, {args.threads} thread(s), medians"
    tables = {
        f"ESMFold, {args.length} residues, {where}": folding(
            args.length, args.repeats
        ),
        f"A pass that costs nothing, {where}": overhead(256, 5 * args.repeats),
    }
    for title, table in tables.items():
        show(title, table)
    if args.write is not None:
        args.write.mkdir(parents=True, exist_ok=True)
        parts = [rst(title, table) for title, table in tables.items()]
        (args.write / "recycling_cost.inc").write_text("\n".join(parts))


if __name__ == "__main__":
    main()
