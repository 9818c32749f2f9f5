"""jacobi_generate against generate of transformers, in one run.

    python benchmarks/autoregressive.py [--threads 1] [--device cpu]
        [--write DIR]

A Llama with small random weights, whose greedy text soon repeats itself, the
best case; the same, sampled, where most of the choice is the noise; and one
with large weights, whose greedy text nobody can guess, the worst. For one text
and for eight: calls of the model and milliseconds per token (medians of
several runs, interleaved), and the peak of the memory above what was there
before. --write puts the table into DIR.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from _memory import peak
from _table import rst, show
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

from torch_picard.autoregressive import jacobi_generate

PROMPT = 64


# standard deviation of the weights, whether to sample
CASES = {
    "repeats itself": (0.02, False),
    "sampled": (0.02, True),
    "unpredictable": (0.2, False),
}


def llama(deviation: float, device: str) -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=1000, hidden_size=384, intermediate_size=1024,
        num_hidden_layers=6, num_attention_heads=6, bos_token_id=None,
        eos_token_id=None, initializer_range=deviation,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval().to(device)


def medians(runs: dict[str, Callable[[], object]], repeats: int) -> dict:
    """Milliseconds; interleaved, so that a slow moment hits all alike."""
    spent: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(repeats):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            spent[name].append(1000 * (time.perf_counter() - start))
    return {name: statistics.median(times) for name, times in spent.items()}


def megabytes(run: Callable[[], object], device: str) -> float:
    if device == "cpu":
        return peak(run)
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    run()
    return (torch.cuda.max_memory_allocated() - before) / 2**20


def rows(
    case: str, batch: int, new: int, repeats: int, device: str
) -> list[list[str]]:
    deviation, sample = CASES[case]
    model = llama(deviation, device)
    ids = torch.randint(
        1000, (batch, PROMPT), generator=torch.Generator().manual_seed(0)
    ).to(model.device)
    given = {"max_new_tokens": new, "do_sample": sample}
    calls: list[int] = []
    model.register_forward_pre_hook(lambda *_: calls.append(1))

    def jacobi(block: int) -> Callable[[], object]:
        config = GenerationConfig(**given)
        return lambda: jacobi_generate(
            model, ids, block_size=block, generation_config=config
        )

    mask = torch.ones_like(ids)
    runs: dict[str, Callable[[], object]] = {
        "generate": lambda: model.generate(ids, attention_mask=mask, **given)
    }
    if batch == 1:
        runs["generate, prompt lookup of 15"] = lambda: model.generate(
            ids, attention_mask=mask, prompt_lookup_num_tokens=15, **given
        )
    runs |= {f"Jacobi, block of {block}": jacobi(block) for block in (4, 16)}
    used = {}
    for name, run in runs.items():
        calls.clear()
        run()
        used[name] = len(calls)
    spent = medians(runs, repeats)
    found = []
    for name, run in runs.items():
        memory = megabytes(run, device)
        ratio = spent[name] / spent["generate"]
        found.append(
            [case, str(batch), name, f"{used[name] / new:.2f}",
             f"{spent[name] / new:.2f}", f"{ratio:.2f}", f"{memory:.1f}"]
        )  # fmt: skip
    return found


def main() -> None:
    options = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    options.add_argument("--threads", type=int, default=1)
    options.add_argument("--device", default="cpu")
    options.add_argument("--new", type=int, default=96)
    options.add_argument("--repeats", type=int, default=3)
    options.add_argument("--write", type=Path)
    args = options.parse_args()
    torch.set_num_threads(args.threads)
    table = [
        ["text", "batch", "", "calls per token", "ms per token", "of generate",
         "peak MiB"]
    ]  # fmt: skip
    for case in CASES:
        for batch in (1, 8):
            table += rows(case, batch, args.new, args.repeats, args.device)
    where = f"{args.threads} thread(s)"
    if args.device != "cpu":
        where = torch.cuda.get_device_name()
    count = sum(p.numel() for p in llama(0.02, "cpu").parameters()) / 1e6
    title = (
        f"A Llama of {count:.0f} million parameters, {args.new} tokens a "
        f"text, torch {torch.__version__}, {where}, medians"
    )
    show(title, table)
    if args.write is not None:
        args.write.mkdir(parents=True, exist_ok=True)
        text = rst(title, table)
        (args.write / "autoregressive_cost.inc").write_text(text)


if __name__ == "__main__":
    main()
