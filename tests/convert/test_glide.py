"""Equality with the attention block of the public GLIDE code on random weights, kit under tests/kits/glide."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from patchword.convert.glide import attention_from_reference
from patchword.errors import ModelError
from patchword.layers.attention import hide

KIT = Path(__file__).parents[1] / "kits" / "glide" / "attention_c128_h4.safetensors"


def test_attention_over_text_and_cells_equals_the_public_code():
    kit = load_file(KIT)
    state = {name[6:]: tensor for name, tensor in kit.items() if name.startswith("state.")}
    layer = attention_from_reference(state, 32)
    x = kit["x"].requires_grad_()
    hidden = hide(torch.ones(2, 1, 1, 5, dtype=torch.bool))
    out, _ = layer(x, *layer.encode(kit["text"].transpose(1, 2)), hidden)
    assert torch.allclose(out, kit["out"], atol=1e-5, rtol=1e-5)
    out.backward(kit["cot"])
    assert torch.allclose(x.grad, kit["gx"], atol=1e-4, rtol=1e-5)
    del state["proj_out.bias"]
    with pytest.raises(ModelError, match="proj_out.bias are missing or unknown"):
        attention_from_reference(state, 32)
