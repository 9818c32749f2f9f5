"""Wrong calls: the error names the argument and what is allowed."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from sequences import Table

from torch_picard.autoregressive import jacobi_generate

IDS = torch.tensor([[1, 2, 3, 4], [4, 3, 2, 1]])


@pytest.fixture(scope="module")
def gpt2():
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        n_positions=20, n_embd=8, n_layer=1, n_head=1, vocab_size=7,
        bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    return transformers.GPT2LMHeadModel(config).eval()


@pytest.fixture(params=["callable", "transformers"])
def model(request):
    if request.param == "callable":
        return Table()
    return request.getfixturevalue("gpt2")


def call(model, **changed):
    given = {"model": model, "input_ids": IDS, "max_new_tokens": 3}
    return jacobi_generate(**(given | changed))


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        ({"model": 3}, TypeError, "model must be .* got int"),
        ({"input_ids": [[1]]}, TypeError, "input_ids must be .* got list"),
        ({"input_ids": torch.ones(1, 3)}, ValueError, "input_ids .*float32"),
        ({"input_ids": torch.ones(3).long()}, ValueError, r"got .*\[3\]"),
        ({"input_ids": torch.ones(2, 0).long()}, ValueError, r"\[2, 0\]"),
        ({"input_ids": torch.ones(0, 2).long()}, ValueError, r"\[0, 2\]"),
        ({"max_new_tokens": 0}, ValueError, "max_new_tokens .* 1, got 0"),
        ({"max_new_tokens": 2.5}, TypeError, "max_new_tokens .* got 2.5"),
        ({"max_new_tokens": True}, TypeError, "max_new_tokens .* got True"),
        ({"block_size": 0}, ValueError, "block_size .* 1, got 0"),
        ({"block_size": None}, TypeError, "block_size .* got None"),
        ({"eos_token_id": -1}, ValueError, "eos_token_id .* got -1"),
        ({"eos_token_id": []}, TypeError, r"eos_token_id .* got \[\]"),
        ({"eos_token_id": "x"}, TypeError, "eos_token_id .* got 'x'"),
        ({"eos_token_id": torch.ones(1)}, TypeError, "eos_token_id .*1.]"),
        ({"pad_token_id": [1]}, TypeError, r"pad_token_id .* got \[1\]"),
        ({"pad_token_id": -1}, ValueError, "pad_token_id .* 0, got -1"),
        ({"synced_gpus": True}, ValueError, "synced_gpus must be False"),
        ({"init": "random"}, ValueError, "init must be one of .*'random'"),
        ({"on_failure": "no"}, ValueError, "on_failure must be .* 'no'"),
        ({"generator": 3}, TypeError, "generator must be a torch.Gen.* got 3"),
        ({"streamer": 3}, TypeError, "streamer must have .* got 3"),
        ({"streamer": []}, TypeError, r"streamer must have .* got \[\]"),
        ({"logits_processor": 3}, TypeError, "logits_processor .* got 3"),
        ({"logits_processor": [3]}, TypeError, "logits_processor .* got 3"),
        (
            {"logits_processor": lambda ids, scores: scores[:1]}, ValueError,
            r"logits_processor .* \[2, 7\] .* function .*\[1, 7\]",
        ),
        (
            {"logits_processor": lambda ids, scores: None}, ValueError,
            "logits_processor .* function has returned NoneType",
        ),
        ({"stopping_criteria": 3}, TypeError, "stopping_criteria .* got 3"),
        ({"stopping_criteria": [3]}, TypeError, "stopping_criteria .* got 3"),
        (
            {"stopping_criteria": lambda ids, scores: False}, ValueError,
            r"stopping_criteria .* Tensor \[2\], .* returned False",
        ),
        ({"generation_config": 3}, TypeError, "generation_config .* got 3"),
        (
            {"generation_config": {"do_sample": True}}, TypeError,
            "generation_config must have fields such as do_sample, .* got {",
        ),
        ({"attention_mask": 3}, TypeError, "attention_mask .* got int"),
        ({"attention_mask": torch.ones(4)}, ValueError, r"mask .* got \[4\]"),
        (
            {"attention_mask": torch.ones(5, 4)}, ValueError,
            r"attention_mask must be \[2, 4\] .* got \[5, 4\]",
        ),
        (
            {"attention_mask": torch.ones(2, 9)}, ValueError,
            r"attention_mask must be \[2, 4\] .* length is 9",
        ),
        ({"colour": 3}, (TypeError, ValueError), "'colour'"),
    ],
)  # fmt: skip
def test_every_model(model, change, error, text):
    with pytest.raises(error, match=text):
        call(**({"model": model} | change))


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        ({"max_new_tokens": None}, ValueError, "max_new_tokens must be given"),
        (
            {"attention_mask": torch.zeros(2, 4)}, ValueError,
            "attention_mask must be all ones",
        ),
        ({"use_cache": True}, TypeError, "argument 'use_cache'"),
        ({"model": lambda x: x}, ValueError, r"logits .* got \[2, "),
        ({"model": lambda x: 3}, TypeError, "logits .* got int"),
    ],
)  # fmt: skip
def test_callables(change, error, text):
    with pytest.raises(error, match=text):
        call(**({"model": Table()} | change))


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        (
            {"generation_config": SimpleNamespace(do_sample=True)}, TypeError,
            "generation_config must be a GenerationConfig .* SimpleNamespace",
        ),
        ({"past_key_values": 3}, TypeError, "past_key_values must .* got int"),
        ({"position_ids": 3}, ValueError, r"position_ids .*\[2, 4\] .* int"),
        (
            {"position_ids": torch.zeros(3, 4).long()}, ValueError,
            r"position_ids must be \[2, 4\] .* got .*\[3, 4\]",
        ),
    ],
)  # fmt: skip
def test_models_of_transformers(gpt2, change, error, text):
    with pytest.raises(error, match=text):
        call(gpt2, **change)


def test_numbers_of_numpy(model):
    names = {"max_new_tokens": 5, "block_size": 2, "pad_token_id": 0}
    same = {name: np.int64(value) for name, value in names.items()}
    want = call(model, eos_token_id=[3, 5], **names)
    found = call(model, eos_token_id=np.array([3, 5]), **same)
    assert torch.equal(found, want)
    one = call(model, eos_token_id=3, **names)
    for eos in (np.int64(3), torch.tensor(3), (3,)):
        assert torch.equal(call(model, eos_token_id=eos, **names), one)


def test_one_processor_and_one_criterion_need_no_list(model):
    def no_token(ids, scores):
        return scores.index_fill(1, torch.tensor([2]), -torch.inf)

    def long_enough(ids, scores):
        return torch.full((len(ids),), ids.size(1) >= 6)

    found = call(
        model, logits_processor=no_token, stopping_criteria=long_enough
    )
    want = call(
        model, logits_processor=[no_token], stopping_criteria=[long_enough]
    )
    assert torch.equal(found, want)
    assert found.shape == (2, 6)
    assert not (found[:, 4:] == 2).any()
