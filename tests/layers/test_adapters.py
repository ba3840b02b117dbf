import pytest
import torch
from torch import nn
from transformers import CLIPVisionConfig, ViTConfig

from patchword.checkpoints.folder import tower_digest, weights_digest
from patchword.checkpoints.towers import first_trained, stored_digest
from patchword.errors import ConfigError
from patchword.layers.adapters import Adapter
from patchword.towers.clip import ClipTower, ClipTowerConfig
from patchword.towers.settings import AdaptersConfig
from patchword.towers.vit import VitTower, VitTowerConfig

SIZES = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "image_size": 8,
    "patch_size": 4,
}
ADAPTERS = AdaptersConfig(blocks=2, bottleneck=4)


def towers(kind, **settings):
    """The same tower without adapters and with them in its last two blocks."""
    tower, config, architecture = {
        "clip": (ClipTower, ClipTowerConfig, CLIPVisionConfig(**SIZES, projection_dim=12)),
        "vit": (VitTower, VitTowerConfig, ViTConfig(**SIZES)),
    }[kind]
    torch.manual_seed(0)
    plain = tower(config(architecture=architecture.to_diff_dict(), **settings)).eval()
    adapted = tower(config(architecture=architecture.to_diff_dict(), adapters=ADAPTERS, **settings)).eval()
    adapted.model.load_state_dict(plain.model.state_dict())
    return plain, adapted


def test_an_adapter_starts_as_nothing_and_learns_from_its_first_step():
    adapter, x_BNC = Adapter(8, 3), torch.randn(2, 5, 8)
    assert torch.equal(adapter(x_BNC), x_BNC)
    (adapter(x_BNC) * torch.randn(8)).sum().backward()
    assert adapter.up.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("kind", ["clip", "vit"])
def test_a_tower_with_adapters_starts_bit_equal_and_only_they_are_trained(kind):
    plain, adapted = towers(kind, **({"aligned": "value_only"} if kind == "clip" else {}))
    pixels_B3HW = torch.randn(2, 3, 8, 8)
    for ours, theirs in zip(adapted(pixels_B3HW), plain(pixels_B3HW), strict=True):
        assert torch.equal(ours, theirs) if isinstance(ours, torch.Tensor) else ours == theirs
    learning = {name for name, parameter in adapted.named_parameters() if parameter.requires_grad}
    assert learning == {
        f"adapters.{number}.{part}.{kind}"
        for number in (0, 1)
        for part in ("down", "up")
        for kind in ("weight", "bias")
    }
    before_B3HW = adapted(pixels_B3HW).grid_BNC
    before_B3HW.sum().backward()
    assert all(adapter.up.weight.grad.abs().sum() > 0 for adapter in adapted.adapters)
    nn.init.normal_(adapted.adapters[0].up.weight)
    assert not torch.allclose(adapted(pixels_B3HW).grid_BNC, before_B3HW)


def test_aligned_patches_pass_the_last_adapter():
    """The class token and the aligned patches come out of the same attention, so both pass what stands behind
    it.
    """
    plain, adapted = towers("clip", aligned="value_only")
    pixels_B3HW = torch.randn(1, 3, 8, 8)
    nn.init.normal_(adapted.adapters[1].up.weight)
    assert not torch.allclose(adapted(pixels_B3HW).aligned_BNE, plain(pixels_B3HW).aligned_BNE)


def test_what_is_stored_below_the_adapters_does_not_depend_on_them():
    plain, adapted = towers("clip")
    assert (first_trained(plain), first_trained(adapted)) == (3, 1)
    assert tower_digest(adapted) == tower_digest(plain) == weights_digest(plain)
    assert stored_digest(adapted, 1) == stored_digest(plain, 1)
    assert stored_digest(adapted, 2) != stored_digest(plain, 2) and stored_digest(
        adapted, None
    ) != stored_digest(plain, None)
    pixels_B3HW = torch.randn(2, 3, 8, 8)
    tokens_BNC, _ = plain.embed(pixels_B3HW)
    nn.init.normal_(adapted.adapters[0].up.weight)
    assert torch.equal(
        adapted.resume(plain.layers[0](tokens_BNC), None, 1).grid_BNC, adapted(pixels_B3HW).grid_BNC
    )


def test_a_tower_has_no_more_adapters_than_blocks():
    with pytest.raises(ConfigError, match="adapters.blocks is 4, and the tower has 3 blocks: choose 1 to 3"):
        ClipTower(
            ClipTowerConfig(
                architecture=CLIPVisionConfig(**SIZES).to_diff_dict(), adapters=AdaptersConfig(blocks=4)
            )
        )
