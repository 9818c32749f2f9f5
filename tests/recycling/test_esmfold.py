"""transformers' ESMFold, tiny and random, with early stop."""

import copy
from itertools import pairwise

import pytest
import torch
from torch import nn

from torch_picard import Status
from torch_picard.recycling import ca_distance, recycle_esmfold

transformers = pytest.importorskip("transformers")

IDS = torch.ones(2, 9, dtype=torch.long)


@pytest.fixture(scope="module")
def model():
    from transformers.models.esm.openfold_utils import residue_constants

    alphabet = ["<cls>", "<pad>", "<eos>", "<unk>"]
    alphabet += [*residue_constants.restypes_with_x, "<mask>"]
    torch.manual_seed(0)
    config = transformers.EsmConfig(
        vocab_size=len(alphabet), vocab_list=tuple(alphabet),
        pad_token_id=1, mask_token_id=len(alphabet) - 1,
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=16, max_position_embeddings=64,
        position_embedding_type="rotary", is_folding_model=True,
        hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
        esmfold_config={
            "trunk": {
                "num_blocks": 1, "sequence_state_dim": 16,
                "pairwise_state_dim": 8, "sequence_head_width": 8,
                "pairwise_head_width": 4, "max_recycles": 3,
                "structure_module": {
                    "sequence_dim": 16, "pairwise_dim": 8, "ipa_dim": 4,
                    "resnet_dim": 8, "num_heads_ipa": 2, "num_blocks": 2,
                    "num_resnet_blocks": 1, "num_qk_points": 2,
                    "num_v_points": 2,
                },
            },
            "lddt_head_hid_dim": 8,
        },
    )  # fmt: skip
    model = transformers.EsmForProteinFolding(config).eval()
    with torch.no_grad():  # random weights hardly recycle anything
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


@pytest.fixture(scope="module")
def inputs():
    torch.manual_seed(1)
    ids = torch.randint(0, 20, (2, 9))
    mask = torch.ones(2, 9, dtype=torch.long)
    mask[1, 6:] = 0
    return ids, mask


def same(ours, theirs):
    assert set(ours.keys()) == set(theirs.keys())
    for name, t in theirs.items():
        torch.testing.assert_close({name: ours[name]}, {name: t})


@pytest.mark.parametrize("n", [0, 3])
def test_run_to_the_end_is_the_models_own(model, inputs, n):
    ids, mask = inputs
    with torch.no_grad():
        theirs = model(ids, attention_mask=mask, num_recycles=n)
        ours, solution = recycle_esmfold(
            model, ids, mask, tol=0.0, max_recycles=n, on_failure="ignore"
        )
    same(ours, theirs)
    assert solution.evaluations == n + 1
    assert (solution.status == Status.MAX_ITER).all()
    assert type(model.trunk).__name__ == "EsmFoldingTrunk"


def test_early_stop_each_protein_at_its_own_pass(model, inputs):
    ids, mask = inputs
    with torch.no_grad():
        passes = [
            model(ids, attention_mask=mask, num_recycles=n) for n in range(5)
        ]
        ca = [out.positions[-1][..., 1, :] for out in passes]
        changes = torch.stack(
            [ca_distance(a, b, mask) for a, b in pairwise(ca)]
        )
        # between the changes of the two, so that they stop apart
        tol = changes[1].mean().item()
        assert changes[1].min() < 0.99 * tol and tol < 0.99 * changes[1].max()
        ours, solution = recycle_esmfold(
            model, ids, mask, tol=tol, max_recycles=4, on_failure="ignore"
        )
    assert solution.status.eq(Status.CONVERGED).any()
    assert solution.iterations[0] != solution.iterations[1]
    for b in range(2):
        want = passes[int(solution.iterations[b]) - 1]
        torch.testing.assert_close(ours.positions[:, b], want.positions[:, b])
        torch.testing.assert_close(ours.plddt[b], want.plddt[b])
    torch.testing.assert_close(
        solution.residual_history[1], changes[0], rtol=1e-4, atol=1e-4
    )


def test_a_pdb_file_comes_out(model, inputs, tmp_path):
    with torch.no_grad():
        output, _ = recycle_esmfold(
            model, inputs[0][:1], tol=100.0, max_recycles=2, alpha=0.2
        )
    path = tmp_path / "fold.pdb"
    path.write_text(model.output_to_pdb(output)[0])
    atoms = [
        line for line in path.read_text().splitlines()
        if line.startswith("ATOM") and line[12:16].strip() == "CA"
    ]  # fmt: skip
    assert len(atoms) == 9
    written = torch.tensor(
        [[float(line[i : i + 8]) for i in (30, 38, 46)] for line in atoms]
    )
    torch.testing.assert_close(
        written, output.positions[-1, 0, :, 1], rtol=0, atol=1e-3
    )


def test_gradients_reach_the_trunk(model, inputs):
    output, _ = recycle_esmfold(
        model, *inputs, tol=0.0, max_recycles=1, on_failure="ignore"
    )
    weight = model.trunk.recycle_s_norm.weight
    (g,) = torch.autograd.grad(output.positions[-1].square().sum(), weight)
    assert torch.isfinite(g).all() and g.abs().max() > 0


@pytest.mark.parametrize(
    "change, error, text",
    [
        ({"model": nn.Linear(2, 2)}, TypeError, "model must be an EsmForP"),
        ({"num_recycles": 3}, ValueError, "given as max_recycles"),
        ({"tol": -1.0}, ValueError, "tol must be"),
        ({"max_recycles": -1}, ValueError, "max_recycles must be"),
        ({"alpha": 1.5}, ValueError, "alpha"),
        ({"callback": 3}, TypeError, "callback must be callable"),
        ({"bogus": 3}, TypeError, "'bogus'; .* it knows position_ids, "),
        ({"input_ids": [[1, 2]]}, TypeError, "input_ids must be .* got list"),
        ({"input_ids": IDS[0]}, ValueError, r"input_ids must .*\[9\]"),
        ({"input_ids": IDS[:, :0]}, ValueError, r"one residue .*\[2, 0\]"),
        ({"input_ids": IDS.float()}, ValueError, "long tensor .*float32"),
        ({"attention_mask": 3}, TypeError, "attention_mask must be a Tensor"),
        (
            {"attention_mask": torch.ones(2, 8)},
            ValueError,
            r"attention_mask must be \[2, 9\] like input_ids, got \[2, 8\]",
        ),
    ],
)
def test_wrong_calls(model, change, error, text):
    """Before anything is computed."""
    twin = copy.copy(model)
    twin._modules = model._modules | {"esm": None}
    call = {"model": twin, "input_ids": IDS} | change
    with pytest.raises(error, match=text):
        recycle_esmfold(**call)
