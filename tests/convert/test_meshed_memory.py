"""Equality with the public Meshed-Memory code, on a kit of its weights, inputs, outputs and gradients."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from patchword.convert.meshed_memory import from_reference
from patchword.errors import ModelError
from patchword.types import VisualFeatures

KITS = Path(__file__).parents[1] / "kits" / "m2"


@pytest.fixture(scope="module")
def kit():
    return load_file(KITS / "m2_b3_t7_d64.safetensors")


@pytest.fixture(scope="module")
def options():
    return json.loads((KITS / "m2_b3_t7_d64.json").read_text())


@pytest.fixture()
def model(kit, options):
    return from_reference(kit, options)


def relative(found, expected):
    return float(((found - expected).abs().max() / expected.abs().max()).detach())


def test_outputs_of_every_encoder_level(kit, model):
    assert relative(model.encode_levels(VisualFeatures(grid_BNC=kit["regions"])), kit["enc"]) <= 1e-5


def test_log_probabilities_and_loss(kit, options, model):
    lengths_B = torch.tensor(options["lengths"])
    decoded = model.decode(kit["tokens"], lengths_B, model.encode(VisualFeatures(grid_BNC=kit["regions"])))
    log_probabilities_BTV = decoded.logits_BTV.log_softmax(dim=-1)
    real_BT = torch.arange(kit["tokens"].shape[1]) < lengths_B[:, None]
    assert relative(log_probabilities_BTV[real_BT], kit["logp"][real_BT]) <= 1e-5
    targets_BT = kit["tokens"][:, 1:]
    loss = torch.nn.functional.nll_loss(
        log_probabilities_BTV[:, :-1].flatten(0, 1),
        targets_BT.flatten(),
        ignore_index=options["special_ids"]["pad"],
    )
    assert loss.item() == pytest.approx(kit["xe_loss"].item(), rel=1e-5)


def test_gradients_of_every_parameter_and_of_the_regions(kit, options, model):
    regions_BNC = kit["regions"].clone().requires_grad_()
    decoded = model.decode(
        kit["tokens"], torch.tensor(options["lengths"]), model.encode(VisualFeatures(grid_BNC=regions_BNC))
    )
    (decoded.logits_BTV.log_softmax(dim=-1) * kit["cot"]).sum().backward()
    expected = {name.removeprefix("grad."): value for name, value in kit.items() if name.startswith("grad.")}
    expected["decoder.pos_emb.weight"] = kit["state.decoder.pos_emb.weight"]
    expected_by_our_names = from_reference(
        expected, options
    ).state_dict()  # gradients have the places of their weights
    floor = 1e-3 * options["largest_gradient"]
    for name, parameter in model.named_parameters():
        difference = (parameter.grad - expected_by_our_names[name]).abs().max()
        assert difference <= 5e-4 * max(float(expected_by_our_names[name].abs().max()), floor), name
    assert relative(regions_BNC.grad, kit["gregions"]) <= 5e-4


def test_a_missing_weight_is_named(kit, options):
    state = {name: value for name, value in kit.items() if name != "state.decoder.layers.1.fc_alpha2.bias"}
    with pytest.raises(
        ModelError, match=r"hold no 'decoder\.layers\.1\.fc_alpha2\.bias'.*give its 'state_dict' entry"
    ):
        from_reference(state, options)


def test_a_weight_without_a_place_is_named(kit, options):
    with pytest.raises(ModelError, match=r"no place for, among them 'decoder\.layers\.0\.extra'"):
        from_reference({**kit, "state.decoder.layers.0.extra": torch.zeros(1)}, options)


def test_the_heads_must_be_given(kit):
    with pytest.raises(ModelError, match=r"give it in the options, as in \{'heads': 8\}"):
        from_reference(kit, {})
