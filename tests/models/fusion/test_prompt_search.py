import random

import pytest
import torch
from transformers import BertConfig, ViTConfig

from patchword.models.fusion.prompt_fusion import PromptFusionConfig
from patchword.models.fusion.prompt_search import (
    PromptSupernet,
    SearchSpace,
    genes_of,
    saved_bytes,
    structure_of,
    trained_parameters,
)
from patchword.towers.bert import BertTower
from patchword.towers.vit import VitTower

SPACE = SearchSpace(
    fused_layers=(0, 1, 2), query=(0, 1, 3), query_context=(0, 2), fusion_context=(0, 2), map_width=(4, 6)
)


@pytest.fixture(scope="module")
def supernet():
    torch.manual_seed(0)
    vit = ViTConfig(
        hidden_size=8,
        num_hidden_layers=3,
        num_attention_heads=2,
        intermediate_size=16,
        image_size=8,
        patch_size=4,
    )
    bert = BertConfig(
        hidden_size=12,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=16,
        vocab_size=20,
        max_position_embeddings=9,
    )
    net = PromptSupernet(SPACE, 5, VitTower.from_architecture(vit), BertTower.from_architecture(bert))
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return net.eval()


def batch():
    generator = torch.Generator().manual_seed(1)
    mask_BL = torch.arange(5) < torch.tensor([[5], [2]])
    return (
        torch.randn(2, 3, 8, 8, generator=generator),
        torch.randint(3, 20, (2, 5), generator=generator),
        None,
        mask_BL,
    )


def test_a_structure_in_the_supernet_is_the_model_of_its_own_with_the_same_weights(supernet):
    tokens, generator = supernet.lower(*batch()), random.Random(0)
    drawn = [SPACE.draw(5, generator) for _ in range(5)]
    for structure in [*drawn, SPACE.largest(5), PromptFusionConfig(classes=5, fused_layers=0)]:
        alone = supernet.extract(structure)
        torch.testing.assert_close(supernet(structure, tokens), alone(*batch()), rtol=1e-5, atol=1e-6)
        assert sum(p.numel() for p in alone.parameters() if p.requires_grad) == trained_parameters(
            structure, 8, 12
        )
    assert torch.equal(supernet(SPACE.largest(5), tokens), supernet.whole(*batch()))


def test_the_gradient_reaches_the_structures_own_corner_and_no_more(supernet):
    supernet.zero_grad()
    structure = PromptFusionConfig(
        classes=5, fused_layers=1, query=(1,), query_context=(0,), fusion_context=(2,), map_width=(4,)
    )
    supernet(structure, supernet.lower(*batch())).square().sum().backward()
    top, below = supernet.whole.fused[1], supernet.whole.fused[0]
    assert top.image.query_QC.grad[0].abs().sum() > 0 and top.image.query_QC.grad[1:].abs().sum() == 0
    assert (
        top.image_to_text.inner.weight.grad[:4].abs().sum() > 0
        and top.image_to_text.inner.weight.grad[4:].abs().sum() == 0
    )
    assert all(parameter.grad is None for parameter in below.parameters())
    assert supernet.whole.image_head.weight.grad.abs().sum() > 0


def test_children_stay_in_the_space():
    generator = random.Random(3)
    one, other = SPACE.draw(5, generator), SPACE.draw(5, generator)
    for _ in range(200):
        child = generator.choice([SPACE.mutate(one, generator, 0.5, 0.4), SPACE.cross(one, other, generator)])
        assert child.fused_layers in SPACE.fused_layers
        for gene in genes_of(child):
            assert gene.query in SPACE.query and gene.map_width in SPACE.map_width
            assert gene.query or (gene.query_context == 0 and gene.map_width == 4)
        assert structure_of(genes_of(child), 5) == child
        one, other = child, one


def test_saved_bytes_by_hand():
    weight = torch.nn.Linear(3, 4, bias=False)
    x_BC = torch.randn(2, 3)
    assert saved_bytes(weight, lambda: weight(x_BC)) == 2 * 3 * 4  # the input, for the weight's gradient
    assert saved_bytes(weight, lambda: weight(x_BC).relu()) == 2 * 3 * 4 + 2 * 4 * 4  # and ReLU's output


def test_more_fused_layers_keep_more_and_stored_tokens_carry_no_gradient(supernet):
    tokens = supernet.lower(*batch())
    kept = [saved_bytes(supernet, lambda depth=depth: supernet(fixed(depth), tokens)) for depth in (0, 1, 2)]
    assert kept[0] < kept[1] < kept[2]


def fixed(depth):
    return PromptFusionConfig(
        classes=5, fused_layers=depth, query=1, query_context=2, fusion_context=2, map_width=4
    )


def test_a_map_without_width_is_no_choice():
    with pytest.raises(ValueError, match="map_width offers 0: a searched map has a width of at least 1"):
        SearchSpace(map_width=(0, 4))
