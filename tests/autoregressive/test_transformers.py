"""Language models of transformers: the text of their own generate."""

import pytest
import torch

from torch_picard import Status
from torch_picard.autoregressive import jacobi_generate

transformers = pytest.importorskip("transformers")

VOCABULARY, PROMPT, NEW = 20, 9, 24
slow = pytest.mark.slow
SIZES = {"vocab_size": VOCABULARY, "bos_token_id": None, "eos_token_id": None}
LLAMA = SIZES | {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2,
    "initializer_range": 0.4,
}  # fmt: skip


def gpt2():
    config = transformers.GPT2Config(
        n_positions=PROMPT + NEW, n_embd=32, n_layer=2, n_head=2,
        initializer_range=0.4, tie_word_embeddings=False, **SIZES,
    )  # fmt: skip
    return transformers.GPT2LMHeadModel(config)


def llama():
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**LLAMA))


def mistral():
    """Its windows slide."""
    config = transformers.MistralConfig(**LLAMA, sliding_window=9)
    return transformers.MistralForCausalLM(config)


BUILD = {"gpt2": gpt2, "llama": llama, "mistral": mistral}


@pytest.fixture(scope="module")
def models():
    made = {}

    def model(name, trained=False):
        if (name, trained) not in made:
            torch.manual_seed(0)
            net = BUILD[name]()
            if trained:
                train(net)
            made[name, trained] = net.eval()
        return made[name, trained]

    return model


def train(net, steps=30):
    """A little: to count to six, most of the time."""
    optimizer = torch.optim.Adam(net.parameters(), 1e-2)
    place = torch.arange(PROMPT + NEW)
    for _ in range(steps):
        start = torch.randint(6, (8, 1))
        ids = 3 + (start + place) % 6
        noise = torch.rand(ids.shape) < 0.1
        ids = torch.where(noise, torch.randint_like(ids, 3, VOCABULARY), ids)
        optimizer.zero_grad()
        net(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()


def prompts(rows):
    """Padded on the left, by a different length each."""
    rng = torch.Generator().manual_seed(rows)
    ids = torch.randint(3, VOCABULARY, (rows, PROMPT), generator=rng)
    mask = torch.ones_like(ids)
    for row in range(1, rows):
        mask[row, :row] = 0
    return {"input_ids": ids * mask, "attention_mask": mask}


def same(model, rows, custom=True, **options):
    """(ids, solution), after comparing with generate."""
    given = prompts(rows) | {"max_new_tokens": NEW} | options
    want = model.generate(**given)
    if custom:
        out = model.generate(**given, custom_generate=jacobi_generate)
        assert torch.equal(out, want)
    out, solution = jacobi_generate(model, **given, return_solution=True)
    assert torch.equal(out, want)
    assert solution.converged.all()
    return out, solution


ENDS = {"eos_token_id": [5, 7], "pad_token_id": 0}


def test_an_end_without_padding_through_generate(models):
    model, given = models("llama"), prompts(1)
    for end in (5, [5, 7]):
        options = {"max_new_tokens": NEW, "eos_token_id": end}
        want = model.generate(**given, **options)
        out = model.generate(
            **given, **options, custom_generate=jacobi_generate
        )
        assert torch.equal(out, want)


def test_a_cache_of_several_texts_is_not_continued(models):
    from transformers import DynamicCache

    model, given = models("llama"), prompts(8)
    cache = DynamicCache(config=model.config)
    out = jacobi_generate(
        model, **given, max_new_tokens=NEW, past_key_values=cache, **ENDS
    )
    mask = torch.ones_like(out)
    if cache.layers[0].keys.size(0) == 8:
        pytest.skip("all texts ended together")
    with pytest.raises(ValueError, match="past_key_values hold"):
        jacobi_generate(
            model, out, 4, attention_mask=mask, past_key_values=cache
        )


@pytest.mark.parametrize("rows", [1, 8])
@pytest.mark.parametrize("name", BUILD)
def test_greedy(models, name, rows):
    out, solution = same(models(name), rows, custom=False)
    assert out.size(1) == PROMPT + NEW
    assert solution.rounds <= NEW
    ends = [out[-1, PROMPT + 8].item(), out[0, PROMPT + 14].item()]
    out, solution = same(models(name), rows, eos_token_id=ends, pad_token_id=0)
    assert (solution.info["positions"] < NEW).any()
    if rows == 8:
        assert len(solution.info["positions"].unique()) > 1


@pytest.mark.parametrize("rows", [1, 8])
@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_greedy_of_a_trained_model_takes_fewer_calls(models, name, rows):
    model, calls = models(name, trained=True), []
    ids = 3 + (torch.arange(rows)[:, None] + torch.arange(PROMPT)) % 6
    want = model.generate(ids, max_new_tokens=NEW)
    hook = model.register_forward_pre_hook(lambda *_: calls.append(1))
    out, solution = jacobi_generate(model, ids, NEW, return_solution=True)
    hook.remove()
    assert torch.equal(out, want)
    assert len(calls) == solution.rounds
    assert (solution.iterations < NEW).all()
    assert solution.iterations.double().mean() <= 0.75 * NEW


@pytest.mark.parametrize("rows", [1, 8])
@pytest.mark.parametrize(
    "name", ["gpt2", "llama", pytest.param("mistral", marks=slow)]
)
def test_sampled_with_the_same_numbers(models, name, rows):
    """The sequential text: transformers' own cache, one token a call."""
    model = models(name, trained=name == "llama")
    config = transformers.GenerationConfig(
        do_sample=True, temperature=0.9, top_k=12, top_p=0.95,
        max_new_tokens=NEW, **ENDS,
    )  # fmt: skip
    outs = [
        jacobi_generate(
            model, **prompts(rows), block_size=block, generation_config=config,
            generator=torch.Generator().manual_seed(3),
        )
        for block in (1, 16)
    ]  # fmt: skip
    assert torch.equal(*outs)
    torch.manual_seed(3)
    custom = model.generate(
        **prompts(rows), generation_config=config,
        custom_generate=jacobi_generate,
    )  # fmt: skip
    assert torch.equal(custom, outs[0])


def test_sampled_by_transformers_own_loop_with_the_same_numbers(
    models, monkeypatch
):
    """Its multinomial, replaced by the choice that is made here."""
    from torch_picard.autoregressive.choice import Choice

    model, given = models("llama"), prompts(8)
    options = {"do_sample": True, "top_k": 9, "max_new_tokens": NEW, **ENDS}
    place = [PROMPT]

    def draw(probabilities, num_samples):
        scores = probabilities.log()[:, None]
        where = torch.full((8, 1), place[0])
        place[0] += 1
        ids = torch.zeros(8, 1, dtype=torch.long)
        return choice(scores, ids, torch.arange(8), where)[0]

    choice = Choice([], 8, PROMPT, True, torch.Generator().manual_seed(5))
    monkeypatch.setattr(torch, "multinomial", draw)
    want = model.generate(**given, **options)
    monkeypatch.undo()
    config = transformers.GenerationConfig(**options)
    out = jacobi_generate(
        model, **given, generation_config=config,
        generator=torch.Generator().manual_seed(5),
    )  # fmt: skip
    assert torch.equal(out, want)


@pytest.mark.parametrize(
    "options",
    [
        {"repetition_penalty": 1.3},
        {"no_repeat_ngram_size": 2},
        {"min_new_tokens": 12, **ENDS},
        {"bad_words_ids": [[4, 6], [9]]},
        {"suppress_tokens": [8, 11]},
        {"forced_eos_token_id": 5, "pad_token_id": 0},
        {"repetition_penalty": 1.2, "no_repeat_ngram_size": 3, **ENDS},
        {"prefix_allowed_tokens_fn": lambda row, ids: [
            3 + (int(ids[-1]) + k + row) % 17 for k in range(4)
        ]},
    ],
    ids=lambda options: next(iter(options)),
)  # fmt: skip
@pytest.mark.parametrize("rows", [pytest.param(1, marks=slow), 3])
def test_processors_see_the_text_before(models, rows, options):
    same(models("llama", trained=True), rows, **options)


def test_processors_that_count_are_refused(models):
    with pytest.raises(ValueError, match="UnbatchedClassifierFreeGuidance"):
        jacobi_generate(
            models("gpt2"), **prompts(1), max_new_tokens=3, guidance_scale=2.0
        )


class Contains(list):
    """Stops a text that holds the token twice."""

    def __init__(self, token):
        self.token = token

    def __call__(self, ids, scores, **_):
        return (ids[:, PROMPT:] == self.token).sum(1) >= 2


@pytest.mark.parametrize("rows", [pytest.param(1, marks=slow), 4])
@pytest.mark.parametrize("ends", [{}, ENDS], ids=["", "eos"])
def test_criteria_are_asked_after_every_token(models, rows, ends):
    model = models("llama")
    text = jacobi_generate(model, **prompts(rows), max_new_tokens=NEW)
    counts = (text[:, PROMPT:, None] == torch.arange(VOCABULARY)).sum(1)
    # one that some texts hold often, and one that all do, if there is any
    often = [int(counts.amax(0).argmax()), int(counts.amin(0).argmax())]
    for token in often:
        criteria = transformers.StoppingCriteriaList([Contains(token)])
        same(
            model, rows, custom=False, stopping_criteria=criteria, **ends
        )  # fmt: skip


def test_the_shortest_length_counts(models):
    criteria = transformers.StoppingCriteriaList(
        [transformers.MaxLengthCriteria(PROMPT + 7)]
    )
    out = jacobi_generate(
        models("llama"), **prompts(2), max_new_tokens=9,
        stopping_criteria=criteria,
    )  # fmt: skip
    assert out.size(1) == PROMPT + 7


def test_time_can_run_out(models):
    out, solution = jacobi_generate(
        models("llama"), **prompts(2), max_new_tokens=NEW, max_time=0.0,
        block_size=1, return_solution=True,
    )  # fmt: skip
    assert (solution.status == Status.STOPPED).all()
    assert out.size(1) == PROMPT + 1 == PROMPT + solution.rounds


def test_the_explicit_number_of_tokens_wins(models):
    config = transformers.GenerationConfig(max_new_tokens=5)
    for call in (
        lambda **o: jacobi_generate(models("llama"), **o),
        lambda **o: models("llama").generate(
            custom_generate=jacobi_generate, **o
        ),
    ):
        given = prompts(2) | {"generation_config": config}
        assert call(**given).size(1) == PROMPT + 5
        assert call(**given, max_new_tokens=25).size(1) == PROMPT + 25


@pytest.mark.parametrize("rows", [1, 3])
def test_padding_is_found_as_generate_finds_it(models, rows):
    ids = prompts(rows)["input_ids"]
    model = models("llama")
    options = {"max_new_tokens": 12, "pad_token_id": 0, "do_sample": False}
    want = model.generate(ids, **options)
    for out in (
        jacobi_generate(model, ids, 12, pad_token_id=0),
        model.generate(ids, **options, custom_generate=jacobi_generate),
    ):
        assert torch.equal(out, want)


@pytest.mark.parametrize("rows", [pytest.param(1, marks=slow), 4])
@pytest.mark.parametrize("name", ["gpt2", pytest.param("llama", marks=slow)])
def test_without_a_cache(models, name, rows):
    same(models(name), rows, custom=False, use_cache=False, **ENDS)


def test_a_token_of_the_text_is_no_padding(models):
    """Where a mask says so."""
    ids = prompts(1)["input_ids"]
    ids[0, 4] = 0
    want = models("gpt2").generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=12,
        pad_token_id=0,
    )  # fmt: skip
    out = jacobi_generate(
        models("gpt2"), ids, 12, attention_mask=torch.ones_like(ids),
        pad_token_id=0,
    )  # fmt: skip
    assert torch.equal(out, want)


class Streamer:
    def __init__(self):
        self.seen = []

    def put(self, value):
        self.seen.append(value)

    def end(self):
        self.seen.append("end")


@pytest.mark.parametrize("rows", [1, 4])
def test_a_streamer_gets_what_it_gets_from_generate(models, rows):
    model, options = models("llama"), {"max_new_tokens": NEW, **ENDS}
    theirs, ours = Streamer(), Streamer()
    model.generate(**prompts(rows), **options, streamer=theirs)
    jacobi_generate(model, **prompts(rows), **options, streamer=ours)
    assert len(ours.seen) == len(theirs.seen)
    assert ours.seen.pop() == theirs.seen.pop() == "end"
    for a, b in zip(ours.seen, theirs.seen):
        assert torch.equal(a, b)


def test_a_text_does_not_depend_on_its_batch(models):
    model, given = models("llama", trained=True), prompts(8)
    out, solution = jacobi_generate(
        model, **given, max_new_tokens=NEW, return_solution=True, **ENDS
    )
    for row in range(8):
        one = {k: v[row : row + 1] for k, v in given.items()}
        alone, its = jacobi_generate(
            model, **one, max_new_tokens=NEW, return_solution=True, **ENDS
        )
        assert torch.equal(out[row, : alone.size(1)], alone[0])
        assert its.iterations == solution.iterations[row]


def test_nan_in_one_text(models):
    model, given = models("gpt2"), prompts(3)
    net = gpt2().eval()
    net.load_state_dict(model.state_dict())
    # only the second text reads this embedding
    given["input_ids"][given["input_ids"] == 1] = 2
    given["input_ids"][1, -1] = 1
    options = given | {"max_new_tokens": 12, "suppress_tokens": [1]}
    clean = jacobi_generate(model, **options)
    with torch.no_grad():
        net.transformer.wte.weight[1] = torch.nan
    out, solution = jacobi_generate(
        net, **options, on_failure="ignore", return_solution=True
    )
    assert solution.status.tolist() == [0, Status.NONFINITE, 0]
    assert torch.equal(out[[0, 2]], clean[[0, 2]])
    assert (out[1, PROMPT:] == 0).all()


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"num_beams": 2}, ValueError, "num_beams=2"),
        ({"return_dict_in_generate": True}, ValueError, "return_dict"),
        ({"prefill_chunk_size": 4}, ValueError, "prefill_chunk_size=4"),
        ({"token_type_ids": torch.ones(1, 3)}, TypeError, "token_type_ids"),
        ({"synced_gpus": True}, ValueError, "synced_gpus"),
        ({"cache_implementation": "static"}, ValueError, "StaticCache"),
        (
            {"attention_mask": torch.ones(1, 30)},
            ValueError,
            r"attention_mask .*\[1, 9\].* 30",
        ),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_what_is_not_for_this_is_refused(models, options, error, text):
    with pytest.raises(error, match=text):
        jacobi_generate(
            models("gpt2"), **(prompts(1) | options), max_new_tokens=3
        )


def test_encoders_are_refused():
    config = transformers.T5Config(
        vocab_size=20, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2,
        decoder_start_token_id=0,
    )  # fmt: skip
    model = transformers.T5ForConditionalGeneration(config)
    with pytest.raises(ValueError, match="decoder only"):
        jacobi_generate(model, prompts(1)["input_ids"], 3)
