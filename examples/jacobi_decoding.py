"""Several characters in a call of the model, with the same text.

    python examples/jacobi_decoding.py
    TORCH_PICARD_DATA=FOLDER python examples/jacobi_decoding.py \\
        --data shakespeare
    python examples/jacobi_decoding.py --scale full --device cuda

Trains a small Llama on characters for some minutes and counts its calls per
character: torch_picard.autoregressive.jacobi_generate with each way to guess,
beside transformers' own generate, plain and with prompt_lookup_num_tokens.
Greedy texts behind held-out prompts, sampled ones, and ones behind prompts
that repeat a passage; every greedy text is compared with the sequential one.
Prints tables and saves a picture; a run that was interrupted goes on.

The text is Python's own reference manual (pydoc_data.topics). Shakespeare's
is read from FOLDER/tinyshakespeare/input.txt.
"""

import os
from pathlib import Path

import torch
from operator_runs import Runs, Table, fit, number_of, parser, report
from torch import Tensor
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

from torch_picard.autoregressive import jacobi_generate

SCALES = {
    "small": {
        "dim": 96, "layers": 3, "heads": 4, "context": 224, "batch": 8,
        "steps": 2000, "lr": 4e-3, "prompts": 12, "prompt": 96, "new": 128,
    },
    "full": {
        "dim": 384, "layers": 6, "heads": 6, "context": 512, "batch": 64,
        "steps": 10000, "lr": 1e-3, "prompts": 50, "prompt": 192, "new": 256,
    },
}  # fmt: skip
BLOCKS = [4, 8, 16, 32]
BLOCK = 16
PASSAGE = 24  # characters that a repetitive prompt repeats
KINDS = {
    "ordinary": "ordinary text",
    "sampled": "ordinary text, sampled",
    "repetitive": "repetitive text",
}
METHODS = {
    "sequential": "transformers, sequential",
    "peer": "transformers, prompt lookup",
    "repeat": "Jacobi, init='repeat'",
    "prompt_lookup": "Jacobi, init='prompt_lookup'",
    "lookahead": "Jacobi, init='lookahead'",
}


# -- data ---------------------------------------------------------------------


class Text:
    """Characters as numbers; the last tenth is held out."""

    def __init__(self, data: str):
        text = manual() if data == "python" else shakespeare()
        self.letters = sorted(set(text))
        number = {letter: i for i, letter in enumerate(self.letters)}
        codes = torch.tensor([number[letter] for letter in text])
        cut = len(codes) * 9 // 10
        self.train, self.test = codes[:cut], codes[cut:]

    def batch(self, rows: int, length: int) -> Tensor:
        """[rows, length] to train on. In every fourth row a passage is
        repeated, so that the model learns to."""
        start = torch.randint(len(self.train) - length, (rows,))
        part = self.train[start[:, None] + torch.arange(length)]
        for row in part[::4]:
            period = int(torch.randint(8, 49, ()))
            row.copy_(row[:period].repeat(length // period + 1)[:length])
        return part

    def prompts(self, kind: str, count: int, length: int) -> Tensor:
        """[count, length], of the text that is held out."""
        rng = torch.Generator().manual_seed(0)
        last = len(self.test) - length
        start = torch.randint(last, (count,), generator=rng)
        part = self.test[start[:, None] + torch.arange(length)]
        if kind == "repetitive":
            part = part[:, :PASSAGE].repeat(1, length // PASSAGE + 1)
        return part[:, :length]


def manual() -> str:
    from pydoc_data.topics import topics

    text = "\n".join(topics[name] for name in sorted(topics))
    return "".join(c for c in text if c == "\n" or " " <= c <= "~")


def shakespeare() -> str:
    root = os.environ.get("TORCH_PICARD_DATA")
    path = Path(root or ".", "tinyshakespeare", "input.txt")
    if not path.exists():
        raise SystemExit(
            "no Shakespeare: set TORCH_PICARD_DATA to a folder that holds "
            "tinyshakespeare/input.txt"
        )
    return path.read_text()


# -- runs ---------------------------------------------------------------------


def trained(data, setting, device, path) -> tuple[LlamaForCausalLM, Text]:
    """Kept in ``path``."""
    text = Text(data)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(text.letters),
        hidden_size=setting["dim"],
        intermediate_size=4 * setting["dim"],
        num_hidden_layers=setting["layers"],
        num_attention_heads=setting["heads"],
        max_position_embeddings=setting["context"],
        bos_token_id=None,
        eos_token_id=None,
    )
    model = LlamaForCausalLM(config).to(device)
    if path.exists():
        model.load_state_dict(torch.load(path, map_location=device))
        return model.eval(), text

    def loss() -> Tensor:
        ids = text.batch(setting["batch"], setting["context"]).to(device)
        return model(input_ids=ids, labels=ids).loss

    fit(model, loss, setting["steps"], setting["lr"])
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(model.state_dict(), path)
    return model, text


def held_out(data, setting, device, path) -> dict:
    """Nats per character, and the size of the model."""
    model, text = trained(data, setting, device, path)
    length = setting["context"]
    rows = text.test[: len(text.test) // length * length].view(-1, length)
    with torch.no_grad():
        losses = [
            float(model(input_ids=ids, labels=ids).loss)
            for ids in rows[:100].to(device).split(10)
        ]
    return {
        "loss": sum(losses) / len(losses),
        "parameters": number_of(model),
    }


_wanted: dict = {}


def wanted(model, prompts, kind, path, options) -> list[Tensor]:
    """The sequential texts, once in a process."""
    method, block = ("repeat", 1) if kind == "sampled" else ("sequential", 1)
    if (kind, path) not in _wanted:
        _wanted[kind, path] = [
            decode(model, prompt[None], method, block, row, options)
            for row, prompt in enumerate(prompts)
        ]
    return _wanted[kind, path]


def run(kind, method, block, data, setting, device, path) -> dict:
    """Calls per new character, one prompt at a time."""
    model, text = trained(data, setting, device, path)
    new = setting["new"]
    prompts = text.prompts(kind, setting["prompts"], setting["prompt"])
    prompts = prompts.to(device)
    options = {"max_new_tokens": new, "do_sample": kind == "sampled"}
    want = wanted(model, prompts, kind, path, options)
    calls, differ = [], 0
    for row, prompt in enumerate(prompts):
        counter = Calls(model)
        ids = decode(model, prompt[None], method, block, row, options)
        calls.append(counter.stop())
        differ += not torch.equal(ids, want[row])
    return {
        "calls": sum(calls) / (new * len(calls)),
        "most": max(calls) / new,
        "differ": differ,
    }


def decode(model, ids, method, block, row, options) -> Tensor:
    if method in ("sequential", "peer"):
        torch.manual_seed(row)
        more = {"prompt_lookup_num_tokens": block - 1}
        return model.generate(
            ids, **options, **(more if method == "peer" else {})
        )
    config = GenerationConfig(**options)
    generator = torch.Generator().manual_seed(row)
    return jacobi_generate(
        model, ids, block_size=block, init=method, generator=generator,
        generation_config=config,
    )  # fmt: skip


class Calls:
    """How often a model is called."""

    def __init__(self, model: torch.nn.Module):
        self.count = 0
        self._hook = model.register_forward_pre_hook(self._seen)

    def _seen(self, *_) -> None:
        self.count += 1

    def stop(self) -> int:
        self._hook.remove()
        return self.count


def cells() -> list[tuple]:
    """(kind, method, block)"""
    return [
        (kind, method, block)
        for kind in KINDS
        for method in METHODS
        for block in (BLOCKS if method != "sequential" else [BLOCK])
    ]


# -- tables -------------------------------------------------------------------


def name_of(kind: str, method: str, block: int) -> str:
    return f"{kind} {method} {block}"


def tables(results: dict) -> dict[str, Table]:
    found = {
        f"Calls of the model per character, block of {BLOCK}": "calls",
        "The most in one text": "most",
    }
    made = {}
    for title, field in found.items():
        rows = [["", *KINDS.values()]]
        for method, name in METHODS.items():
            line = [name]
            for kind in KINDS:
                result = results.get(name_of(kind, method, BLOCK))
                line.append(f"{result[field]:.2f}" if result else "-")
            rows.append(line)
        made[title] = rows
    differ = [["", *KINDS.values()]]
    for method, name in METHODS.items():
        line = [name]
        for kind in KINDS:
            names = [name_of(kind, method, block) for block in BLOCKS]
            of = [results[n]["differ"] for n in names if n in results]
            line.append(str(sum(of)) if of else "-")
        differ.append(line)
    # transformers' loops draw other numbers than ours
    differ[1][2] = differ[2][2] = "-"
    made["Texts that differ from the sequential one, all blocks"] = differ
    return made


def picture(results: dict, path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, panels = plt.subplots(1, len(KINDS), figsize=(10, 3), sharey=True)
    for axes, (kind, title) in zip(panels, KINDS.items()):
        for method, name in METHODS.items():
            names = [name_of(kind, method, block) for block in BLOCKS]
            if all(n in results for n in names):
                values = [results[n]["calls"] for n in names]
                axes.plot(BLOCKS, values, marker="o", label=name)
        axes.axhline(1.0, color="black", linewidth=0.8)
        axes.set_xscale("log", base=2)
        axes.set_ylim(0, 1.1)
        axes.set_title(title)
        axes.set_xlabel("block")
    panels[0].set_ylabel("calls per character")
    panels[0].legend(fontsize=7)
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100)
    plt.close(figure)


def main() -> None:
    options = parser(__doc__, "jacobi_python", SCALES)
    options.add_argument(
        "--data", choices=["python", "shakespeare"], default="python"
    )
    options.set_defaults(workers=1)
    args = options.parse_args()
    setting = SCALES[args.scale]
    name = f"jacobi_{args.data}"
    kept = args.out / f"{name}_{args.scale}"
    model = kept.with_suffix(".pt")
    runs = Runs(kept.with_suffix(".json"), setting)
    shared = (args.data, setting, args.device, model)
    # first: it trains
    runs.complete({"held out": shared}, held_out)
    todo = {name_of(*which): (*which, *shared) for which in cells()}
    runs.complete(todo, run, args.workers)
    first = runs.results["held out"]
    print(
        f"{first['parameters']:,} parameters, {first['loss']:.3f} nats per "
        f"held-out character, trained in {first['seconds']:.0f} s"
    )
    report(tables(runs.results), args.write, name)
    path = (args.write or args.out) / f"{name}.png"
    picture(runs.results, path)
    print(f"\nPicture: {path}")


if __name__ == "__main__":
    main()
