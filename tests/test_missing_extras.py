"""Without diffusers and transformers: what needs them names the extra."""

import json
import subprocess
import sys

import pytest

SCRIPT = """
import json, sys
from types import SimpleNamespace

for name in ("diffusers", "transformers"):
    sys.modules[name] = None  # as if it were not installed

import torch
from torch_picard.autoregressive import jacobi_generate
from torch_picard.diffusion import ParallelPipeline, PicardSampler
from torch_picard.diffusion import reverse_chain
from torch_picard.recycling import Recycler, recycle_esmfold

alphas = torch.linspace(0.99, 0.01, 20)
x, ids = torch.zeros(2, 3), torch.ones(1, 2, dtype=torch.long)
config = SimpleNamespace(do_sample=True, top_k=3)


def zero(x, t):
    return torch.zeros_like(x)


def count(ids):
    return torch.nn.functional.one_hot((ids + 1) % 7, 7).float()


class Hosted(torch.nn.Module):
    def prepare_inputs_for_generation(self):
        pass


def text(model, **options):
    return jacobi_generate(model, ids, 3, **options).tolist()


calls = {
    "chain": lambda: reverse_chain(zero, alphas, 5, x).tolist(),
    "sampler": lambda: PicardSampler(zero, alphas, 5)(x)[0].tolist(),
    "text": lambda: text(count),
    "recycling": lambda: bool(Recycler(lambda x: x)(torch.ones(4, 3))),
    "scheduler": lambda: PicardSampler(zero, "DDIMScheduler", 5),
    "chain's scheduler": lambda: reverse_chain(zero, "DDIMScheduler", 5, x),
    "pipeline": lambda: ParallelPipeline("google/ddpm-cifar10-32"),
    "model": lambda: text("gpt2"),
    "hosted model": lambda: text(Hosted()),
    "processors": lambda: text(count, generation_config=config),
    "fold": lambda: recycle_esmfold("facebook/esmfold_v1", ids),
}
said = {}
for name, call in calls.items():
    try:
        said[name] = call()
    except (ImportError, TypeError) as error:
        said[name] = str(error)
print(json.dumps(said))
"""


@pytest.fixture(scope="module")
def said():
    run = subprocess.run(
        [sys.executable, "-c", SCRIPT], capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout)


def test_the_rest_works(said):
    # the denoiser sees no noise: an image of zeros stays one
    assert said["chain"] == said["sampler"] == [[0.0] * 3] * 2
    assert said["text"] == [[1, 1, 2, 3, 4]]
    assert said["recycling"]


@pytest.mark.parametrize(
    ("call", "argument", "extra"),
    [
        ("scheduler", "scheduler must be", "diffusion"),
        ("chain's scheduler", "scheduler must be", "diffusion"),
        ("pipeline", "pipeline must be", "diffusion"),
        ("model", "model must be", "transformers"),
        ("hosted model", "a model with", "transformers"),
        ("processors", "top_k of generation_config", "transformers"),
        ("fold", "model must be", "transformers"),
    ],
)
def test_the_extra_is_named(said, call, argument, extra):
    assert said[call].startswith(argument)
    assert f"pip install torch-picard[{extra}]" in said[call]
