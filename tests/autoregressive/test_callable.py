"""Any callable from tokens to logits."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sequences import PixelCNN, Recurrent, Table

from torch_picard import ConvergenceError, ConvergenceWarning, Status
from torch_picard.autoregressive import jacobi_generate

INITS = ["repeat", "prompt_lookup", "lookahead"]


class Sample:
    """What a generation_config says, without transformers."""

    do_sample = True


def prompts(rows, length=4, vocabulary=7, seed=0):
    rng = torch.Generator().manual_seed(seed)
    return torch.randint(vocabulary, (rows, length), generator=rng)


@given(
    rows=st.integers(1, 4),
    new=st.integers(1, 20),
    block=st.integers(1, 24),
    order=st.integers(1, 3),
    seed=st.integers(0, 10**6),
    init=st.sampled_from(INITS),
)
def test_greedy_is_sequential_in_at_most_as_many_calls(
    rows, new, block, order, seed, init
):
    model = Table(order=order, seed=seed)
    ids = prompts(rows, seed=seed)
    want = model.sequential(ids, new)
    model.calls = 0
    out, solution = jacobi_generate(
        model, ids, new, block_size=block, init=init, return_solution=True
    )
    assert torch.equal(out, want)
    assert torch.equal(solution.value, out)
    assert solution.converged.all()
    assert model.calls == solution.rounds <= new
    assert (solution.iterations <= new).all()
    assert solution.iterations.max() == solution.rounds
    assert (solution.info["positions"] == new).all()
    assert solution.residual.tolist() == [0.0] * rows
    assert solution.info["evaluations"].sum() == solution.evaluations
    assert solution.evaluations <= block * solution.iterations.sum()
    per_position = solution.info["residual_per_position"]
    assert per_position.shape == (rows, new)
    assert (per_position >= 0).all() and per_position.isfinite().all()


@given(
    rows=st.integers(1, 3),
    new=st.integers(1, 16),
    block=st.integers(2, 20),
    seed=st.integers(0, 10**6),
)
def test_sampled_is_sequential_with_the_same_numbers(rows, new, block, seed):
    model, ids = Table(seed=seed), prompts(rows, seed=seed)

    def decode(size, init="lookahead"):
        return jacobi_generate(
            model, ids, new, block_size=size, init=init,
            generator=torch.Generator().manual_seed(seed),
            generation_config=Sample,
        )  # fmt: skip

    assert torch.equal(decode(block), decode(1))
    # more of them begin alike
    more = jacobi_generate(
        model, ids, new + 5, generation_config=Sample,
        generator=torch.Generator().manual_seed(seed),
    )  # fmt: skip
    assert torch.equal(more[:, : ids.size(1) + new], decode(1, "repeat"))


def test_sampled_has_the_distribution_of_the_model():
    model, rows = Table(sharpness=1.0), 4000
    ids = prompts(1).expand(rows, -1)
    out = jacobi_generate(
        model, ids, 2, generation_config=Sample, init="repeat",
        generator=torch.Generator().manual_seed(0),
    )  # fmt: skip
    first = model(ids[:1])[0, -1].softmax(-1)
    after = torch.cat([ids[:7], torch.arange(7)[:, None]], 1)
    both = first[:, None] * model(after)[:, -1].softmax(-1)
    pair = out[:, -2] * 7 + out[:, -1]
    count = torch.bincount(pair, minlength=49).double()
    expected = rows * both.flatten().double()
    chi2 = ((count - expected) ** 2 / expected).sum()
    assert chi2 < 48 + 4 * (2 * 48) ** 0.5


def test_padding_on_the_left_does_not_change_the_numbers():
    """They belong to the row and to the number of the new token."""
    model = Table(order=1)
    outs = [
        jacobi_generate(
            model, ids, 20, generation_config=Sample,
            generator=torch.Generator().manual_seed(0),
        )[:, -20:]
        for ids in (torch.tensor([[3]]), torch.tensor([[5, 1, 3]]))
    ]  # fmt: skip
    assert torch.equal(*outs)


def test_torchs_own_seed_counts():
    model, ids = Table(), prompts(2)
    outs = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        outs.append(jacobi_generate(model, ids, 20, generation_config=Sample))
    assert torch.equal(outs[0], outs[1])
    assert not torch.equal(outs[0], outs[2])
    # greedy: no number is drawn
    state = torch.get_rng_state()
    jacobi_generate(model, ids, 5)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("init", INITS)
def test_a_text_alone_and_together(init):
    model, ids = Table(), prompts(5)
    out, solution = jacobi_generate(
        model, ids, 30, eos_token_id=3, init=init, return_solution=True
    )
    assert len(solution.iterations.unique()) > 1
    for row in range(5):
        one, alone = jacobi_generate(
            model, ids[row : row + 1], 30, eos_token_id=3, init=init,
            return_solution=True,
        )  # fmt: skip
        length = one.size(1)
        assert torch.equal(out[row, :length], one[0])
        assert (out[row, length:] == 3).all()
        assert alone.iterations == solution.iterations[row]
        assert alone.info["positions"] == length - 4
        a = alone.info["residual_per_position"]
        b = solution.info["residual_per_position"][row : row + 1]
        torch.testing.assert_close(a, b, equal_nan=True)


@pytest.mark.parametrize(
    ("init", "step"), [("repeat", 0), ("prompt_lookup", 1), ("lookahead", 1)]
)
def test_whole_windows_are_settled_at_once(init, step):
    """What it guesses is right, so no window needs its cap of rounds."""

    def count(x):
        return torch.nn.functional.one_hot((x + step) % 7, 7).float()

    ids = torch.arange(14)[None] * step % 7
    out, solution = jacobi_generate(
        count, ids, 64, block_size=8, init=init, return_solution=True
    )
    assert torch.equal(out[0], torch.arange(14 + 64) * step % 7)
    assert solution.rounds == 8 and solution.evaluations == 64


def test_guesses_of_the_round_before_are_carried_over():
    """The second token depends on the prompt alone, so it is right after
    one round, though its predecessor was not."""

    def model(x):
        logits = torch.zeros(*x.shape, 9)
        place = torch.arange(x.size(1)).expand_as(x)
        return logits.scatter(2, ((place * 5 + 3) % 9)[..., None], 1.0)

    ids = torch.zeros(1, 2, dtype=torch.long)
    _, solution = jacobi_generate(
        model, ids, 40, block_size=8, init="repeat", return_solution=True
    )
    # one round to see a window, one to settle it
    assert solution.rounds <= 2 * 40 / 8


def test_an_end_of_text_pads():
    model, ids = Table(), prompts(6)
    want = model.sequential(ids, 30)[:, 4:]
    out = jacobi_generate(model, ids, 30, eos_token_id=[2, 3], pad_token_id=9)
    longest = 0
    for row in range(6):
        ends = ((want[row] == 2) | (want[row] == 3)).nonzero()
        length = int(ends[0]) + 1 if len(ends) else 30
        longest = max(longest, length)
        assert torch.equal(out[row, 4 : 4 + length], want[row, :length])
        assert (out[row, 4 + length :] == 9).all()
    assert out.size(1) == 4 + longest < 34


def test_texts_that_have_ended_are_not_evaluated():
    rows = []

    def model(x):
        rows.append(len(x))
        return table(x)

    table = Table()
    ids = prompts(6)
    jacobi_generate(model, ids, 30, eos_token_id=3)
    assert rows[0] == 6 and rows[-1] < 6
    assert rows == sorted(rows, reverse=True)


def test_a_recurrent_network():
    torch.manual_seed(0)
    model, ids = Recurrent(), prompts(3, vocabulary=11)
    out = jacobi_generate(model, ids, 25)
    assert torch.equal(out, jacobi_generate(model, ids, 25, block_size=1))
    want = ids
    for _ in range(25):
        token = model(want)[:, -1].argmax(-1, keepdim=True)
        want = torch.cat([want, token], 1)
    assert torch.equal(out, want)


def test_a_pixelcnn():
    torch.manual_seed(0)
    net = PixelCNN()
    with torch.no_grad():
        net.first.weight *= 4
        net.second.weight *= 4
    start = torch.zeros(4, 1, dtype=torch.long)
    out, solution = jacobi_generate(
        net.next_token, start, 25, block_size=25, return_solution=True,
        generation_config=Sample, generator=torch.Generator().manual_seed(1),
    )  # fmt: skip
    want = jacobi_generate(
        net.next_token, start, 25, block_size=1,
        generation_config=Sample, generator=torch.Generator().manual_seed(1),
    )  # fmt: skip
    assert torch.equal(out, want)
    assert solution.rounds < 25
    assert len(out[:, 1:].unique()) > 1


def broken(x, at=9, row=None):
    """A table whose logits for position ``at`` are NaN, in texts that begin
    with ``row``."""
    logits = Table()(x)
    if x.size(1) >= at:
        which = x[:, 0] == row if row is not None else slice(None)
        logits[which, at - 1] = torch.nan
    return logits


@pytest.mark.parametrize("block", [1, 4, 16])
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_logits_that_are_not_finite_end_their_text_alone(block, value):
    ids = prompts(3)
    ids[:, 0] = torch.tensor([0, 1, 2])

    def model(x):
        return torch.where(broken(x, row=1).isnan(), value, Table()(x))

    want = Table().sequential(ids, 12)
    with pytest.warns(ConvergenceWarning, match="NONFINITE"):
        out, solution = jacobi_generate(
            model, ids, 12, block_size=block, pad_token_id=8,
            return_solution=True,
        )  # fmt: skip
    assert solution.status.tolist() == [0, Status.NONFINITE, 0]
    assert torch.equal(out[[0, 2]], want[[0, 2]])
    assert torch.equal(out[1, :9], want[1, :9])
    assert (out[1, 9:] == 8).all()
    assert solution.info["positions"].tolist() == [12, 5, 12]


def test_on_failure(no_warnings):
    jacobi_generate(broken, prompts(2), 12, on_failure="ignore")
    with pytest.raises(ConvergenceError, match="NONFINITE") as caught:
        jacobi_generate(broken, prompts(2), 12, on_failure="raise")
    assert caught.value.solution.value.shape == (2, 9)


def test_the_distance_is_the_divergence_between_rounds():
    model, ids = Table(seed=3), prompts(1, seed=3)
    _, solution = jacobi_generate(
        model, ids, 6, block_size=6, init="repeat", return_solution=True
    )
    # by hand: Jacobi's iteration on the whole text
    guess = ids[:, -1:].expand(-1, 6)
    old = torch.full((6, 7), 1 / 7).log()
    at, settled = 0, []
    for history in solution.residual_history[:, 0]:
        text = torch.cat([ids, guess], 1)
        new = model(text)[0, 3:-1].log_softmax(-1)
        image = new.argmax(-1)
        kl = (new.exp() * (new - old)).sum(-1)
        assert kl[at:].max() == pytest.approx(float(history), abs=1e-6)
        wrong = (image[at:] != guess[0, at:]).nonzero()
        end = at + int(wrong[0]) + 1 if len(wrong) else 6
        settled += kl[at:end].tolist()
        at, guess, old = end, image[None], new
    found = solution.info["residual_per_position"][0]
    assert found.tolist() == pytest.approx(settled, abs=1e-6)


def test_a_callable_may_return_an_object_with_logits():
    class Out:
        def __init__(self, logits):
            self.logits = logits

    model, ids = Table(), prompts(2)
    out = jacobi_generate(lambda x: Out(model(x)), ids, 9)
    assert torch.equal(out, model.sequential(ids, 9))
    half = jacobi_generate(lambda x: model(x).bfloat16(), ids.int(), 9)
    assert half.shape == (2, 13)
