"""Equality with the public PMF code, on a kit of its weights, inputs, outputs and gradients."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from patchword.convert.prompt_fusion import from_reference, our_name
from patchword.errors import ModelError

KITS = Path(__file__).parents[1] / "kits" / "pmf"


@pytest.fixture(scope="module")
def kit():
    return load_file(KITS / "pmf_f2_d32_48.safetensors")


@pytest.fixture(scope="module")
def options():
    return json.loads((KITS / "pmf_f2_d32_48.json").read_text())


@pytest.fixture()
def model(kit, options):
    return from_reference(kit, options)


def inputs(kit):
    return kit["image"], kit["input_ids"], kit["token_type_ids"], kit["attention_mask"]


def test_logits(kit, model):
    logits_BY = model(*inputs(kit))
    assert (logits_BY - kit["logits"]).abs().max() <= 1e-5 * kit["logits"].abs().max()


def test_logits_from_stored_tokens(kit, model):
    assert torch.equal(model.fuse(model.lower(*inputs(kit))), model(*inputs(kit)))


def test_gradients_of_prompts_maps_and_heads(kit, options, model):
    (model(*inputs(kit)) * kit["cot"]).sum().backward()
    expected = {
        our_name(name.removeprefix("grad.")): value for name, value in kit.items() if name.startswith("grad.")
    }
    found = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert set(found) == set(expected)
    floor = 1e-3 * options["largest_gradient"]
    for name, gradient in found.items():
        difference = (gradient - expected[name].reshape(gradient.shape)).abs().max()
        assert difference <= 5e-4 * max(float(expected[name].abs().max()), floor), name


def test_unused_poolers_are_left_out(kit, options):
    state = {name.removeprefix("state."): value for name, value in kit.items() if name.startswith("state.")}
    poolers = {
        "vit_encoder.pooler.dense.bias": torch.zeros(32),
        "bert_encoder.pooler.dense.bias": torch.zeros(48),
    }
    logits_BY = from_reference({**state, **poolers}, options)(*inputs(kit))
    assert torch.equal(logits_BY, from_reference(kit, options)(*inputs(kit)))


def test_what_does_not_fit_is_named(kit, options):
    state = {name: value for name, value in kit.items() if name != "state.v2t_qp.1"}
    with pytest.raises(
        ModelError,
        match=r"PMF weights lack 1 parameters, the first in our names is fused\.1\.image\.query_QC",
    ):
        from_reference(state, options)
    with pytest.raises(
        ModelError, match=r"t2v_qp\.0 has shape \(3, 48\), and these options make it \(5, 48\)"
    ):
        from_reference(kit, {**options, "n_qp": 5})
    with pytest.raises(ModelError, match=r"an entry 'extra\.weight' that the public code does not have"):
        from_reference({**kit, "state.extra.weight": torch.zeros(1)}, options)
    with pytest.raises(ModelError, match="options of a PMF model lack bert, n_classes"):
        from_reference(
            kit, {name: value for name, value in options.items() if name not in ("bert", "n_classes")}
        )
