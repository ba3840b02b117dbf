"""Equality with the course's PyTorch decoder, on the kit that its code produced (tests/kits/sat/README.md)."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from patchword.convert.show_attend_tell import from_reference
from patchword.decode import BeamOptions, beam_search, greedy
from patchword.errors import ModelError
from patchword.losses import caption_cross_entropy, doubly_stochastic
from patchword.types import SpecialIds, VisualFeatures

KIT = Path(__file__).parents[1] / "kits" / "sat" / "sat_b4_g3_v61"
SPECIAL = SpecialIds(pad=0, start=59, end=60, unknown=58)
OURS = {"attention.encoder_att": "attention.key", "attention.decoder_att": "attention.query", "attention.full_att": "attention.score",
        "f_beta": "gate", "decode_step": "recurrence", "init_h": "initial_hidden", "init_c": "initial_cell", "fc": "output.words",
        "embedding": "embedding"}  # fmt: skip


@pytest.fixture(scope="module")
def kit():
    return load_file(KIT.with_suffix(".safetensors"))


@pytest.fixture(scope="module")
def options():
    return json.loads(KIT.with_suffix(".json").read_text())


@pytest.fixture
def run(kit, options):
    """The captioner, its grid with a gradient, and its teacher-forced result for the words that the reference
    predicts.
    """
    captioner = from_reference(kit, options)
    grid_BNC = kit["grid"].flatten(1, 2).clone().requires_grad_()
    lengths_B = kit["caption_lengths"].squeeze(1) - 1
    decoded = captioner.decode(
        kit["captions"][:, : lengths_B.max()],
        lengths_B,
        captioner.encode(VisualFeatures(grid_BNC)),
        trace=True,
    )
    return captioner, grid_BNC, lengths_B, decoded


def gradients_agree(captioner, grid_BNC, kit, prefix, grid_name, largest):
    found = dict(captioner.named_parameters())
    checked = 0
    for name, expected in kit.items():
        if name.startswith(prefix):
            module, _, parameter = name.removeprefix(prefix).rpartition(".")
            scale = max(expected.abs().max().item(), 1e-3 * largest)
            assert (found[f"{OURS[module]}.{parameter}"].grad - expected).abs().max() <= 5e-4 * scale, name
            checked += 1
    assert checked == len(found)
    expected = kit[grid_name].flatten(1, 2)
    assert (grid_BNC.grad - expected).abs().max() <= 5e-4 * expected.abs().max()


def test_predictions_and_attention_in_input_order(kit, run):
    _, _, _, decoded = run
    expected = kit["predictions_input_order"]
    assert (decoded.logits_BTV - expected).abs().max() <= 1e-5 * expected.abs().max()
    assert (decoded.trace.attention_BTN - kit["alphas_input_order"]).abs().max() <= 1e-5


def test_whole_captions_with_their_own_lengths_begin_with_the_same_predictions(kit, options):
    captioner = from_reference(kit, options)
    lengths_B = kit["caption_lengths"].squeeze(1)
    with torch.no_grad():
        decoded = captioner.decode(
            kit["captions"], lengths_B, captioner.encode(VisualFeatures(kit["grid"].flatten(1, 2)))
        )
    for row, length in enumerate(lengths_B.tolist()):
        expected = kit["predictions_input_order"][row, : length - 1]
        assert (decoded.logits_BTV[row, : length - 1] - expected).abs().max() <= 1e-5 * kit[
            "predictions"
        ].abs().max()
        assert not decoded.logits_BTV[row, length:].any()


def test_gradients_of_the_predictions(kit, options, run):
    captioner, grid_BNC, _, decoded = run
    cotangent_BTV = torch.zeros_like(kit["cot"]).index_copy(0, kit["sort_ind"], kit["cot"])
    (decoded.logits_BTV * cotangent_BTV).sum().backward()
    gradients_agree(captioner, grid_BNC, kit, "grad.", "ggrid", options["largest_gradient"])


def test_losses_and_their_gradients(kit, options, run):
    captioner, grid_BNC, lengths_B, decoded = run
    targets_BT = kit["captions"][:, 1 : 1 + lengths_B.max()]
    words, count = caption_cross_entropy(decoded.logits_BTV, targets_BT, SPECIAL.pad)
    gaps, captions = doubly_stochastic(decoded.trace.attention_BTN, lengths_B, mean_over_patches=True)
    torch.testing.assert_close(words / count, kit["ce_loss"])
    torch.testing.assert_close(gaps / captions, kit["ds_term"])
    (words / count + options["alpha_c"] * gaps / captions).backward()
    gradients_agree(captioner, grid_BNC, kit, "lossgrad.", "glossgrid", options["largest_lossgradient"])


@pytest.mark.parametrize("beams", [1, 3])
def test_the_tutorials_beam_search(kit, options, beams):
    captioner = from_reference(kit, options)
    with torch.no_grad():
        memory = captioner.encode(VisualFeatures(kit["grid"].flatten(1, 2)))
    found = beam_search(
        captioner,
        memory,
        SPECIAL,
        beams,
        options["max_steps"],
        BeamOptions(finished="retire", forbid_unknown=False),
    )
    expected = kit[f"beam{beams}_tokens"][:, 1:]
    assert torch.equal(found.tokens_BKT[:, 0], expected)
    assert torch.equal(found.lengths_BK[:, 0] + 1, kit[f"beam{beams}_len"])
    torch.testing.assert_close(found.log_probabilities_BK[:, 0], kit[f"beam{beams}_score"])
    if beams == 1:
        alone = greedy(captioner, memory, SPECIAL, options["max_steps"], forbid_unknown=False)
        assert torch.equal(alone.tokens_BKT[:, 0], expected)


def test_bare_names_of_a_checkpoint_are_taken_too(kit, options):
    bare = {name.removeprefix("state."): tensor for name, tensor in kit.items() if name.startswith("state.")}
    expected = from_reference(kit, options).state_dict()
    found = from_reference(bare, options).state_dict()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_weights_that_do_not_fit_are_refused(kit, options):
    with pytest.raises(ModelError, match="lack 'decoder_dim'; found: embed_dim, encoder_dim"):
        from_reference(kit, {"encoder_dim": 48, "embed_dim": 20})
    with pytest.raises(ModelError, match="(?s)do not fit the options .*size mismatch for embedding.weight"):
        from_reference(kit, options | {"embed_dim": 21})
    with pytest.raises(ModelError, match="hold 'resnet.0.weight', which its decoder does not have"):
        from_reference({"resnet.0.weight": torch.zeros(1)}, options)
    missing = {name: tensor for name, tensor in kit.items() if name != "state.fc.bias"}
    with pytest.raises(ModelError, match="output.words.bias"):
        from_reference(missing, options)
