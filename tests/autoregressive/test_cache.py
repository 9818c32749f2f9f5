"""The cache: cropped as tokens are settled."""

import pytest
import torch
from test_transformers import BUILD, NEW, PROMPT, prompts, transformers

from torch_picard.autoregressive import jacobi_generate
from torch_picard.autoregressive.models import Cached, crop


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return BUILD["llama"]().eval()


@pytest.mark.parametrize("block", [1, 5, 16])
def test_it_holds_what_sequential_decoding_leaves(model, block):
    caches = [transformers.DynamicCache() for _ in range(2)]
    options = prompts(1) | {"max_new_tokens": NEW, "do_sample": False}
    model.generate(**options, past_key_values=caches[0])
    _, solution = jacobi_generate(
        model, **prompts(1), max_new_tokens=NEW, block_size=block,
        past_key_values=caches[1], return_solution=True,
    )  # fmt: skip
    assert solution.evaluations > NEW or block == 1
    for cache in caches:
        assert cache.get_seq_length() == PROMPT + NEW - 1
    for theirs, ours in zip(caches[0].layers, caches[1].layers):
        torch.testing.assert_close(ours.keys, theirs.keys)
        torch.testing.assert_close(ours.values, theirs.values)


@pytest.mark.parametrize("name", ["llama", "mistral"])
def test_it_grows_by_what_is_settled(name, monkeypatch):
    """Never longer than the longest text, whatever was guessed wrong."""
    torch.manual_seed(0)
    model, lengths, cropped = BUILD[name]().eval(), [], []
    settle = Cached.settle

    def watched(self, moved):
        before = self.cache.get_seq_length()
        settle(self, moved)
        lengths.append((self.cache.get_seq_length(), int(moved.max())))
        cropped.append(before - self.cache.get_seq_length())
        assert self._mask.size(1) == self.cache.get_seq_length()
        sizes = {layer.keys.size(-2) for layer in self.cache.layers}
        longest = 8 if name == "mistral" else self.cache.get_seq_length()
        assert max(sizes) <= longest

    monkeypatch.setattr(Cached, "settle", watched)
    _, solution = jacobi_generate(
        model, **prompts(8), max_new_tokens=NEW, return_solution=True,
        init="repeat",
    )  # fmt: skip
    assert max(cropped) > 0
    assert lengths[0][0] == PROMPT - 1 + lengths[0][1]
    assert lengths[-1][0] <= PROMPT - 1 + sum(most for _, most in lengths)
    assert len(lengths) == solution.rounds <= NEW


def test_a_text_can_be_continued(model):
    cache = transformers.DynamicCache()
    ids = prompts(1)["input_ids"]
    first = jacobi_generate(model, ids, 15, past_key_values=cache)
    again = jacobi_generate(model, first, 15, past_key_values=cache)
    assert torch.equal(again, jacobi_generate(model, ids, 30))


class Old:
    """Before 5.23: what to keep, or, negative, what to remove."""

    def __init__(self, length):
        self.length = length

    def crop(self, max_length):
        self.length = (
            max_length if max_length >= 0 else self.length + max_length
        )


class New(Old):
    def crop(self, tokens_to_remove):
        assert tokens_to_remove <= 0
        self.length += tokens_to_remove


class Never(New):
    is_croppable = False


@pytest.mark.parametrize("kind", [Old, New])
@pytest.mark.parametrize("count", [0, 1, 5])
def test_both_conventions_of_crop(kind, count):
    cache = kind(9)
    crop(cache, count)
    assert cache.length == 9 - count


def test_a_cache_that_cannot_be_cropped():
    with pytest.raises(ValueError, match=r"Never.*use_cache=False"):
        crop(Never(9), 1)
