import pytest
import torch
from transformers import BertConfig, CLIPTextConfig, SwinConfig, ViTConfig

from patchword.errors import ConfigError, ModelError
from patchword.models.fusion.prompt_fusion import (
    FusedLayer,
    FusionTokens,
    PromptFusion,
    PromptFusionConfig,
    label_loss,
)
from patchword.towers.bert import BertTower
from patchword.towers.clip import ClipTextTower
from patchword.towers.vit import SwinTower, VitTower

VIT = dict(
    hidden_size=16,
    num_hidden_layers=3,
    num_attention_heads=2,
    intermediate_size=24,
    image_size=12,
    patch_size=4,
)
BERT = dict(
    hidden_size=24,
    num_hidden_layers=2,
    num_attention_heads=3,
    intermediate_size=32,
    vocab_size=30,
    max_position_embeddings=12,
)


def made(trainable_from=None, vit=VIT, bert=BERT, seed=0, **settings):
    """A fusion of tiny towers of different depth and width, with prompts large enough to show."""
    torch.manual_seed(seed)
    image_tower = VitTower.from_architecture(ViTConfig(**vit), trainable_from)
    text_tower = BertTower.from_architecture(BertConfig(**bert), trainable_from)
    model = PromptFusion(PromptFusionConfig(classes=5, **settings), image_tower, text_tower)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(7)
    ids_BL = torch.randint(3, 30, (3, 6), generator=generator)
    mask_BL = torch.arange(6) < torch.tensor([[6], [3], [1]])
    return torch.randn(3, 3, 12, 12, generator=generator), ids_BL * mask_BL, None, mask_BL


def by_the_equations(model, image, ids_BL, types_BL, mask_BL):
    """The paper's equations with whole layers: append, run, cut."""
    tokens, config = model.lower(image, ids_BL, types_BL, mask_BL), model.config
    z = {"image": tokens.image_BNC, "text": tokens.text_BLC}
    real = {"image": torch.ones(z["image"].shape[:2], dtype=torch.bool), "text": mask_BL}
    batch = len(image)

    def run(layer, side, joining):
        rows = torch.cat([z[side], *(part.expand(batch, -1, -1) for part in joining if part is not None)], 1)
        mask = torch.cat([real[side], real[side].new_ones(batch, rows.shape[1] - z[side].shape[1])], 1)
        return layer(rows, mask)

    for fused, image_layer, text_layer in model.fused_pairs():
        layers, prompts = (
            {"image": image_layer, "text": text_layer},
            {"image": fused.image, "text": fused.text},
        )
        message = {"image": None, "text": None}
        for side, other, to_other in (
            ("image", "text", fused.image_to_text),
            ("text", "image", fused.text_to_image),
        ):
            own = prompts[side]
            if own.query_QC is not None:
                message[other] = to_other(
                    run(layers[side], side, [own.query_context_MC, own.query_QC])[:, -len(own.query_QC) :]
                )
        after = {
            side: run(layers[side], side, [prompts[side].fusion_context_MC, message[side]]) for side in z
        }
        z = {side: after[side][:, : z[side].shape[1]] for side in z}
    assert config.fused_layers == len(model.fused)
    return (
        model.image_head(model.image_tower.finish(z["image"]).class_BC) + model.text_head(z["text"][:, 0])
    ) / 2


SETTINGS = [
    dict(fused_layers=0),
    dict(fused_layers=1),
    dict(fused_layers=2, query=3, query_context=2, fusion_context=1, map_width=7),
    dict(fused_layers=2, query=2, query_context=0, fusion_context=3),
    dict(fused_layers=2, query=2, query_context=3, fusion_context=0),
    dict(fused_layers=2, query=0),
    dict(fused_layers=2, query=0, fusion_context=0),
    dict(fused_layers=2, query=(1, 4), query_context=(0, 2), fusion_context=(3, 0), map_width=(5, 9)),
]


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_the_rows_that_are_computed_are_those_of_the_equations(batch, settings):
    model = made(**settings).eval()
    torch.testing.assert_close(model(*batch), by_the_equations(model, *batch), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_every_trained_parameter_has_a_gradient_and_the_towers_have_none(batch, settings):
    model = made(**settings).train()
    model(*batch).square().sum().backward()
    towers = ("image_tower.", "text_tower.")
    for name, parameter in model.named_parameters():
        if name.startswith(towers):
            assert parameter.grad is None and not parameter.requires_grad
        else:
            assert parameter.grad.abs().sum() > 0, name


def test_all_layers_of_equal_towers_can_be_fused(batch):
    model = made(bert={**BERT, "num_hidden_layers": 3}, fused_layers=3).eval()
    torch.testing.assert_close(model(*batch), by_the_equations(model, *batch), rtol=1e-5, atol=1e-6)


def test_equal_widths_can_do_without_a_map(batch):
    model = made(bert={**BERT, "hidden_size": 16, "num_attention_heads": 2}, map_width=0).eval()
    torch.testing.assert_close(model(*batch), by_the_equations(model, *batch), rtol=1e-5, atol=1e-6)
    with pytest.raises(ConfigError, match="the towers are 16 and 24 wide: give the maps a width"):
        made(map_width=0)


def test_padding_and_other_rows_change_nothing(batch):
    model = made(fused_layers=2).eval()
    image, ids_BL, _, mask_BL = batch
    whole_BY = model(*batch)
    alone_1Y = model(image[1:2], ids_BL[1:2, :3], None, mask_BL[1:2, :3])
    torch.testing.assert_close(whole_BY[1:2], alone_1Y, rtol=1e-5, atol=1e-6)
    integers_BY = model(image, ids_BL, torch.zeros_like(ids_BL), mask_BL.long())
    assert torch.equal(integers_BY, whole_BY)


def test_each_tower_hears_the_other(batch):
    model = made(fused_layers=2).eval()
    image, ids_BL, _, mask_BL = batch
    image_BY, text_BY = model.fuse_heads(model.lower(*batch))
    other_image_BY, other_text_BY = model.fuse_heads(model.lower(image.flip(3), ids_BL, None, mask_BL))
    assert not torch.allclose(text_BY, other_text_BY)
    apart = made(fused_layers=2, query=0).eval()
    _, text_BY = apart.fuse_heads(apart.lower(*batch))
    _, other_text_BY = apart.fuse_heads(apart.lower(image.flip(3), ids_BL, None, mask_BL))
    assert torch.equal(text_BY, other_text_BY)


def test_frozen_lower_layers_can_be_stored(batch):
    model = made(fused_layers=1).train()
    tokens = model.lower(*batch)
    assert not tokens.image_BNC.requires_grad and not tokens.text_BLC.requires_grad
    stored = FusionTokens(tokens.image_BNC.clone(), tokens.text_BLC.clone(), tokens.text_mask_BL)
    labels_B = torch.tensor([0, 4, 2])
    gradients = []
    for logits_BY in (model(*batch), model.fuse(stored)):
        model.zero_grad()
        label_loss(logits_BY, labels_B, multi_label=False).backward()
        gradients.append(
            [parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None]
        )
    assert all(torch.equal(one, other) for one, other in zip(*gradients, strict=True))


def test_training_leaves_frozen_dropout_off(batch):
    model = made(
        bert={**BERT, "hidden_dropout_prob": 0.5, "attention_probs_dropout_prob": 0.5}, fused_layers=2
    ).train()
    assert torch.equal(model(*batch), model(*batch))


def test_whole_towers_can_be_trained_too(batch):
    model = made(trainable_from=0, fused_layers=2)
    model(*batch).square().sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    assert model.image_tower.model.embeddings.cls_token.grad.abs().sum() > 0
    assert model.text_tower.model.embeddings.word_embeddings.weight.grad.abs().sum() > 0


def test_explain_says_where_the_query_prompts_looked(batch):
    model = made(fused_layers=2, query=(0, 3), query_context=2).eval()
    lower, gathered = model.explain(model.lower(*batch))
    assert lower is None
    assert gathered.patches_BQN.shape == (3, 3, 10) and gathered.words_BQL.shape == (3, 3, 6)
    for weights in (gathered.patches_BQN, gathered.words_BQL):
        assert bool(((weights.sum(-1) > 0) & (weights.sum(-1) < 1)).all())
    mask_BL = batch[3]
    assert gathered.words_BQL.sum(1)[~mask_BL].abs().sum() == 0


def test_it_learns_labels_that_need_both_towers():
    """Label = (picture is bright) xor (word is 5): neither tower alone can tell."""
    torch.manual_seed(3)
    model = made(fused_layers=2, query=2, query_context=1, fusion_context=1)
    bright_B, five_B = torch.tensor([0, 0, 1, 1]), torch.tensor([0, 1, 0, 1])
    image = (bright_B * 2.0 - 1)[:, None, None, None] * torch.ones(4, 3, 12, 12) + 0.1 * torch.randn(
        4, 3, 12, 12
    )
    ids_BL = torch.stack([torch.full((4,), 3), 6 - five_B, torch.full((4,), 4)], 1)
    tokens = model.lower(image, ids_BL)
    optimiser = torch.optim.AdamW(
        [parameter for parameter in model.parameters() if parameter.requires_grad], lr=0.02
    )
    for _ in range(150):
        loss = label_loss(model.fuse(tokens), bright_B ^ five_B, multi_label=False)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert model.eval()(image, ids_BL).argmax(1).tolist() == [0, 1, 1, 0]


def test_label_losses_by_hand():
    logits_BY = torch.tensor([[0.0, 0.0], [0.0, 2.0]])
    ln2 = 0.6931472
    assert label_loss(logits_BY, torch.tensor([0, 1]), multi_label=False).item() == pytest.approx(
        (ln2 + 0.1269280) / 2, abs=1e-6
    )
    labels_BY = torch.tensor([[1, 0], [0, 1]])
    assert label_loss(logits_BY, labels_BY, multi_label=True).item() == pytest.approx(
        (3 * ln2 + 0.1269280) / 4, abs=1e-6
    )


def test_parameter_counts_of_the_paper_setting():
    """Base towers, F = 2, M = 4, 101 classes: 2 543 818 in the public code, and 12 288 fusion-context values
    that it forgets to train.
    """
    config = PromptFusionConfig(classes=101)
    fused = sum(
        parameter.numel()
        for layer in range(2)
        for parameter in FusedLayer(config, layer, 768, 768).parameters()
    )
    assert fused + 2 * (768 * 101 + 101) == 2_543_818 + 12_288


def test_towers_that_cannot_be_fused_are_refused():
    config = PromptFusionConfig(classes=2, fused_layers=1)
    vit, bert = VitTower.from_architecture(ViTConfig(**VIT)), BertTower.from_architecture(BertConfig(**BERT))
    swin = SwinTower.from_architecture(
        SwinConfig(image_size=32, embed_dim=8, depths=[1, 1], num_heads=[2, 2], window_size=4)
    )
    with pytest.raises(
        ModelError, match="the image tower, a SwinTower, cannot be fused by prompts: it needs a class token"
    ):
        PromptFusion(config, swin, bert)
    clip_text = ClipTextTower.from_architecture(
        CLIPTextConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=2, vocab_size=9)
    )
    with pytest.raises(ModelError, match="the text tower, a ClipTextTower, cannot be fused"):
        PromptFusion(config, vit, clip_text)
    with pytest.raises(
        ConfigError, match="fused_layers is 3 and the text tower has 2 layers: fuse at most those"
    ):
        PromptFusion(PromptFusionConfig(classes=2, fused_layers=3), vit, bert)


def test_settings_that_contradict_one_another_are_refused():
    with pytest.raises(
        ValueError, match="query lists 3 lengths for 2 fused layers: give one number, or one per layer"
    ):
        PromptFusionConfig(classes=2, query=(1, 2, 3))
    with pytest.raises(ValueError, match="fusion_context is -1: lengths are 0 to"):
        PromptFusionConfig(classes=2, fusion_context=-1)


def test_a_row_that_lacks_a_side_is_labelled_by_the_other_head(batch):
    model = made(fused_layers=2, query=2, query_context=1, fusion_context=1)
    tokens = model.lower(*batch)
    image_BY, text_BY = model.fuse_heads(tokens)
    logits_BY = model.fuse(tokens, torch.tensor([True, False, True]), torch.tensor([True, True, False]))
    torch.testing.assert_close(
        logits_BY, torch.stack([(image_BY[0] + text_BY[0]) / 2, text_BY[1], image_BY[2]])
    )
