import torch
from torch import nn
from transformers import CLIPVisionConfig, CLIPVisionModel

from patchword.layers.adapters import Adapter, insert_adapters


def test_an_adapter_starts_as_nothing_and_learns_from_its_first_step():
    adapter, x_BNC = Adapter(8, 3), torch.randn(2, 5, 8)
    assert torch.equal(adapter(x_BNC), x_BNC)
    (adapter(x_BNC) * torch.randn(8)).sum().backward()
    assert adapter.up.weight.grad.abs().sum() > 0


def test_a_tower_with_adapters_starts_bit_equal_and_only_they_are_trained():
    tower = CLIPVisionModel(
        CLIPVisionConfig(hidden_size=16, intermediate_size=32, num_hidden_layers=3, num_attention_heads=2, image_size=8, patch_size=4)
    ).eval()
    tower.requires_grad_(False)
    pixels_B3HW = torch.randn(2, 3, 8, 8)
    before_BNC = tower(pixels_B3HW).last_hidden_state
    blocks = [module for module in tower.modules() if type(module).__name__ == "CLIPEncoderLayer"]
    adapters = insert_adapters([block.self_attn for block in blocks[-2:]], 4)
    assert torch.equal(tower(pixels_B3HW).last_hidden_state, before_BNC)
    assert {parameter for parameter in tower.parameters() if parameter.requires_grad} == {
        parameter for adapter in adapters for parameter in adapter.parameters()
    }
    nn.init.normal_(adapters[0].up.weight)
    assert not torch.allclose(tower(pixels_B3HW).last_hidden_state, before_BNC)
