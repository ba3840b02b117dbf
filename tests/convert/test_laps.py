"""Equality with the public LAPS code (CrossmodalGroup/LAPS, commit 355a43b) on random weights, kits under
tests/kits/laps.
"""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from patchword.convert.laps import KEYS, from_reference
from patchword.errors import ModelError

KITS = Path(__file__).parents[1] / "kits" / "laps"


def kit(name):
    tensors, options = (
        load_file(KITS / f"{name}.safetensors"),
        json.loads((KITS / f"{name}.json").read_text()),
    )
    return tensors, {key[6:]: value for key, value in tensors.items() if key.startswith("state.")}, options


def close(found, expected):
    return float((found - expected).abs().max()) <= 1e-5 * float(expected.abs().max()) + 1e-6


@pytest.mark.parametrize(("name", "class_token"), [("d64_p196", True), ("d64_p49_nocls", False)])
def test_similarities_masks_and_gradients_equal_the_public_code(name, class_token):
    tensors, state, options = kit(name)
    head = from_reference(state, options)
    images, captions = tensors["img"].requires_grad_(), tensors["cap"].requires_grad_()
    aligned = head.align(head.images(images, class_token), head.captions(captions, tensors["lens"]))
    assert float((aligned.similarities_IJ.detach() - tensors["sims"]).abs().max()) < 1e-6
    assert torch.equal(aligned.keep_IJN.transpose(0, 1), tensors["mask"])
    aligned.similarities_IJ.backward(tensors["cot"])
    assert close(images.grad, tensors["gimg"]) and close(captions.grad, tensors["gcap"])
    parameters = dict(head.named_parameters())
    for theirs, ours in KEYS.items():
        gradient = tensors[f"grad.{theirs}"]
        assert close(parameters[ours].grad.reshape(gradient.shape), gradient), theirs
    with torch.no_grad():
        assert (
            float((head.eval()(images, captions, tensors["lens"], class_token) - tensors["sims"]).abs().max())
            < 1e-6
        )


def test_weights_that_do_not_fit_are_refused():
    _, state, options = kit("d64_p196")
    with pytest.raises(ModelError, match="lack aggr_ratio"):
        from_reference(state, {key: value for key, value in options.items() if key != "aggr_ratio"})
    with pytest.raises(ModelError, match="aggr_net.scale missing or unknown"):
        from_reference({key: value for key, value in state.items() if key != "aggr_net.scale"}, options)
    with pytest.raises(
        ModelError, match=r"aggr_net.weight.3.\w+ has shape .*39.*but these options make it .*78"
    ):
        from_reference(state, {**options, "aggr_ratio": 0.8})
